"""The joint ELBO and its parts in nats, always with λ = β = 1 (MVAE eq. 2), from one posterior sample a row."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import joint_of
from pipeline.objectives.terms import row_metrics


def elbo(module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch) -> dict[str, Tensor]:
    """`elbo`, `kl` and `recon.MODALITY` of each row (B,). The noise hangs on the row, so ranks do not matter."""
    plan = joint_of(run, batch.present_BM)
    noise = plan.noise(run.seed, "evaluate", batch.row_B, model.latent)
    scores = module(batch, plan, noise)
    return row_metrics(scores, plan, batch)
