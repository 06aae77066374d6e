"""Hashes and permutations that are pure functions: the stream's order and all of training's noise come from here.

Everything is random access: the k-th element of a shuffled sequence costs the same for every k and every length,
and nothing of the sequence's length is ever held in memory.
"""

from __future__ import annotations

import hashlib

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROUNDS = 6
CHUNK = 256
"""Rows that lie side by side in a shard and are moved together, so that reading keeps its locality."""
WINDOW = 64
"""Chunks that are shuffled into one another, row by row."""


def seed_of(*parts: int | str) -> int:
    """A 64-bit seed that names its purpose, e.g. seed_of(run.seed, "noise", step)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014) of unsigned 64-bit integers: a bijection that looks random."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def permute(index: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """Where each index of range(size) goes under a permutation of range(size) chosen by the key(s).

    A Feistel network over two digits of mixed radix whose product barely exceeds `size`; indices that fall outside
    walk on (Black & Rogaway 2002). `key` may be one integer or one per index. O(len(index)) time and memory.
    """
    left_size = max(1, int(np.ceil(np.sqrt(size))))
    right_size = max(1, -(-size // left_size))
    a, b = np.uint64(left_size), np.uint64(right_size)
    keys = np.broadcast_to(np.asarray(key, np.uint64), np.shape(index))
    result = np.array(index, np.uint64)
    outside = np.ones(result.shape, bool)
    while outside.any():
        left, right, round_key = result[outside] // b, result[outside] % b, keys[outside]
        with np.errstate(over="ignore"):
            for _ in range(ROUNDS):
                round_key = mix(round_key + GOLDEN)
                left = (left + mix(right + round_key)) % a
                round_key = mix(round_key + GOLDEN)
                right = (right + mix(left + round_key)) % b
        result[outside] = left * b + right
        outside[outside] = result[outside] >= size
    return result.astype(np.int64)


def shuffle(position: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """The row at each position of one shuffled pass over range(size); `key` names the pass, one per position.

    Chunks of neighbouring rows are permuted over the whole range, then rows within windows of WINDOW chunks, so a
    reader touches WINDOW small regions at a time. A range of at most one window is permuted as a whole.
    """
    window_size = CHUNK * WINDOW
    if size <= window_size:
        return permute(position, size, key)
    chunks = size // CHUNK
    window = position // window_size
    start = window * window_size
    last = start + window_size > size
    within = position - start
    with np.errstate(over="ignore"):
        window_key = mix(key + (window.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    shuffled = np.empty_like(within)
    shuffled[~last] = permute(within[~last], window_size, window_key[~last])
    shuffled[last] = permute(within[last], size % window_size or window_size, window_key[last])
    shuffled += start
    chunk, row = shuffled // CHUNK, shuffled % CHUNK
    whole = chunk < chunks  # the odd rows behind the last whole chunk stay where they are ...
    chunk[whole] = permute(chunk[whole], chunks, mix(key[whole]))
    rotation = (mix(key + np.uint64(1)) % np.uint64(size)).astype(np.int64)  # ... and are other rows in each pass
    return (chunk * CHUNK + row + rotation) % size
