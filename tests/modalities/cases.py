"""Modalities of each kind, with values that fit them, values and bytes that do not, and what torch makes of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from modalities import Attributes, Features, Image, Label, Modality, Sentences, Text
from tests.modalities.references import (
    all_beginnings,
    all_binary,
    bernoulli,
    categorical,
    gaussian,
    laplace,
    unchanged,
    word_by_word,
)


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
    whole: Modality | None = None
    """What the member holds that the modality is a part of."""

    @property
    def writer(self) -> Modality:
        """What writes the members that the modality reads."""
        return self.whole or self.modality


SMALL = Image(height=2, width=3, levels=16, hidden=(8, 4))
BINARY = Image(height=2, width=2, levels=1, hidden=(8,))
FULL = Image(height=1, width=2, hidden=(8, 4))
CLASSES = Label(classes=12, hidden=(8, 4))
FLAGS = Attributes(count=4, hidden=(8, 4))
WORDS = Text(vocabulary=5, length=4, embedding=8, hidden=4)
CAPTION = Sentences(vocabulary=4, length=8, embedding=32, network="cnn")
COLOUR = Image(height=2, width=3, levels=16, hidden=(8, 4), channels=3)
PNG = replace(SMALL, codec="png")
COLOUR_PNG = replace(COLOUR, codec="png")
JPEG = Image(height=9, width=16, hidden=(8, 4), codec="jpg", quality=90)
COLOUR_JPEG = replace(JPEG, channels=3)
MASK = replace(BINARY, codec="png")
NUMBERS = Features(count=4, hidden=(8, 4))
PART = replace(FLAGS, count=2, of="flags", first=1, among=4)

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
    "mask": Case(
        MASK, "png", (2, 2), np.float32,
        stored=[DOTS, DOTS.astype(bool), DOTS[::-1]], decoded=[DOTS, DOTS, DOTS[::-1]],
        unfit=[DOTS * 2, DOTS / 2], garbage=[picture("png", DOTS * 255), npy(DOTS), picture("png", INK_BYTES)],
        log_prob=bernoulli, outcomes=all_binary,
    ),
    "features": Case(
        NUMBERS, "npy", (4,), np.float32,
        stored=[
            np.array([0.5, -3, 1e6, 1e-6], np.float32), np.array([1 / 3, 0, -2e9, 1]), np.array([3, -1, 0, 7]),
            np.array([0.5, 6e4, 0, -1], np.float16), np.asfortranarray(np.ones((4, 2)))[:, 0],
        ],
        decoded=[
            np.array([0.5, -3, 1e6, 1e-6]), np.array([1 / 3, 0, -2e9, 1]), np.array([3, -1, 0, 7]),
            np.array([0.5, np.float16(6e4), 0, -1]), np.ones(4),
        ],
        unfit=[
            np.ones(3), np.ones((1, 4)), np.array(1.0), np.array([0, 1, np.nan, 1]), np.array([np.inf, 1, 1, 1]),
            np.array([0, 1, 1e300, 1]), np.ones(4, bool), np.ones(4, complex), np.array(["1", "2", "3", "4"]),
            np.array([None] * 4),
        ],
        garbage=[
            b"", b"0123", npy(np.ones(4)), npy(np.ones(4, ">f4")), npy(np.ones(4, np.int32)),
            npy(np.ones(3, np.float32)), npy(np.ones((4, 1), np.float32)), npy(np.ones(4, np.float32))[:-1],
            npy(np.array([0, np.nan, 0, 0], np.float32)), npy(np.array([0, 0, 0, -np.inf], np.float32)),
        ],
        log_prob=laplace(1.0, unchanged), outcomes=None,
    ),
    "part of attributes": Case(
        PART, "npy", (2,), np.float32,
        stored=[np.array([0, 1, 0, 0]), np.array([1, 0, 1, 1]), np.array([0, 1, 1, 0])],
        decoded=[np.array([1, 0]), np.array([0, 1]), np.array([1, 1])],
        unfit=[np.array([0, 1, 2, 0]), np.array([1, 0])],
        garbage=[
            b"", npy(np.zeros(2, np.uint8)), npy(np.zeros(3, np.uint8)), npy(np.array([2, 0, 0, 0], np.uint8)),
            npy(np.array([0, 0, 0, 255], np.uint8)), npy(np.array([0, 0, 3, 0], np.uint8)),
        ],
        log_prob=bernoulli, outcomes=lambda: torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), whole=FLAGS,
    ),
    "sentence": Case(
        CAPTION, "npy", (8,), np.int64,
        stored=[
            np.array([3, 2, 3, 3, 2, 3, 3, 0]), np.array([3, 0, 0, 0, 0, 0, 0, 0], np.uint8), np.zeros(8, np.int16),
            np.array([2, 3, 3, 0, 0, 0, 0, 0], np.uint64),
        ],
        decoded=[
            np.array([3, 2, 3, 3, 2, 3, 3, 0]), np.array([3, 0, 0, 0, 0, 0, 0, 0]), np.zeros(8),
            np.array([2, 3, 3, 0, 0, 0, 0, 0]),
        ],
        unfit=[
            np.zeros(7, int), np.zeros((1, 8), int), np.zeros(8), np.array([4, 0, 0, 0, 0, 0, 0, 0]),
            np.array([1, 3, 0, 0, 0, 0, 0, 0]), np.array([3, 3, 3, 3, 3, 3, 3, 3]), np.array([3, 0, 3, 0, 0, 0, 0, 0]),
        ],
        garbage=[
            b"", npy(np.zeros(7, np.uint8)), npy(np.zeros(8, np.int64)), npy(np.zeros(8, np.uint8))[:-1],
            npy(np.array([4, 0, 0, 0, 0, 0, 0, 0], np.uint8)), npy(np.array([3, 1, 0, 0, 0, 0, 0, 0], np.uint8)),
            npy(np.full(8, 3, np.uint8)), npy(np.array([3, 0, 3, 0, 0, 0, 0, 0], np.uint8)),
        ],
        log_prob=word_by_word, outcomes=lambda: all_beginnings(4, 8),
    ),
}  # fmt: skip


def otherwise(name: str, log_prob: Callable[[Tensor, Tensor], Tensor] = bernoulli, **settings: object) -> Case:
    """A case with other settings of the modality, and with them torch's other log-likelihood."""
    case = CASES[name]
    return replace(case, modality=replace(case.modality, **settings), log_prob=log_prob)  # type: ignore[arg-type]


CASES |= {
    "image with ReLU": otherwise("grey image", activation="relu"),
    "gaussian image": otherwise("grey image", gaussian(0.25, torch.sigmoid), likelihood="gaussian", scale=0.25),
    "laplace image": otherwise("grey image", laplace(0.75, torch.sigmoid), likelihood="laplace", scale=0.75),
    "gaussian coloured image": otherwise(
        "coloured image", gaussian(3.0, torch.sigmoid), likelihood="gaussian", scale=3.0
    ),
    "laplace coloured PNG": otherwise(
        "coloured PNG", laplace(1.0, torch.sigmoid), likelihood="laplace", activation="relu"
    ),
    "gaussian features": otherwise("features", gaussian(2.5, unchanged), likelihood="gaussian", scale=2.5),
}
