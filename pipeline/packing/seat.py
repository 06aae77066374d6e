"""A trial in a pack: its own data, model, record and progress, as `train` would set them up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.checkpoint import Checkpoints
from infra.distributed import World
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.course import Course, last_checkpoint
from pipeline.data import check_data, training_stream
from pipeline.evaluate.validation import Validation
from pipeline.packing.program import Program
from pipeline.progress import Progress
from pipeline.record import Record
from pipeline.stream import Share
from pipeline.train import build
from pipeline.zero import set_weights


@dataclass(frozen=True)
class Member:
    """A trial to train: what `train` takes."""

    run: Run
    directory: Path
    identity: str | None = None
    """Of this run, to MLflow."""
    parent: str | None = None
    """Of its sweep."""


class Seat:
    """A member on its way. To its course it is what an engine is: it has the weights and the optimizer."""

    def __init__(
        self, member: Member, world: World, resume: bool,
        report: Callable[[Member, int, dict[str, float]], bool] | None,
        on_step: Callable[[Member, int, float], None] | None,
    ) -> None:  # fmt: skip
        """Raises UserError as `train` does. Whatever happens, `close` ends the record."""
        started, run, directory = time.monotonic(), member.run, member.directory
        self.member, self.run, self.world = member, run, world
        self._program: Program | None = None
        self._number = 0
        self._stack = ExitStack()
        manifest = check_data(run)
        stream = training_stream(run, manifest)
        checkpoints = Checkpoints(directory / "checkpoints", run.train.keep)
        last = last_checkpoint(checkpoints, stream, world) if resume else None
        start = last.step if last else 0
        record = Record(run, directory, stream.manifests, world, resume, member.identity, member.parent, start)
        self._stack.enter_context(record)
        try:
            self.module = build(run)
            self._state = last.tensors("model", "optimizer") if last else None
            if self._state:
                set_weights(self.module, self._state)
            self.module.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.progress = Progress.of(last, world) if last else Progress()
            self.course = Course(
                run, directory, manifest, stream, world, self, record, checkpoints, self.progress,
                Validation(self.module, run, manifest, world),
                None if report is None else partial(report, member),
                None if on_step is None else partial(on_step, member),
                started,
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        self.collate = Collator(
            stream.manifests, run.modalities, directory / f"quarantine.{world.rank}.jsonl", run.train.damage
        )
        self._rows_of = Share(stream)

    def read(self, step: int) -> Batch:
        """The rows of a step. Raises UserError where they cannot be read."""
        return self.collate(self._rows_of(step))

    def enter(self, program: Program, number: int) -> None:
        """Go on as a part of a program, its row `number`."""
        if self._program is not None:
            program.continue_from(number, self._program.moments(self._number))
        elif self._state:
            program.continue_from(number, program.restored(self._state))
        self._program, self._number, self._state = program, number, None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and moments, as `Engine.state` names them."""
        assert self._program is not None
        return self._program.state(self._number)

    def gradient_norm(self) -> float:
        """The last step's gradient norm before clipping."""
        assert self._program is not None
        norm_N = self._program.norm_N
        return float("nan") if norm_N is None else float(norm_N[self._number])

    def gradient_norms(self) -> dict[str, float]:
        """Those of the last point, as the engine's."""
        assert self._program is not None
        return {name: float(norm) for name, norm in self._program.norms[self._number].items()}

    def close(self) -> None:
        """End the record: as failed where the course has not ended."""
        self._stack.close()

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
