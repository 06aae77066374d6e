"""What a run leaves behind beside its checkpoints: configuration, curves, pictures, and the same in MLflow."""

from __future__ import annotations

import os
import platform
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from infra.checkout import checkout_of
from infra.disk import write_whole
from infra.distributed import World
from infra.errors import UserError
from infra.journal import JOURNAL, Journal, parse, points
from infra.store import Destination, default_uri, prepare_store
from infra.tracking import Tracker, destination_in
from infra.usage import Usage
from pipeline import config
from pipeline.alarms import Alarms
from pipeline.config import Run
from pipeline.manifest import Manifest

CHANGES = "code.diff"
"""In a run's directory: what the code that ran has beside its commit."""
BESIDE_LEARNING = {f"engine.{name}" for name in config.ELSEWHERE} | {f"train.{name}" for name in config.BESIDE}
PACKAGES = ("pairstream", "torch", "deepspeed", "accelerate", "webdataset", "mlflow")


def destination(run: Run, directory: Path, identity: str | None = None, parent: str | None = None) -> Destination:
    """Where a run's record goes: what its directory says already, else a new identity."""
    uri = run.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if known := destination_in(directory):
        identity, parent = identity or known.identity, parent or known.parent
        uri = uri or known.uri  # resumed from another working directory, it is still the same run
    return Destination(
        uri=uri or default_uri(),
        experiment=run.tracking.experiment,
        name=directory.name,
        identity=identity or uuid.uuid4().hex,
        parent=parent,
    )


def is_finished(directory: Path) -> bool:
    """Whether the run in a directory has ended as it should: with its pictures and its packaged model."""
    return directory.is_dir() and _statuses(directory)[-1:] == ["FINISHED"]


def _statuses(directory: Path) -> list[str]:
    """All that a run's journal says of how it goes, the last one last."""
    file = directory / JOURNAL
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [record["status"] for line in lines if "status" in (record := parse(line) or {})]


def training_lock(directory: Path) -> FileLock:
    """Held by the process that trains in a run's directory; taking it raises filelock.Timeout at once."""
    return FileLock(directory / "training.lock", timeout=0)


def settle(directory: Path, status: str) -> None:
    """Say how a run ended whose own process was killed before it could; nothing where it did."""
    if _statuses(directory)[-1:] == ["RUNNING"] and (where := destination_in(directory)):
        Tracker(directory, where, running=False).close(status)


