"""A run's data: opened, checked against what the run wants, and made a stream."""

from __future__ import annotations

from infra.distributed import World
from infra.doctor import check_versions
from infra.doctor.finding import everywhere, ranks
from infra.errors import UserError, nearest
from pipeline.config import Run
from pipeline.description import model_file, names_file
from pipeline.evaluate.coherence import coherence_names
from pipeline.evaluate.labelled import label_of
from pipeline.evaluate.validation import validation_names
from pipeline.manifest import Manifest, check_shards, open_manifest
from pipeline.pairing import mixture
from pipeline.stream import Stream

COMPUTING = ("pairstream", "torch", "deepspeed", "accelerate", "numpy")
"""Packages whose versions make a difference to the numbers."""


def check_data(run: Run) -> Manifest:
    """The manifest of a run's data. Raises UserError where the data does not hold what the run needs."""
    known = validation_names(run)
    if run.train.best not in known:
        raise UserError(
            f"train.best: model.system = {run.model.system} has no validation metric {run.train.best!r}"
            + nearest(run.train.best, known)
            + " (every system has val/elbo)"
        )
    manifest = open_manifest(run.data).reading(run.modalities)
    for split in ("train", "val"):
        if not manifest.split(split):
            raise UserError(f"{manifest.directory}: split {split!r} holds no sample, and a run needs some")
    manifest.column(list(run.modalities))
    if run.train.best.removeprefix("val/") in coherence_names(run) and label_of(run, manifest) is None:
        raise UserError(
            f"train.best = {run.train.best} is an oracle's judgement, and {manifest.directory} has no label "
            f"{run.examine.label!r} to train one on: set examine.label, or choose another train.best"
        )
    check_fit(run, manifest)
    return manifest


def check_fit(run: Run, manifest: Manifest) -> None:
    """Raise UserError where the shards hold a modality of the run in another form, or are damaged beyond the budget."""
    for name, modality in run.modalities.items():
        member = modality.member(name)
        if member not in manifest.modalities:
            continue
        there = manifest.modalities[member]
        shape = modality.member_shape if there.shape is None else there.shape  # where it is known
        if (there.extension, shape) != (modality.extension, modality.member_shape):
            raise UserError(
                f"{manifest.directory}: modality {member} is .{there.extension} of shape {shape} in the shards, "
                f"the run wants .{modality.extension} of shape {modality.member_shape}"
            )
    check_shards(manifest, run.train.damage)


def check_nodes(world: World, stream: Stream) -> None:
    """Raise UserError, on every rank, where ranks have other versions of what computes, or other data, than rank 0.
    Collective."""
    if world.size == 1:
        return
    problem = check_versions(world, COMPUTING).problem
    told = everywhere(world, lambda: [(one.directory, one.fingerprint) for one in stream.manifests])
    for one in told:
        for (directory, mine), (_, theirs) in zip(told[0].value or [], one.value or [], strict=True):
            if mine != theirs:
                problem = problem or (
                    f"{ranks([one])} has other data in {directory} (fingerprint {theirs}, rank 0 has {mine}): every "
                    "node has to see the same"
                )
    world.raise_together(problem)


def _check_alike(run: Run, manifest: Manifest, other: Manifest) -> None:
    """Raise UserError where what is mixed in has other tokens for the same words, or other numbers for classes."""
    for name in run.modalities:
        for file in (model_file(other.member_of[name]), names_file(other.member_of[name])):
            if file in manifest.files and manifest.files[file] != other.files.get(file, manifest.files[file]):
                raise UserError(
                    f"mix: {other.directory} has another {file} than {manifest.directory}: the same numbers mean other "
                    f"words or classes there; prepare both together"
                )


def training_stream(run: Run, manifest: Manifest) -> Stream:
    """The stream of a run over its data and what is mixed in. Raises UserError where these hold nothing for it."""
    mixed, names = run.mixed(), list(run.modalities)
    others = [open_manifest(directory).reading(run.modalities) for directory, _ in mixed]
    for other in others:
        other.split("train")
        check_fit(run, other)
        _check_alike(run, manifest, other)
        if not {other.member_of[name] for name in names} & set(other.modalities):
            raise UserError(f"mix: {other.directory} holds {', '.join(other.modalities)}, none of {', '.join(names)}")
        if other.fingerprint in {one.fingerprint for one in (manifest, *others) if one is not other}:
            raise UserError(f"mix: {other.directory} holds the same data as another directory of the run: leave it out")
    shares = [1 - sum(share for _, share in mixed), *(share for _, share in mixed)]
    views = mixture([manifest, *others], shares, names, run.pairing, run.seed, run.train.batch)
    return Stream(views, run.modalities, run.seed)
