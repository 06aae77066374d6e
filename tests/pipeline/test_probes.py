"""Linear probes of latent means that are known, and of a model's against scikit-learn on means taken by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.evaluate import probes as studied
from pipeline.evaluate.probes import probes
from pipeline.evaluate.subject import Subject
from pipeline.settings import Examine, Model
from pipeline.stream import in_order
from tests.pipeline.judging import CLASS, ByHand, digit_run, halves_alone, lively, on_a_rank, stripes, subject_of
from tests.ranks import Ranks


@pytest.fixture(name="run")
def _run(digits_dir: Path) -> Run:
    return digit_run(digits_dir)


def by_hand(run: Run, seen: list[np.ndarray] | None = None) -> ByHand:
    """Its mean says the class where it is given the bottom, and nothing from the top alone; never is it given the
    label."""

    def mean(batch: Batch) -> Tensor:
        names = list(batch.values)
        assert names == list(run.modalities)
        if "label" in names:
            assert not batch.present_BM[:, names.index("label")].any()
        if seen is not None and batch.present_BM.all(1).any():
            seen.append(np.array([int(key.removeprefix("digit")) for key in batch.keys if key]))
        given = torch.from_numpy(batch.present_BM[:, names.index("bottom")])
        number = torch.tensor([CLASS.get(key, 0) for key in batch.keys])
        return torch.nn.functional.one_hot(number, 10).float() * given[:, None] + 0.5

    return ByHand(run, mean, lambda name, z: z)


@pytest.mark.parametrize("known", [True, False])
def test_a_class_in_the_mean_is_found_and_a_constant_mean_gives_chance(run: Run, known: bool) -> None:
    of = run if known else halves_alone(run)
    told = probes(subject_of(of, by_hand(of)))
    assert {name: scored.value for name, scored in told.items()} == {
        "probe/label_given_top": pytest.approx(0.1, abs=0.05),
        "probe/label_given_bottom": 1.0,
        "probe/label_given_all": 1.0,
    }
    assert {scored.count for scored in told.values()} == {270}


def means_of(run: Run, split: str, given: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
    """Means and classes of a split."""
    subject, model = subject_of(run), lively(run)
    collate = Collator([subject.manifest], run.modalities)
    means, classes = [], []
    for refs in in_order(subject.manifest, split, list(run.modalities), 37):
        batch = collate(refs)
        with torch.no_grad():
            mean = model.posterior(batch.only(given)).mu.numpy()
        means += [mean[row] for row, key in enumerate(batch.keys) if key]
        classes += [CLASS[key] for key in batch.keys if key]
    return np.array(means), np.array(classes)


@pytest.mark.parametrize("system", ["mvae", "mmvae"])
def test_it_is_a_logistic_regression_on_standardised_means(run: Run, system: str) -> None:
    run = replace(run, model=replace(run.model, system=system))
    told = probes(subject_of(run))
    for name, given in {"top": {"top"}, "all": {"top", "bottom"}}.items():
        (x, y), (u, v) = (means_of(run, split, frozenset(given)) for split in ("train", "test"))
        scale = StandardScaler().fit(x)
        right = LogisticRegression(max_iter=2000).fit(scale.transform(x), y).predict(scale.transform(u)) == v
        scored = told[f"probe/label_given_{name}"]
        assert scored.value == pytest.approx(right.mean(), abs=0.004)  # one row: means of a batch differ in a last bit
        assert 0.2 < scored.value < 0.99
        assert scored.error == pytest.approx(np.sqrt(scored.value * (1 - scored.value) / 269))


def test_at_most_so_many_training_rows_are_read_spread_over_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studied, "MOST", 120)
    read: list[np.ndarray] = []
    alone = halves_alone(run)
    subject = subject_of(alone, by_hand(alone, read))
    probes(subject)
    train = subject.manifest.split("train")
    keys = np.array([int(key.removeprefix("digit")) for key in subject.manifest.keys(train)])
    assert np.concatenate(read)[:120].tolist() == keys[np.arange(120) * 1258 // 120].tolist()
    assert len(np.concatenate(read)) == 120 + 270


def test_few_rows_are_scored_and_all_are_learnt_from(run: Run) -> None:
    read: list[np.ndarray] = []
    alone = halves_alone(run)
    subject = replace(subject_of(alone, by_hand(alone, read)), few=20)
    assert {scored.count for scored in probes(subject).values()} == {20}
    train, test = (
        np.array([int(key.removeprefix("digit")) for key in subject.manifest.keys(subject.manifest.split(split))])
        for split in ("train", "test")
    )
    assert np.concatenate(read).tolist() == [*train, *test[np.arange(20) * 270 // 20]]


def test_two_ranks_say_what_one_says(ranks: Ranks, run: Run, tmp_path: Path) -> None:
    alone = on_a_rank(probes, run, tmp_path)
    both = ranks.run(on_a_rank, probes, run, tmp_path)
    assert both[0] == both[1]
    for name, scored in alone.items():
        assert both[0][name].value == pytest.approx(scored.value, abs=0.004)
        assert both[0][name].count == scored.count == 270


def brightness(batch: Batch) -> Tensor:
    """Where each stripe that is given is brightest, one number each."""
    mean = torch.zeros(len(batch), 6)
    for column, name in enumerate(("upper", "lower")):
        rows = batch.rows_of[name]
        mean[rows, 3 * column : 3 * column + 3] = batch.values[name][: len(rows), 0]
    return mean


def test_only_rows_count_that_have_the_label_and_what_is_given(tmp_path: Path) -> None:
    train = [("train", {"upper": n % 3, "lower": 0, "label": n % 3}) for n in range(30)]
    train += [("train", {"upper": (n + 1) % 3, "lower": 0}) for n in range(30)]
    train += [("train", {"lower": 0, "label": n % 2}) for n in range(30)]
    test = [
        {"upper": 0, "lower": 1, "label": 0},
        {"upper": 1, "label": 1},
        {"upper": 2, "label": 1},
        {"upper": 2, "lower": 2},
        {"lower": 2, "label": 0},
    ]
    run = stripes(tmp_path / "d", train + [("test", row) for row in test])
    told = probes(subject_of(run, ByHand(run, brightness, lambda name, z: z)))
    upper, whole = told["probe/label_given_upper"], told["probe/label_given_all"]
    assert (upper.value, upper.count) == (pytest.approx(2 / 3), 3)
    assert (whole.value, whole.count) == (1.0, 1)
    assert told["probe/label_given_lower"].count == 2


def test_one_class_cannot_be_told(tmp_path: Path) -> None:
    run = stripes(
        tmp_path / "d",
        [("train", {"upper": 0, "label": 1})] * 4
        + [("train", {"lower": n, "label": n}) for n in range(3)]
        + [("test", {"upper": 0, "lower": 0, "label": 1})],
    )
    told = probes(subject_of(run, ByHand(run, brightness, lambda name, z: z)))
    assert told["probe/label_given_upper"].count == told["probe/label_given_all"].count == 0
    assert np.isnan(told["probe/label_given_upper"].value)
    assert told["probe/label_given_lower"].count == 1


def test_nothing_to_probe(run: Run) -> None:
    def refuses(subject: Subject) -> dict[str, object]:
        return dict(probes(replace(subject, model=None)))  # type: ignore[arg-type]

    assert refuses(subject_of(replace(run, examine=replace(run.examine, label="species")))) == {}
    assert refuses(subject_of(replace(run, model=Model(4, "cvae")))) == {}
    label = replace(run, modalities={"label": run.modalities["label"]}, examine=Examine(), model=Model(4, "vae"))
    assert refuses(subject_of(label)) == {}


def test_a_system_is_probed_where_it_has_a_posterior(run: Run) -> None:
    """JMVAE's joint network wants the label too, so there is none of both halves alone; with one modality there is no
    `all`."""
    assert list(probes(subject_of(replace(run, model=Model(4, "jmvae"))))) == [
        "probe/label_given_top",
        "probe/label_given_bottom",
    ]
    top = halves_alone(run)
    top = replace(top, modalities={"top": top.modalities["top"]}, examine=Examine(), model=Model(4, "vae"))
    assert list(probes(subject_of(top))) == ["probe/label_given_top"]
