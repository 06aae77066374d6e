"""Oracles are trained once for the data, kept whole or not at all, and as good as they say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from infra import distributed
from infra.errors import UserError
from modalities import Image, Label
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.evaluate import classifier, oracle
from pipeline.evaluate.classifier import Pictures, network, trained
from pipeline.evaluate.labelled import label_of, spread
from pipeline.evaluate.oracle import Oracle, Task, joined, oracle_of
from pipeline.manifest import open_manifest
from pipeline.stream import PADDING
from pipeline.writing import write
from tests.pipeline.judging import ALONE, CLASS, digit_run, halves_alone, stripes
from tests.pipeline.tiny import bare, given
from tests.ranks import Ranks

PARTS = ("top", "bottom")
CPU = torch.device("cpu")


def task_of(run: Run, parts: tuple[str, ...] = PARTS) -> Task:
    manifest = open_manifest(run.data)
    label = label_of(run, manifest)
    assert label is not None
    return Task(run, manifest, parts, label)


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAIRSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "oracles"


@pytest.fixture(name="trainings")
def _trainings(monkeypatch: pytest.MonkeyPatch) -> list[Pictures]:
    """Training that costs nothing: notes the pictures of each, and gives a network that differs from the last."""
    noted: list[Pictures] = []

    def quickly(seen: Pictures, unseen: Pictures, classes: int, *_: object) -> tuple[torch.nn.Module, int, float]:
        noted.append(seen)
        torch.manual_seed(len(noted))
        return network(seen.values.shape[1:], classes), 1, 0.5

    monkeypatch.setattr(oracle, "trained", quickly)
    return noted


def weights(one: Oracle) -> dict[str, torch.Tensor]:
    return one.network.state_dict()


def same(one: Oracle, other: Oracle) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_it_reads_real_digits_and_says_how_well(digits_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured: 0.989 of the test pictures."""
    task = task_of(digit_run(digits_dir))
    made = oracle_of(task, ALONE)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("oracle of top + bottom: training a classifier of label on 1,258 pictures") == 1
    rows = [int(key.removeprefix("digit")) for key in task.manifest.keys(task.manifest.split("test"))]
    pictures, truth = torch.tensor(load_digits().images[rows] / 16).float(), load_digits().target[rows]
    right = (made.classes([pictures[:, :4], pictures[:, 4:]]).numpy() == truth).mean()
    assert right == made.provenance["accuracy"]["test"] >= 0.97
    assert made.provenance["accuracy"]["val"] >= 0.97
    assert (made.classes([pictures[:, 4:], pictures[:, :4]]).numpy() == truth).mean() < 0.6  # the first is on top
    assert made.provenance["data"] == task.manifest.fingerprint
    assert {"version", "pictures", "label", "classes", "seed", "epochs", "rows"} < set(made.provenance)


def test_the_second_call_loads_what_the_first_trained(
    digits_dir: Path, cache: Path, trainings: list[Pictures], capsys: pytest.CaptureFixture[str]
) -> None:
    first = oracle_of(task_of(digit_run(digits_dir)), ALONE)
    capsys.readouterr()
    again = oracle_of(task_of(halves_alone(digit_run(digits_dir, seed=7))), ALONE)  # the judge of all runs
    assert len(trainings) == 1
    assert same(first, again)
    assert first.provenance == again.provenance
    assert capsys.readouterr().err == ""
    assert [path.suffix for path in sorted(cache.iterdir())] in ([".lock", ".safetensors"], [".safetensors"])
    assert not again.network.training


