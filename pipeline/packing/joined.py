"""Batches and plans of several runs side by side, as one batch and one plan.

Shape legend: N runs, B rows of all of them, T terms, E experts, M modalities, P pairs of terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.batch import Batch
from pipeline.objectives.plan import Plan
from pipeline.posteriors import Recipe


@dataclass(frozen=True)
class Joined(Batch):
    """The rows of several runs, equally many of each, one run after the other."""

    runs: int = 1

    @property
    def share(self) -> int:
        """Rows of each run."""
        return len(self.keys) // self.runs

    def part(self, number: int) -> Batch:
        """One run's batch; its values are views."""
        rows = slice(number * self.share, (number + 1) * self.share)
        values, rows_of = {}, {}
        for name, places in self.rows_of.items():
            first, last = np.searchsorted(places, (rows.start, rows.stop)).tolist()
            whole = self.values[name]
            values[name] = whole[first:last] if first < last else torch.zeros_like(whole[:1])
            rows_of[name] = places[first:last] - rows.start
        return Batch(
            values, rows_of, self.present_BM[rows], self.weight_B[rows], self.row_B[rows], self.keys[rows]
        )  # fmt: skip


def join(batches: Sequence[Batch]) -> Joined:
    """Batches of as many rows each, in host memory, as one."""
    share = len(batches[0])
    values, rows_of = {}, {}
    for name in batches[0].values:
        parts = [batch.values[name] for batch in batches if len(batch.rows_of[name])]
        values[name] = torch.cat(parts or [batches[0].values[name]])
        rows_of[name] = np.concatenate([batch.rows_of[name] + n * share for n, batch in enumerate(batches)])
    return Joined(
        values,
        rows_of,
        np.concatenate([batch.present_BM for batch in batches]),
        torch.cat([batch.weight_B for batch in batches]),
        torch.cat([batch.row_B for batch in batches]),
        [key for batch in batches for key in batch.keys],
        len(batches),
    )


def join_plans(plans: Sequence[Plan]) -> Plan:
    """The terms of all runs' rows. Where a run has fewer terms than another, those that it lacks weigh nothing."""
    terms = max(len(plan.weight_TB) for plan in plans)

    def side_by_side(arrays: Sequence[np.ndarray], terms: int = terms) -> np.ndarray:
        if any(len(array) < terms for array in arrays):
            arrays = [np.concatenate([a, np.zeros((terms - len(a), *a.shape[1:]), a.dtype)]) for a in arrays]
        return np.concatenate(arrays, 1)

    def given(arrays: Sequence[np.ndarray | None], terms: int) -> np.ndarray | None:
        there = [array for array in arrays if array is not None]
        return side_by_side(there, terms) if there else None

    first = plans[0]
    return Plan(
        seen_TBM=side_by_side([plan.seen_TBM for plan in plans]),
        recipe=Recipe(
            side_by_side([plan.recipe.mask_TBE for plan in plans]),
            side_by_side([plan.recipe.prior_TB for plan in plans]),
        ),
        target_TBM=side_by_side([plan.target_TBM for plan in plans]),
        weight_TB=side_by_side([plan.weight_TB for plan in plans]),
        prior_TB=given([plan.prior_TB for plan in plans], terms),
        pairs_P2=first.pairs_P2,
        pair_PB=given([plan.pair_PB for plan in plans], len(first.pairs_P2)),
        sampling=first.sampling,
        joint_TB=given(
            [plan.joint_TB for plan in plans], max(0 if p.joint_TB is None else len(p.joint_TB) for p in plans)
        ),
    )
