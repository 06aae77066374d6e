"""Which expert a joint posterior listens to: one that is far surer than the others makes it overlook them.

Of a product of Gaussian experts the mean is μ = Σ_i T_i μ_i / (Σ_i T_i + prior), T_i = 1/σ_i² (MVAE section 2.1), so
T_i's share says how much modality i counts. MMVAE (section 3.1) calls experts of a large share overdominant.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batch import Batch, on_device
from pipeline.config import Run
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import family_of
from pipeline.posteriors import Mixtures, Products


def precision_names(run: Run) -> list[str]:
    """All metrics that `precision_shares` gives: of products of one expert a modality."""
    family = family_of(run)
    if len(run.modalities) < 2 or not isinstance(family, Products) or isinstance(family, Mixtures):
        return []
    return [f"precision.{name}" for name in run.modalities]


def precision_shares(module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch) -> dict[str, Tensor]:
    """`precision.MODALITY` of each row (B,): T_i / Σ_j T_j, mean over dimensions; NaN where not all are present."""
    names = precision_names(run)
    if not names:
        return {}
    _, precision_MBZ, _ = model.encode_all(batch)
    shares_MB = (precision_MBZ / precision_MBZ.sum(0)).mean(2)
    whole = on_device(np.asarray(batch.present_BM.all(1)), shares_MB.device) & (batch.weight_B > 0)
    return {name: torch.where(whole, share, torch.nan) for name, share in zip(names, shares_MB, strict=True)}
