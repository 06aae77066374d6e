"""scikit-learn's digits as top half, bottom half and label: the demonstration, small enough for any machine.

pairstream train digits
pairstream sweep digits
"""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Model, Objective, Optim, Pairing, Run, Training
from pipeline.corpora.digits import MODALITIES
from pipeline.recipes.sweep import Sweep

BOTH = "accuracy/label_given_top_bottom"
TOP = "accuracy/label_given_top"


def digits() -> Run:
    """MVAE on the three parts of real 8x8 digits, few of them complete: the demonstration."""
    return Run(
        recipe="digits",
        data=Path("data/digits"),
        modalities=dict(MODALITIES),
        pairing=Pairing(view="split", fraction=1.0, composition="balanced", complete_share=0.5),
        model=Model(latent=16),
        objective=Objective(k=1, lambda_={"label": 1.0}, anneal=0.2, cross=1.0),
        optim=Optim(lr=1e-3),
        train=Training(batch=100, steps=1500, validate_every=250, checkpoint_every=500, best=f"val/{BOTH}"),
    )


def digits_sweep() -> Sweep:
    """Supervision fraction x k x the label's weight: 12 trials."""
    return Sweep(
        run=digits(),
        grid={
            "pairing.fraction": (0.05, 0.2, 1.0),
            "objective.k": (0, 1),
            "objective.lambda.label": (1.0, 50.0),
        },
        metric=f"val/{BOTH}",
        columns=(f"test/{BOTH}", f"test/{TOP}", "test/elbo"),
    )
