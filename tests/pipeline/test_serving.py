"""The trained model is MLflow's: logged at the end of training, loaded from run or registry, asked with frames."""

from __future__ import annotations

import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from infra.journal import JOURNAL
from infra.store import connect, prepare_store, runs
from infra.tracking import sync
from pipeline import packaging, serving
from pipeline.benchmarks.servers import model_server
from pipeline.config import Run
from pipeline.corpora import prepare
from pipeline.forms import form_of
from pipeline.manifest import open_manifest
from pipeline.train import build, train
from tests.pipeline.training import a_run

ROOT = Path(__file__).parents[2]
NAMES = ["top", "bottom", "label"]


class Trained:
    """A short tracked run, whose data are gone."""

    def __init__(self, place: Path) -> None:
        prepare("digits", place / "digits")
        self.uri, self.directory = f"sqlite:///{place / 'mlflow.db'}", place / "run"
        prepare_store(self.uri, "pairstream", None)
        train(a_run(place / "digits", **{"tracking.uri": self.uri, "train.steps": 30}), self.directory)
        shutil.rmtree(place / "digits")
        self.run_id = runs(self.uri)[0]["run_id"]
        self.model_uri = f"runs:/{self.run_id}/model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def model(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PyFuncModel]:
    """As anybody loads it, from a working directory where nothing is."""
    before, elsewhere = mlflow.get_tracking_uri(), Path.cwd()
    mlflow.set_tracking_uri(trained.uri)
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield mlflow.pyfunc.load_model(trained.model_uri)
    os.chdir(elsewhere)
    mlflow.set_tracking_uri(before)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / JOURNAL).read_text().splitlines()]


def models_in(directory: Path) -> int:
    """How often the journal says that there is a model to deliver."""
    return sum(line.get("artifact") == "model" for line in lines(directory))


def test_training_leaves_a_model_in_the_run(trained: Trained, model: PyFuncModel) -> None:
    assert models_in(trained.directory) == 1
    assert lines(trained.directory)[-1]["status"] == "FINISHED"
    there = {file.path for file in connect(trained.uri).list_artifacts(trained.run_id, "model")}
    assert {"model/MLmodel", "model/input_example.json", "model/requirements.txt", "model/data"} <= there
    assert not (trained.directory / "model.tmp").exists()
    assert model.metadata.get_input_schema().input_names() == NAMES
    assert model.metadata.get_input_schema().required_input_names() == []
    outputs = {spec.name: str(spec.type) for spec in model.metadata.get_output_schema().inputs}
    assert outputs == {"top": "DataType.string", "bottom": "DataType.string", "label": "DataType.long"}
    said = model.metadata.metadata["columns"]
    assert said["label"] == "a whole number from 0 to 9"
    assert "4 x 8 pixels" in said["top"]


def test_the_registry_takes_it(trained: Trained, model: PyFuncModel) -> None:
    mlflow.register_model(trained.model_uri, "digits")
    frame = pd.DataFrame({"label": [3]})
    registered = mlflow.pyfunc.load_model("models:/digits/1")
    pd.testing.assert_frame_equal(registered.predict(frame), model.predict(frame))


def test_the_input_example_is_completed(trained: Trained, model: PyFuncModel) -> None:
    example = model.input_example
    assert [row.notna().tolist() for _, row in example.iterrows()] == [
        [True, False, False], [False, False, True], [False, True, True]
    ]  # fmt: skip
    assert model.predict(example).notna().all(axis=None)


@pytest.mark.parametrize(("system", "rows"), [("mvae", 3), ("jmvae", 2), ("cvae", 1)])
def test_the_input_example_has_only_rows_that_the_system_completes(system: str, rows: int) -> None:
    run = a_run(Path("nowhere"), **{"model.system": system})
    forms = {name: form_of(name, modality, {}) for name, modality in run.modalities.items()}
    example = serving._example(run, forms)
    whole = serving.Completer(packaging.Packaged(run, build(run).eval(), forms, {})).predict(example)
    assert len(whole) == len(example) == rows


def pixels(cell: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(b64decode(cell), np.uint8), cv2.IMREAD_UNCHANGED)


