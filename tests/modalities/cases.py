"""One modality of each kind, with values that fit it, values and bytes that do not, and what torch makes of it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor, distributions

from modalities import Attributes, Image, Label, Modality, Text


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(codec: str, array: np.ndarray) -> bytes:
    """A file by OpenCV, which takes blue first."""
    return cv2.imencode(f".{codec}", array)[1].tobytes()


@dataclass(frozen=True)
class Case:
    modality: Modality
    extension: str
    shape: tuple[int, ...]
    dtype: type
    stored: list[np.ndarray]
    """Values as a corpus gives them."""
    decoded: list[np.ndarray]
    """What they become in a batch."""
    unfit: list[np.ndarray]
    """Values that `encode` must refuse."""
    garbage: list[bytes]
    """Bytes that `decode` must refuse."""
    log_prob: Callable[[Tensor, Tensor], Tensor]
    """torch's own log-likelihood of (parameters, values)."""
    outcomes: Callable[[], Tensor] | None
    """All values that there are, where the likelihood must sum to one over them."""
    loss: float = 0.0
    """How far a decoded value may be from `decoded`."""


SMALL = Image(height=2, width=3, levels=16, hidden=(8, 4))
BINARY = Image(height=2, width=2, levels=1, hidden=(8,))
FULL = Image(height=1, width=2, hidden=(8, 4))
CLASSES = Label(classes=12, hidden=(8, 4))
FLAGS = Attributes(count=4, hidden=(8, 4))
WORDS = Text(vocabulary=5, length=4, embedding=8, hidden=4)
COLOUR = Image(height=2, width=3, levels=16, hidden=(8, 4), channels=3)
PNG = replace(SMALL, codec="png")
COLOUR_PNG = replace(COLOUR, codec="png")
JPEG = Image(height=9, width=16, hidden=(8, 4), codec="jpg", quality=90)
COLOUR_JPEG = replace(JPEG, channels=3)

