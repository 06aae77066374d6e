"""Random numbers that are pure functions of a sample's key: the same in every process, in any order, for ever."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.order import GOLDEN, mix
from pipeline.pairing import key_hashes


def draws(keys: Sequence[str], seed: int, count: int) -> np.ndarray:
    """Uniform 64-bit numbers (len(keys), count): SplitMix64 (Steele et al., 2014) from the hash of each key."""
    return mix(key_hashes(keys, seed)[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)