def test_a_frame_is_completed_and_what_was_given_comes_back(model: PyFuncModel) -> None:
    whole = model.predict(pd.DataFrame({"label": range(10)}))
    assert list(whole.columns) == NAMES
    assert whole.label.tolist() == list(range(10))
    assert {pixels(cell).shape for cell in [*whole.top, *whole.bottom]} == {(4, 8)}
    some = whole.astype(object)
    some.index = [f"k{row}" for row in range(10)]
    some.loc["k1", "top"] = None
    some.loc["k2", ["top", "label"]] = np.nan
    some.loc["k3"] = pd.NA
    some.loc["k4", "top"] = b64encode(
        cv2.imencode(".png", pixels(whole.top[4]), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1]
    ).decode()
    assert some.top["k4"] != whole.top[4]  # the same picture in other bytes
    again = model.predict(some)
    assert again.index.tolist() == some.index.tolist()
    assert again.label.dtype == np.int64
    assert again.notna().all(axis=None)
    for name in NAMES:
        given = some[name].notna()
        assert again[name][given].tolist() == some[name][given].tolist()
    pd.testing.assert_frame_equal(model.predict(again), again)  # nothing is left to be made


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"label": [3, None, 5]}),
        pd.DataFrame({"label": [3, None, 5]}, dtype=object),
        pd.DataFrame({"label": [3, None, 5]}, dtype="Int64"),
        pd.DataFrame({"label": [3.0, np.nan, 5.0], "top": np.nan}),
        pd.DataFrame({"label": [3, None, 5], "top": [None] * 3, "bottom": pd.NA}),
        pd.DataFrame([{"label": 3}, {"top": None}, {"label": 5}]),
    ],
)
def test_whatever_pandas_makes_of_it_is_missing(model: PyFuncModel, frame: pd.DataFrame) -> None:
    one = model.predict(pd.DataFrame({"label": [5]}))
    told = model.predict(frame)
    assert (told.label[0], told.label[2], len(told)) == (3, 5, 3)
    assert told.top[2] == one.top[0]


def test_samples_are_asked_for_with_parameters(model: PyFuncModel) -> None:
    frame = pd.DataFrame({"label": [3] * 4})
    mean, first, same, other = (
        model.predict(frame, params=params)
        for params in (None, {"sample": True}, {"sample": True, "seed": 0}, {"sample": True, "seed": 1})
    )
    assert mean.top.nunique() == 1
    assert first.top.nunique() == 4
    assert first.equals(same)
    assert not first.top.eq(other.top).any()


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"label": [3, 12]}), "row 1, column label: label 12 is not one of 0 to 9"),
        (pd.DataFrame({"label": [3, "x"]}), "row 1, column label: expected a whole number from 0 to 9, got 'x'"),
        (pd.DataFrame({"top": ["no!"]}), "row 0, column top: expected a PNG file in base64"),
    ],
)
def test_a_wrong_value_is_a_bad_request_with_its_row_and_column(
    model: PyFuncModel, frame: pd.DataFrame, words: str
) -> None:
    with pytest.raises(MlflowException, match=words) as refused:
        model.predict(frame)
    assert refused.value.get_http_status_code() == 400


def test_an_artifact_of_another_version_is_refused_with_a_sentence(trained: Trained, tmp_path: Path) -> None:
    copy = shutil.copytree(trained.directory / "model", tmp_path / "model")
    file = copy / "data" / "pairstream" / "pairstream.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(Exception, match="is a model in format 99"):
        mlflow.pyfunc.load_model(str(copy))


# When it is made


