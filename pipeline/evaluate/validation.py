"""What a run in training is asked on validation data, again and again."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from infra.distributed import World
from pipeline.config import Run
from pipeline.evaluate import evaluate, metric_names
from pipeline.evaluate.captions import Reference, caption_names, captions, sides
from pipeline.evaluate.coherence import coherence, coherence_names, oracles
from pipeline.evaluate.latents import latents
from pipeline.evaluate.subject import Subject
from pipeline.manifest import Manifest
from pipeline.model import MultimodalVAE

LOOKED_AT = 1000
"""Evenly spaced rows by which active units are counted: the standard error of a variance is 4 % of it."""


def validation_names(run: Run) -> list[str]:
    """The metrics that can choose a run's best checkpoint (train.best) where its data hold what they need."""
    judged = [f"val/{name}" for name in (*coherence_names(run), *caption_names(run))]
    return [*metric_names(run, "val"), *judged]


class Validation:
    """The cheap metrics, and `val/latents/…` of some rows; what oracles say or how captions correlate, where the run's
    best checkpoint hangs on that (train.best)."""

    def __init__(self, model: MultimodalVAE, run: Run, manifest: Manifest, world: World) -> None:
        """Collective: an oracle that the cache has not got is trained here. Raises what `Reference.fit` does."""
        self.subject = Subject(model, run, manifest, "val", world)
        best = run.train.best.removeprefix("val/")
        self.oracles = oracles(self.subject) if best in coherence_names(run) else {}
        names = sides(run)
        self.reference = Reference.fit(self.subject, *names) if names and best in caption_names(run) else None

    def __call__(self, module: nn.Module) -> dict[str, float]:
        """Metrics named `val/…`; `module` is what is called (DeepSpeed's engine, or the model itself). Collective."""
        subject, model = self.subject, self.subject.model
        scores = evaluate(module, model, subject.run, subject.manifest, "val", subject.world)
        was_training = model.training
        model.eval()
        scores |= {f"val/{name}": score for name, score in coherence(subject, self.oracles).items()}
        if self.reference:
            scores |= {f"val/{name}": score for name, score in captions(subject, self.reference).items()}
        found = latents(replace(subject, few=LOOKED_AT))
        scores |= {f"val/{name}": score for name, score in found.items() if score.count}
        model.train(was_training)
        return {name: score.value for name, score in scores.items()}
