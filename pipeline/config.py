"""A run as a value: frozen dataclasses, checked on construction. Imports no torch.

A recipe is a function that returns a `Run`; the command line is generated from it, a checkpoint stores it as
JSON, a sweep edits it by dotted keys, and MLflow gets it flattened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import tyro
import xxhash
from pydantic import Field, TypeAdapter, ValidationError

from infra.disk import write_whole
from infra.errors import UserError, nearest
from modalities import AnyModality
from pipeline.settings import Engine, Examine, Model, Objective, Optim, Pairing, Tracking, Training, check

ELSEWHERE = {"device", "threads", "workers", "compile", "zero_stage", "patience"}
"""Fields of `engine` that change speed and memory, never the mathematics."""
BESIDE = {"log_every", "checkpoint_every", "keep", "damage"}
"""Fields of `train` that change what is written, never what is learnt."""


@dataclass(frozen=True)
class Run:
    """Everything that determines a training run."""

    recipe: Annotated[str, tyro.conf.Suppress]
    """The recipe that this run started from."""
    data: str
    """Directory of prepared shards and their manifest: a path, or a URL (s3://…, https://…)."""
    modalities: dict[str, Annotated[AnyModality, Field(discriminator="kind")]]
    """The modalities by name, in the order of the model's experts."""
    mix: tuple[str, ...] = ()
    """More data whose training rows are mixed in, each as DIRECTORY=SHARE of every step's rows (data/mono-vi=0.2); it
    may hold some of the modalities only, and is shown as declared."""
    seed: int = 0
    """Seed of weights, order and noise."""
    pairing: Pairing = field(default_factory=Pairing)
    model: Model = field(default_factory=Model)
    objective: Objective = field(default_factory=Objective)
    optim: Optim = field(default_factory=Optim)
    train: Training = field(default_factory=Training)
    engine: Engine = field(default_factory=Engine)
    examine: Examine = field(default_factory=Examine)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        check(len(self.modalities) >= 1, f"recipe {self.recipe} names no modality")
        for name in self.modalities:  # a part of members' names, of dotted keys and of metrics
            check(bool(re.fullmatch(r"[\w-]+", name)), f"modality {name!r}: use letters, digits, '_' and '-' only")
        for name in self.objective.lambda_:
            check(
                name in self.modalities,
                f"objective.lambda.{name}: there is no modality {name!r}" + nearest(name, list(self.modalities)),
            )

        for name in self.examine.parts:
            check(
                name in self.modalities and self.modalities[name].kind == "image",
                f"examine.parts: there is no image modality {name!r}" + nearest(name, list(self.modalities)),
            )
        mixed = [share for _, share in self.mixed()]
        check(1 - sum(mixed) > 1e-9, f"mix: shares of {sum(mixed):g} in all leave nothing for {self.data}")

    def mixed(self) -> list[tuple[str, float]]:
        """(directory, share of a step's rows) of the data that are mixed in. Raises UserError on a malformed entry."""
        result = []
        for entry in self.mix:
            directory, _, share = entry.rpartition("=")
            good = bool(directory) and bool(re.fullmatch(r"\d*\.?\d+", share)) and 0 < float(share) < 1
            check(good, f"mix: {entry!r} is not DIRECTORY=SHARE with a share between 0 and 1, as in data/mono-vi=0.2")
            result.append((directory, float(share)))
        return result

    def weights(self) -> dict[str, float]:
        """λ of every modality; 1 where the objective names none."""
        return {name: self.objective.lambda_.get(name, 1.0) for name in self.modalities}


@cache
def _schema() -> TypeAdapter[Run]:
    return TypeAdapter(Run)


def to_dict(run: Run) -> dict[str, Any]:
    """A run as plain JSON values."""
    result: dict[str, Any] = _schema().dump_python(run, mode="json", by_alias=True)
    return result


def from_dict(values: Mapping[str, Any], source: str = "the configuration") -> Run:
    """A run from `to_dict`'s values. Raises UserError naming the field that does not fit or does not exist."""
    try:
        run = _schema().validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"]]
        if where[:1] == ["modalities"]:
            del where[2:3]  # the modality's kind, which is no part of the key
        got = "" if isinstance(first["input"], Mapping) else f" (got {first['input']!r})"
        raise UserError(f"{source}: {'.'.join(where)}: {first['msg'].removeprefix('Value error, ')}{got}") from None
    known = flatten(to_dict(run))
    for key in flatten(values):
        if key not in known:  # pydantic would ignore it
            raise UserError(f"{source}: {key} is no field of a run" + nearest(key, list(known)))
    return run


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"pairing": {"fraction": 0.1}} -> {"pairing.fraction": 0.1}; lists stay values."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def override(run: Run, changes: Mapping[str, Any]) -> Run:
    """The same run with dotted keys set, e.g. {"pairing.fraction": 0.1, "objective.lambda.label": 50}.

    Values may be text from a command line. Raises UserError on a key that does not exist, with the nearest names.
    """
    values = to_dict(run)
    known = flatten(values) | {f"objective.lambda.{name}": weight for name, weight in run.weights().items()}
    for key, value in changes.items():
        if key not in known:
            raise UserError(f"{key} is no field of recipe {run.recipe}" + nearest(key, list(known)))
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
    return from_dict(values, f"recipe {run.recipe}")


def identity(run: Run) -> str:
    """What a run's result depends on, as 16 hexadecimal digits: all of its configuration but where it runs and where
    its data lie and its record goes (their fingerprint says what the data are).

    Values that are the defaults are left out, so that a field that later versions add changes no identity.
    """
    values = _schema().dump_python(
        run,
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        exclude={"data": True, "tracking": True, "examine": True, "engine": ELSEWHERE, "train": BESIDE},
    )
    values["modalities"] = [
        [name, modality.kind, values["modalities"].get(name, {})] for name, modality in run.modalities.items()
    ]
    told = {key: value for key, value in values.items() if value != {}}
    return xxhash.xxh3_64_hexdigest(json.dumps(told, sort_keys=True).encode())


def save(run: Run, path: Path) -> None:
    """Write a run as JSON."""
    write_whole(path, json.dumps(to_dict(run), indent=2) + "\n")


def load(path: Path) -> Run:
    """Read a run that `save` wrote. Raises UserError when the file is missing or does not fit this version."""
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot read the run's configuration ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not a configuration ({error})") from None
    check(isinstance(values, dict), f"{path}: not a configuration (it holds no JSON object)")
    return from_dict(values, str(path))
