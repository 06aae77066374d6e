"""Supervision views: which modalities of which samples are shown, over shards that stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from infra.errors import UserError
from pipeline.manifest import Manifest
from pipeline.order import mix, seed_of
from pipeline.rows import Rows
from pipeline.settings import Pairing

CHUNK = 2**18
"""Samples that are looked at together when a view is made."""


@dataclass(frozen=True)
class Pool:
    """Rows of one kind: these samples (numbers in the manifest), of which only the `shown` modalities are seen."""

    name: str
    samples: Rows
    shown: np.ndarray
    kept: Callable[[np.ndarray], np.ndarray] | None = None
    """With `keep`, where each row shows others: samples (B,) -> shown (B, M)."""

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class View:
    """A training set, or its part of a mixture, as pools of rows, of which a step takes `counts` rows each.

    With one count for several pools together (natural composition) `counts` is None, and a step takes `rows`.
    """

    manifest: Manifest
    pools: list[Pool]
    counts: list[int] | None
    rows: int
    """Rows of each step."""
    keys: int
    """Number of samples behind the view: the length of an epoch in rows."""
    starved: tuple[str, ...] = ()
    """Pools that should have a share of each step but get no row, because the batch is too small."""
    empty: int = 0
    """Samples that show nothing under this view: they give no row."""

    def describe(self) -> dict[str, int]:
        """Rows per pool; as "empty" the samples that give no row, if there are any."""
        rows = {pool.name: len(pool) for pool in self.pools}
        return rows | {"empty": self.empty} if self.empty else rows


def key_hashes(keys: Sequence[str], seed: int) -> np.ndarray:
    """A uniform 64-bit hash of each key: the only thing that decides which keys are pairs."""
    return np.array([xxhash.xxh3_64_intdigest(key.encode(), seed=seed & (2**64 - 1)) for key in keys], np.uint64)


def is_pair(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which keys are pairs: the round(fraction * N) keys of smallest hash, so smaller fractions are nested.

    The count is exact: at 0.1 % of a small data set a binomial count would drown the comparison of two seeds.
    """
    count = round(fraction * len(hashes))
    if count in (0, len(hashes)):
        return np.full(len(hashes), count > 0)
    paired = np.zeros(len(hashes), bool)
    paired[np.argpartition(hashes, count - 1)[:count]] = True
    return paired


def view(
    manifest: Manifest,
    split: str,
    modalities: Sequence[str],
    pairing: Pairing,
    seed: int,
    batch: int,
    partly: bool = False,
) -> View:
    """The rows of a split under a supervision view, as pure functions of (seed, key); a step takes `batch` rows.

    Raises UserError where the shards do not hold one of the modalities; with `partly` they need not.
    """
    rows = manifest.split(split)
    columns = manifest.column(modalities, partly)
    pairing_seed = seed if pairing.seed is None else pairing.seed
    everything = np.ones(len(modalities), bool)
    chosen: dict[str, np.ndarray] = {}
    empty = 0

    def choose(pool: str, part: slice, which: np.ndarray) -> None:
        chosen.setdefault(pool, np.zeros(len(rows), bool))[part] = which

    if pairing.view in ("declared", "keep"):
        keep = keeper(manifest, modalities, pairing.keep, pairing_seed) if pairing.view == "keep" else None
        for part, present in _presence(manifest, rows, columns):
            if keep:
                present = present & keep(np.arange(rows.start + part.start, rows.start + part.stop))
            choose("kept" if keep else "declared", part, np.asarray(present.any(1)))
            empty += int((~present.any(1)).sum())
        pools = [Pool(name, Rows(rows, which), everything, keep) for name, which in chosen.items()]
    else:
        hashes = _hashes(manifest, rows, pairing_seed)
        paired = is_pair(hashes, pairing.fraction)
        for part, present in _presence(manifest, rows, columns):
            kept = present if pairing.view == "split" else _keep_one(hashes[part], present)
            choose("complete", part, paired[part] & present.any(1))
            empty += int((~present.any(1)).sum())
            for column, name in enumerate(modalities):
                choose(f"only {name}", part, ~paired[part] & kept[:, column])
        shown = {f"only {name}": np.arange(len(modalities)) == column for column, name in enumerate(modalities)}
        pools = [Pool(name, Rows(rows, which), shown.get(name, everything)) for name, which in chosen.items()]
    pools = [pool for pool in pools if len(pool)]
    if pairing.composition == "natural" or pairing.view in ("declared", "keep") or not pools:
        return View(manifest, pools, None, batch, len(rows), empty=empty)
    weights = _weights([pool.name == "complete" for pool in pools], pairing.complete_share)
    counts = portions(weights, batch)
    starved = tuple(pool.name for pool, w, count in zip(pools, weights, counts, strict=True) if w > 0 and not count)
    return View(manifest, pools, counts, batch, len(rows), starved, empty)


