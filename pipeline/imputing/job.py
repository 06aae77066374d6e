"""What it takes to complete data by a run's checkpoint, checked before anything is written."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.checkpoint import Checkpoint, Checkpoints
from infra.errors import UserError, nearest
from infra.storage import open_directory
from infra.tracking import destination_in
from modalities import Attributes, Modality
from pipeline.config import Run
from pipeline.data import check_fit
from pipeline.description import NAME as DESCRIPTION
from pipeline.description import described, model_file, names_file, small_files
from pipeline.imputing.filling import parts_of
from pipeline.imputing.marks import Maker, about
from pipeline.imputing.rows import shared
from pipeline.imputing.settings import Settings
from pipeline.manifest import Manifest, open_manifest


@dataclass(frozen=True)
class Job:
    """All that a process needs to complete its part of the data."""

    run: Run
    checkpoint: Checkpoint
    manifest: Manifest
    settings: Settings
    stored: dict[str, Modality]
    maker: Maker
    files: dict[str, bytes]
    notes: list[str]

    @property
    def asked(self) -> list[str]:
        """Members that are filled in where they are missing: of which the model knows all parts."""
        only, known = self.settings.only, self.run.modalities
        return [
            member
            for member, parts in parts_of(known).items()
            if (not only or member in only)
            and sum(math.prod(known[name].shape) for name in parts) == math.prod(known[parts[0]].member_shape)
        ]

    @property
    def identity(self) -> dict[str, Any]:
        """What the result hangs on: two that are equal give the same."""
        return {
            "source": self.manifest.fingerprint, "settings": json.loads(json.dumps(asdict(self.settings))),
            "by": asdict(self.maker), "pairing_seed": self.run.seed,
        }  # fmt: skip


def prepared(run: Run, directory: Path, checkpoint: Checkpoint, data: str, settings: Settings) -> Job:
    """The job of completing `data` by the checkpoint of the run in `directory`. Raises UserError where they do not fit.

    The data may lack modalities of the model altogether, and hold others, which are copied.
    """
    manifest = open_manifest(data).reading(run.modalities)
    for split in settings.splits:
        manifest.split(split)
    members = {modality.member(name): name for name, modality in run.modalities.items()}
    if not members.keys() & manifest.modalities.keys():
        raise UserError(
            f"{data} holds {', '.join(manifest.modalities)}, and the model of {directory} knows "
            f"{', '.join(members)}: there is nothing to complete"
        )
    for name in (*settings.only, *settings.doubt):
        if name not in members:
            raise UserError(f"the model of {directory} has no modality {name!r}" + nearest(name, list(members)))
    if about(manifest) is not None:
        raise UserError(f"{data} was completed by a model already: complete the data that it was made of")
    if shared(manifest):
        raise UserError(f"{data}: its samples share members that are stored once; such data cannot be completed yet")
    check_fit(run, manifest)
    files = {name: manifest.file(name) for name in manifest.files}
    notes = _remarks(run, directory, checkpoint, manifest)
    other = checkpoint.meta["fingerprint"] != manifest.fingerprint
    if other and (_words(manifest) or members.keys() - manifest.modalities.keys()):
        files = _of_training(run, manifest) | files
    tracked = destination_in(directory)
    identity = tracked.identity if tracked else directory.resolve().name
    maker = Maker(checkpoint.weights, identity, checkpoint.step)
    return Job(run, checkpoint, manifest, settings, _stored(run, manifest), maker, files, notes)


def _remarks(run: Run, directory: Path, checkpoint: Checkpoint, manifest: Manifest) -> list[str]:
    notes = []
    last = Checkpoints(directory / "checkpoints").reached()
    if last < run.train.steps:
        notes.append(f"{directory} has had {last:,} of its {run.train.steps:,} steps; step {checkpoint.step:,} serves")
    if checkpoint.meta["fingerprint"] != manifest.fingerprint:
        notes.append(f"{directory} was trained on other data than {manifest.directory}")
    return notes


def _words(manifest: Manifest) -> bool:
    """Whether the data have words or names of their own, which might mean something else to the model."""
    return any(
        file(name) in manifest.files for name in manifest.member_of.values() for file in (model_file, names_file)
    )


def _of_training(run: Run, manifest: Manifest) -> dict[str, bytes]:
    """The tokenizers and names that the run was trained with. Raises UserError where these data have others."""
    trained = open_manifest(run.data).reading(run.modalities)
    theirs = small_files(trained, run.modalities)
    for name in theirs.keys() & manifest.files.keys():
        if trained.files[name] != manifest.files[name]:
            raise UserError(
                f"{manifest.directory} has another {name} than {run.data}, on which the model was trained: the same "
                "numbers mean other words or classes there; prepare both together"
            )
    return {name: data for name, data in theirs.items() if name.split(".")[0] not in manifest.modalities}


def _stored(run: Run, manifest: Manifest) -> dict[str, Modality]:
    """How the members of the new data are stored: as the data say, and where they do not, the run."""
    known: dict[str, Any] = {}
    for name, modality in run.modalities.items():
        if isinstance(modality, Attributes) and modality.of:
            modality = Attributes(modality.among, modality.hidden)
        known[run.modalities[name].member(name)] = modality
    if open_directory(manifest.directory).size(DESCRIPTION) is not None:
        known |= described(manifest)
    strangers: dict[str, Any] = {name: kind for name, kind in manifest.modalities.items() if name not in known}
    everything = known | strangers  # of those there is an extension, which is all that copying takes
    return {name: everything[name] for name in dict.fromkeys([*manifest.modalities, *known])}
