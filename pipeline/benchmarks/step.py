"""A training step against a peer, against a bare loop, and against its own matrix products."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from infra import distributed
from pipeline.batch import Batch
from pipeline.benchmarks import Progress, cases, growth, multivae
from pipeline.benchmarks.harness import Outcome, alternate, drawing, one_thread, repeated
from pipeline.collate import Collator
from pipeline.config import Run, override
from pipeline.corpora import prepare
from pipeline.data import check_data
from pipeline.engine import Engine
from pipeline.pairing import view
from pipeline.recipes import recipe
from pipeline.stream import Stream
from pipeline.train import build

STEPS = {"digits": 30, "mnist": 10, "mnist-half": 10, "celeba19": 2}
"""Steps on different batches, which are repeated."""
LOOP, DEEPSPEED, FLOOR = "plain PyTorch loop", "pairstream (DeepSpeed, ZeRO 0)", "matrix products and Adam"
OURS, PEER, PEER_FUSED = "pairstream (plain PyTorch loop)", "MultiVae 1.0.3", "MultiVae 1.0.3, fused Adam"

Work = Callable[[], int]
"""Does the steps of a case and returns how many rows they had."""


def run(case: str, blocks: int, samples: int, progress: Progress) -> Outcome:
    """Rows per second of whole steps (forward, backward, update) on batches of 100 in memory: one CPU thread, fp32.

    digits: what Accelerate and DeepSpeed cost around a step, on the digits recipe. mnist, mnist-half, celeba19: models
    of MVAE against MultiVae with the same networks, terms and batches; mnist-half lacks half of the labels. growth: see
    there. `samples` changes nothing.
    """
    with one_thread():
        if case == "growth":
            return growth.run(case, blocks, progress)
        settings, batches = digits() if case == "digits" else _made(case)
        contenders = {
            (LOOP if case == "digits" else OURS): cases.steps(settings, batches),
            **({} if case == "celeba19" else {DEEPSPEED: wrapped(settings, batches)}),
            FLOOR: _floor(settings, batches),
        }
        references = [LOOP]
        if case != "digits":
            peers = _peers(settings, batches)
            contenders, references = peers | contenders, [name for name in peers if name != PEER_FUSED]
        turns = {name: drawing(repeated(steps)) for name, steps in contenders.items()}
        return alternate("step", case, "rows", turns, blocks, references, (FLOOR,), progress)


def digits() -> tuple[Run, list[Batch]]:
    """The digits recipe on a fifth of the pairs, and batches of its stream."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        prepare("digits", data)
        settings = override(
            recipe("digits"), {"data": str(data), "engine.threads": 1, "engine.device": "cpu", "pairing.fraction": 0.2}
        )
        manifest = check_data(settings)
        rows = view(manifest, "train", list(settings.modalities), settings.pairing, 0, settings.train.batch)
        stream = Stream([rows], settings.modalities, 0)
        collate = Collator([manifest], settings.modalities)
        return settings, [collate(stream.global_batch(step)) for step in range(STEPS["digits"])]


def _made(case: str) -> tuple[Run, list[Batch]]:
    settings = cases.celeba19() if case == "celeba19" else cases.mnist()
    missing = {"label": 0.5} if case == "mnist-half" else {}
    return settings, cases.batches(settings, STEPS[case], missing)


def _peers(settings: Run, batches: list[Batch]) -> dict[str, Work]:
    """MultiVae, also with our optimizer, which tells how much of a ratio is Adam's; nothing where it is missing."""
    if not multivae.available():
        print(f"MultiVae is not installed, so that only the floor is compared to; to have it: {multivae.INSTALL}")
        return {}
    models = [multivae.mvae(*cases.networks(settings), settings) for _ in range(2)]
    return {
        PEER: multivae.steps(models[0], settings, batches),
        PEER_FUSED: multivae.steps(models[1], settings, batches, fused=True),
    }


def wrapped(settings: Run, batches: list[Batch]) -> Work:
    """Takes a training step on each batch under Accelerate and DeepSpeed; returns how many rows they had."""
    engine = Engine(build(settings), settings, distributed.start("cpu", 1))

    def steps() -> int:
        for step, batch in enumerate(batches):
            engine.step(cases.loss(engine.module, settings, batch, step))
        return sum(map(len, batches))

    return steps


def _floor(settings: Run, batches: list[Batch]) -> Work:
    """The same networks on inputs of the same sizes, forward and backward, and fused Adam; nothing else."""
    encoders, decoders = (nn.ModuleDict(part) for part in cases.networks(settings))
    for part in (encoders, decoders):
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    adam = torch.optim.Adam([*encoders.parameters(), *decoders.parameters()], lr=cases.RATE, fused=True)
    decoded = [cases.decoded(settings, batch, step).tolist() for step, batch in enumerate(batches)]
    latents = torch.randn(max(map(max, decoded)), settings.model.latent)

    def steps() -> int:
        for batch, rows in zip(batches, decoded, strict=True):
            adam.zero_grad()
            outputs = [encoders[name](value)[0].sum() for name, value in batch.values.items()]
            outputs += [decoders[n](latents[:count]).sum() for n, count in zip(batch.values, rows, strict=True)]
            torch.stack(outputs).sum().backward()
            adam.step()
        return sum(map(len, batches))

    return steps
