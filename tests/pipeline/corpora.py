"""Tiny official files of every corpus, by its name: a new corpus is tested by its line in `TINY`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import CORPORA, cub, landmarks
from pipeline.corpora.corpus import Corpus
from tests.pipeline.official import faces, mnist_and_svhn, strokes, write_mnist
from tests.pipeline.official_birds import write_birds

WORDS = {
    "en": ["the", "bird", "sings", "again", "and", "again", "a", "small", "song", "today", "we", "hear", "it"],
    "vi": ["con", "chim", "hót", "lại", "và", "nữa", "một", "bài", "nhỏ", "hôm", "nay", "chúng", "tôi", "nghe", "nó"],
}


def digits_of_strokes(place: Path) -> Path:
    """MNIST with pictures that differ."""
    return write_mnist(place, 48, picture=strokes)


def sentences(place: Path, count: int = 60) -> Path:
    """Two parallel files to train on, and two official test sets."""
    place.mkdir(parents=True)
    for name, lines in (("train", count), ("tst2012", 8), ("tst2013", 8)):
        for language, words in WORDS.items():
            rng = np.random.default_rng([lines, len(words)])
            text = [" ".join(rng.choice(words, rng.integers(2, 9))) for _ in range(lines)]
            (place / f"{name}.{language}").write_text("\n".join(text) + "\n")
    return place


def captions(place: Path) -> Path:
    """A table of one's own, with a text, a label and numbers, some of them missing."""
    place.mkdir()
    words = WORDS["en"]
    rows = [
        f"{' '.join(words[n % 7 : n % 7 + 4]) * (n % 3 > 0)},{('owl', 'wren')[n % 2] * (n % 4 > 0)},0.{n},{n}"
        for n in range(40)
    ]
    (place / "t.csv").write_text("\n".join(["caption,species,x,y", *rows]))
    (place / "pairstream.toml").write_text(
        """
        data.table = "t.csv"
        modalities.caption = {kind = "sentences", vocabulary = 300, length = 16}
        modalities.species = {kind = "label"}
        modalities.shape = {kind = "features", columns = ["x", "y"]}
        """
    )
    return place


TINY: dict[str, Callable[[Path], Path] | None] = {
    "digits": None,
    "mnist": digits_of_strokes,
    "binary-mnist": digits_of_strokes,
    "fashion-mnist": digits_of_strokes,
    "multimnist": digits_of_strokes,
    "mnist-split": digits_of_strokes,
    "mnist-split3": digits_of_strokes,
    "mnist-svhn": mnist_and_svhn,
    "mnist-digits": digits_of_strokes,
    "celeba": faces,
    "celeba-transforms": faces,
    "cub": write_birds,
    "cub-features": write_birds,
    "cub-resnet": write_birds,
    "iwslt-en-vi": sentences,
    "files": captions,
}
"""None: the corpus needs no files."""


@cache
def _vector(extractor: str) -> np.ndarray:
    return np.linspace(-1, 1, CORPORA[f"cub-{extractor}"].modalities["features"].shape[0]).astype(np.float32)


def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dlib and pretrained networks would find in pictures, they are told here."""
    corner = np.array([(x, y) for y in range(20, 48, 4) for x in range(16, 48, 3)][:68], float)
    monkeypatch.setattr(landmarks, "find", lambda picture: corner * min(picture.shape[:2]) / 64)
    names = {"efficientnet-lite0": "features", "resnet101": "resnet"}
    monkeypatch.setattr(
        cub, "extract", lambda extractor, weights, picture: _vector(names[extractor]) * picture.mean() / 255
    )
    monkeypatch.setattr(cub, "_weights", lambda source, extractor: "")


def tiny(name: str, place: Path) -> tuple[Corpus, Path | None]:
    """The corpus as `prepare` writes it, and its tiny files."""
    write = TINY[name]
    source = write(place) if write else None
    corpus = CORPORA[name]
    return (corpus.opened(source) if source and corpus.opened else corpus), source
