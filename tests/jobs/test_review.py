"""pairstream review: what a table of runs shows, what it writes, and what --sync leaves behind."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import sem, spearmanr

from infra.errors import UserError
from infra.journal import Journal
from infra.store import Destination, connect, runs
from infra.tracking import DESTINATION, Tracker
from jobs.review import main

FRACTIONS, KS = (0.05, 0.2, 1.0), (0, 1)
SAME = {"recipe": "digits", "seed": 0, "train.steps": 60, "train.best": "val/elbo", "train.best_is": "max"}
TRIALS = {f"{3 * k + f:03d}-fraction{FRACTIONS[f]}-k{k}": (FRACTIONS[f], k) for k in KS for f in range(3)}


def elbo(fraction: float, k: int) -> float:
    """Of a trial, not additive in its settings."""
    return -120 + 30 * fraction + 4 * k * fraction


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where runs/ holds a sweep with six trials and a run of its own, and what delivering them printed."""
    root = tmp_path_factory.mktemp("tree")
    uri = f"sqlite:///{root}/runs/mlflow.db"

    def journal(
        directory: str,
        identity: str,
        parent: str | None,
        params: dict[str, Any],
        metrics: dict[str, float],
        **tags: str,
    ) -> None:
        place = root / "runs" / directory
        book = Journal(place)
        book.params(params)
        book.tags({"pairstream.directory": str(place), **tags})
        if metrics:
            book.metrics(1, metrics)
        book.status("FINISHED")
        book.close()
        to = Destination(uri, "pairstream", place.name, identity, parent)
        (place / DESTINATION).write_text(json.dumps(to.__dict__))

    for name, (fraction, k) in TRIALS.items():  # "a/…" comes before the sweep's "sw"
        params = {**SAME, "pairing.fraction": fraction, "objective.k": k, "data": f"/some/where/{name}"}
        journal(f"a/{name}", f"sweep/{name}", "sweep", params, {"val/elbo": elbo(fraction, k), "val/kl": k + fraction})
    journal("sw", "sweep", None, {"grid.x": "[x]"}, {}, **{"pairstream.sweep": "digits"})
    alone = {**SAME, "pairing.fraction": 0.1, "objective.k": 2, "objective.lambda.label": 50.0}
    journal("c", "alone", None, alone, {"val/elbo": -50.0}, **{"version.torch": "9"})
    with contextlib.chdir(root), contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["--sync", "--uri", uri, "--json"]) == 0
    return root, output.getvalue().splitlines()


