"""Which runs may share a program: those that differ in data and numbers, never in shape."""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import UserError
from pipeline import config
from pipeline.config import Run
from pipeline.objectives.systems import switch_step, uses_pseudo_labels

FREE = ("seed", "pairing.", "objective.lambda.", "objective.beta", "objective.anneal", "objective.k", "objective.cross",
        "objective.alpha", "objective.mu", "optim.", "recipe", "tracking.")  # fmt: skip
"""Keys, or beginnings of keys, in which runs of one program may differ."""
OTHERWISE = {
    "engine.precision": ("fp32", "trains in fp32"),
    "engine.zero_stage": (0, "is one process, with nothing to share out among ranks"),
    "engine.accumulate": (1, "takes whole batches"),
    "engine.compile": (False, "has stacked networks, which are not compiled"),
}
"""What a pack asks of the engine, and why."""


def packable(runs: Sequence[Run]) -> None:
    """Raise UserError, naming the key, where runs cannot train as one program."""
    first = runs[0]
    known = config.flatten(config.to_dict(first))
    for key, (value, why) in OTHERWISE.items():
        if known[key] != value:
            raise UserError(f"{key} = {known[key]}: a pack of trials {why}; set {key} = {value}, or do not pack")
    if uses_pseudo_labels(first) or any(map(uses_pseudo_labels, runs)):
        raise UserError("objective.pseudo: pseudo-labels are guessed by a pass of each model alone; do not pack")
    if switch_step(first):
        raise UserError(f"model.system = {first.model.system} freezes networks in the midst of training; do not pack")
    for run in runs[1:]:
        theirs = config.flatten(config.to_dict(run))
        for key in dict.fromkeys([*known, *theirs]):
            if known.get(key) != theirs.get(key) and not key.startswith(FREE):
                raise UserError(
                    f"{key} keeps trials from one pack: it is {known.get(key)} in one and {theirs.get(key)} in "
                    "another; a pack's trials differ in pairing, the objective's weights, k, optim and seed only"
                )
        if list(run.modalities) != list(first.modalities):
            raise UserError(
                f"modalities keep trials from one pack: {', '.join(first.modalities)} in one, "
                f"{', '.join(run.modalities)} in another, and their order counts"
            )
