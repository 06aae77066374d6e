"""Data of one's own, without a line of Python: the modalities are those that `prepare files` wrote beside the shards.

    pairstream prepare files --source DIR --out data/mine      DIR/pairstream.toml says what there is
    pairstream train files --data data/mine

Any other prepared data will do as well. MVAE with k = 1, 64 latent dimensions, Adam with 1e-3 and 50 epochs; every
field can be set on the command line.
"""

from __future__ import annotations

from pipeline.config import Run
from pipeline.description import described
from pipeline.manifest import open_manifest
from pipeline.settings import Model, Objective, Training

EPOCHS = 50


def files(data: str) -> Run:
    """MVAE on the modalities that a data directory says it holds."""
    manifest = open_manifest(data)
    batch = max(1, min(100, len(manifest.split("train"))))
    epoch = max(1, len(manifest.split("train")) // batch)
    return Run(
        recipe="files",
        data=data,
        modalities=described(manifest),
        model=Model(latent=64),
        objective=Objective(k=1, anneal=0.2),
        train=Training(batch=batch, steps=EPOCHS * epoch, validate_every=epoch, checkpoint_every=epoch),
    )
