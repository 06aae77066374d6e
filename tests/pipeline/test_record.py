"""The record of a run tells the truth: how it ended, what it was trained on, by which code, and what went wrong."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.checkout import Checkout
from infra.distributed import World
from infra.journal import points
from infra.store import connect, prepare_store, runs
from infra.usage import Usage
from pipeline import record as records
from pipeline.config import Run, override
from pipeline.manifest import Manifest, open_manifest
from pipeline.record import CHANGES, Record
from pipeline.train import train
from tests.pipeline.training import a_run

ALONE = World(0, 1, 0, torch.device("cpu"))
COLLAPSED = {"val/latents/active.all": 0.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare_store(f"sqlite:///{path}", "pairstream", None)  # seconds, so only once
    return path


@pytest.fixture
def tracked(tmp_path: Path, digits_dir: Path, store: Path) -> tuple[Run, str]:
    uri = f"sqlite:///{shutil.copy(store, tmp_path / 'mlflow.db')}"
    return a_run(digits_dir, **{"tracking.uri": uri, "train.steps": 6, "train.log_every": 2}), uri


@pytest.fixture
def manifest(digits_dir: Path) -> Manifest:
    return open_manifest(digits_dir)


def tags(directory: Path) -> dict[str, str]:
    told: dict[str, str] = {}
    for line in (directory / "journal.jsonl").read_text().splitlines():
        told |= json.loads(line).get("tags", {})
    return told


def fail() -> None:
    raise RuntimeError("out of memory")


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (lambda record: record.finish("finished"), "FINISHED"),
        (lambda record: record.finish("stopped early"), "FINISHED"),
        (lambda record: record.finish("preempted"), "KILLED"),
        (lambda record: None, "FAILED"),
        (lambda record: fail(), "FAILED"),
        (lambda record: interrupt(), "KILLED"),
    ],
)
def test_a_run_ends_as_it_ended(
    tmp_path: Path, tracked: tuple[Run, str], manifest: Manifest, body: Callable[[Record], Any], status: str
) -> None:
    run, uri = tracked
    try:
        with Record(run, tmp_path / "run", [manifest], ALONE) as record:
            body(record)
    except (RuntimeError, KeyboardInterrupt):
        pass
    (told,) = runs(uri)
    assert told["status"] == status
    with Record(run, tmp_path / "run", [manifest], ALONE, resume=True) as record:
        record.book.close(None)  # type: ignore[union-attr]  # all is delivered, and nothing says how it ends
        (told,) = runs(uri)
        assert told["status"] == "RUNNING"


def test_a_requeued_run_is_one_curve_with_its_data_and_its_code(
    tmp_path: Path, tracked: tuple[Run, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, uri = tracked
    monkeypatch.setattr(records, "checkout_of", lambda *_: Checkout("a" * 40, "+changed\n"))
    out, steps = tmp_path / "run", run.train.steps
    monkeypatch.setattr(Usage, "take", lambda self: {"system/x": 1.0})

    def stop_at_four(step: int, _: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, out, on_step=stop_at_four)
    assert [told["status"] for told in runs(uri)] == ["KILLED"]
    train(run, out, resume=True)
    (told,) = runs(uri)
    assert told["status"] == "FINISHED"
    client = connect(uri)
    for name in ("train/elbo", "gradient/encoder.label", "system/x"):
        assert [point.step for point in client.get_metric_history(told["run_id"], name)] == list(range(2, steps + 1, 2))
    (given,) = client.get_run(told["run_id"]).inputs.dataset_inputs
    fingerprint = open_manifest(run.data).fingerprint
    assert (given.dataset.name, given.dataset.digest) == ("digits", fingerprint)
    assert json.loads(given.dataset.source) == {"uri": run.data}
    assert json.loads(given.dataset.profile)["samples"]["val"] == 269
    assert told["tags"]["mlflow.source.git.commit"] == "a" * 40
    assert told["tags"]["mlflow.source.git.dirty"] == "true"
    assert told["tags"]["mlflow.source.name"] == "pairstream train digits"
    assert (out / CHANGES).read_text() == "+changed\n"
    assert CHANGES in [file.path for file in client.list_artifacts(told["run_id"])]


def test_settings_that_change_on_the_way_are_curves(tmp_path: Path, tracked: tuple[Run, str]) -> None:
    run, uri = tracked
    out, rates = tmp_path / "run", [run.optim.lr * factor for factor in (1, 2, 0.5, 3)]
    for rate, last in zip(rates, (3, 5, 5, 9), strict=True):  # from steps 0, 2, 4 and 4 again, where checkpoints are

        def killed(step: int, _: float, last: int = last) -> None:
            if step == last:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            train(override(run, {"optim.lr": rate, "train.checkpoint_every": 2}), out, resume=True, on_step=killed)
    (told,) = runs(uri)
    history = connect(uri).get_metric_history(told["run_id"], "settings/optim.lr")
    assert [(point.step, point.value) for point in history] == list(zip((0, 2, 4, 5), rates, strict=True))
    assert not [name for name in told["metrics"] if name.startswith("settings/") and name != "settings/optim.lr"]


def test_an_installed_package_has_a_version_and_no_commit(
    tmp_path: Path, tracked: tuple[Run, str], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "checkout_of", lambda *_: None)
    with Record(tracked[0], tmp_path / "run", [manifest], ALONE):
        pass
    told = tags(tmp_path / "run")
    assert "version.pairstream" in told
    assert not [name for name in told if name.startswith("mlflow.source.git")]
    assert not (tmp_path / "run" / CHANGES).exists()


def test_a_warning_is_printed_once_and_stays_a_tag(
    tmp_path: Path, tracked: tuple[Run, str], manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tracked[0], tmp_path / "run"
    with Record(run, out, [manifest], ALONE) as record:
        record.metrics(1, COLLAPSED)
        record.metrics(2, {"train/elbo": 1.0})  # no validation: says nothing of the posterior
    assert "collapse" not in capsys.readouterr().err
    with Record(run, out, [manifest], ALONE, resume=True) as record:  # the first validation counts still
        record.metrics(3, COLLAPSED)
        record.metrics(4, COLLAPSED)
    told = capsys.readouterr().err
    assert told.count("posterior collapse") == 1
    assert f"{out}: step 3: posterior collapse" in told
    assert "objective.anneal" in tags(out)["pairstream.warning"]
    with Record(run, out, [manifest], ALONE, resume=True) as record:
        record.metrics(5, COLLAPSED)
        record.metrics(6, COLLAPSED)
    assert "collapse" not in capsys.readouterr().err
    assert [step for step, values in points(out) if "val/latents/active.all" in values] == [1, 3, 4, 5, 6]


def test_what_modalities_share_is_in_the_tag_once(tmp_path: Path, tracked: tuple[Run, str], manifest: Manifest) -> None:
    run, out = tracked[0], tmp_path / "run"
    together = {"val/latents/active.all": 3.0} | {f"val/latents/active.{name}": 0.0 for name in run.modalities}
    with Record(run, out, [manifest], ALONE) as record:
        for step in (1, 2):
            record.metrics(step, together)
    (line,) = tags(out)["pairstream.warning"].splitlines()
    assert " or ".join(run.modalities) in line


def test_other_ranks_keep_no_record(tmp_path: Path, tracked: tuple[Run, str], manifest: Manifest) -> None:
    record = Record(tracked[0], tmp_path / "run", [manifest], World(1, 2, 1, torch.device("cpu")))
    record.metrics(1, COLLAPSED)
    assert not (tmp_path / "run").exists()
