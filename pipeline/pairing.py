"""Supervision views: which modalities of which samples are shown, over shards that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from pipeline.config import Pairing
from pipeline.manifest import Manifest


@dataclass(frozen=True)
class Pool:
    """Rows of one kind: these samples (numbers in the manifest), of which only the `shown` modalities are seen."""

    name: str
    samples: np.ndarray
    shown: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class View:
    """A training set as pools of rows, of which a step takes `counts` rows each.

    With one count for several pools together (natural composition) `counts` is None.
    """

    pools: list[Pool]
    counts: list[int] | None
    keys: int
    """Number of samples behind the view: the length of an epoch in rows."""
    starved: tuple[str, ...] = ()
    """Pools that should have a share of each step but get no row, because the batch is too small."""

    def describe(self) -> dict[str, int]:
        """Rows per pool."""
        return {pool.name: len(pool) for pool in self.pools}


def key_hashes(keys: Sequence[str], seed: int) -> np.ndarray:
    """A uniform 64-bit hash of each key: the only thing that decides which keys are pairs."""
    return np.array([xxhash.xxh3_64_intdigest(key.encode(), seed=seed & (2**64 - 1)) for key in keys], np.uint64)


def is_pair(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which keys are pairs: the round(fraction * N) keys of smallest hash, so smaller fractions are nested.

    The count is exact: at 0.1 % of a small data set a binomial count would drown the comparison of two seeds.
    """
    count = round(fraction * len(hashes))
    paired = np.zeros(len(hashes), bool)
    paired[np.argsort(hashes, kind="stable")[:count]] = True
    return paired


def view(manifest: Manifest, split: str, modalities: Sequence[str], pairing: Pairing, seed: int, batch: int) -> View:
    """The rows of a split under a supervision view, as pure functions of (seed, key)."""
    rows = manifest.split(split)
    bits = manifest.patterns(rows)
    present = np.stack([(bits >> np.uint64(c)) & np.uint64(1) for c in manifest.column(modalities)], 1).astype(bool)
    samples = np.arange(rows.start, rows.stop)
    everything = np.ones(len(modalities), bool)
    if pairing.view == "declared":
        pools = [Pool("declared", samples[present.any(1)], everything)]
    else:
        pairing_seed = seed if pairing.seed is None else pairing.seed
        hashes = key_hashes(manifest.keys(rows), pairing_seed)
        paired = is_pair(hashes, pairing.fraction)
        pools = [Pool("complete", samples[paired & present.any(1)], everything)]
        kept = np.ones_like(present) if pairing.view == "split" else _keep_one(hashes, present)
        for column, name in enumerate(modalities):
            alone = np.arange(len(modalities)) == column
            pools.append(Pool(f"only {name}", samples[~paired & present[:, column] & kept[:, column]], alone))
    pools = [pool for pool in pools if len(pool)]
    if pairing.composition == "natural" or pairing.view == "declared" or not pools:
        return View(pools, None, len(rows))
    weights = _weights([pool.name == "complete" for pool in pools], pairing.complete_share)
    counts = _balanced(weights, batch)
    starved = tuple(pool.name for pool, w, count in zip(pools, weights, counts, strict=True) if w > 0 and not count)
    return View(pools, counts, len(rows), starved)


def _keep_one(hashes: np.ndarray, present: np.ndarray) -> np.ndarray:
    """One present modality per key, chosen by the hash's digits (another part of it than decides on pairs)."""
    from pipeline.order import mix

    total = np.maximum(present.sum(1), 1).astype(np.uint64)
    choice = (mix(hashes) % total).astype(np.int64)
    rank = np.cumsum(present, 1) - 1
    return present & (rank == choice[:, None])


def _weights(complete: list[bool], share: float) -> np.ndarray:
    """Each pool's part of a step: `share` for the complete pool, the rest in equal parts; all of it for a lone one."""
    if len(complete) == 1:
        return np.ones(1)
    rest = 1 - share if True in complete else 1
    return np.array([share if c else rest / complete.count(False) for c in complete])


def _balanced(weights: np.ndarray, batch: int) -> list[int]:
    """Rows per pool and step in these parts, rounded by largest remainder."""
    exact = weights / weights.sum() * batch
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: batch - counts.sum()]:
        counts[index] += 1
    return [int(count) for count in counts]