class Record:
    """A run's record, kept by rank 0; the other ranks have one that does nothing. Leaving it ends the MLflow run."""

    def __init__(
        self,
        run: Run,
        directory: Path,
        manifests: Sequence[Manifest],
        world: World,
        resume: bool = False,
        identity: str | None = None,
        parent: str | None = None,
        start: int = 0,
    ) -> None:
        """`start` is the step that a resumed run goes on from."""
        self.run, self.directory, self.manifests, self.world, self.resume = run, directory, manifests, world, resume
        self.identity, self.parent, self.start = identity, parent, start
        self.book: Tracker | Journal | None = None
        self.alarms = Alarms(run)
        self._reached = 0  # steps of an earlier process that are in the journal
        self._status = "FAILED"

    def __enter__(self) -> Record:
        """Make store and directory. Collective. Raises UserError, on every rank, where the directory cannot be written,
        another process trains in it, or it holds a run that is not to be resumed."""
        failure = None
        self.alarms.hosts = [str(host) for host in self.world.gather(platform.node())]
        if self.world.is_main:
            try:
                self._open()
            except UserError as error:
                failure = str(error)
        self.world.raise_together(failure)
        return self

    def _open(self) -> None:
        where = destination(self.run, self.directory, self.identity, self.parent)
        used = [name for name in ("run.json", "checkpoints", JOURNAL) if (self.directory / name).exists()]
        if used and not self.resume:
            raise UserError(f"{self.directory} holds a run already: continue it with --resume, or choose another --out")
        if self.run.tracking.enabled:
            prepare_store(where.uri, where.experiment, None)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = training_lock(self.directory)
            self._lock.acquire()
            config.save(self.run, self.directory / "run.json")
        except Timeout:
            raise UserError(
                f"{self.directory}: another process is training in it; wait, or choose another --out"
            ) from None
        except OSError as error:
            raise UserError(f"{self.directory} cannot be written ({error.strerror}); choose another --out") from None
        curves: dict[str, float] = {}
        if JOURNAL in used:  # what earlier validations have said counts, and is not said again
            for step, values in points(self.directory):
                self._watch(step, values)
                self._reached = max(self._reached, step)
                curves |= values
        self.book = Tracker(self.directory, where) if self.run.tracking.enabled else Journal(self.directory)
        self.book.params(config.flatten(config.to_dict(self.run)))
        self._note_changes(curves)
        self.book.tags(self._tags())
        self.book.artifact(self.directory / "run.json")
        for manifest in self.manifests:
            samples = {split: len(rows) for split, rows in manifest.splits.items()}
            self.book.dataset(manifest.corpus, manifest.fingerprint, manifest.directory, {"samples": samples})
        self._note_code()
        self._usage = Usage(self.world.device)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.world.is_main:
            return
        self._usage.close()
        if isinstance(self.book, Tracker):
            delivery = self.book.close("KILLED" if kind is KeyboardInterrupt else self._status)
            if delivery.pending:
                print(
                    f"MLflow has not got {delivery.pending} lines of {self.directory}'s journal "
                    f"({delivery.error or 'no time left'}); pairstream review --sync delivers them"
                )
        elif self.book:
            self.book.close()
        self._lock.release()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """A point of every curve; and, where it gives reason to warn, a line on stderr and a tag."""
        if not self.book:
            return
        # to steps that are replayed nothing is added
        self.book.metrics(step, values | (self._usage.take() if step > self._reached else {}))
        for warning in self._watch(step, values):
            print(f"{self.directory}: {warning}", file=sys.stderr, flush=True)
            self.book.tags({"pairstream.warning": "\n".join(self.alarms.warnings)})

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder for people to look at."""
        if self.book:
            self.book.artifact(path, folder)

    def finish(self, status: str) -> None:
        """Say how the run ended; until then it counts as failed."""
        self._status = "KILLED" if status == "preempted" else "FINISHED"

    def _watch(self, step: int, values: dict[str, float]) -> list[str]:
        """The warnings that a point gives reason for."""
        return self.alarms.look(step, values)

    def _note_changes(self, curves: Mapping[str, float]) -> None:
        """Settings that have become other numbers, as curves: MLflow's parameters are what a run began with. `curves`:
        the last value of each so far."""
        assert self.book is not None
        journal = self.book.journal if isinstance(self.book, Tracker) else self.book
        for key, value in config.flatten(config.to_dict(self.run)).items():
            name, began = f"settings/{key}", journal.began(key)
            was = curves.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or began in (None, "None"):
                continue
            if key in BESIDE_LEARNING:
                continue
            if was is None and float(str(began)) != value:
                was = float(str(began))
                self.book.metrics(0, {name: was})
            if was not in (None, value):
                # a run that goes on from an earlier step once more has said for that step what it was then
                self.book.metrics(max(self.start, journal.reached(name) + 1), {name: float(value)})

    def _note_code(self) -> None:
        """Commit and changes of the checkout that this package runs from, where it is one."""
        code = checkout_of(Path(__file__).parents[1], Path(__file__))
        if self.book and code:
            self.book.tags(
                {"mlflow.source.git.commit": code.commit, "mlflow.source.git.dirty": str(bool(code.diff)).lower()}
            )
            if code.diff:
                write_whole(self.directory / CHANGES, code.diff)
                self.book.artifact(self.directory / CHANGES)

    def _tags(self) -> dict[str, str]:
        tags = {
            "mlflow.source.name": f"pairstream train {self.run.recipe}",
            "mlflow.source.type": "LOCAL",
            "pairstream.recipe": self.run.recipe,
            "pairstream.directory": str(self.directory),
            "pairstream.configuration": config.identity(self.run),
            "pairstream.data": " ".join(manifest.fingerprint for manifest in self.manifests),
            "pairstream.ranks": str(self.world.size),
            "system.host": platform.node(),
            "system.python": platform.python_version(),
            "system.device": str(self.world.device),
        }
        return tags | {f"version.{package}": version(package) for package in PACKAGES}
