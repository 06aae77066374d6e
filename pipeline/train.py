"""train(run): set-up, and a loop that fits on one screen.

A run lives in a directory: run.json (its configuration), journal.jsonl (every metric), checkpoints/, pictures/,
evaluation.*.json and, where data was damaged, quarantine.*.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from infra import distributed
from infra.checkpoint import Checkpoint, Checkpoints
from infra.distributed import World
from infra.errors import UserError
from infra.heartbeat import Heartbeat
from infra.preemption import StopRequest
from pipeline.augment import augment
from pipeline.batch import Batch, empty_batch
from pipeline.collate import Collator, Waiting, prefetch
from pipeline.config import Run
from pipeline.course import Course, Report, Result, last_checkpoint
from pipeline.data import check_data, check_nodes, training_stream
from pipeline.engine import Engine
from pipeline.evaluate.validation import Validation
from pipeline.model import MultimodalVAE
from pipeline.objectives.pseudo import guess
from pipeline.objectives.systems import family_of, plan_of, remark, uses_pseudo_labels
from pipeline.objectives.terms import Terms, beta_at, combine
from pipeline.order import seed_of
from pipeline.pace import Pace
from pipeline.progress import Progress, Vote
from pipeline.record import Record
from pipeline.stream import Share, Stream
from pipeline.zero import building, set_weights


def train(
    run: Run,
    directory: Path,
    *,
    resume: bool = False,
    weights_from: Checkpoint | None = None,
    identity: str | None = None,
    parent: str | None = None,
    report: Report | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Result:
    """Train a run in `directory` and return how it ended. Collective: every rank calls it alike.

    With `resume` it continues from the newest whole checkpoint there, or starts where there is none. `weights_from`
    starts from another run's weights. `identity` and `parent` name this run and its sweep to MLflow. Raises UserError.
    """
    started = time.monotonic()
    manifest = check_data(run)
    world = distributed.start(run.engine.device, run.engine.threads)
    check_world(run, world.size)
    stream = training_stream(run, manifest)
    check_nodes(world, stream)
    if world.is_main and remark(run):
        print(remark(run), flush=True)
    checkpoints = Checkpoints(directory / "checkpoints", run.train.keep)
    last = last_checkpoint(checkpoints, stream, world) if resume else None  # refuses before anything is written
    record = Record(run, directory, stream.manifests, world, resume, identity, parent, last.step if last else 0)
    heart, stop = Heartbeat(world, run.engine.patience), StopRequest()
    with heart, stop, record, distributed.flushing_denormals():
        with building(run, world):
            model = build(run)
        if weights_from and not last:
            load_weights(model, weights_from)
        engine = Engine(model, run, world, last.tensors("model", "optimizer") if last else None)
        progress = Progress.of(last, world) if last else Progress()
        validate = Validation(model, run, manifest, world)
        damaged, pin = directory / f"quarantine.{world.rank}.jsonl", world.device.type == "cuda"
        collate = Collator(stream.manifests, run.modalities, damaged, run.train.damage, pin)
        course = Course(
            run, directory, manifest, stream, world, engine, record, checkpoints, progress, validate, report, on_step,
            started,
        )  # fmt: skip

        if weights_from and not last:  # a kill before the first checkpoint must not lose them
            course.save()
        ahead = Waiting(_read_ahead(stream, collate, run, world, progress.step))
        pace = Pace(world, ahead)
        heart.beat(progress.step, "waiting for data")
        for step, batches, failure in ahead:
            heart.beat(step, "in a step")
            if course.status == "stopped early" or course.settle():
                break
            engine.enter(step)
            terms: list[Terms] = []
            for batch in batches:
                with pace.own():
                    terms.append(_score(engine, model, run, batch, step, world))
                if len(terms) == len(batches):  # before the last backward, which runs while the vote is counted
                    progress.vote = Vote(world, stop.asked, failure, terms, batches, step)
                engine.step(terms[-1].loss)
            progress.step = step + 1
            progress.window.add(terms)
            pace.step()
            if course.pause(lambda at=step: gauges(engine, run, collate, ahead, at) | pace.point()):  # type: ignore[misc]
                break
            heart.beat(step + 1, "waiting for data")
        wait = ahead.total
        course.end()
    return course.result(wait)


def build(run: Run) -> MultimodalVAE:
    """The model of a run with its initial weights, a function of the run's seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "weights") % 2**63)
        try:
            return MultimodalVAE(run.modalities, run.model.latent, family_of(run))
        except NotImplementedError as error:
            raise UserError(
                f"model.system = {run.model.system}: {error}; choose one of one expert per modality"
            ) from None
        except KeyError as error:  # torch keeps names such as `type` and `half` for itself
            raise UserError(f"a modality cannot have this name: {error.args[0]}; choose another") from None


