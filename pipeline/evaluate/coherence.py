"""Coherence: whether what a model generates shows the class that it should, as oracles read it off the pictures.

Cross-coherence: a picture made of one other modality shows the row's class. Synergy: so does a picture of which all
parts are given. Joint coherence: pictures of different modalities, made of one sample of the prior, show one class
(MMVAE section 4.2 and table 2; SVAE section 4, table 1 and figure 7). A picture in strips (run.examine.parts) is made
whole, the strip that is given too, and judged whole; of its joint generation the papers show pictures only.

Pictures are means of p(x | z) at the mean of q(z | what is given), of a mixture at that of a component which is drawn
for the row: the mean of all components may be where none of them is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from infra.errors import UserError
from modalities import Image
from pipeline.batch import Batch, empty_batch, on_device
from pipeline.config import Run
from pipeline.evaluate.labelled import label_of
from pipeline.evaluate.oracle import Oracle, Task, oracle_of
from pipeline.evaluate.scored import Scored, mean_of, of_sums
from pipeline.evaluate.subject import Subject, filled
from pipeline.experts import Gaussian, Laplace, Mixture
from pipeline.noise import normal
from pipeline.objectives.systems import family_of
from pipeline.posteriors import generates

JOINT = 1000
"""Samples of the prior (SVAE section 4)."""
PARTS = "parts"
"""What the picture that run.examine.parts are strips of is called."""


def coherence_names(run: Run) -> list[str]:
    """The metrics that `coherence` gives for a run whose data have the label run.examine.label."""
    joint = ["coherence/joint"] if _jointly(run) else []
    return [*(f"oracle/accuracy.{picture}" for picture in judged(run)), *questions(run), *joint]


def questions(run: Run) -> dict[str, tuple[str, tuple[str, ...]]]:
    """(picture, the modalities that it is generated from) of each metric that the run's system answers."""
    family, names = family_of(run), list(run.modalities)
    asked: dict[str, tuple[str, tuple[str, ...]]] = {}
    for picture, parts in _pictures(run).items():
        others = {f"coherence/{picture}_given_{name}": (name,) for name in names if (name,) != parts}
        whole = {f"synergy/{picture}": parts} if len(parts) > 1 else {}
        for metric, given in (others | whole).items():
            if all(generates(family, names, part, frozenset(given)) for part in parts):
                asked[metric] = picture, given
    return asked


def judged(run: Run) -> dict[str, tuple[str, ...]]:
    """The pictures that some metric needs an oracle for, by name, each with its parts from the top."""
    wanted = {picture for picture, _ in questions(run).values()}
    return {picture: parts for picture, parts in _pictures(run).items() if _jointly(run) or picture in wanted}


def _jointly(run: Run) -> bool:
    return len(_pictures(run)) > 1 and not family_of(run).conditions


def _pictures(run: Run) -> dict[str, tuple[str, ...]]:
    """The picture that strips make, and each other image. Raises UserError for strips that do not fit."""
    images = {name: modality for name, modality in run.modalities.items() if isinstance(modality, Image)}
    parts = run.examine.parts if len(run.examine.parts) > 1 else ()
    if len({(images[name].width, images[name].channels) for name in parts}) > 1:
        sizes = ", ".join(f"{name} {images[name].width} x {images[name].channels}" for name in parts)
        raise UserError(f"examine.parts: strips of one picture are equally wide, in equally many colours, not {sizes}")
    whole = {PARTS: parts} if parts else {}
    return whole | {name: (name,) for name in images if name not in parts}


def oracles(subject: Subject) -> dict[str, Oracle]:
    """The oracle of each picture that `coherence` judges: trained where the cache has none. Collective.

    None where the data have no label run.examine.label. Raises UserError as `oracle_of` does.
    """
    label = label_of(subject.run, subject.manifest)
    if label is None:
        return {}
    return {
        picture: oracle_of(Task(subject.run, subject.manifest, parts, label), subject.world)
        for picture, parts in judged(subject.run).items()
    }


@torch.no_grad()
def coherence(subject: Subject, oracles: Mapping[str, Oracle]) -> dict[str, Scored]:
    """Shares of rows, `coherence/PICTURE_given_MODALITY` and `synergy/PICTURE`, and of samples, `coherence/joint`.

    Only rows count that have the label and what is given. Beside them stands how often an oracle is right about the
    split's own pictures, `oracle/accuracy.PICTURE`. Nothing without oracles. Collective.
    """
    run, model = subject.run, subject.model
    label = label_of(run, subject.manifest)
    if label is None or not oracles:
        return {}
    names, pictures, asked = list(run.modalities), judged(run), questions(run)

    def look(batch: Batch, beside: Batch) -> dict[str, np.ndarray]:
        truth = filled(beside, run.examine.label, -1)

        def right(picture: str, strips: list[torch.Tensor], needed: tuple[str, ...]) -> np.ndarray:
            counted = batch.present_BM[:, [names.index(name) for name in needed]].all(1) & (truth >= 0)
            seen = oracles[picture].classes(strips).cpu().numpy()
            return np.where(counted, seen == truth, np.nan)

        told = {}
        for picture, parts in pictures.items():
            strips = [on_device(filled(batch, part, 0.0), batch.row_B.device) for part in parts]
            told[f"oracle/accuracy.{picture}"] = right(picture, strips, parts)
        for metric, (picture, given) in asked.items():
            shown = batch.only(frozenset(given))
            z = _centre(run, model.posterior(shown), batch)
            strips = [run.modalities[part].mean(model.decode(part, z, shown)) for part in pictures[picture]]
            told[metric] = right(picture, strips, given)
        return told

    collected = subject.collect(look, beside={run.examine.label: label})
    result = {metric: mean_of(rows) for metric, rows in collected.items()}
    return result | ({"coherence/joint": _joint(subject, oracles)} if _jointly(run) else {})


def _centre(run: Run, posterior: Gaussian | Laplace | Mixture, batch: Batch) -> torch.Tensor:
    """(B, Z)."""
    if not isinstance(posterior, Mixture):
        return posterior.mu
    return posterior.component(normal(run.seed, "coherence", batch.row_B, 1, 1)[..., 0]).mu[0]


def _joint(subject: Subject, oracles: Mapping[str, Oracle]) -> Scored:
    """The share of samples of the prior of which all oracles read the same class."""
    run, model, world = subject.run, subject.model, subject.world
    number = torch.arange(-(-JOINT // world.size), device=world.device) * world.size + world.rank
    noise = normal(run.seed, "joint coherence", number, 1, model.latent)[0]
    nothing, agreeing = empty_batch(run.modalities, world.device), 0.0
    step = run.train.batch
    for z, some in zip(model.prior(world.device).sample(noise).split(step), number.split(step), strict=True):
        read = torch.stack(
            [
                oracles[picture].classes([run.modalities[part].mean(model.decode(part, z, nothing)) for part in parts])
                for picture, parts in judged(run).items()
            ]
        )
        agreeing += float(((read == read[0]).all(0) & (some < JOINT)).sum())
    total = world.sum([agreeing])[0]
    return of_sums(total, total, JOINT)
