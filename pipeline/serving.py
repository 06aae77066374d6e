"""The trained model as MLflow's: a data frame in which any cell may be missing in, the completed frame out.

A column for each modality, in the forms of `pipeline/forms.py`; None, NaN or no such column is missing. What was given
comes back unchanged. `mlflow models serve` answers over HTTP. Models that were saved name this file as their loader, so
it stays where it is. Only this file and the tracking store know MLflow.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array

from infra.disk import sync_to_disk
from infra.errors import UserError
from infra.journal import Journal
from infra.store import sentence
from infra.tracking import sync
from pipeline import config, packaging
from pipeline.completing import completed, unanswerable
from pipeline.config import Run
from pipeline.description import small_files
from pipeline.forms import Form, form_of
from pipeline.manifest import Manifest, open_manifest
from pipeline.objectives.systems import family_of
from pipeline.packaging import ABOUT, Packaged

FOLDER, INSIDE = "model", "pairstream"
"""Of a run's directory and artifacts, and where in it the model lies that MLflow knows nothing of."""
TYPES: dict[str, Any] = {
    "integer": "long", "integers": Array("long"), "numbers": Array("double"), "string": "string",
}  # fmt: skip


class Completer:
    """What MLflow asks."""

    def __init__(self, packaged: Packaged) -> None:
        self.packaged = packaged

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """All modalities of all rows. Raises MlflowException, a bad request, with the sentence of what was wrong."""
        asked = params or {}
        try:
            return self.complete(frame, bool(asked.get("sample", False)), int(asked.get("seed", 0)))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def complete(self, frame: pd.DataFrame, sample: bool, seed: int) -> pd.DataFrame:
        """The same, for who knows no MLflow: raises UserError, which counts rows from 0."""
        cells = {name: _cells(frame, name) for name in self.packaged.forms}
        given = {
            name: [None if cell is None else _read(form, cell, name, row) for row, cell in enumerate(cells[name])]
            for name, form in self.packaged.forms.items()
        }
        whole = completed(self.packaged.model, given, sample, seed)
        told = {}
        for name, form in self.packaged.forms.items():
            pairs = zip(cells[name], whole[name], strict=True)
            column = [form.write(value) if cell is None else cell for cell, value in pairs]
            kind = "int64" if form.holds == "integer" else "object"
            told[name] = pd.Series(column, frame.index, kind)
        return pd.DataFrame(told)


def _cells(frame: pd.DataFrame, name: str) -> list[Any]:
    """A column's cells, None where they are missing."""
    if name not in frame:
        return [None] * len(frame)
    return [None if pd.api.types.is_scalar(cell) and pd.isna(cell) else cell for cell in frame[name]]


def _read(form: Form, cell: Any, name: str, row: int) -> Any:
    try:
        return form.read(cell)
    except ValueError as error:
        raise UserError(f"row {row}, column {name}: {error}") from None


def _load_pyfunc(path: str) -> Completer:
    """Called by MLflow with the folder that `save` gave it. Raises UserError where it does not fit this version."""
    return Completer(packaging.load(Path(path)))


def load(model: Path | str) -> mlflow.pyfunc.PyFuncModel:
    """The model of a folder or URI, as MLflow loads it: its `predict` holds a frame to the signature."""
    return mlflow.pyfunc.load_model(str(model))


def save(run: Run, directory: Path, manifest: Manifest) -> Path:
    """Write the best checkpoint of a run as MLflow's model into its directory, and return the folder.

    It is whole or not there, and one of the same checkpoint is left as it is. Raises UserError where the run has no
    checkpoint, OSError where the disk does, MlflowException.
    """
    final, partial = directory / FOLDER, directory / f"{FOLDER}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    packaging.save(run, directory, manifest, partial / INSIDE)
    about = (partial / INSIDE / ABOUT).read_bytes()
    there = final / "data" / INSIDE / ABOUT
    if not (there.exists() and there.read_bytes() == about):  # a thread may be sending that one to MLflow
        files = small_files(manifest, run.modalities)
        forms = {name: form_of(name, modality, files) for name, modality in run.modalities.items()}
        mlflow.pyfunc.save_model(
            partial / FOLDER,
            loader_module=__name__,
            data_path=str(partial / INSIDE),
            signature=_signature(forms),
            input_example=_example(run, forms),
            pip_requirements=[f"pairstream=={version('pairstream')}"],
            metadata={"columns": {name: form.said for name, form in forms.items()}},
        )
        for path in [*(partial / FOLDER).rglob("*"), partial / FOLDER]:
            sync_to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial / FOLDER, final)
        sync_to_disk(directory)
    shutil.rmtree(partial)
    return final


def save_or_say(run: Run, directory: Path, manifest: Manifest) -> Path | None:
    """`save`, for whoever has trained: whatever goes wrong costs a line on stderr, no training."""
    try:
        return save(run, directory, manifest)
    except Exception as error:
        print(f"{directory}: its model was not packaged for MLflow ({sentence(error)})", file=sys.stderr, flush=True)
        return None


def log_model(directory: Path) -> None:
    """Save the model of a tracked run that has ended, and add it to its MLflow run."""
    run = config.load(directory / "run.json")
    folder = save_or_say(run, directory, open_manifest(run.data).reading(run.modalities))
    if folder:
        journal = Journal(directory)
        journal.artifact(folder)
        journal.close()
        if error := sync(directory).error:
            print(f"MLflow has not got {folder} ({error}); pairstream review --sync delivers it", file=sys.stderr)


def _signature(forms: Mapping[str, Form]) -> ModelSignature:
    """Columns in are of any type: MLflow's types of whole numbers and of lists have no room for a missing cell."""
    return ModelSignature(
        Schema([ColSpec(AnyType(), name, required=False) for name in forms]),
        Schema([ColSpec(TYPES[form.holds], name) for name, form in forms.items()]),
        ParamSchema([ParamSpec("sample", "boolean", False), ParamSpec("seed", "long", 0)]),
    )


def _example(run: Run, forms: Mapping[str, Form]) -> pd.DataFrame:
    """Made-up rows that the model can complete: the first modality alone, the last alone, all but the first."""
    names = list(forms)
    rows = [names[:1], names[-1:], names[1:]]
    asked = [given for given in rows if not unanswerable(family_of(run), names, given)]
    told = [{name: forms[name].example if name in given else None for name in names} for given in asked]
    return pd.DataFrame(told, columns=names, dtype=object)
