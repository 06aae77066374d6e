"""What the jobs' command lines share: parsing into dataclasses, the closing JSON object, finding a run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from infra.errors import UserError
from infra.store import RUNS
from pipeline import config
from pipeline.config import Run

if TYPE_CHECKING:
    from pipeline.packaging import Packaged

T = TypeVar("T")
FREE_ON_RESUME = (
    "engine.zero_stage", "engine.accumulate", "engine.device", "engine.threads", "engine.workers",
    "engine.patience",
    "tracking.", "examine.", "train.keep", "train.checkpoint_every", "train.damage", "data",
)  # fmt: skip
"""Fields that a resumed run may change: none of them changes what is computed."""


def parse(job: str, kind: type[T], arguments: list[str], default: T | None = None, about: str = "") -> T:
    """Options from the command line into a dataclass, on top of `default`. Raises UserError, or exits on --help."""
    try:
        result: T = tyro.cli(  # type: ignore[assignment]
            kind,
            prog=f"pairstream {job}",
            args=arguments,
            default=default,
            description=about or None,
            config=(tyro.conf.AvoidSubcommands,),
        )
        return result
    except ValueError as error:
        raise UserError(str(error)) from None


def split_name(job: str, what: str, arguments: list[str], known: list[str]) -> tuple[str, list[str]]:
    """The leading NAME of `pairstream JOB NAME …` and the rest. Raises UserError where there is none."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"pairstream {job} needs a {what} first: one of {', '.join(known)}")
    return arguments[0], arguments[1:]


def split_list(text: str) -> list[str]:
    """The names in `one,other`, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@dataclass
class Early:
    """The few options that decide where the other options' defaults come from."""

    out: Path | None = None
    resume: bool = False
    source: str | None = None
    data: str | None = None


def early_options(arguments: list[str]) -> Early:
    """--out, --resume, --from and --data, before the rest is parsed. Raises UserError where one lacks its value."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--from", dest="source")
    parser.add_argument("--data")
    try:
        return parser.parse_known_args(arguments, Early())[0]
    except SystemExit:
        raise UserError("--out, --from and --data need a value") from None


def refuse_changes(saved: Run, wanted: Run) -> None:
    """Raise UserError where a resumed run would compute something else than it began with."""
    before, after = (config.flatten(config.to_dict(run)) for run in (saved, wanted))
    for key in before.keys() | after.keys():
        if before.get(key) != after.get(key) and not key.startswith(FREE_ON_RESUME):
            raise UserError(
                f"--resume: {key} was {before.get(key)} and cannot become {after.get(key)} in mid-run; "
                "start another run from this one with --from"
            )


def find_run(name: str) -> Path:
    """The directory of a run given by path, or by its name under runs/. Raises UserError."""
    for path in (Path(name), RUNS / name):
        if (path / "run.json").is_file():
            return path
    known = sorted((path.parent.name for path in RUNS.glob("*/run.json")), reverse=True)
    hint = f"; the latest here are {', '.join(known[:5])}" if known else "; there is no run under runs/ yet"
    raise UserError(f"no run {name!r} (neither a run's directory nor a name under runs/)" + hint)


def open_model(name: str) -> Packaged:
    """A trained model: of a run's best checkpoint, by path or by its name under runs/, or of a packaged model's folder.

    Says on stderr where the run's training has not reached its last step. Raises UserError.
    """
    from infra.checkpoint import Checkpoints
    from pipeline import packaging

    folder = Path(name)
    for about in (folder / packaging.ABOUT, *folder.glob(f"data/*/{packaging.ABOUT}")):  # ours, MLflow's
        if about.is_file():
            return packaging.load(about.parent)
    directory = find_run(name)
    model = packaging.of_run(directory)
    latest, last = Checkpoints(directory / "checkpoints").reached(), model.run.train.steps
    if latest < last:
        print(
            f"{directory}: its training is at step {latest:,} of {last:,} (it goes on, was cut off or stopped early); "
            f"this is the best checkpoint so far, of step {model.about['step']:,}",
            file=sys.stderr,
        )
    return model


def closing_json(value: Any) -> None:
    """Print one JSON object as the last line."""
    print(json.dumps(jsonable(value)), flush=True)


def jsonable(value: Any) -> Any:
    """Dataclasses and paths as plain JSON values; a number that is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    return str(value) if isinstance(value, Path) else value
