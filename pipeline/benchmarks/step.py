"""What Accelerate and DeepSpeed cost around a training step, and how far the step is from its matrix products."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from infra import distributed
from pipeline.batch import Batch
from pipeline.benchmarks import Progress
from pipeline.benchmarks.harness import Outcome, alternate, drawing, repeated
from pipeline.collate import Collator
from pipeline.config import Run, override
from pipeline.corpora import prepare
from pipeline.data import check_data
from pipeline.engine import Engine
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import plan_of
from pipeline.objectives.terms import combine
from pipeline.pairing import view
from pipeline.recipes import recipe
from pipeline.stream import Stream
from pipeline.train import build

STEPS = 30


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Rows per second of whole steps (forward, backward, update) on batches held in memory, one thread.

    The digits are what they are: `samples` changes nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        prepare("digits", data)
        settings = override(
            recipe("digits"), {"data": str(data), "engine.threads": 1, "engine.device": "cpu", "pairing.fraction": 0.2}
        )
        world = distributed.start("cpu", 1)
        manifest = check_data(settings)
        names = list(settings.modalities)
        rows = view(manifest, "train", names, settings.pairing, 0, settings.train.batch)
        stream = Stream([rows], settings.modalities, 0)
        collate = Collator([manifest], settings.modalities)
        batches = [collate(stream.global_batch(step)) for step in range(STEPS)]
    engine = Engine(build(settings), settings, world)
    plain = build(settings)
    adam = torch.optim.Adam(plain.parameters(), lr=settings.optim.lr, fused=True)
    size = len(batches[0])

    def wrapped() -> int:
        for step, batch in enumerate(batches):
            engine.step(_loss(engine.module, settings, batch, step, size))
        return STEPS * size

    def bare() -> int:
        for step, batch in enumerate(batches):
            adam.zero_grad()
            _loss(plain, settings, batch, step, size).backward()
            adam.step()
        return STEPS * size

    contenders: dict[str, Callable[[], int]] = {
        "plain PyTorch loop": bare,
        "pairstream (DeepSpeed, ZeRO 0)": wrapped,
        "matrix products and Adam": _floor(build(settings), settings, batches),
    }
    turns = {name: drawing(repeated(steps)) for name, steps in contenders.items()}
    reference, limit = ("plain PyTorch loop",), ("matrix products and Adam",)
    return alternate("step", case, "rows", turns, blocks, reference, limit, progress)


def _loss(module: torch.nn.Module, run: Run, batch: Batch, step: int, rows: int) -> torch.Tensor:
    terms = plan_of(run, batch.present_BM, step)
    noise = terms.noise(run.seed, "bench", batch.row_B, run.model.latent)
    scores = module(batch, terms, noise)
    return combine(scores, terms, batch, run.weights(), 1.0, rows).loss


def _floor(model: MultimodalVAE, run: Run, batches: list[Batch]) -> Callable[[], int]:
    """The same networks on inputs of the same sizes, forward and backward, and fused Adam; nothing else."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-9, fused=True)
    decoder_rows = []
    for step, batch in enumerate(batches):
        wanted = plan_of(run, batch.present_BM, step).wanted_TBM
        decoder_rows.append([int(wanted[:, :, column].sum()) for column in range(len(run.modalities))])
    latents = torch.randn(max(map(max, decoder_rows)), run.model.latent)

    def floor() -> int:
        for batch, rows in zip(batches, decoder_rows, strict=True):
            adam.zero_grad()
            outputs = [model.encoders[name](value)[0].sum() for name, value in batch.values.items()]
            outputs += [model.decoders[n](latents[:count]).sum() for n, count in zip(batch.values, rows, strict=True)]
            torch.stack(outputs).sum().backward()
            adam.step()
        return len(batches) * len(batches[0])

    return floor
