"""Coherence of models whose generations are known: by copying, by heart, of nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.errors import UserError
from modalities import Image
from pipeline.batch import Batch, on_device
from pipeline.config import Run
from pipeline.evaluate import coherence as studied
from pipeline.evaluate.coherence import JOINT, coherence, coherence_names, judged, oracles
from pipeline.evaluate.oracle import Oracle
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.subject import Subject, filled
from pipeline.experts import Gaussian, Mixture
from pipeline.noise import normal
from pipeline.settings import Examine, Model
from tests.pipeline.judging import (
    CLASS,
    CLASSES,
    ByHand,
    digit_run,
    halves_alone,
    of_parts,
    on_a_rank,
    reads,
    stripe,
    stripes,
    subject_of,
)
from tests.ranks import Ranks


@pytest.fixture(scope="module", name="cache")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(cache))


def judges(run: Run) -> dict[str, Oracle]:
    return {picture: reads(CLASSES) for picture in judged(run)}


def shared(one: Mapping[str, Scored]) -> dict[str, float]:
    return {name: scored.value for name, scored in one.items() if not name.startswith("oracle/")}


# Real digits, and oracles that are trained


@pytest.fixture(scope="module", name="run")
def _run(digits_dir: Path) -> Run:
    return digit_run(digits_dir)


@pytest.fixture(name="trained")
def _trained(run: Run) -> dict[str, Oracle]:
    return oracles(subject_of(run))


def halves(batch: Batch) -> tuple[Tensor, Tensor]:
    top, bottom = (on_device(filled(batch, name, 0.0), batch.row_B.device) for name in ("top", "bottom"))
    return top, bottom


def test_a_model_that_copies_scores_what_its_oracle_scores(run: Run, trained: dict[str, Oracle]) -> None:
    def made(name: str, z: Tensor) -> Tensor:
        return z.view(-1, 8, 8)[:, :4] if name == "top" else z.view(-1, 8, 8)[:, 4:]

    copying = ByHand(run, lambda batch: torch.cat(halves(batch), 1).flatten(1), made)
    told = coherence(subject_of(run, copying), trained)
    assert told["oracle/accuracy.parts"].value == trained["parts"].provenance["accuracy"]["test"] > 0.97
    assert told["synergy/parts"].value == pytest.approx(told["oracle/accuracy.parts"].value, abs=0.004)
    assert told["synergy/parts"].count == 270
    assert 0.1 < told["coherence/parts_given_top"].value < 0.9  # the other half stays empty
    p = told["synergy/parts"].value
    assert told["synergy/parts"].error == pytest.approx(np.sqrt(p * (1 - p) / 269))


def by_heart(run: Run, trained: Mapping[str, Oracle], classes: dict[str, int]) -> ByHand:
    """A model that knows which class a row is of, as long as it is given something, and one good digit of each."""
    good: dict[int, Tensor] = {}
    for batch, _ in subject_of(run).batches():
        top, bottom = halves(batch)
        read = trained["parts"].classes([top, bottom])
        for row, key in enumerate(batch.keys):
            if key and int(read[row]) == CLASS[key]:
                good[CLASS[key]] = torch.cat([top[row], bottom[row]])

    def mean(batch: Batch) -> Tensor:
        known = batch.present_BM.any(1)
        return torch.tensor([[classes.get(key, 0) if known[row] else 0] for row, key in enumerate(batch.keys)])

    def made(name: str, z: Tensor) -> Tensor:
        whole = torch.stack([good[int(number)] for number in z[:, 0]])
        return whole[:, :4] if name == "top" else whole[:, 4:]

    return ByHand(run, mean, made)


@pytest.mark.parametrize("known", [True, False])
def test_a_model_that_knows_the_class_scores_1_and_one_that_ignores_it_chance(
    run: Run, trained: dict[str, Oracle], known: bool
) -> None:
    """Whether or not the label is among its modalities."""
    of = run if known else halves_alone(run)
    given = ["top", "bottom", "label"] if known else ["top", "bottom"]
    subject = subject_of(of, by_heart(run, trained, CLASS))
    told = coherence(subject, trained)
    names = [*(f"coherence/parts_given_{name}" for name in given), "synergy/parts"]
    assert shared(told) == dict.fromkeys(names, 1.0)
    truth = [CLASS[key] for key in subject.manifest.keys(subject.manifest.split("test"))]
    for number in (0, 3):
        told = coherence(subject_of(of, by_heart(run, trained, dict.fromkeys(CLASS, number))), trained)
        assert shared(told) == dict.fromkeys(names, pytest.approx(np.mean(np.array(truth) == number)))
        assert all(0.05 < value < 0.15 for value in shared(told).values())
        assert told["oracle/accuracy.parts"].value > 0.97


def lively_study(subject: Subject) -> dict[str, Scored]:
    return coherence(subject, oracles(subject))


def test_two_ranks_say_what_one_says(ranks: Ranks, run: Run, cache: Path) -> None:
    alone = on_a_rank(lively_study, run, cache)
    assert {scored.count for scored in alone.values()} == {270}
    assert len(set(shared(alone).values())) > 1
    assert ranks.run(on_a_rank, lively_study, run, cache) == [alone, alone]


def test_without_the_label_or_a_picture_nothing_is_judged_or_trained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studied, "oracle_of", None)
    label = replace(run, modalities={"label": run.modalities["label"]}, examine=Examine())
    for nothing in (replace(run, examine=replace(run.examine, label="species")), label):
        assert oracles(subject_of(nothing)) == {}
        assert coherence(subject_of(nothing), {}) == {}
    assert coherence_names(label) == []


# Stripes of three pixels, and oracles by hand


def shows(numbers: Tensor) -> Tensor:
    """Stripes of these classes."""
    return torch.stack([torch.from_numpy(stripe(int(number)) / 16).float() for number in numbers])


def reading(batch: Batch, name: str) -> Tensor:
    return on_device(filled(batch, name, 0.0), batch.row_B.device).flatten(1).argmax(1)


def test_only_rows_count_that_have_the_label_and_what_is_given(tmp_path: Path) -> None:
    """Upper is right about the label in two of its three rows with one, lower in one of two."""
    rows = [
        {"upper": 0, "lower": 1, "label": 0},
        {"upper": 1, "label": 1},
        {"upper": 2, "label": 1},
        {"upper": 2, "lower": 2},
        {"lower": 2, "label": 2},
        {"label": 0},
        {},
    ]
    run = stripes(tmp_path / "d", [("test", row) for row in rows])
    whole = run
    copying = ByHand(
        whole,
        lambda batch: torch.stack([reading(batch, "upper") + reading(batch, "lower")] * 2, 1),
        lambda name, z: shows(z[:, 0]),
    )
    told = coherence(subject_of(whole, copying), judges(whole))
    counts = {name: (scored.value * scored.count, scored.count) for name, scored in told.items()}
    joint = counts.pop("coherence/joint")
    assert counts == {
        "oracle/accuracy.upper": (2, 3),
        "oracle/accuracy.lower": (1, 2),
        "coherence/lower_given_upper": (2, 3),
        "coherence/upper_given_lower": (1, 2),
    }
    assert joint[1] == JOINT

    parts = of_parts(run)
    told = coherence(subject_of(parts, replace(copying, run=parts)), judges(parts))
    assert {name: (scored.value * scored.count, scored.count) for name, scored in told.items()} == {
        "oracle/accuracy.parts": (1, 1),  # the oracle by hand looks at the first pixels, which are the upper stripe's
        "coherence/parts_given_upper": (2, 3),
        "coherence/parts_given_lower": (1, 2),
        "synergy/parts": (0, 1),
    }


def test_a_mixture_is_judged_where_a_component_is_and_not_between_them(tmp_path: Path) -> None:
    """Components at -1 and 1 know the class, and the mean of both does not."""
    rows = [("test", {"upper": n % 3, "lower": n % 3, "label": n % 3}) for n in range(30)]
    run = of_parts(stripes(tmp_path / "d", rows))

    class Torn(ByHand):
        def posterior(self, batch: Batch) -> Mixture:
            side = torch.stack([torch.full((len(batch),), side) for side in (-1.0, 1.0)])
            centres = torch.stack([side, reading(batch, "upper").float().expand(2, -1)], 2)
            return Mixture(Gaussian(centres, torch.zeros_like(centres)), torch.full((2, len(batch)), 0.5))

    sides = []

    def made(name: str, z: Tensor) -> Tensor:
        sides.extend(z[:, 0].tolist())
        return shows((z[:, 1] + (z[:, 0].abs() < 0.5)).long() % 3)

    told = coherence(subject_of(run, Torn(run, lambda batch: batch.weight_B, made)), judges(run))
    assert told["synergy/parts"].value == 1
    assert {-1.0, 1.0} == set(sides)


@pytest.fixture(name="apart")
def _apart(tmp_path: Path) -> Run:
    return stripes(tmp_path / "d", [("test", {"upper": n % 3, "lower": n % 3, "label": n % 3}) for n in range(6)])


@pytest.mark.parametrize("batch", [7, 1000])
def test_joint_coherence_is_agreement_over_samples_of_the_prior(apart: Run, batch: int) -> None:
    run = replace(apart, train=replace(apart.train, batch=batch), seed=5)

    def by(columns: dict[str, int]) -> ByHand:
        return ByHand(run, lambda b: torch.zeros(len(b), 2), lambda name, z: shows((z[:, columns[name]] > 0).long()))

    def joint(columns: dict[str, int]) -> Scored:
        return coherence(subject_of(run, by(columns)), judges(run))["coherence/joint"]

    assert joint({"upper": 0, "lower": 0}) == Scored(1.0, 0.0, JOINT)
    noise = normal(5, "joint coherence", torch.arange(JOINT), 1, 2)[0].numpy()
    share = np.mean((noise[:, 0] > 0) == (noise[:, 1] > 0))
    told = joint({"upper": 0, "lower": 1})
    assert told.value == pytest.approx(share)
    assert 0.4 < share < 0.6
    assert told.error == pytest.approx(np.sqrt(share * (1 - share) / (JOINT - 1)))


def stripes_study(subject: Subject) -> dict[str, Scored]:
    return coherence(subject, judges(subject.run))


def test_two_ranks_share_the_samples(ranks: Ranks, apart: Run, cache: Path) -> None:
    run = replace(apart, train=replace(apart.train, batch=9), model=Model(2, "mmvae"))
    alone = on_a_rank(stripes_study, run, cache)
    assert 0 < alone["coherence/joint"].value < 1
    assert ranks.run(on_a_rank, stripes_study, run, cache) == [alone, alone]


@pytest.mark.parametrize("system", ["mvae", "mmvae", "mopoe", "jmvae", "svae", "vaevae-b", "cvae", "bivcca", "mvae-q"])
@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("joined", [True, False])
def test_the_names_are_those_that_come_out(digits_dir: Path, system: str, label: bool, joined: bool) -> None:
    run = digit_run(digits_dir, **{"model.system": system})
    run = run if label else halves_alone(run)
    run = run if joined else replace(run, examine=Examine())
    told = coherence(subject_of(run), {picture: reads(10) for picture in judged(run)})
    assert list(told) == coherence_names(run)
    asked = [name for name in told if not name.startswith("oracle/")]
    others = ["top", "bottom", "label"] if label else ["top", "bottom"]
    if system == "cvae":  # generates one half of all the rest
        assert asked == ([] if joined or label else ["coherence/top_given_bottom"])
    elif joined:
        of_both = [] if system == "jmvae" and label else ["synergy/parts"]  # its joint network wants the label too
        assert asked == [*(f"coherence/parts_given_{name}" for name in others), *of_both]
    else:
        pairs = [f"coherence/{a}_given_{b}" for a in ("top", "bottom") for b in others if a != b]
        assert asked == [*pairs, "coherence/joint"]
    assert (told == {}) == (not judged(run))


def test_a_lone_picture_needs_no_oracle(digits_dir: Path) -> None:
    run = halves_alone(digit_run(digits_dir))
    run = replace(
        run, modalities={"top": run.modalities["top"]}, model=Model(4, "vae"), examine=Examine(parts=("top",))
    )
    assert coherence_names(run) == []
    assert judged(run) == {}


def test_strips_that_do_not_fit_are_a_sentence(apart: Run) -> None:
    wide = replace(
        apart, modalities=apart.modalities | {"lower": Image(1, 4)}, examine=Examine(parts=("upper", "lower"))
    )
    with pytest.raises(UserError, match=r"examine.parts: .*upper 3 x 1, lower 4 x 1"):
        coherence_names(wide)