def keeper(manifest: Manifest, modalities: Sequence[str], keep: float, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """samples (B,) -> (B, M): each modality is kept with probability `keep`, independently (MVAE appendix F).

    A pure function of (seed, key, modality's name), nested: what is kept at 0.1 is kept at 0.2.
    """
    salts = np.array([seed_of("keep", name) for name in modalities], np.uint64)
    limit = np.uint64(min(int(keep * 2**53), 2**53 - 1))

    def kept(samples: np.ndarray) -> np.ndarray:
        hashes = key_hashes(manifest.keys(samples), seed)
        drawn = mix(hashes[:, None] ^ salts) >> np.uint64(11)  # 53 bits, as many as a float tells apart
        return np.full(drawn.shape, True) if keep >= 1 else drawn < limit

    return kept


def _presence(manifest: Manifest, rows: range, columns: list[int]) -> Iterator[tuple[slice, np.ndarray]]:
    """Which modalities each sample has, (len, M), some samples at a time."""
    for start in range(0, len(rows), CHUNK):
        part = slice(start, min(start + CHUNK, len(rows)))
        bits = manifest.patterns(rows[part])
        has = [(bits >> np.uint64(c)) & np.uint64(1) if c >= 0 else np.zeros_like(bits) for c in columns]
        yield part, np.stack(has, 1).astype(bool)


def _hashes(manifest: Manifest, rows: range, seed: int) -> np.ndarray:
    parts = [key_hashes(manifest.keys(rows[i : i + CHUNK]), seed) for i in range(0, len(rows), CHUNK)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _keep_one(hashes: np.ndarray, present: np.ndarray) -> np.ndarray:
    """One present modality per key, chosen by the hash's digits (another part of it than decides on pairs)."""
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


def portions(weights: np.ndarray, batch: int) -> list[int]:
    """Rows per pool (or source) and step in these parts, rounded by largest remainder."""
    exact = weights / weights.sum() * batch
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: batch - counts.sum()]:
        counts[index] += 1
    return [int(count) for count in counts]


def mixture(
    manifests: Sequence[Manifest],
    shares: Sequence[float],
    modalities: Sequence[str],
    pairing: Pairing,
    seed: int,
    batch: int,
) -> list[View]:
    """Training views of several data directories, each with its share of every step; `pairing` is for the first one.

    The others are shown as declared and may hold some of the modalities only (monolingual text beside pairs). Raises
    UserError where a share comes to no row.
    """
    counts = portions(np.array(shares), batch)
    for manifest, share, count in zip(manifests, shares, counts, strict=True):
        if not count:
            raise UserError(
                f"mix: a share of {share:g} for {manifest.directory} is not one row of train.batch = {batch}: "
                "choose a larger share or batch"
            )
    views = [view(manifests[0], "train", modalities, pairing, seed, counts[0])]
    for manifest, count in zip(manifests[1:], counts[1:], strict=True):
        views.append(view(manifest, "train", modalities, Pairing(), seed, count, partly=True))
    return views
