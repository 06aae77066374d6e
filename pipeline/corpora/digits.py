"""scikit-learn's 1,797 real handwritten digits (UCI, 8x8 pixels, 17 grey levels), cut into two halves and a label.

The pictures come with scikit-learn itself: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modalities import AnyModality, Image, Label
from pipeline.corpora.corpus import Corpus
from pipeline.shards import Sample

MODALITIES: dict[str, AnyModality] = {
    "top": Image(height=4, width=8, levels=16, hidden=(128, 128)),
    "bottom": Image(height=4, width=8, levels=16, hidden=(128, 128)),
    "label": Label(classes=10, hidden=(128, 128)),
}
TRAIN, VAL = 1258, 269  # 70 %, 15 %, and 270 to test


def samples() -> Iterator[Sample]:
    """All digits; which split a key is in follows from the order of the keys' hashes, fixed for ever."""
    import xxhash
    from sklearn.datasets import load_digits

    data = load_digits()
    keys = [f"digit{number:04d}" for number in range(len(data.target))]
    order = sorted(keys, key=lambda key: xxhash.xxh3_64_intdigest(key.encode(), seed=1797))
    split = {key: "train" if i < TRAIN else "val" if i < TRAIN + VAL else "test" for i, key in enumerate(order)}
    for key, image, label in zip(keys, data.images, data.target, strict=True):
        values = {"top": image[:4], "bottom": image[4:], "label": np.asarray(label)}
        yield Sample(key, split[key], values)


DIGITS = Corpus("digits", "1,797 real 8x8 handwritten digits: top half, bottom half, label", MODALITIES, samples)
