"""The joint ELBO and its parts in nats, always with λ = β = 1 (MVAE eq. 2), from one posterior sample a row."""

from __future__ import annotations

from torch import nn

from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import joint_of
from pipeline.objectives.terms import metrics


def elbo(module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
    """Sums and counts of `elbo`, `kl` and `recon.MODALITY`. The noise hangs on the row, so ranks do not matter."""
    plan = joint_of(run, batch.present_BM)
    noise = plan.noise(run.seed, "evaluate", batch.row_B, model.latent)
    scores = module(batch, plan, noise)
    sums, counts = metrics(scores, plan, batch)
    return {name: float(value) for name, value in sums.items()}, {name: float(n) for name, n in counts.items()}
