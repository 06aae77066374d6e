"""pairstream review: what a table of runs shows, and what --sync leaves behind."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from infra.journal import Journal
from infra.store import Destination
from infra.tracking import DESTINATION, Tracker
from jobs.review import main

FRACTIONS = {"000": 0.05, "001": 0.2, "002": 1.0}


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where runs/ holds a sweep with three trials and a run of its own, and what delivering them printed."""
    root = tmp_path_factory.mktemp("tree")
    uri = f"sqlite:///{root}/runs/mlflow.db"

    def journal(directory: str, identity: str, parent: str | None, params: dict[str, Any], elbo: float) -> None:
        place = root / "runs" / directory
        book = Journal(place)
        book.params(params)
        book.metrics(1, {"val/elbo": elbo, "val/accuracy/label": 0.5})
        book.status("FINISHED")
        book.close()
        to = Destination(uri, "pairstream", place.name, identity, parent)
        (place / DESTINATION).write_text(json.dumps(to.__dict__))

    for number, (name, fraction) in enumerate(FRACTIONS.items()):  # "a-…" comes before the sweep's "b"
        journal(f"a-{name}", f"sweep/{name}", "sweep", {"pairing.fraction": fraction}, -100.0 + number)
    journal("b", "sweep", None, {"grid": "[x]"}, float("nan"))
    journal("c", "alone", None, {"pairing.fraction": 0.1, "objective.k": 2}, -50.0)
    with contextlib.chdir(root), contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["--sync", "--uri", uri, "--json"]) == 0
    return root, output.getvalue().splitlines()


@pytest.fixture(autouse=True)
def tree(synced: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(synced[0])
    return synced[0]


def review(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[list[str], dict[str, Any]]:
    """The names in the table, indented as there, and the closing JSON."""
    assert main([*arguments, "--json"]) == code
    text = capsys.readouterr().out
    names = re.findall(r"^│ ( *[a-c][-\d]*) +│", text, re.MULTILINE)
    closing: dict[str, Any] = json.loads(text.splitlines()[-1])
    assert [run["name"] for run in closing["runs"]] == [name.strip() for name in names]
    return names, closing


def test_nothing_is_there_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no MLflow database"):
        main([])


def test_sync_delivers_parents_before_children_and_only_once(
    synced: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, output = synced
    assert output[0] == "delivered 15 lines of 5 journals"
    closing = json.loads(output[-1])
    assert (closing["delivered"], closing["pending"]) == (15, 0)
    assert (closing["experiment"], closing["uri"]) == ("pairstream", f"sqlite:///{root}/runs/mlflow.db")
    by_name = {run["name"]: run for run in closing["runs"]}
    assert [by_name[f"a-{name}"]["parent"] for name in FRACTIONS] == ["sweep"] * 3
    _, closing = review(capsys, "--sync")
    assert (closing["delivered"], closing["pending"]) == (0, 0)


def test_trials_stand_under_their_sweep_in_the_order_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    names, _ = review(capsys, "--sort", "-val/elbo")
    assert names == ["c", "b", "  a-002", "  a-001", "  a-000"]  # the sweep itself has none: last
    names, _ = review(capsys, "--sort", "pairing.fraction")
    assert names == ["c", "b", "  a-000", "  a-001", "  a-002"]
    names, _ = review(capsys, "--sort", "name", "--limit", "2")
    assert names == ["b", "  a-000"]
    names, _ = review(capsys, "--filter", "FRACTION=0.", "--sort", "name")
    assert names == ["a-000", "a-001", "c"]
    names, _ = review(capsys, "--filter", "b", "--sort", "name")  # a sweep's name brings its trials along
    assert names == ["b", "  a-000", "  a-001", "  a-002", "c"]


def test_columns_are_the_usual_ones_or_those_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    text = capsys.readouterr().out
    for part in ("fraction", "objective.", "elbo", "accuracy/", "-98.0000"):
        assert part in text
    assert "lambda" not in text
    assert text.splitlines()[-1].startswith("mlflow ui --backend-store-uri sqlite:///")
    main(["--columns", "grid"])
    text = capsys.readouterr().out
    assert "[x]" in text
    assert "elbo" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--columns", "pairing.fractoin"], "did you mean 'pairing.fraction'"),
        (["--sort", "-val/elbow"], "did you mean 'val/elbo'"),
        (["pairstraem"], "did you mean 'pairstream'"),
        (["--limit", "-1"], "choose 0 or more"),
    ],
)
def test_a_slip_is_answered_with_the_nearest_name(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main(arguments)


def test_what_cannot_be_delivered_is_named_with_the_reason(capsys: pytest.CaptureFixture[str], tree: Path) -> None:
    orphan = tree / "runs" / "orphan"
    to = Destination(f"sqlite:///{tree}/runs/mlflow.db", "pairstream", "orphan", "orphan", "nobody")
    Tracker(orphan, to, ship_every=60).close("FINISHED", timeout=0.1)
    main([])
    assert "2 lines of journals under runs wait for MLflow" in capsys.readouterr().out
    assert main(["--sync"]) == 1
    assert "pending: runs/orphan: 2 lines: the parent run 'nobody' is not yet" in capsys.readouterr().out
    _, closing = review(capsys, "--sync", "nosuch", code=1)  # nor can the table be shown: the delivery still counts
    assert (closing["delivered"], closing["pending"], closing["runs"]) == (0, 2, [])
    shutil.rmtree(orphan)