INK = np.array([[0, 1, 16], [7, 8, 15]])
INK_BYTES = INK.astype(np.uint8)
DOTS = np.array([[0, 1], [1, 1]], np.uint8)
PAINT = np.stack([INK, INK[::-1], 16 - INK], axis=2)
PAINT_BYTES = PAINT.astype(np.uint8)
SHADE = np.add.outer(np.arange(9) * 10, np.arange(16) * 11)
SUNSET = np.stack([SHADE, 255 - SHADE, SHADE // 2], axis=2)
SUNSET_BYTES = SUNSET.astype(np.uint8)
WHOLE_JPEG, WHOLE_PNG = picture("jpg", SUNSET_BYTES), picture("png", INK_BYTES)


def planes(colours: np.ndarray) -> np.ndarray:
    """(height, width, 3) -> (3, height, width)."""
    return np.moveaxis(colours, 2, 0)


def bernoulli(parameters: Tensor, value: Tensor) -> Tensor:
    flat = value.flatten(1)
    return distributions.Bernoulli(logits=parameters, validate_args=False).log_prob(flat).sum(1)


def categorical(parameters: Tensor, value: Tensor) -> Tensor:
    return distributions.Categorical(logits=parameters).log_prob(value)


def word_by_word(parameters: Tensor, value: Tensor) -> Tensor:
    """Of one text after the other, and of one token after the other up to the first end."""
    sums = []
    for row, tokens in zip(parameters, value.tolist(), strict=True):
        read = tokens[: tokens.index(0) + 1] if 0 in tokens else tokens
        places = [distributions.Categorical(logits=row[place]) for place in range(len(read))]
        sums.append(sum(place.log_prob(torch.tensor(token)) for place, token in zip(places, read, strict=True)))
    return torch.stack(sums)


def all_beginnings() -> Tensor:
    """Whatever four places may hold up to an end, starts and endless texts among them."""
    rows = itertools.product(range(5), repeat=4)
    return torch.tensor([row for row in rows if 0 not in row or not any(row[row.index(0) :])])


def all_binary() -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).reshape(16, 2, 2)


CASES = {
    "grey image": Case(
        SMALL, "npy", (2, 3), np.float32,
        stored=[INK, INK.astype(np.float64), np.asfortranarray(INK[::-1]), INK.astype(np.uint8)],
        decoded=[INK / 16, INK / 16, INK[::-1] / 16, INK / 16],
        unfit=[
            INK.T, INK[None], INK[:1], INK + 1, INK - 1, INK / 16, INK + 256, np.where(INK, np.nan, 0.0),
            np.full((2, 3), np.inf), np.zeros((0, 3)), np.array(3),
        ],
        garbage=[
            b"", b"not an array", npy(INK.astype(np.uint8))[:-1], npy(INK.astype(np.uint8)) + b"\0",
            npy(INK.T.astype(np.uint8)), npy(INK.astype(np.int8)), npy(INK), npy(INK.astype(np.uint8) + 1),
            npy(np.asfortranarray(INK.astype(np.uint8))),
        ],
        log_prob=bernoulli, outcomes=None,
    ),
    "binary image": Case(
        BINARY, "npy", (2, 2), np.float32,
        stored=[DOTS, DOTS.astype(bool)], decoded=[DOTS, DOTS],
        unfit=[DOTS * 2, DOTS / 2, -DOTS.astype(int)], garbage=[npy(DOTS * 2), npy(DOTS)[1:]],
        log_prob=bernoulli, outcomes=all_binary,
    ),
    "byte image": Case(
        FULL, "npy", (1, 2), np.float32,
        stored=[np.array([[0, 255]])], decoded=[np.array([[0.0, 1.0]])],
        unfit=[np.array([[0, 256]]), np.array([[-1, 0]]), np.array([[0.0, 0.5]])],
        garbage=[npy(np.zeros((1, 3), np.uint8))],
        log_prob=bernoulli, outcomes=None,
    ),
    "label": Case(
        CLASSES, "cls", (), np.int64,
        stored=[np.array(0), np.array(11), np.array(7, np.uint8), np.array(3.0), np.array(10)],
        decoded=[np.array(0), np.array(11), np.array(7), np.array(3), np.array(10)],
        unfit=[
            np.array(12), np.array(-1), np.array([3]), np.array([1, 2]), np.array(2.7), np.array(np.nan),
            np.array(np.inf), np.array("3"), np.array(None),
        ],
        garbage=[b"", b"12", b"-1", b"3.0", b"seven", b"\xff\xfe", b"9" * 30, b"9" * 5000],
        log_prob=categorical, outcomes=lambda: torch.arange(12),
    ),
    "attributes": Case(
        FLAGS, "npy", (4,), np.float32,
        stored=[np.array([0, 1, 1, 0]), np.ones(4, bool), np.zeros(4), np.array([1, 0, 0, 0], np.uint8)],
        decoded=[np.array([0, 1, 1, 0]), np.ones(4), np.zeros(4), np.array([1, 0, 0, 0])],
        unfit=[
            np.array([0, 1, 1]), np.array([[0, 1, 1, 0]]), np.array([0, 1, 2, 0]), np.array([0, -1, 1, 1]),
            np.array([0, 1, 0.5, 1]), np.array([0, 1, np.nan, 1]), np.array([0, 256, 0, 1]), np.array(1),
        ],
        garbage=[
            b"", b"0110", npy(np.zeros(3, np.uint8)), npy(np.zeros((1, 4), np.uint8)), npy(np.zeros(4, bool)),
            npy(np.full(4, 2, np.uint8)), npy(np.zeros(4, np.uint8))[:-1],
        ],
        log_prob=bernoulli, outcomes=lambda: all_binary().flatten(1),
    ),
    "text": Case(
        WORDS, "npy", (4,), np.int64,
        stored=[
            np.array([2, 4, 3, 0]), np.array([3, 0, 0, 0], np.uint8), np.zeros(4, np.int16),
            np.array([2, 2, 0, 0], np.uint64),
        ],
        decoded=[np.array([2, 4, 3, 0]), np.array([3, 0, 0, 0]), np.zeros(4), np.array([2, 2, 0, 0])],
        unfit=[
            np.array([2, 0, 0]), np.array([[2, 0, 0, 0]]), np.array(0), np.array([2.0, 0, 0, 0]), np.zeros(4, bool),
            np.array([5, 0, 0, 0]), np.array([-1, 0, 0, 0]), np.array([2, 256, 0, 0]), np.array([1, 2, 3, 0]),
            np.array([2, 1, 0, 0]), np.array([2, 3, 4, 2]), np.array([2, 0, 3, 0]), np.array([0, 2, 0, 0]),
        ],
        garbage=[
            b"", b"2430", npy(np.zeros(3, np.uint8)), npy(np.zeros(4, np.int64)), npy(np.zeros((1, 4), np.uint8)),
            npy(np.zeros(4, np.uint8))[:-1], npy(np.array([5, 0, 0, 0], np.uint8)),
            npy(np.array([2, 1, 0, 0], np.uint8)), npy(np.array([2, 3, 4, 2], np.uint8)),
            npy(np.array([2, 0, 3, 0], np.uint8)),
        ],
        log_prob=word_by_word, outcomes=all_beginnings,
    ),
    "coloured image": Case(
        COLOUR, "npy", (3, 2, 3), np.float32,
        stored=[PAINT, PAINT.astype(float), np.asfortranarray(PAINT)], decoded=[planes(PAINT) / 16] * 3,
        unfit=[INK, planes(PAINT), PAINT[..., :1], PAINT + 1, PAINT / 16],
        garbage=[npy(planes(PAINT_BYTES)), npy(PAINT_BYTES + 1), npy(INK_BYTES), npy(PAINT), npy(PAINT_BYTES)[:-1]],
        log_prob=bernoulli, outcomes=None,
    ),
    "grey PNG": Case(
        PNG, "png", (2, 3), np.float32,
        stored=[INK, INK[::-1], INK.astype(float)], decoded=[INK / 16, INK[::-1] / 16, INK / 16],
        unfit=[INK.T, PAINT, INK + 1, INK - 1, INK / 16],
        garbage=[
            b"", b"no picture", npy(INK_BYTES), WHOLE_PNG[:-1], WHOLE_PNG[:40], WHOLE_PNG + b"\0", WHOLE_PNG[8:],
            WHOLE_PNG[:41] + b"\xff" + WHOLE_PNG[42:], picture("jpg", INK_BYTES), picture("bmp", INK_BYTES),
            picture("png", INK_BYTES.T), picture("png", INK_BYTES + 1), picture("png", PAINT_BYTES),
            picture("png", INK.astype(np.uint16)), picture("png", np.dstack([PAINT_BYTES, INK_BYTES])),
        ],
        log_prob=bernoulli, outcomes=None,
    ),
    "coloured PNG": Case(
        COLOUR_PNG, "png", (3, 2, 3), np.float32,
        stored=[PAINT, PAINT[::-1]], decoded=[planes(PAINT) / 16, planes(PAINT[::-1]) / 16],
        unfit=[INK, planes(PAINT), PAINT + 1],
        garbage=[
            WHOLE_PNG, picture("png", PAINT_BYTES[:1]), picture("png", np.dstack([PAINT_BYTES, INK_BYTES])),
            picture("png", PAINT.astype(np.uint16)), picture("png", PAINT_BYTES + 1), picture("png", PAINT_BYTES)[:-12],
        ],
        log_prob=bernoulli, outcomes=None,
    ),
    "grey JPEG": Case(
        JPEG, "jpg", (9, 16), np.float32,
        stored=[SHADE, SHADE[::-1]], decoded=[SHADE / 255, SHADE[::-1] / 255], unfit=[SUNSET, SHADE[:8], SHADE + 11],
        garbage=[WHOLE_JPEG, picture("png", SHADE.astype(np.uint8)), picture("jpg", SHADE.astype(np.uint8))[:-2]],
        log_prob=bernoulli, outcomes=None, loss=3 / 255,
    ),
    "coloured JPEG": Case(
        COLOUR_JPEG, "jpg", (3, 9, 16), np.float32,
        stored=[SUNSET, SUNSET[:, ::-1]], decoded=[planes(SUNSET) / 255, planes(SUNSET[:, ::-1]) / 255],
        unfit=[SHADE, planes(SUNSET), SUNSET - 1],
        garbage=[
            b"", b"no picture", b"\xff\xd8\xff\xd9", WHOLE_JPEG[:-1], WHOLE_JPEG[:-2], WHOLE_JPEG + b"\0",
            WHOLE_JPEG[: len(WHOLE_JPEG) // 2], WHOLE_JPEG[2:], picture("jpg", SHADE.astype(np.uint8)),
            picture("jpg", SUNSET_BYTES[:8]), picture("png", SUNSET_BYTES),
        ],
        log_prob=bernoulli, outcomes=None, loss=16 / 255,
    ),
}  # fmt: skip
