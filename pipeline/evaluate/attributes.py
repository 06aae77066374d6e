"""Accuracy of predicting attributes from the other modalities (MVAE appendix F, figure 9 a), beside what guessing gets.

Most attributes apply to few faces, so that saying that none does is right most of the time: balanced accuracy, the mean
of the recalls of yes and no, is 0.5 for every constant answer. Attributes that are modalities of their own but lie in
one member of the shards (MVAE19) are judged together, under the member's name, and never given.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from torch import Tensor

from modalities import Attributes
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.evaluate.classification import metric_name, subsets
from pipeline.evaluate.scored import Scored, bootstrap, mean_of
from pipeline.evaluate.subject import Subject, filled
from pipeline.experts import Mixture
from pipeline.noise import normal, uniform
from pipeline.objectives.systems import family_of
from pipeline.posteriors import generates
from pipeline.stream import in_order, rows_for_rank

Question = tuple[str, tuple[str, ...], tuple[str, ...]]
"""(the member that holds the attributes, their modalities, the modalities that they are predicted from)"""


def questions(run: Run) -> list[Question]:
    """What the run's system answers: all attributes of a member, from every subset of the modalities beside them."""
    family, names = family_of(run), list(run.modalities)
    groups: dict[str, list[str]] = {}
    for name, modality in run.modalities.items():
        if isinstance(modality, Attributes):
            groups.setdefault(modality.member(name), []).append(name)
    asked = [
        (member, tuple(group), given)
        for member, group in groups.items()
        for given in subsets([name for name in names if name not in group])
    ]
    return [
        (member, group, given)
        for member, group, given in asked
        if all(generates(family, names, name, frozenset(given)) for name in group)
    ]


@torch.no_grad()
def attribute_accuracy(subject: Subject) -> dict[str, Scored]:
    """A study: `accuracy/…_given_…`, `balanced/…_given_…`, `sampled/…_given_…` and `majority/…` of each member.

    An attribute is said to apply where p(attribute | z) > 1/2 at the mean of q(z | subset). `sampled` is the accuracy
    of one drawn from p(attribute | z) at a z drawn from q(z | subset), as in figure 9 (a). `majority` is that of saying
    for each what holds for most of the training split. Rows count that have the attributes and what is given;
    accuracies are means over attributes. Collective.
    """
    asked = questions(subject.run)
    groups = {member: group for member, group, _ in asked}
    if not groups:
        return {}

    def look(batch: Batch, _: Batch) -> dict[str, np.ndarray]:
        told = {member: _stacked([filled(batch, name, np.nan) for name in group]) for member, group in groups.items()}
        for question in asked:
            told |= _said(subject, batch, question)
        return told

    found = subject.collect(look)
    result: dict[str, Scored] = {}
    for member, _, given in asked:
        name, sampled = metric_name(member, given), metric_name(member, given, "sampled")
        truth, said = _without_gaps(found[member], found[name])
        result[name] = accuracy(truth, said)
        result[metric_name(member, given, "balanced")] = balanced_accuracy(truth, said)
        result[sampled] = accuracy(*_without_gaps(found[member], found[sampled]))
    for member, rate in _training_rates(subject, groups).items():
        majority = np.where(np.isnan(rate), rate, rate > 0.5)
        truth, said = _without_gaps(found[member], np.broadcast_to(majority, found[member].shape))
        result[f"majority/{member}"] = accuracy(truth, said)
    return result


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> Scored:
    """Share of the attributes that are predicted as they are; both (R, A), of 0 and 1."""
    return mean_of((truth == predicted).mean(1))


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> Scored:
    """Mean over attributes of the mean of the recalls of 1 and of 0; both (R, A), of 0 and 1.

    An attribute that all rows have, or none, has no recall of the other and is left out; NaN where none is left.
    """
    is_one, right = truth == 1, truth == predicted
    told = np.stack([is_one, is_one & right, ~is_one, ~is_one & right]).astype(np.float32)

    def balanced(rows: np.ndarray) -> float:
        times = np.bincount(rows, minlength=len(truth)).astype(np.float32)
        ones, found, zeros, spared = times @ told
        known = (ones > 0) & (zeros > 0)
        recalls = (found[known] / ones[known] + spared[known] / zeros[known]) / 2
        return float(recalls.mean()) if len(recalls) else np.nan

    return bootstrap(balanced, len(truth))


def _said(subject: Subject, batch: Batch, question: Question) -> dict[str, np.ndarray]:
    """By metric of every row 1 or 0 for each attribute, (B, A): the likelier one, and one that is drawn, whose noise
    hangs on seed and row; NaN where the row lacks something that is given."""
    (member, group, given), model, seed = question, subject.model, subject.run.seed
    shown, names = batch.only(frozenset(given)), list(model.modalities)
    has = np.asarray(batch.present_BM[:, [names.index(name) for name in given]].all(1))
    posterior = model.posterior(shown)
    width = posterior.noise if isinstance(posterior, Mixture) else model.latent
    drawn = posterior.sample(normal(seed, f"sampled {member}", batch.row_B, 1, width))[0]

    def likely(z: Tensor) -> np.ndarray:
        return _stacked([model.modalities[name].mean(model.decode(name, z, shown)).cpu().numpy() for name in group])

    mean, sampled = likely(posterior.mu), likely(drawn)
    noise = uniform(normal(seed, f"drawn {member}", batch.row_B, 1, 1).flatten(), member, sampled.shape[1])
    said = {"accuracy": mean > 0.5, "sampled": noise.cpu().numpy() < sampled}
    return {
        metric_name(member, given, kind): np.where(has[:, None], one, np.float32(np.nan)) for kind, one in said.items()
    }


def _stacked(values: list[np.ndarray]) -> np.ndarray:
    """The attributes of several modalities side by side."""
    return np.concatenate(values, 1)


def _without_gaps(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of both the rows in which all attributes are known."""
    known = ~(np.isnan(truth) | np.isnan(predicted)).any(1)
    return truth[known], predicted[known]


def _training_rates(subject: Subject, groups: dict[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    """How often each attribute applies in the training split, (A,); NaN where none has it. Nothing else is read."""
    names, run, world = list(chain(*groups.values())), subject.run, subject.world
    collate = Collator([subject.manifest], {name: run.modalities[name] for name in names}, budget=run.train.damage)
    sums = {name: np.zeros(run.modalities[name].shape) for name in names}
    rows = dict.fromkeys(names, 0)
    size = -(-run.train.batch // world.size) * world.size
    for refs in in_order(subject.manifest, "train", names, size):
        batch = collate(rows_for_rank(refs, world.rank, world.size))
        for name in names:
            sums[name] += batch.values[name].sum(0).numpy()  # zeros stand in where no row has it
            rows[name] += len(batch.rows_of[name])
    totals = iter(world.sum([number for name in names for number in (float(rows[name]), *sums[name].tolist())]))
    rates = {}
    for name in names:
        count = next(totals)
        rates[name] = np.array([next(totals) for _ in sums[name]]) / (count or np.nan)
    return {member: np.concatenate([rates[name] for name in group]) for member, group in groups.items()}
