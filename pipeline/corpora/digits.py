"""scikit-learn's 1,797 real handwritten digits (UCI, 8x8 pixels, 17 grey levels), cut into two halves and a label.

The pictures come with scikit-learn itself: nothing is downloaded.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from modalities import AnyModality, Image, Label
from pipeline.corpora.corpus import Corpus, Entry, by_hash

MODALITIES: dict[str, AnyModality] = {
    "top": Image(height=4, width=8, levels=16, hidden=(128, 128)),
    "bottom": Image(height=4, width=8, levels=16, hidden=(128, 128)),
    "label": Label(classes=10, hidden=(128, 128)),
}
TRAIN, VAL = 1258, 269  # 70 %, 15 %, and 270 to test


@lru_cache
def _raw() -> Any:
    from sklearn.datasets import load_digits

    return load_digits()


def entries(source: Path | None = None) -> list[Entry]:
    """All digits; which split a key is in follows from the order of the keys' hashes, fixed for ever."""
    keys = [f"digit{number:04d}" for number in range(len(_raw().target))]
    order = by_hash(keys, seed=1797)
    split = {key: "train" if i < TRAIN else "val" if i < TRAIN + VAL else "test" for i, key in enumerate(order)}
    return [Entry(key, split[key], number) for number, key in enumerate(keys)]


def load(entry: Entry) -> dict[str, np.ndarray]:
    """The halves and the label of one digit."""
    image, label = _raw().images[entry.source], _raw().target[entry.source]
    return {"top": image[:4], "bottom": image[4:], "label": np.asarray(label)}


DIGITS = Corpus("digits", "1,797 real 8x8 handwritten digits: top half, bottom half, label", MODALITIES, entries, load)
