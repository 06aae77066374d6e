"""Which expert a joint posterior listens to: one that is far surer than the others makes it overlook them.

Of a product of Gaussian experts the mean is μ = Σ_i T_i μ_i / (Σ_i T_i + prior), T_i = 1/σ_i² (MVAE section 2.1), so
T_i's share says how much modality i counts; what is missing from 1 in all is the prior's. MMVAE (sections 3.1, 4.2)
calls experts of a large share overdominant.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batch import Batch, on_device
from pipeline.config import Run
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import family_of
from pipeline.posteriors import Posterior


def precision_names(run: Run) -> list[str]:
    """All metrics that `precision_shares` gives: of products of several experts."""
    family = family_of(run)
    return [f"precision.{family.experts[number].name}" for number in _taking_part(family, len(run.modalities))[0]]


def precision_shares(module: nn.Module, model: MultimodalVAE, run: Run, batch: Batch) -> dict[str, Tensor]:
    """`precision.EXPERT` of each row (B,): its share, mean over dimensions; NaN where a modality is missing."""
    whole = on_device(np.asarray(batch.present_BM.all(1)), batch.row_B.device) & (batch.weight_B > 0)
    return {
        f"precision.{name}": torch.where(whole, share_BZ.mean(1), torch.nan)
        for name, share_BZ in shares(model, batch).items()
    }


def shares(model: MultimodalVAE, batch: Batch) -> dict[str, Tensor]:
    """(B, Z) of each expert of a product of several: T_i / (Σ_j T_j + prior). Of rows that lack a modality nonsense."""
    numbers, prior = _taking_part(model.family, len(model.modalities))
    if not numbers:
        return {}
    _, precision_EBZ, _ = model.encode_all(batch)
    total_BZ = precision_EBZ[numbers].sum(0) + prior
    return {model.family.experts[number].name: precision_EBZ[number] / total_BZ for number in numbers}


def _taking_part(family: Posterior, modalities: int) -> tuple[list[int], float]:
    """The experts whose product the posterior of all modalities is, two or more, and the precision of the prior in it;
    none where it is no such product."""
    terms, _ = family.components(np.ones((1, modalities), bool))
    recipe = family.of(terms)
    numbers = np.flatnonzero(recipe.mask_TBE[0, 0]).tolist()
    return (numbers if len(terms) == 1 and len(numbers) > 1 else []), float(recipe.prior_TB[0, 0])
