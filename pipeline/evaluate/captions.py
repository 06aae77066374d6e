"""How well features and captions that a model makes belong together (MMVAE section 4.3, table 4; SVAE section 4).

`cca/data` is the mean correlation (eq. 4) of the split's own pairs, "ground truth" in table 4. In
`cca/CAPTION_given_FEATURES` (I → S) the caption is generated from the pair's features, in `cca/FEATURES_given_CAPTION`
(S → I) the features from its caption; both from the mean of the posterior, the likeliest words and the mean features.
`cca/joint` is of 1,000 pairs decoded from samples of the prior. Pairs that do not belong together have about 0, if
they differ: a model that decodes every sample of the prior alike has one pair, and the correlation of that, which may
be high by chance. Whoever lets `cca/joint` choose a checkpoint, as SVAE does, should look at its curve.

The analysis is of real training pairs, every caption with the features of its picture; the word vectors are fitted on
all training captions, also those of samples without features. Of a sample of the split one caption counts, the one that
evaluation shows, so that the standard error is one over samples.

Where the papers leave a choice: the features that are generated are scored themselves. The papers look up the nearest
training picture to show one; of the score MMVAE says "correlation between the generated images and captions", SVAE "CCA
for the resulting image and caption", and that may mean either. The ridge is the best of `RIDGES` for the real pairs of
the validation split, the model having no say: neither paper has one, and without it 1,280 features of the 1,003 birds
that our part of CUB has with captions are overfitted.

On that part of CUB, EfficientNet-Lite0's features: `cca/data` is 0.187 ± 0.015 of 129 test pairs with the ridge 10 that
validation chooses; with 1, 0.1, 0.01 and 0.001 it would be 0.175, 0.134, 0.087 and 0.053. The paper has 0.273, with
ResNet-101's features of all birds. Scores of different data do not compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from modalities import Features, Sentences
from modalities.text import END
from pipeline.batch import Batch, empty_batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.description import model_file, readers
from pipeline.evaluate.correlation import Cca
from pipeline.evaluate.scored import Scored, mean_of
from pipeline.evaluate.sentence_vectors import SentenceVectors
from pipeline.evaluate.subject import Subject, filled
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.objectives.systems import family_of
from pipeline.posteriors import generates
from pipeline.stream import Refs

DIMENSIONS = 40
"""Of the projections; fewer where features are fewer. The papers do not say how many."""
RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""In units of a side's average variance; far beyond it would be the covariance that counts, not the correlation."""
PAIRS = 1000
"""From the prior (MMVAE section 4.3)."""
PART = 1000
"""Captions that are read together."""


@torch.no_grad()
def captions(subject: Subject, reference: Reference | None = None) -> dict[str, Scored]:
    """`cca/…` of a run with one modality of features and one of sentences; of another nothing. Collective.

    Every rank does all of it, and what rank 0 finds counts: processors may differ in the last bits. Without a reference
    one is fitted, and raises what `Reference.fit` does.
    """
    names = sides(subject.run)
    if names is None:
        return {}
    features, caption = names
    reference = reference or Reference.fit(subject, features, caption)
    told = subject.collect(partial(_look, subject.model, features, caption))
    whole = told["whole"]
    if not whole.any():
        raise UserError(_lacks(subject, subject.split, features, caption, "none"))
    own = {name: told[name][whole] for name in names}
    scores = {"cca/data": reference.score(own[features], own[caption])}
    for wanted, given in _crossings(names):
        if f"made {wanted}" in told:
            pair = own | {wanted: told[f"made {wanted}"][whole]}
            scores[f"cca/{wanted}_given_{given}"] = reference.score(pair[features], pair[caption])
    if not subject.model.family.conditions:
        scores["cca/joint"] = reference.score(*joint(subject, features, caption))
    agreed: dict[str, Scored] = subject.world.gather(scores)[0]  # type: ignore[assignment]
    return agreed


def caption_names(run: Run) -> list[str]:
    """The metrics that `captions` gives for a run, but for that of the data themselves."""
    names, family = sides(run), family_of(run)
    if names is None:
        return []
    crossed = [
        f"cca/{wanted}_given_{given}"
        for wanted, given in _crossings(names)
        if generates(family, list(run.modalities), wanted, frozenset([given]))
    ]
    return crossed if family.conditions else [*crossed, "cca/joint"]


def sides(run: Run) -> tuple[str, str] | None:
    """The names of a run's features and of its sentences, where it has one modality of each kind."""
    features = [name for name, modality in run.modalities.items() if isinstance(modality, Features)]
    sentences = [name for name, modality in run.modalities.items() if isinstance(modality, Sentences)]
    return (features[0], sentences[0]) if len(features) == len(sentences) == 1 else None


def _crossings(names: tuple[str, str]) -> list[tuple[str, str]]:
    """What is made of what."""
    features, caption = names
    return [(caption, features), (features, caption)]