@pytest.fixture
def run(tmp_path: Path, digits_dir: Path, trained: Trained) -> Run:
    store = shutil.copy(trained.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    return a_run(digits_dir, **{"tracking.uri": f"sqlite:///{store}", "train.steps": 3})


def test_a_sweep_s_trial_leaves_none_until_it_is_the_best(run: Run, tmp_path: Path) -> None:
    directory = tmp_path / "trial"
    train(run, directory, identity="trial", parent="sweep")
    assert (models_in(directory), (directory / "model").exists()) == (0, False)
    tracking = json.loads((directory / "tracking.json").read_text())
    (directory / "tracking.json").write_text(json.dumps(tracking | {"parent": None}))  # there is no sweep here
    serving.log_model(directory)
    assert models_in(directory) == 1
    assert sync(directory).pending == 0
    found = next(one for one in runs(run.tracking.uri) if one["identity"] == "trial")
    assert connect(run.tracking.uri).list_artifacts(found["run_id"], "model")
    assert found["status"] == "FINISHED"


def test_who_wants_none_gets_none(run: Run, tmp_path: Path, digits_dir: Path) -> None:
    for number, key in enumerate(("tracking.model", "tracking.enabled")):
        directory = tmp_path / str(number)
        train(a_run(digits_dir, **{"tracking.uri": run.tracking.uri, "train.steps": 3, key: False}), directory)
        assert (models_in(directory), (directory / "model").exists()) == (0, False)


def test_trouble_in_packaging_costs_no_training(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packaging, "save", full)
    directory = tmp_path / "run"
    assert train(run, directory).status == "finished"
    assert models_in(directory) == 0
    assert lines(directory)[-1]["status"] == "FINISHED"
    assert "its model was not packaged for MLflow (OSError: [Errno 28] No space left" in capsys.readouterr().err


def test_a_model_is_whole_or_not_there_and_made_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, manifest = tmp_path / "run", open_manifest(run.data).reading(run.modalities)
    train(run, directory)
    made = (directory / "model" / "MLmodel").read_text()
    assert serving.save(run, directory, manifest) == directory / "model"
    assert (directory / "model" / "MLmodel").read_text() == made  # a thread may be sending it
    shutil.rmtree(directory / "model")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        serving.save(run, directory, manifest)
    monkeypatch.undo()
    assert not (directory / "model").exists()
    assert (directory / "model.tmp").exists()  # what a kill leaves
    serving.save(run, directory, manifest)
    assert not (directory / "model.tmp").exists()
    assert mlflow.pyfunc.load_model(str(directory / "model")).predict(pd.DataFrame({"label": [1]})).label[0] == 1


# Over HTTP


@pytest.fixture
def server(trained: Trained, tmp_path: Path) -> Iterator[str]:
    with model_server(trained.model_uri, tmp_path, MLFLOW_TRACKING_URI=trained.uri) as served:
        yield f"{served.url}/invocations"


def ask(address: str, body: object) -> tuple[int, Any]:
    """A frame goes as Parquet, all else as JSON."""
    form = "vnd.apache.parquet" if isinstance(body, pd.DataFrame) else "json"
    data = body.to_parquet() if isinstance(body, pd.DataFrame) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": f"application/{form}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def again(model: PyFuncModel, whole: pd.DataFrame) -> pd.DataFrame:
    """What is made anew of the lower halves."""
    return model.predict(whole.drop(columns="bottom"))


@pytest.mark.slow
def test_mlflow_serves_it_over_http(server: str, model: PyFuncModel) -> None:
    whole = model.predict(pd.DataFrame({"label": range(10)}))
    records = [{"label": 3}, {"top": whole.top[4], "label": None}, {}, {"bottom": whole.bottom[5]}]
    status, answer = ask(server, {"dataframe_records": records})
    assert status == 200
    told = answer["predictions"]
    assert [sorted(row) for row in told] == [sorted(NAMES)] * 4
    assert (told[0]["label"], told[1]["top"], told[3]["bottom"]) == (3, whole.top[4], whole.bottom[5])
    assert told == model.predict(pd.DataFrame(records)).to_dict("records")
    split = {"dataframe_split": {"columns": ["label"], "data": [[3], [None]]}, "params": {"sample": True, "seed": 5}}
    status, answer = ask(server, split)
    expected = model.predict(pd.DataFrame({"label": [3, None]}), params={"sample": True, "seed": 5})
    assert (status, answer["predictions"]) == (200, expected.to_dict("records"))
    status, answer = ask(server, whole.assign(bottom=None))
    assert (status, [row["bottom"] for row in answer["predictions"]]) == (200, again(model, whole).bottom.tolist())
    for wrong, words in (
        ({"label": 12}, "row 1, column label: label 12 is not one of 0 to 9"),
        ({"label": "three"}, "row 1, column label: expected a whole number from 0 to 9, got 'three'"),
        ({"top": "iVBO"}, "row 1, column top: expected a whole png file"),
        ({"top": [[0] * 8] * 4}, "row 1, column top: expected a PNG file in base64, got a list"),
    ):
        status, answer = ask(server, {"dataframe_records": [{"label": 3}, wrong]})
        assert status == 400
        assert words in answer["message"]
    failures: list[object] = []

    def client(label: int) -> None:
        for _ in range(5):
            status, answer = ask(server, {"dataframe_records": [{"label": label}]})
            if (status, answer["predictions"]) != (200, [whole.loc[label].to_dict()]):
                failures.append(answer)

    clients = [threading.Thread(target=client, args=(number % 10,)) for number in range(20)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert not failures