def load_weights(model: MultimodalVAE, checkpoint: Checkpoint) -> None:
    """A checkpoint's weights into a model on any device. Raises UserError where they do not fit."""
    try:
        set_weights(model, checkpoint.tensors("model"))
    except ValueError as error:
        raise UserError(f"the weights of {checkpoint.path} do not fit this model: {error}") from None


def check_world(run: Run, ranks: int) -> None:
    """Raise UserError where the ranks and micro-batches do not divide the global batch."""
    micro = run.engine.accumulate
    if run.train.batch % (ranks * micro):
        fitting = [str(n) for n in range(1, 65) if run.train.batch % (n * micro) == 0]
        raise UserError(
            f"train.batch = {run.train.batch} cannot be divided among {ranks} ranks with engine.accumulate = {micro}; "
            f"it fits on {', '.join(fitting) or 'no number of'} ranks, or choose another train.batch"
        )


def _read_ahead(
    stream: Stream, collate: Collator, run: Run, world: World, start: int
) -> Iterator[tuple[int, list[Batch], str | None]]:
    """(step, this rank's micro-batches, None) of the remaining steps.

    Where they cannot be read, batches of nothing and the reason: the other ranks are in the midst of collectives, and
    all must stop together.
    """
    share, mine = run.train.batch // world.size // run.engine.accumulate, Share(stream, world.rank, world.size)

    def fetch(step: int) -> tuple[int, list[Batch], str | None]:
        refs = mine(step)
        try:
            return step, [collate(refs[i * share : (i + 1) * share]) for i in range(run.engine.accumulate)], None
        except UserError as error:
            return step, [empty_batch(run.modalities, world.device)] * run.engine.accumulate, str(error)

    return prefetch(fetch, start, run.train.steps, run.engine.workers)


def _score(engine: Engine, model: MultimodalVAE, run: Run, batch: Batch, step: int, world: World) -> Terms:
    """Every term of one micro-batch, and its share of the loss."""
    plain = batch.to(world.device)
    batch = augment(plain, run.modalities, run.seed)
    plan = plan_of(run, batch.present_BM, step)
    noise = plan.noise(run.seed, "train", batch.row_B, model.latent, run.objective.shared_noise)
    beta = beta_at(run.objective, step, run.train.steps)
    rows = run.train.batch / world.size / run.engine.accumulate
    if not uses_pseudo_labels(run):
        return combine(engine.module(batch, plan, noise), plan, batch, run.weights(), beta, rows)
    guesses = guess(model, plain, batch, run.objective.confidence)
    plan = guesses.targets(plan, run.objective.pseudo)
    scores = guesses.trusted(engine.module(batch, plan, noise, guesses.told))
    return guesses.tallied(combine(scores, plan, batch, run.weights(), beta, rows))


def gauges(engine: Engine, run: Run, collate: Collator, ahead: Waiting[Any], step: int) -> dict[str, float]:
    """What is worth a curve beside the objective's parts (of this rank)."""
    found = {"train/beta": beta_at(run.objective, step, run.train.steps), "speed/wait": ahead.share()}
    if run.optim.decay > 0:
        found["train/lr"] = run.optim.rate(step, run.train.steps)
    if run.optim.clip > 0:
        found["train/gradient_norm"] = engine.gradient_norm()
    found |= engine.gradient_norms()
    if collate.rows_damaged:
        found["data/damaged_rows"] = float(collate.rows_damaged)
    if collate.reader.retries:
        found["data/retries"] = float(collate.reader.retries)
    return found
