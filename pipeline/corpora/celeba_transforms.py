"""CelebA's faces and five pictures that are computed from each: MVAE's transformations (section 6).

    pairstream prepare celeba-transforms --source DIR       DIR as for celeba; takes pip install 'pairstream[landmarks]'

All are 64x64, of the picture that corpus `celeba` holds, before it is compressed:

    image        the picture itself
    grey         its brightness (Rec. 601)
    edges        scikit-image's Canny detector with its default parameters, of grey
    mask         the face's parts, drawn from dlib's landmarks; these are found in the picture as it was published
    obscured     the right half black (the paper: "half of the image"; which, is in the authors' published code)
    watermarked  half-white letters from the lower left to the upper right corner (the paper's came from a web search)

A face that dlib does not find is a sample that lacks its mask. Splits and keys are those of celeba.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from infra.errors import UserError
from modalities import AnyModality, Image
from pipeline.corpora import celeba, landmarks
from pipeline.corpora.celeba import SIDE, thumbnail
from pipeline.corpora.corpus import Corpus, Entry, by_hash
from pipeline.corpora.official import frame, needed, pixels

COLOURS = celeba.MODALITIES["image"]
GREY = Image(height=SIDE, width=SIDE, codec="jpg", quality=95, network="conv", hidden=(512,))
LINES = Image(height=SIDE, width=SIDE, levels=1, codec="png", network="conv", hidden=(512,))
MODALITIES: dict[str, AnyModality] = {
    "image": COLOURS, "grey": GREY, "edges": LINES, "mask": LINES, "obscured": COLOURS, "watermarked": COLOURS,
}  # fmt: skip
SAMPLE, LEAST = 256, 0.9
"""In so many pictures faces are looked for before any is written, and this share of them has to be found."""


def entries(source: Path | None) -> Sequence[Entry]:
    """Those of celeba. Raises UserError also where dlib finds too few faces."""
    assert source is not None, "prepare gives it"
    found, looked = _faces(source)
    if found < LEAST * looked:
        raise UserError(
            f"{source}: dlib finds a face in {found} of {looked} pictures, and at least {LEAST:.0%} should have a "
            "mask: are these the aligned pictures of CelebA (img_align_celeba)?"
        )
    return celeba.entries(source)


def notes(source: Path | None) -> list[str]:
    """Where the splits come from, and in how many pictures dlib finds a face."""
    assert source is not None, "prepare gives it"
    found, looked = _faces(source)
    *_, splits = celeba.notes(source)  # those before it are about the attributes
    return [
        splits,
        f"masks: dlib finds a face in {found} of {looked} pictures ({found / looked:.1%}) chosen by the hash of the "
        "key; samples without one lack their mask",
    ]


@lru_cache(maxsize=1)
def _faces(source: Path) -> tuple[int, int]:
    """In how many pictures of a sample dlib finds a face, and the size of the sample."""
    pictures = {entry.key: entry.source.picture for entry in celeba.entries(source)}
    sample = by_hash(pictures, seed=68)[:SAMPLE]
    return sum(landmarks.find(pixels(pictures[key], key)) is not None for key in sample), len(sample)


def load(entry: Entry) -> dict[str, np.ndarray]:
    """The six pictures, or five where no face was found. Raises UserError."""
    import cv2

    whole = pixels(entry.source.picture, entry.key)
    image = thumbnail(whole)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    edges = needed("skimage.feature", landmarks.EXTRA).canny(grey / 255)
    obscured = image.copy()
    obscured[:, SIDE // 2 :] = 0
    values = {"image": image, "grey": grey, "edges": edges, "obscured": obscured, "watermarked": watermarked(image)}
    found = landmarks.find(whole)
    if found is not None:
        values["mask"] = landmarks.drawn(framed(found, *whole.shape[:2]), SIDE)
    return values


def framed(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Points (N, 2), (across, down) in the pixels of a picture of this size, in those of its thumbnail."""
    rows, columns, top, left = frame(height, width, SIDE)
    return (points + 0.5) * (columns / width, rows / height) - 0.5 - (left, top)


def watermarked(image: np.ndarray) -> np.ndarray:
    """A picture (64, 64, 3) under the watermark, rounded to whole levels."""
    return (image + watermark()[..., None] * (255.0 - image)).round().astype(np.uint8)


LETTERS = (
    ((0, 0), (0, 2), (0.7, 0.8), (1.4, 2), (1.4, 0)),
    ((2, 2), (2.7, 0), (3.4, 2)),
    ((4, 0), (4.7, 2), (5.4, 0)), ((4.3, 0.7), (5.1, 0.7)),
    ((7.2, 2), (6, 2), (6, 0), (7.2, 0)), ((6, 1), (7, 1)),
)  # fmt: skip
"""MVAE in straight strokes, (along the line, up)."""
LETTER, STROKE, OPACITY = 10.0, 1.2, 0.5
"""Pixels to a unit of the letters and from a stroke's middle to its edge, and how white it is."""


@cache
def watermark() -> np.ndarray:
    """How much of each pixel (64, 64) is white: own arithmetic, since libraries change how they draw text."""
    down, across = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    along, up = (across - down) / np.sqrt(2) / LETTER + 3.6, -(across + down) / np.sqrt(2) / LETTER + 1
    distance = np.full((SIDE, SIDE), np.inf)
    for letter in LETTERS:
        for (x, y), (to_x, to_y) in pairwise(letter):
            dx, dy = to_x - x, to_y - y
            place = np.clip(((along - x) * dx + (up - y) * dy) / (dx**2 + dy**2), 0, 1)
            distance = np.minimum(distance, np.hypot(along - x - place * dx, up - y - place * dy))
    return OPACITY * np.clip(STROKE + 0.5 - distance * LETTER, 0, 1)


CELEBA_TRANSFORMS = Corpus(
    "celeba-transforms",
    "CelebA's faces at 64x64: in grey, as edges, as masks, obscured, watermarked",
    MODALITIES,
    entries,
    load,
    needs=celeba.CELEBA.needs,
    notes=notes,
)
