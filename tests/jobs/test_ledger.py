"""What a sweep knows of its trials outlives its driver."""

from __future__ import annotations

from pathlib import Path

from jobs.tuning.ledger import TRIALS, Ledger, Outcome, end, name_of


def test_what_was_begun_is_known_to_whoever_comes_after(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    first = ledger.begin({"pairing.fraction": 0.05, "objective.k": 1})
    second = ledger.begin({"pairing.fraction": 1 / 3})
    assert (first.name, second.name) == ("000-fraction0.05-k1", "001-fraction0.3333")
    again = Ledger(tmp_path)
    assert again.entries == [first, second]
    assert again.begin({"seed": 3}).number == 2
    assert again.outcome(first) is None
    ended = Outcome("finished", 30, {"val/elbo": -1.5}, 63)
    end(tmp_path / first.name, ended)
    assert Ledger(tmp_path).outcome(first) == ended


def test_a_line_torn_by_a_kill_is_no_trial(tmp_path: Path) -> None:
    first = Ledger(tmp_path).begin({"seed": 1})
    whole = (tmp_path / TRIALS).read_bytes()
    for cut in range(1, len(whole)):
        (tmp_path / TRIALS).write_bytes(whole + whole[:cut])
        ledger = Ledger(tmp_path)
        assert ledger.entries == [first]
        assert ledger.begin({"seed": 2}).name == "001-seed2"
        assert [entry.name for entry in Ledger(tmp_path).entries] == ["000-seed1", "001-seed2"]


def test_names_fit_into_any_file_system() -> None:
    assert "/" not in name_of(7, {"data": "a/b"})
    assert len(name_of(7, {f"objective.lambda.{n}": 1.0 for n in range(50)})) <= 120