def _look(model: MultimodalVAE, features: str, caption: str, batch: Batch, _: Batch) -> dict[str, np.ndarray]:
    """The pair of each row, whether it is whole, and what the model makes of either side of it."""
    names = list(batch.values)
    told = {
        features: filled(batch, features, 0.0),
        caption: filled(batch, caption, END),
        "whole": np.asarray(batch.present_BM[:, [names.index(features), names.index(caption)]].all(1)),
    }
    for wanted, given in _crossings((features, caption)):
        if generates(model.family, names, wanted, frozenset([given])):
            shown = batch.only(frozenset([given]))
            told[f"made {wanted}"] = _made(model, wanted, model.posterior(shown).mu, shown)
    return told


def joint(subject: Subject, features: str, caption: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (1000, F) and captions (1000, L) of the same samples of the prior; every sample hangs on its number."""
    model, device = subject.model, subject.world.device
    number = torch.arange(PAIRS, device=device)
    z = model.prior(device).sample(normal(subject.run.seed, "captions", number, 1, model.latent)[0])
    nothing = empty_batch(model.modalities, device)
    parts = z.split(subject.run.train.batch)
    made = [np.concatenate([_made(model, name, part, nothing) for part in parts]) for name in (features, caption)]
    return made[0], made[1]


def _made(model: MultimodalVAE, name: str, z_BZ: Tensor, shown: Batch) -> np.ndarray:
    made: np.ndarray = model.modalities[name].mean(model.decode(name, z_BZ, shown)).cpu().numpy()
    return made


@dataclass(frozen=True)
class Reference:
    """What pairs are measured by: a function of the data alone, the same for every model."""

    read: Callable[[np.ndarray], str]
    """What the tokens (L,) of a caption read like."""
    vectors: SentenceVectors
    cca: Cca

    @classmethod
    def fit(cls, subject: Subject, features: str, caption: str) -> Reference:
        """On the captions and pairs of the split train; validation pairs choose the ridge. Takes about 10 s on CUB.

        Raises UserError without gensim, where no tokenizer lies beside the shards, and where the data have too few
        pairs.
        """
        read = readers(subject.manifest, subject.run.modalities).get(caption)
        if read is None:
            raise UserError(
                f"{subject.manifest.directory}: no {model_file(caption)} lies beside the shards, so nobody knows how "
                f"{caption} reads, which its correlation with {features} takes"
            )
        x, tokens, paired = _every_caption(subject, "train", features, caption)
        dimensions = min(DIMENSIONS, x.shape[1])
        if paired.sum() <= dimensions:
            raise UserError(
                _lacks(subject, "train", features, caption, f"{paired.sum()}, and {dimensions + 1} are needed")
            )
        sentences = [read(row) for row in tokens]
        vectors = SentenceVectors.fit(sentences)
        y = vectors(sentences)[paired]
        held, held_tokens, held_paired = _every_caption(subject, "val", features, caption)
        if not held_paired.any():
            raise UserError(_lacks(subject, "val", features, caption, "none"))
        other = vectors([read(row) for row in held_tokens[held_paired]])
        fits = [Cca.fit(x[paired], y, dimensions, ridge) for ridge in RIDGES]
        return cls(read, vectors, max(fits, key=lambda fit: fit.correlation(held[held_paired], other).mean()))

    def score(self, features_RF: np.ndarray, tokens_RL: np.ndarray) -> Scored:
        """The mean of eq. 4 over pairs."""
        return mean_of(self.cca.correlation(features_RF, self.vectors([self.read(row) for row in tokens_RL])))


def _every_caption(
    subject: Subject, split: str, features: str, caption: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The features (R, F) beside every caption of a split, the captions (R, L), and which have features (R,)."""
    manifest = subject.manifest
    (features_column, caption_column), rows = manifest.column([features, caption]), manifest.split(split)
    start, stop = manifest.first[[rows.start, rows.stop]]
    member = start + np.flatnonzero(manifest.modality[start:stop] == caption_column)
    if not len(member):
        raise UserError(_lacks(subject, split, features, caption, "none"))
    sample = np.searchsorted(manifest.first, member, side="right") - 1
    zeros = np.zeros(len(sample), np.uint64)
    beside = manifest.members(sample, [features_column], zeros, zeros)
    refs = Refs(sample, np.column_stack([beside, member]), sample)
    modalities = {name: subject.run.modalities[name] for name in (features, caption)}
    collate = Collator([manifest], modalities, budget=subject.run.train.damage)
    batches = [collate(refs[first : first + PART]) for first in range(0, len(member), PART)]
    there = np.concatenate([batch.present_BM for batch in batches])
    x, tokens = (np.concatenate([filled(batch, name, 0) for batch in batches]) for name in modalities)
    return x[there[:, 1]], tokens[there[:, 1]], there[there[:, 1], 0]


def _lacks(subject: Subject, split: str, features: str, caption: str, have: str) -> str:
    return (
        f"{subject.manifest.directory}: the correlation of {features} and {caption} takes samples that have both, of "
        f"which split {split!r} has {have}"
    )
