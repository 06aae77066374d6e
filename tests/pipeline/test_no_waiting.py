"""A step never waits for the device: forward, objective, metrics and backward run on a device that has no data.

On torch's "meta" device tensors have shapes only, so whatever would read a value back (`.item()`, a boolean index,
`nonzero`, `.tolist()`) raises.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modalities import Attributes, Image, Label, Sentences, Text
from pipeline.batch import Batch
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import SYSTEMS
from pipeline.settings import Objective
from tests.pipeline.batches import patterns, score

META = torch.device("meta")
FIVE = {
    "picture": Image(32, 32, network="conv", hidden=(8,)), "class": Label(3, hidden=(4, 4)), "word": Text(12, 5, 4, 4),
    "sentence": Sentences(9, 6, 4, 4, word_dropout=0.3), **{f"a{i}": Attributes(2, hidden=(4,)) for i in range(4)},
}  # fmt: skip


def on_meta(present: np.ndarray, kinds: dict) -> Batch:
    rows = {name: np.flatnonzero(present[:, column]) for column, name in enumerate(kinds)}
    values = {
        name: torch.from_numpy(np.zeros((max(1, len(rows[name])), *kind.shape), kind.dtype))
        for name, kind in kinds.items()
    }
    count = len(present)
    batch = Batch(values, rows, present, torch.ones(count), torch.arange(count), [str(i) for i in range(count)])
    return batch.to(META)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("case", ["whole", "any", "without the first", "nothing"])
def test_a_step_reads_nothing_back(system: str, case: str) -> None:
    few, many = SYSTEMS[system].modalities
    kinds = dict(list(FIVE.items())[: min(many, len(FIVE) if many > 6 else 3)])
    model = MultimodalVAE(kinds, 5, SYSTEMS[system].posterior(list(kinds))).to(META)
    present = np.ones((8, len(kinds)), bool) if case == "whole" else patterns(8, len(kinds), 1)
    present[:, 0] &= case != "without the first"
    present &= case != "nothing"
    batch = on_meta(present, kinds)
    for bound in ("stratified", "tight", "linear") if system == "mmvae" else ("stratified",):
        objective = replace(Objective(k=2, cross=0.1, samples=2), bound=bound)
        for later in (False, True) if SYSTEMS[system].later else (False,):
            terms = score(model, batch, objective, rows=8, system=system, later=later)
            terms.loss.backward()
            assert {tensor.device for tensor in (terms.loss, *terms.sums.values(), *terms.counts.values())} == {META}
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert few <= len(kinds)
