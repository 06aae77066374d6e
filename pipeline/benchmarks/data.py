"""Data for the stream's benchmark, made from what other packages bring along: nothing is downloaded."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from modalities import Attributes, Image, Label, Modality
from modalities.spec import Buffer
from pipeline.corpora.corpus import Corpus, Entry, Values

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKENS = 70
VOCABULARY = 4000
CELLS = (3, 2)
"""A photograph's attributes: is a channel bright in a cell? 3 x 2 cells and 3 channels make 18."""


@dataclass(frozen=True)
class Sentence(Modality):
    """A sentence of a text file as SentencePiece ids, padded with 0. Has no networks: it is read only."""

    model: bytes
    """A SentencePiece model."""

    extension = "txt"

    @property
    def shape(self) -> tuple[int, ...]:
        return (TOKENS,)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int64)

    @cached_property
    def _processor(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.model)

    def encode(self, value: np.ndarray) -> bytes:
        return str(value.item()).encode()

    def decode(self, members: Sequence[Buffer]) -> np.ndarray:
        texts = [str(member, "utf-8") for member in members]
        ids = [some[:TOKENS] for some in self._processor.encode(texts, num_threads=1)]
        batch = np.zeros((len(members), TOKENS), np.int64)
        batch[np.arange(TOKENS) < np.array([*map(len, ids)], int)[:, None]] = [one for some in ids for one in some]
        return batch

    def encoder(self, latent: int) -> nn.Module:
        raise NotImplementedError

    def decoder(self, latent: int) -> nn.Module:
        raise NotImplementedError

    def log_likelihood(self, parameters: Tensor, value: Tensor) -> Tensor:
        raise NotImplementedError

    def mean(self, parameters: Tensor) -> Tensor:
        raise NotImplementedError


def corpus(case: str, samples: int) -> Corpus:
    """The corpus of a case of the stream's benchmark, all of it training data."""
    modalities, values = MAKERS[case](samples)
    entries = [Entry(f"{case}/{number:08d}", "train", value) for number, value in enumerate(values)]
    return Corpus(case, "made for a benchmark", modalities, lambda _: entries, _source)


def _source(entry: Entry) -> Values:
    values: Values = entry.source
    return values


Made = tuple[dict[str, Modality], list[dict[str, np.ndarray]]]


def _digits(samples: int, image: Image) -> Made:
    """scikit-learn's digits in MNIST's size."""
    import cv2
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = [
        cv2.resize(one.astype(np.float32) * 255 / 16, (28, 28)).clip(0, 255).astype(np.uint8) for one in digits.images
    ]
    rows = [number % len(grey) for number in range(samples)]
    return {"image": image, "label": Label(10)}, [
        {"image": grey[row], "label": np.asarray(digits.target[row])} for row in rows
    ]


def _photographs(samples: int) -> Made:
    """64 x 64 pixels out of scikit-learn's two photographs, and 18 attributes of each."""
    import cv2
    from sklearn.datasets import load_sample_images

    photographs, rng, size = load_sample_images().images, np.random.default_rng(0), 64
    values = []
    for number in range(samples):
        whole = photographs[number % len(photographs)]
        top, left = rng.integers(0, whole.shape[0] - size), rng.integers(0, whole.shape[1] - size)
        patch = whole[top : top + size, left : left + size]
        cells = cv2.resize(patch, CELLS, interpolation=cv2.INTER_AREA)
        values.append({"photo": patch, "attributes": (cells.ravel() > 127).astype(np.uint8)})
    return {"photo": Image(size, size, codec="jpg", channels=3), "attributes": Attributes(18)}, values


def _sentences(samples: int) -> Made:
    """Pairs of neighbouring sentences from NumPy's documentation, and a unigram model trained on them."""
    from sentencepiece import SentencePieceTrainer

    texts = [inspect.getdoc(getattr(np, name)) or "" for name in sorted(dir(np)) if not name.startswith("_")]
    found = re.findall(r"[A-Z][^.>|]{20,300}\.(?=\s)", "\n\n".join(texts))
    sentences = list(dict.fromkeys(" ".join(one.split()) for one in found))
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=VOCABULARY, model_type="unigram",
        hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    pairs = [(number % len(sentences), (number + 1) % len(sentences)) for number in range(samples)]
    modality = Sentence(model.getvalue())
    return {"first": modality, "second": modality}, [
        {"first": np.asarray(sentences[one]), "second": np.asarray(sentences[other])} for one, other in pairs
    ]


MAKERS: dict[str, Callable[[int], Made]] = {
    "raw": lambda samples: _digits(samples, Image(28, 28)),
    "png": lambda samples: _digits(samples, Image(28, 28, codec="png")),
    "jpeg": _photographs,
    "text": _sentences,
}
