"""Sentences that a model writes, as lines of Markdown: translations (MVAE section K) and captions of features.

Where features are made of a caption, they are shown by the nearest ones of the training data (MMVAE appendix G).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalities import Features, Sentences
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.evaluate.subject import Subject, filled
from pipeline.noise import normal, uniform
from pipeline.pictures import prior
from pipeline.pictures.generations import from_subset
from pipeline.pictures.looks import Words
from pipeline.pictures.made import Value, decoded, held, lacking, makes, mean_of, rows, samples_of
from pipeline.stream import in_order

TRANSLATED, CAPTIONED = 10, 20
"""Rows of the split that are translated, and whose captions are shown."""
TRAINING, READ = 10_000, 1000
"""Rows of the training data among which the nearest is looked for, at most; rows that are read together."""


def translations(subject: Subject) -> list[str]:
    """The first two sentence modalities made of one z, of the prior and of both, and of each other; no line where there
    are not two.

    "Likeliest" is the likeliest word after the likeliest word; "drawn" are words drawn from p(x | z) at the same z.
    """
    pair = _sentences(subject)[:2]
    if len(pair) < 2:
        return []
    batch = rows(subject, TRANSLATED, pair)
    first, second = pair
    lines = [f"# Translations ({subject.split})", ""]
    if not subject.model.family.conditions:
        nothing = prior.rows(subject, TRANSLATED)
        title, z = f"{first} and {second} of one z ~ p(z)", prior.latents(subject, nothing)
        lines += _section(subject, nothing, title, [], z, pair)
    if {*pair} <= {*makes(subject, pair)}:
        z = samples_of(subject, batch, pair, 1, "translations")[0]
        lines += _section(subject, batch, f"{first} and {second} of one z ~ q(z | {first}, {second})", pair, z, pair)
    for given, wanted in permutations(pair):
        if wanted in makes(subject, [given]):
            title, z = f"{given} → {wanted}, at the mean of q(z | {given})", mean_of(subject, batch, [given])
            lines += _section(subject, batch, title, [given], z, [wanted])
    return lines if len(lines) > 2 else []


def _section(
    subject: Subject, batch: Batch, title: str, given: Sequence[str], z_BZ: Tensor, wanted: Sequence[str]
) -> list[str]:
    """Row by row what is given, what else is real, and what is made."""
    words, data = Words.of(subject), held(batch)
    told = {f"**{name}**": [words.value(name, one) for one in data[name]] for name in given}
    beside = [name for name in wanted if given and name not in given]  # nothing is real of the prior
    told |= {f"{name}, real": [words.value(name, one) for one in data[name]] for name in beside}
    shown = batch.only(frozenset(given))
    for name, likeliest in decoded(subject, wanted, z_BZ, shown).items():
        told[f"{name}, likeliest"] = [words.value(name, one) for one in likeliest]
    for name in [] if subject.model.family.conditions else wanted:  # their decoders see more than z
        told[f"{name}, drawn"] = [words.value(name, one) for one in drawn(subject, name, z_BZ, shown)]
    lines = [f"## {title}", "", "| key | | sentence |", "| --- | --- | --- |"]
    for row in np.flatnonzero(~lacking(batch, given)).tolist():
        keys = [f"`{batch.keys[row]}`", *[""] * (len(told) - 1)]
        lines += [_line(key, what, texts[row]) for key, (what, texts) in zip(keys, told.items(), strict=True)]
    return [*lines, ""]


@torch.no_grad()
def drawn(subject: Subject, name: str, z_BZ: Tensor, batch: Batch) -> np.ndarray:
    """A sentence of each row, its words drawn from p(x_name | z): (B, L). The noise hangs on seed and row."""
    model, modality = subject.model, subject.model.modalities[name]
    assert isinstance(modality, Sentences)
    noise_B = normal(subject.run.seed, "pictures words", batch.row_B, 1, 1)[0, :, 0]
    uniform_BL = uniform(noise_B, name, modality.length)
    if modality.autoregressive:
        writer: Any = model.decoders[name]
        tokens: Tensor = writer.write(z_BZ, uniform_BL)
    else:
        tokens = modality.sample(model.decode(name, z_BZ, batch), uniform_BL)
    return tokens.cpu().numpy()


def captions(subject: Subject) -> list[str]:
    """Of each sentence modality the real one, that made of each other modality, and the training caption whose features
    are nearest to those made of the real one; no line where there is nothing else to make it of.
    """
    lines: list[str] = []
    words = Words.of(subject)
    for name in _sentences(subject):
        others = [other for other in subject.run.modalities if other not in _sentences(subject)]
        sources = [other for other in others if name in makes(subject, [other])]
        if not sources:
            continue
        batch = rows(subject, CAPTIONED, [name, *sources])
        told = {"real": [words.value(name, one) for one in held(batch)[name]]}
        for source in sources:
            made = from_subset(subject, batch, [source])
            told[f"made of {source}"] = [words.value(name, one) for one in made[name]]
        made = from_subset(subject, batch, [name])
        for vector in (other for other in others if isinstance(subject.run.modalities[other], Features)):
            if vector in makes(subject, [name]):
                title = f"of the training {vector} nearest to those made of the real one"
                told[title] = [words.value(name, one) for one in nearest(subject, vector, made[vector], name)]
        lines += [f"# {name} ({subject.split})", "", _line("key", *told), _line(*["---"] * (len(told) + 1))]
        lines += [_line(f"`{key}`", *texts) for key, *texts in zip(batch.keys, *told.values(), strict=True)]
        lines.append("")
    return lines


def nearest(subject: Subject, name: str, made: Sequence[Value], wanted: str) -> list[Value]:
    """What the training sample whose features are nearest (Euclid) has of the wanted modality; None of nothing made.

    Of the first TRAINING samples, those that have both.
    """
    kinds = {other: subject.run.modalities[other] for other in (name, wanted)}
    collate = Collator([subject.manifest], kinds, budget=subject.run.train.damage)
    nothing = np.full(subject.run.modalities[name].shape, np.nan, np.float32)
    made_BF = torch.from_numpy(np.stack([nothing if one is None else one for one in made]))
    least_B = torch.full((len(made),), torch.inf)
    best: list[Value] = [None] * len(made)
    for refs in islice(in_order(subject.manifest, "train", list(kinds), READ), TRAINING // READ):
        batch = collate(refs)
        distance_BR = torch.cdist(made_BF, torch.from_numpy(filled(batch, name, 0)))
        distance_BR[:, torch.from_numpy(lacking(batch, list(kinds)))] = torch.inf
        distance_B, place_B = distance_BR.min(1)
        values = held(batch)[wanted]
        for row in torch.nonzero(distance_B < least_B).flatten().tolist():
            least_B[row], best[row] = distance_B[row], values[int(place_B[row])]
    return best


def _sentences(subject: Subject) -> list[str]:
    return [name for name, modality in subject.run.modalities.items() if isinstance(modality, Sentences)]


def _line(*cells: str) -> str:
    """A table's line; what Markdown would take for its own is escaped."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"
