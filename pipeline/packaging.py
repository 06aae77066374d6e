"""A trained model as a folder that needs nothing else: weights, configuration, tokenizers.

weights.safetensors has the weights in float32, run.json the configuration, pairstream.json what the model is and by
which form of these files; NAME.model and NAME.names.json are the tokenizers and names that lay beside the data
(`pipeline/description.py`). Neither the data nor the run's directory is needed to load it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from infra.checkpoint import Checkpoint
from infra.errors import UserError
from infra.tracking import destination_in
from pipeline import config
from pipeline.config import Run
from pipeline.description import small_files
from pipeline.evaluate.run import checkpoint_of
from pipeline.forms import Form, form_of
from pipeline.manifest import Manifest, open_manifest
from pipeline.model import MultimodalVAE
from pipeline.train import build, load_weights

FORMAT = 1
"""Of the folder; another one where what an older pairstream reads would mean something else."""
ABOUT, WEIGHTS, CONFIGURATION = "pairstream.json", "weights.safetensors", "run.json"


@dataclass(frozen=True)
class Packaged:
    """A model out of its folder, on the CPU, ready to be asked."""

    run: Run
    model: MultimodalVAE
    forms: Mapping[str, Form]
    """How the values of each modality are told."""
    about: Mapping[str, Any]
    """What pairstream.json says."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Tokenizers and names, by the names of their files."""

    @property
    def weights(self) -> str:
        """A hash of the weights: by it is known what this model has made."""
        digest = xxhash.xxh3_128()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def save(run: Run, directory: Path, manifest: Manifest, where: Path) -> None:
    """Write the best checkpoint of the run in `directory` into the folder `where`, which must not exist yet.

    `manifest`: of the run's data, for the small files beside them. Raises UserError where there is no checkpoint.
    """
    checkpoint = checkpoint_of(directory)
    weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint.tensors("model").items()}
    where.mkdir(parents=True)
    # not by save_file, whose files nobody but their owner can read
    (where / WEIGHTS).write_bytes(to_bytes({name: tensor.float() for name, tensor in weights.items()}))
    config.save(run, where / CONFIGURATION)
    for name, data in small_files(manifest, run.modalities).items():
        (where / name).write_bytes(data)
    (where / ABOUT).write_text(json.dumps(_told(run, directory, checkpoint), indent=2) + "\n")


def _told(run: Run, directory: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """What pairstream.json says of a run's checkpoint."""
    tracked = destination_in(directory)
    return {
        "format": FORMAT,
        "pairstream": version("pairstream"),
        "recipe": run.recipe,
        "step": checkpoint.step,
        "best": checkpoint.meta["best"],
        "configuration": config.identity(run),
        "data": checkpoint.meta["fingerprint"],
        "run": tracked.identity if tracked else None,
    }


def load(where: Path) -> Packaged:
    """The model that `save` wrote. Raises UserError where the folder is not whole, or of another version."""
    about = _about(where)
    run = config.load(where / CONFIGURATION)
    model = build(run)
    try:
        model.load_state_dict(load_file(where / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{where / WEIGHTS} cannot be read ({error}): fetch the model again") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{where}: the weights do not fit the model that pairstream {version('pairstream')} builds of "
            f"{CONFIGURATION} ({reason}): install pairstream {about['pairstream']}, which wrote them"
        ) from None
    return _packaged(run, model, _files_in(where), about)


def of_run(directory: Path) -> Packaged:
    """The best checkpoint of the run in `directory`, as it would come out of its folder.

    Tokenizers and names are those of the run's own package where it has one, else those beside its data. Raises
    UserError where there is no checkpoint, or where the data are gone or others by now.
    """
    run, checkpoint = config.load(directory / CONFIGURATION), checkpoint_of(directory)
    model = build(run)
    load_weights(model, checkpoint)
    about = _told(run, directory, checkpoint)
    package = next(directory.glob(f"model/data/*/{ABOUT}"), None)
    if package:
        return _packaged(run, model, _files_in(package.parent), about)
    manifest = open_manifest(run.data).reading(run.modalities)
    if manifest.fingerprint != about["data"]:
        raise UserError(
            f"{directory} was trained on data {about['data']}, {run.data} is {manifest.fingerprint}: its tokenizers "
            "and names may be others; put the data back, or give a packaged model"
        )
    return _packaged(run, model, small_files(manifest, run.modalities), about)


def _packaged(run: Run, model: MultimodalVAE, files: Mapping[str, bytes], about: Mapping[str, Any]) -> Packaged:
    forms = {name: form_of(name, modality, files) for name, modality in run.modalities.items()}
    return Packaged(run, model.eval(), forms, about, files)


def _files_in(where: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in where.iterdir() if file.name.endswith((".model", ".names.json"))}


def _about(where: Path) -> dict[str, Any]:
    """What pairstream.json says. Raises UserError where it is missing, or tells of a form that is unknown here."""
    try:
        about = json.loads((where / ABOUT).read_text())
        form, writer = about["format"], about["pairstream"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{where} is no model of pairstream: it has no readable {ABOUT}") from None
    if form != FORMAT:
        raise UserError(
            f"{where} is a model in format {form}, written by pairstream {writer}; pairstream {version('pairstream')} "
            f"reads format {FORMAT}: install pairstream {writer}, or train the model again"
        )
    return about
