"""Small runs on the digits corpus, on the ranks of an engine and in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra import distributed
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run, override
from pipeline.engine import Engine
from pipeline.manifest import open_manifest
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import plan_of
from pipeline.objectives.terms import beta_at, combine
from pipeline.pairing import view
from pipeline.recipes import recipe
from pipeline.stream import Refs, Share, Stream, rows_for_rank
from pipeline.train import build
from pipeline.zero import building

STAGES = (0, 1, 2, 3)
ROWS = 12
APART = np.repeat([[True, True, False], [False, False, True]], ROWS // 2, axis=0)
"""Presence of top, bottom and label with which, of two ranks, one has images only and the other labels only."""


def a_run(data: Path, **changes: Any) -> Run:
    small = {"modalities.top.hidden": [16], "modalities.bottom.hidden": [16], "modalities.label.hidden": [16, 16]}
    base = {
        "data": str(data),
        "engine.device": "cpu",
        "engine.threads": 1,
        "train.batch": ROWS,
        "pairing.fraction": 0.3,
    }
    return override(recipe("digits"), {**small, **base, "model.latent": 4, **changes})


def global_rows(run: Run, step: int, present_BM: np.ndarray | None = None) -> Refs:
    """Rows of one step as the run's view shows them, or whole ones of which only `present_BM` is shown."""
    manifest = open_manifest(run.data)
    names = list(run.modalities)
    stream = Stream([view(manifest, "train", names, run.pairing, 0, run.train.batch)], run.modalities, 0)
    if present_BM is None:
        return stream.global_batch(step)
    sample = stream.global_batch(step).sample_B
    members = manifest.members(sample, manifest.column(names), sample.astype("uint64"), sample)
    return Refs(sample, np.where(present_BM, members, -1), step * len(sample) + np.arange(len(sample)))


def loss_of(module: Any, run: Run, batch: Batch, step: int, rows: float, beta: float = 1.0) -> torch.Tensor:
    terms = plan_of(run, batch.present_BM, step)
    noise = terms.noise(run.seed, "train", batch.row_B, run.model.latent)
    scores = module(batch, terms, noise)
    return combine(scores, terms, batch, run.weights(), beta, rows).loss


def train_steps(
    run: Run, first: int, last: int, present_BM: np.ndarray | None = None, state: dict | None = None
) -> tuple[list[float], dict, str]:
    """On every rank: losses of the global batch, the whole state afterwards, and what DeepSpeed says it runs."""
    world = distributed.start("cpu", 1)
    with building(run, world):
        model = build(run)
    engine = Engine(model, run, world, state)
    collate = Collator([open_manifest(run.data)], run.modalities)
    losses = []
    for step in range(first, last):
        batch = collate(rows_for_rank(global_rows(run, step, present_BM), world.rank, world.size))
        loss = loss_of(engine.module, run, batch, step, run.train.batch / world.size)
        losses.append(world.sum([float(loss.detach())])[0] / world.size)
        engine.enter(step)
        engine.step(loss)
    return losses, whole(engine), f"{type(engine.module).__name__} ZeRO {engine.stage} on {world.size}"


def whole(engine: Engine) -> dict[str, torch.Tensor]:
    """The engine's state as it is now. Collective."""
    return {name: tensor.detach().float().cpu().clone() for name, tensor in engine.state()}


def learnt(run: Run) -> MultimodalVAE:
    """The model of a run after its training, by the shortest way: no engine, no validation, nothing written."""
    manifest, names = open_manifest(run.data), list(run.modalities)
    stream = Stream([view(manifest, "train", names, run.pairing, run.seed, run.train.batch)], names, run.seed)
    model, collate, share = build(run), Collator([manifest], run.modalities), Share(stream)
    adam = torch.optim.Adam(model.parameters(), lr=run.optim.lr, betas=run.optim.betas)
    for step in range(run.train.steps):
        adam.zero_grad()
        beta = beta_at(run.objective, step, run.train.steps)
        loss_of(model, run, collate(share(step)), step, run.train.batch, beta).backward()
        adam.step()
    return model


def reference_steps(
    run: Run, last: int, present_BM: np.ndarray | list[np.ndarray] | None = None, beta: float = 1.0
) -> tuple[list[float], MultimodalVAE]:
    """The same steps in a plain PyTorch loop over the whole global batch; a list has a pattern for every step."""
    model = build(run)
    adam = torch.optim.Adam(model.parameters(), lr=run.optim.lr, betas=run.optim.betas)
    collate = Collator([open_manifest(run.data)], run.modalities)
    losses = []
    for step in range(last):
        adam.zero_grad()
        shown = present_BM[step] if isinstance(present_BM, list) else present_BM
        loss = loss_of(model, run, collate(global_rows(run, step, shown)), step, run.train.batch, beta)
        loss.backward()
        adam.param_groups[0]["lr"] = run.optim.rate(step, run.train.steps)
        adam.step()
        losses.append(float(loss.detach()))
    return losses, model
