"""What keeps runs from one pack is said by its key, before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from pipeline.packing import packable
from tests.pipeline.test_packing import CHANGES, run_of


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.latent": 5}, r"^model\.latent keeps trials from one pack: it is 4 in one and 5 in another"),
        ({"train.batch": 10}, r"^train\.batch keeps"),
        ({"train.steps": 10}, r"^train\.steps keeps"),
        ({"modalities.top.hidden": [8]}, r"^modalities\.top\.hidden keeps"),
        ({"engine.workers": 2}, r"^engine\.workers keeps"),
        ({"objective.shared_noise": True}, r"^objective\.shared_noise keeps"),
        ({"model.system": "svae"}, r"^model\.system keeps"),
    ],
)
def test_runs_of_other_shapes_are_refused(digits_dir: Path, changes: dict[str, Any], words: str) -> None:
    runs = [run_of(digits_dir, name) for name in CHANGES]
    packable(runs)
    with pytest.raises(UserError, match=words):
        packable([*runs, run_of(digits_dir, "plain", **changes)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine.precision": "bf16"}, r"^engine\.precision = bf16: a pack of trials trains in fp32"),
        ({"engine.zero_stage": 1}, r"^engine\.zero_stage = 1"),
        ({"engine.accumulate": 2}, r"^engine\.accumulate = 2"),
        ({"engine.compile": True}, r"^engine\.compile = True"),
        ({"objective.pseudo": 0.5}, r"^objective\.pseudo"),
        ({"model.system": "telbo"}, r"^model\.system = telbo freezes"),
    ],
)
def test_what_no_pack_can_do_is_refused(digits_dir: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        packable([run_of(digits_dir, "plain", **changes)])


def test_the_order_of_modalities_counts(digits_dir: Path) -> None:
    run = run_of(digits_dir, "plain")
    turned = replace(run, modalities=dict(reversed(run.modalities.items())))
    with pytest.raises(UserError, match="order counts"):
        packable([run, turned])