def changed_fingerprint(task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    task.manifest.fingerprint = "0" * 32
    return task


def changed_version(task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(oracle, "VERSION", oracle.VERSION + 1)
    return task


def changed_levels(task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    top = replace(task.run.modalities["top"], levels=17)
    return replace(task, run=replace(task.run, modalities=task.run.modalities | {"top": top}))


def changed_parts(task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    return replace(task, parts=("top",))


def changed_classes(task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    return replace(task, label=Label(11))


@pytest.mark.parametrize(
    "change", [changed_fingerprint, changed_version, changed_levels, changed_parts, changed_classes]
)
def test_what_the_weights_depend_on_trains_anew(
    digits_dir: Path, trainings: list[Pictures], monkeypatch: pytest.MonkeyPatch, change: Callable[..., Task]
) -> None:
    first = oracle_of(task_of(digit_run(digits_dir)), ALONE)
    other = oracle_of(change(task_of(digit_run(digits_dir)), monkeypatch), ALONE)
    assert len(trainings) == 2
    assert first.provenance != other.provenance
    monkeypatch.undo()


@pytest.mark.parametrize("whole", [0.0, 0.001, 0.5, 0.999, None])
def test_a_file_that_is_not_whole_is_not_used(
    digits_dir: Path, cache: Path, trainings: list[Pictures], whole: float | None
) -> None:
    """A share of its bytes; None: zeros of its size, as a crash of the machine may leave."""
    first = oracle_of(task_of(digit_run(digits_dir)), ALONE)
    (file,) = cache.glob("*.safetensors")
    data = file.read_bytes()
    file.write_bytes(bytes(len(data)) if whole is None else data[: int(whole * len(data))])
    second = oracle_of(task_of(digit_run(digits_dir)), ALONE)
    assert len(trainings) == 2
    assert not same(first, second)
    assert same(second, oracle_of(task_of(digit_run(digits_dir)), ALONE))
    assert len(trainings) == 2


def test_a_training_that_was_killed_while_it_wrote_leaves_nothing_that_counts(
    digits_dir: Path, cache: Path, trainings: list[Pictures], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(oracle.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            oracle_of(task_of(digit_run(digits_dir)), ALONE)
    assert list(cache.glob("*.part"))
    assert not list(cache.glob("*.safetensors"))
    oracle_of(task_of(digit_run(digits_dir)), ALONE)
    assert len(trainings) == 2


def quick_pictures(rows: int, seed: int) -> Pictures:
    """Three classes that differ in which third of the picture is bright."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, rows)
    values = generator.random((rows, 1, 6, 6)) * 0.5
    for row, number in enumerate(classes):
        values[row, 0, 2 * number : 2 * number + 2] += 0.5
    return Pictures(torch.from_numpy(values).float(), torch.from_numpy(classes))


def test_the_same_pictures_give_the_same_network_whatever_else_draws_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "STEPS", (10, 10))
    monkeypatch.setattr(classifier, "MOST_EPOCHS", 2)
    seen, unseen = quick_pictures(60, 0), quick_pictures(30, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, epochs, accuracy = trained(seen, unseen, 3, CPU, lambda share: None)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    with torch.no_grad():  # as studies are called
        other, *_ = trained(seen, unseen, 3, CPU, lambda share: None)
    assert same(Oracle(one, {}), Oracle(other, {}))
    assert accuracy > 0.6
    assert epochs in (1, 2)
    assert not one.training


def test_training_ends_when_validation_gets_no_better_and_gives_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, unseen, told = quick_pictures(60, 0), quick_pictures(30, 1), list[float]()
    monkeypatch.setattr(classifier, "STEPS", (4, 4))

    def with_accuracies(*values: float) -> tuple[torch.nn.Module, int, float]:
        left = iter(values)
        monkeypatch.setattr(classifier, "accuracy_of", lambda *_: next(left))
        monkeypatch.setattr(classifier, "MOST_EPOCHS", len(values))
        return trained(seen, unseen, 3, CPU, told.append)

    best, epochs, accuracy = with_accuracies(0.5, 0.7, 0.7, 0.9)
    assert (epochs, accuracy) == (2, 0.7)
    assert told == [step / 16 for step in range(1, 13)]
    until_then, *_ = with_accuracies(0.5, 0.7)
    assert same(Oracle(best, {}), Oracle(until_then, {}))


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 4, 8), (1, 8, 8), (1, 14, 28), (1, 28, 28), (3, 32, 32), (3, 64, 48)])
def test_pictures_of_any_size_and_colour_are_read(shape: tuple[int, int, int]) -> None:
    model = network(shape, 7).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 7)
    batch, labels = next(classifier._shuffled(Pictures(torch.rand(5, *shape), torch.arange(5))))
    assert batch.shape == (classifier.BATCH, *shape)
    assert set(labels.tolist()) == set(range(5))


def test_strips_are_joined_from_the_top() -> None:
    grey = [torch.full((2, 3, 4), 0.1), torch.full((2, 5, 4), 0.9)]
    assert joined(grey).shape == (2, 1, 8, 4)
    assert torch.equal(joined(grey)[0, 0, :, 0], torch.tensor([0.1] * 3 + [0.9] * 5))
    assert joined([torch.zeros(2, 3, 5, 4), torch.ones(2, 3, 1, 4)])[:, :, 5].eq(1).all()


def two_ranks(run: Run, cache: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, object]]:
    """How often this rank trained, and what it got."""
    before, count = oracle.trained, 0

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        return before(*arguments)  # type: ignore[arg-type]

    oracle.trained = counted  # type: ignore[assignment]
    classifier.STEPS = (2, 2)
    try:
        world = distributed.start("cpu", 1)
        with mock.patch.dict(os.environ, PAIRSTREAM_CACHE=str(cache / str(world.rank))):  # as on two machines
            made = oracle_of(task_of(run), world)
    finally:
        oracle.trained, classifier.STEPS = before, (50, 500)
    return count, weights(made), made.provenance


def test_one_rank_trains_and_all_have_it(
    ranks: Ranks, digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = digit_run(digits_dir)
    (first, one, told), (second, other, told_too) = ranks.run(two_ranks, run, tmp_path / "two")
    assert (first, second) == (1, 0)
    assert told == told_too
    monkeypatch.setattr(classifier, "STEPS", (2, 2))
    torch.set_num_threads(1)  # as the ranks: another number of threads adds up in another order
    alone = weights(oracle_of(task_of(run), ALONE))
    for name, tensor in alone.items():
        assert torch.equal(tensor, one[name])
        assert torch.equal(tensor, other[name])


def refusal(run: Run, cache: Path) -> str:
    try:
        with mock.patch.dict(os.environ, PAIRSTREAM_CACHE=str(cache)):
            oracle_of(task_of(run, ("upper",)), distributed.start("cpu", 1))
    except UserError as error:
        return str(error)
    return ""


WHOLE = [("val", {"upper": n % 3, "lower": 0, "label": n % 3}) for n in range(6)]


def test_all_ranks_hear_that_all_training_rows_are_of_one_class(ranks: Ranks, tmp_path: Path) -> None:
    run = stripes(tmp_path / "d", [("train", {"upper": 0, "label": 2})] * 4 + WHOLE)
    said = ranks.run(refusal, run, tmp_path / "c")
    assert said[0] == said[1]
    assert "all 4 training rows with upper have label 2" in said[0]
    assert "set examine.label" in said[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_row_with_picture_and_label_is_a_sentence(tmp_path: Path, split: str) -> None:
    apart = [(split, {"upper": 0}), (split, {"label": 1, "lower": 2})]
    others = [("train", {"upper": n % 3, "label": n % 3}) for n in range(6)] if split == "val" else WHOLE
    run = stripes(tmp_path / "d", apart + others)
    with pytest.raises(UserError, match=f"no row of the split {split} has both upper and label.*set examine.label"):
        oracle_of(task_of(run, ("upper",)), ALONE)


def test_a_cache_that_cannot_be_used_is_a_sentence(digits_dir: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot hold the oracles.*PAIRSTREAM_CACHE"):
        oracle_of(task_of(digit_run(digits_dir)), ALONE)


def test_only_rows_with_all_parts_and_a_label_teach(tmp_path: Path) -> None:
    rows = [
        ("train", {"upper": 0, "lower": 1, "label": 2}),
        ("train", {"upper": 1, "lower": 1}),
        ("train", {"lower": 2, "label": 0}),
        ("train", {"upper": 2, "label": 0}),
        ("train", {"lower": 0, "label": 1, "upper": 2}),
    ]
    task = task_of(stripes(tmp_path / "d", rows), ("upper", "lower"))
    pictures = task.pictures("train")
    assert pictures.values[:, 0].argmax(2).tolist() == [[0, 1], [2, 0]]
    assert pictures.values.amax() == 1
    assert pictures.classes.tolist() == [2, 1]


def test_partners_in_the_pool_teach_with_the_label_of_the_row_that_shows_them(tmp_path: Path) -> None:
    kinds = {"partner": Image(height=1, width=2), "label": Label(classes=3)}
    pool = [Entry(f"p/{n}", "pool", {"partner": np.array([[n % 3, 100]])}) for n in range(9)]
    rows = [
        Entry(f"d/{n}", "train", {"label": np.asarray(n % 3)}, {"partner": [f"p/{m}" for m in range(n % 3, 9, 3)]})
        for n in range(7)
    ]
    write(tmp_path / "d", given("linked", kinds, [*rows, *pool]))
    pictures = task_of(Run(recipe="toy", data=str(tmp_path / "d"), modalities=kinds), ("partner",)).pictures("train")
    assert len(pictures) == 7
    assert torch.round(pictures.values[:, 0, 0, 0] * 255).tolist() == pictures.classes.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_of_many_pictures_some_are_held_evenly_spread(digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(digit_run(digits_dir))
    everything = task.pictures("train")
    assert everything.classes.tolist() == [CLASS[key] for key in task.manifest.keys(task.manifest.split("train"))]
    monkeypatch.setattr(oracle, "ROOM", 100 * 4 * 64)
    some = task.pictures("train")
    places = [int(n * 1258 / 100) for n in range(100)]
    assert torch.equal(some.values, everything.values[places])
    assert torch.equal(some.classes, everything.classes[places])


def test_rows_are_spread_in_equal_steps(tmp_path: Path) -> None:
    instances = np.ones((23, 2), int)
    instances[::2, 1] = 0
    manifest = bare(tmp_path / "d", instances, others=5)
    steps = list(spread(manifest, "train", ["m1", "m0"], 4, 10))
    assert [len(refs.sample_B) for refs in steps] == [4, 4, 4]
    sample = np.concatenate([refs.sample_B for refs in steps])
    member = np.concatenate([refs.member_BM for refs in steps])
    assert sample[:10].tolist() == [5 + n * 23 // 10 for n in range(10)]
    assert (sample[10:] == PADDING).all()
    assert ((member[:, 0] >= 0)[:10] == (sample[:10] - 5) % 2).all()
    assert (member[:10, 1] >= 0).all()
    assert (member[10:] == -1).all()
    assert np.concatenate([refs.row_B for refs in steps]).tolist() == list(range(12))
    whole = [one for refs in spread(manifest, "train", ["m0"], 4) for one in refs.sample_B]
    assert whole == [*range(5, 28), PADDING]