@pytest.fixture(autouse=True)
def tree(synced: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(synced[0])
    return synced[0]


def review(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, dict[str, Any]]:
    """What is printed above the closing JSON, and that."""
    assert main([*arguments, "--json"]) == code
    text, _, last = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    closing: dict[str, Any] = json.loads(last)
    return text, closing


def names(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The runs shown, a trial by its number, as the table and the closing JSON both tell them."""
    text, closing = review(capsys, *arguments)
    shown = [run["name"].partition("-")[0] for run in closing["runs"]]
    assert re.findall(r"^(?:\* |  )(\d{3}|c)  ", text, re.MULTILINE) == [name for name in shown if name != "sw"]
    return shown


def test_nothing_is_there_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no MLflow database"):
        main([])


def test_sync_delivers_parents_before_children_and_only_once(
    synced: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, output = synced
    assert output[0] == "delivered 31 lines of 8 journals"
    closing = json.loads(output[-1])
    assert (closing["delivered"], closing["pending"]) == (31, 0)
    assert (closing["experiment"], closing["uri"]) == ("pairstream", f"sqlite:///{root}/runs/mlflow.db")
    by_name = {run["name"]: run for run in closing["runs"]}
    assert [by_name[name]["parent"] for name in TRIALS] == ["sweep"] * 6
    _, closing = review(capsys, "--sync")
    assert (closing["delivered"], closing["pending"]) == (0, 0)


def test_a_sweep_stands_above_its_trials_the_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert names(capsys) == ["sw", "005", "002", "004", "001", "003", "000", "c"]
    assert names(capsys, "--sort", "-val/kl") == ["sw", "005", "004", "003", "002", "001", "000", "c"]
    assert names(capsys, "--sort", "pairing.fraction")[1:3] in (["000", "003"], ["003", "000"])
    assert names(capsys, "--direction", "min", "--metric", "val/elbo")[:3] == ["sw", "000", "003"]
    assert names(capsys, "--limit", "2") == ["sw", "005", "002"]
    assert names(capsys, "--limit", "0", "--sort", "name", "--filter", "sw") == ["sw", *(n[:3] for n in TRIALS)]
    assert "2 of 7 runs of pairstream; 7 match" in review(capsys, "--limit", "2")[0]


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        (["pairing.fraction<0.1"], ["000", "003"]),
        (["pairing.fraction<=0.1"], ["000", "003", "c"]),
        (["pairing.fraction>=1", "objective.k!=0"], ["005"]),
        (["pairing.fraction=1"], ["002", "005"]),
        (["pairing.fraction=1.0 "], ["002", "005"]),
        (["status=finished", "val/elbo > -100"], ["002", "005", "c"]),
        (["val/kl>-1e9"], ["000", "001", "002", "003", "004", "005"]),
        (["name=c"], ["c"]),
        (["start<2001-01-01"], []),
        (["start>2001-01-01", "FRACTION=0."], ["000", "001", "003", "004", "c"]),
        (["k1"], ["003", "004", "005"]),
        (["sw", "objective.k=0"], ["000", "001", "002"]),
        (["status=FAILED"], []),
        (["recipe!=digits"], []),
        (["status=FINISHED", "val/elbo>-60"], ["c"]),
    ],
)
def test_conditions_and_texts_choose_runs(
    items: list[str], kept: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = names(capsys, "--sort", "name", "--filter", *items)
    assert [name for name in shown if name != "sw"] == kept
    assert ("sw" in shown) == any(name != "c" for name in kept)


def test_the_usual_table_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    text, closing = review(capsys, "--filter", "k1")
    lines = text.splitlines()
    assert lines[0].startswith("sw: FINISHED, ")
    assert lines[0].endswith("trials: 3 FINISHED")
    same = "the same in all: recipe digits, objective.k 1, train.steps 60, seed 0, status FINISHED"
    assert " ".join(line.strip() for line in lines[1:3]) == same
    head = next(line for line in lines if "fraction" in line and "run" in line)
    assert head.split() == ["run", "fraction", "elbo"] or head.split() == ["run", "fraction", "val/elbo"]
    assert "* 005       1.0    -86.00" in lines
    assert "* best (largest val/elbo): 005-fraction1.0-k1, -86.00; pairing.fraction 1.0" in text
    assert max(map(len, lines[:-1])) <= 80  # the last one is a command
    assert closing["best"] == [
        {
            "sweep": "sw", "metric": "val/elbo", "direction": "max", "value": -86.0, "name": "005-fraction1.0-k1",
            "run_id": closing["runs"][1]["run_id"], "settings": {"pairing.fraction": "1.0"},
        }
    ]  # fmt: skip


def test_what_has_no_room_is_named_and_what_is_asked_for_is_shown_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "26")
    text, _ = review(capsys, "--filter", "sw")
    assert "no room for: pairing.fraction" in text.replace("\n", "").replace("  ", " ")
    assert "-86.00" in text, "the metric goes first"
    monkeypatch.setenv("COLUMNS", "20")
    text, _ = review(capsys, "--filter", "name=c")
    assert "no room for: start" in text
    assert "-50.00" in text
    columns = ["data", "val/kl", "recipe", "pairing.fraction", "start"]
    text, _ = review(capsys, "--columns", *columns, "--filter", "sw")
    line = r"^\* 005 +/some/where/005-fraction1.0-k1 +2.0000 +digits +1.0 +20\d\d-\d\d-\d\d \d\d:\d\d"
    assert re.search(line, text, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--columns", "pairing.fractoin"], "--columns: no run has .* did you mean 'pairing.fraction'"),
        (["--sort", "-val/elbow"], "--sort: .* did you mean 'val/elbo'"),
        (["--metric", "val/ebo"], "--metric: no run reports .* did you mean 'val/elbo'"),
        (["--filter", "pairing.fractoin<0.1"], "--filter: .* did you mean 'pairing.fraction'"),
        (["--filter", "statsu=FINISHED"], "--filter: .* did you mean 'status'"),
        (["--filter", "pairing.fraction<much"], "'much' in 'pairing.fraction<much' is no number"),
        (["--filter", "pairing.fraction<"], "is no condition: write KEY<NUMBER"),
        (["--filter", "<0.1"], "is no condition"),
        (["--filter", "val/elbo=<3"], "is no condition"),
        (["--filter", "start>yesterday"], "no date such as"),
        (["--diff", "003-fraction0.05-k1", "003-fraction0.05"], "are the same run"),
        (["--diff", "003", "c2"], "no run 'c2'; did you mean 'c'"),
        (["--diff", "00", "c"], "6 runs are called '00': sw/00.*give SWEEP/NAME or the id"),
        (["--effects", "--filter", "name=c"], "nothing was swept in runs on their own"),
        (["--effects", "--filter", "pairing.fraction=1", "objective.k=1"], "nothing was swept in sw"),
        (["--effects", "--filter", "status=FAILED"], "--effects: no run of pairstream matches"),
        (["--effects", "--metric", "val/kl", "--filter", "sw", "val/kl<1", "val/kl>7"], "no run of pairstream matches"),
        (["pairstraem"], "did you mean 'pairstream'"),
        (["--limit", "-1"], "choose 0 or more"),
        (["--report", "runs/mlflow.db/report.html"], "cannot be written"),
        (["--csv", "runs/mlflow.db/out.csv"], "cannot be written"),
        (["--pictures", "runs/mlflow.db"], "cannot be written"),
    ],
)
def test_a_slip_is_answered_with_a_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main(arguments)


def test_an_empty_experiment_is_said_to_be_empty(tree: Path) -> None:
    client = connect(f"sqlite:///{tree}/runs/mlflow.db")
    client.create_experiment("empty")
    with pytest.raises(UserError, match=r"'empty' in sqlite:.* holds no run yet"):
        main(["empty"])


def test_two_runs_differ_in_their_settings_what_surrounds_them_and_their_metrics(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, closing = review(capsys, "--diff", "sw/003", "c")
    found = closing["diff"]
    assert found["runs"] == ["sw/003-fraction0.05-k1", "c"]
    assert found["configuration"] == {
        "pairing.fraction": ["0.05", "0.1"], "objective.k": ["1", "2"], "objective.lambda.label": [None, "50.0"],
        "data": ["/some/where/003-fraction0.05-k1", None],
    }  # fmt: skip
    assert found["surroundings"] == {"version.torch": [None, "9"]}
    assert found["metrics"] == {"val/elbo": [elbo(0.05, 1), -50.0], "val/kl": [1.05, None]}
    assert re.search(r"^ *val/elbo +-118.30 +-50.0\d* +\+68.3", text, re.MULTILINE)
    ids = {run["name"]: run["run_id"] for run in closing["runs"]}
    assert review(capsys, "--diff", ids["003-fraction0.05-k1"], ids["c"][:12])[1]["diff"] == found


def test_an_effect_is_the_mean_over_the_other_keys(capsys: pytest.CaptureFixture[str]) -> None:
    text, closing = review(capsys, "--effects")
    (found,) = closing["effects"].values()
    assert [effect["key"] for effect in found["effects"]] == ["pairing.fraction", "objective.k"]
    assert (found["metric"], found["used"], found["failed"], found["silent"]) == ("val/elbo", 6, 0, 0)
    everything = [elbo(*setting) for setting in TRIALS.values()]
    for effect, place, values in zip(found["effects"], (0, 1), (FRACTIONS, KS), strict=True):
        total = 0.0
        for level, value in zip(effect["levels"], values, strict=True):
            scores = [elbo(*setting) for setting in TRIALS.values() if setting[place] == value]
            assert level["value"] == str(value)
            assert level["count"] == len(scores)
            assert level["mean"] == pytest.approx(np.mean(scores))
            assert level["error"] == pytest.approx(sem(scores))
            total += len(scores) * (np.mean(scores) - np.mean(everything)) ** 2
        assert effect["explained"] == pytest.approx(total / np.square(everything - np.mean(everything)).sum())
    fractions = [setting[0] for setting in TRIALS.values()]
    assert found["effects"][0]["rank_correlation"] == pytest.approx(spearmanr(fractions, everything).statistic)
    assert found["effects"][1]["rank_correlation"] is None
    assert re.search(r"pairing.fraction +0.05 +2 +-118.40 ± 0.1 ", text)
    assert max(len(line) for line in text.splitlines()[:-1]) <= 80


class Page(HTMLParser):
    """Addresses in a page, its pictures' bytes and its tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_report_needs_nothing_but_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "report.html"
    _, closing = review(capsys, "--report", str(file), "--diff", "000", "c", "--pictures", str(tmp_path / "drawn"))
    text = file.read_text()
    page = Page(text)
    assert len(page.addresses) == 2
    drawn = sorted(path for path in (tmp_path / "drawn").iterdir())
    assert [path.name for path in drawn] == ["sw-parallel.png", "sw-supervision.png"]
    assert closing["files"] == [*map(str, drawn), str(file)]
    for address, path in zip(page.addresses, drawn, strict=True):
        inside = base64.b64decode(address.removeprefix("data:image/png;base64,"), validate=True)
        assert inside == path.read_bytes()
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    outside = text.replace("data:image/png;base64,", "")
    assert "://" not in re.sub(r"sqlite:///|base64,\S+", "", outside)
    assert "@import" not in outside
    assert page.rows[0] == ["run", "pairing.fraction", "objective.k", "val/elbo"]
    assert page.rows[1] == ["005 *", "1.0", "1", "-86.00"]
    assert [row[0] for row in page.rows].count("pairing.fraction") == 4, "three levels of its effect, the difference"
    assert ["val/elbo", "-118.50", "-50.00"] in page.rows
    assert 'name="viewport"' in text


def test_the_report_of_a_sweep_is_logged_to_its_run(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = connect(f"sqlite:///{tree}/runs/mlflow.db")
    text, closing = review(capsys, "--filter", "sw", "--report", "out/report.html")
    assert closing["logged"] == "logged to sw as report.html"
    assert closing["logged"] in text
    sweep = closing["runs"][0]["run_id"]
    assert [artifact.path for artifact in client.list_artifacts(sweep)] == ["report.html"]
    there = Path(client.download_artifacts(sweep, "report.html"))
    assert there.read_text() == (tree / "out" / "report.html").read_text()
    run = client.get_run(sweep)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"].startswith("Reviewed: report.html among the artifacts; best (largest")
    client.set_tag(sweep, "mlflow.note.content", "my own words")
    review(capsys, "--filter", "sw", "--report", "out/report.html", "--metric", "val/kl")
    assert client.get_run(sweep).data.tags["mlflow.note.content"] == "my own words"
    assert "val/kl" in Path(client.download_artifacts(sweep, "report.html")).read_text()
    _, closing = review(capsys, "--filter", "name=c", "--report", "out/c.html")
    assert "of 0 sweeps" in closing["logged"]


def test_a_report_is_only_written_where_the_sweep_is_not_at_home(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(f"sqlite:///{tree}/runs/mlflow.db")
    arguments = ["--filter", "sw", "--report", str(tmp_path / "report.html")]
    sweep = review(capsys, "--filter", "sw")[1]["runs"][0]["run_id"]
    client.update_run(sweep, "RUNNING")
    assert "still at work" in review(capsys, *arguments)[1]["logged"]
    client.set_terminated(sweep, "FINISHED")
    told = tree / "runs" / "sw" / DESTINATION
    before = told.read_text()
    told.write_text(before.replace("mlflow.db", "other.db"))
    assert "its record is kept in" in review(capsys, *arguments)[1]["logged"]
    told.write_text(before.replace('"sweep"', '"another"'))
    assert "is not on this machine" in review(capsys, *arguments)[1]["logged"]
    told.write_text(before)
    assert (tmp_path / "report.html").is_file()
    assert not (tree / "runs" / "other.db").exists()


def test_a_csv_file_holds_all_or_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    review(capsys, "--csv", str(tmp_path / "all.csv"), "--limit", "1")
    with (tmp_path / "all.csv").open() as lines:
        rows = {row["name"]: row for row in csv.DictReader(lines)}
    assert len(rows) == 8, "--limit is for the screen"
    assert rows["004-fraction0.2-k1"]["sweep"] == "sw"
    assert float(rows["004-fraction0.2-k1"]["val/elbo"]) == elbo(0.2, 1)
    assert (rows["c"]["sweep"], rows["c"]["val/kl"], rows["c"]["objective.lambda.label"]) == ("", "", "50.0")
    review(capsys, "--csv", str(tmp_path / "some.csv"), "--filter", "k1", "--columns", "val/kl", "name")
    head, *lines = (tmp_path / "some.csv").read_text().splitlines()
    assert head == "run_id,sweep,val/kl,name"
    assert lines[1].split(",")[1:] == ["sw", "2.0", "005-fraction1.0-k1"]


def test_the_last_line_opens_mlflow_where_the_runs_are(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, closing = review(capsys)
    experiment = connect(closing["uri"]).get_experiment_by_name("pairstream").experiment_id
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert text.splitlines()[-1].startswith(f"mlflow ui --backend-store-uri sqlite:///{tree}/runs/mlflow.db ")
    assert text.splitlines()[-1].endswith(page)


def test_a_server_is_opened_at_its_own_address(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "infra.store.runs", lambda uri, experiment: runs(f"sqlite:///{tree}/runs/mlflow.db", experiment)
    )
    text, _ = review(capsys, "--uri", "http://127.0.0.1:1/")
    assert re.fullmatch(r"http://127.0.0.1:1/#/experiments/\d+/runs\?workflowType=\w+", text.splitlines()[-1])


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
