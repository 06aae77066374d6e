"""Accuracy of attributes against models whose answers are known, naive counts and scikit-learn's balanced accuracy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from infra import distributed
from infra.distributed import World
from modalities import AnyModality, Attributes, Image, Label
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.data import check_data
from pipeline.evaluate.attributes import attribute_accuracy, balanced_accuracy, questions
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.subject import Subject
from pipeline.model import MultimodalVAE
from pipeline.recipes import recipe
from pipeline.settings import Model, Training
from pipeline.shards import BLOCK
from pipeline.train import build
from pipeline.writing import write
from tests.pipeline.batches import small_model
from tests.pipeline.tiny import given
from tests.ranks import Ranks

COUNT, TRAIN, TEST = 3, 40, 61
IMAGE = Image(1, COUNT, levels=1, hidden=(6,))
STORED: dict[str, AnyModality] = {"image": IMAGE, "flags": Attributes(COUNT, hidden=(6, 6)), "other": IMAGE}
PARTS: dict[str, AnyModality] = {
    "image": IMAGE,
    **{f"flag{n}": Attributes(1, hidden=(6, 6), of="flags", first=n, among=COUNT) for n in range(COUNT)},
}
RATES = {"train": np.array([0.9, 0.2, 0.4]), "test": np.array([0.3, 0.1, 0.5])}


def values(split: str, row: int) -> dict[str, np.ndarray]:
    """Flags with the split's rates, a picture that shows most of them, another of fewer; some rows lack one."""
    rng = np.random.default_rng([len(split), row])
    flags = (rng.random(COUNT) < RATES[split]).astype(int)
    if split == "train":  # of two ranks with four rows a step, one sees this mostly, the other never
        flags[2] = row % 8 < 3
    seen, dimly = (np.where(rng.random(COUNT) < share, flags, 1 - flags)[None] for share in (0.9, 0.6))
    lacking = {4: "flags", 6: "image", 8: "other"}.get(row % 9)
    return {name: one for name, one in (("image", seen), ("flags", flags), ("other", dimly)) if name != lacking}


def rows(split: str, *names: str) -> dict[str, np.ndarray]:
    """Of the samples of a split that have all of these, by hand."""
    every = [values(split, row) for row in range({"train": TRAIN, "test": TEST}[split])]
    kept = [one for one in every if set(names) <= set(one)]
    return {name: np.stack([one[name].ravel() for one in kept]) for name in names}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    entries = [
        Entry(f"{s}/{n:03d}", s, values(s, n)) for s, count in (("train", TRAIN), ("test", TEST)) for n in range(count)
    ]
    entries.append(Entry("val/0", "val", values("test", 0)))
    out = tmp_path_factory.mktemp("flags") / "data"
    write(out, given("flags", STORED, entries))
    return str(out)


def a_run(data: str, modalities: dict[str, AnyModality], batch: int = 16, system: Any = "mvae") -> Run:
    return Run(
        recipe="flags", data=data, modalities=modalities, model=Model(COUNT, system), train=Training(batch=batch)
    )


class Says(nn.Module):
    """An expert, as sure of itself as `sureness` says, whose mean is a function of the value; or a decoder."""

    def __init__(self, answer: Callable[[Tensor], Tensor], sureness: float | None = None) -> None:
        super().__init__()
        self.answer, self.sureness = answer, sureness
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, value: Tensor) -> Any:
        said = self.answer(value.flatten(1)) + self.nothing
        return said if self.sureness is None else (said, torch.full_like(said, -self.sureness))


def as_seen(model: MultimodalVAE) -> MultimodalVAE:
    """Says every flag as the picture shows it, `image` being surer than `other`; flags themselves would lie."""
    for name in model.modalities:
        if name in ("image", "other"):
            model.encoders[name] = Says(lambda x: 9 * (2 * x - 1), 6.0 if name == "image" else 2.0)
        else:
            place = model.modalities[name].first  # type: ignore[attr-defined]
            count = model.modalities[name].count  # type: ignore[attr-defined]
            model.encoders[name] = Says(lambda x: 99 - 198 * x[:, :1].expand(len(x), COUNT), 30.0)
            model.decoders[name] = Says(lambda z, place=place, count=count: z[:, place : place + count])
    return model


ALONE = World(0, 1, 0, torch.device("cpu"))


def study(run: Run, model: MultimodalVAE | None = None, world: World = ALONE) -> dict[str, Scored]:
    model = model or as_seen(MultimodalVAE(run.modalities, run.model.latent))
    return attribute_accuracy(Subject(model, run, check_data(run), "test", world))


def same(one: Scored, other: Scored) -> None:
    assert one.count == other.count
    assert (one.value, one.error) == pytest.approx((other.value, other.error), abs=1e-12)


def balanced(truth: np.ndarray, said: np.ndarray) -> float:
    return float(np.mean([balanced_accuracy_score(truth[:, a], said[:, a]) for a in range(truth.shape[1])]))


def test_what_is_asked_for() -> None:
    run = a_run("nowhere", STORED)
    assert questions(run) == [("flags", ("flags",), g) for g in (("image",), ("other",), ("image", "other"))]
    parts = tuple(f"flag{n}" for n in range(COUNT))
    assert questions(a_run("nowhere", PARTS)) == [("flags", parts, ("image",))]
    assert questions(recipe("celeba")) == [("attributes", ("attributes",), ("image",))]
    (name, every, seen), = questions(recipe("celeba19"))  # fmt: skip
    assert (name, len(every), seen) == ("attributes", 18, ("image",))


def test_numbers_of_a_model_whose_answers_are_known(data: str) -> None:
    found = study(a_run(data, STORED))
    assert set(found) == {
        *(
            f"{kind}/flags_given_{seen}"
            for kind in ("accuracy", "balanced", "sampled")
            for seen in ("image", "other", "image_other")
        ),
        "majority/flags",
    }
    for names, shows in ((("image",), "image"), (("other",), "other"), (("image", "other"), "image")):
        there = rows("test", "flags", *names)
        truth, said = there["flags"], there[shows]
        scored = found[f"accuracy/flags_given_{'_'.join(names)}"]
        right = (truth == said).mean(1)
        same(scored, Scored(right.mean(), right.std() / np.sqrt(len(right) - 1), len(right)))
        scored = found[f"balanced/flags_given_{'_'.join(names)}"]
        assert scored.value == pytest.approx(balanced(truth, said))
        assert scored.count == len(truth)
        assert 0 < scored.error < 0.1
    most = rows("train", "flags")["flags"].mean(0) > 0.5
    assert most.tolist() == [True, False, False]
    assert (rows("test", "flags")["flags"].mean(0) > 0.5).tolist() != most.tolist()
    truth = rows("test", "flags")["flags"]
    assert found["majority/flags"].value == pytest.approx((truth == most).mean())
    assert found["majority/flags"].count == len(truth)


def test_attributes_as_modalities_of_their_own_compare(data: str) -> None:
    together = study(a_run(data, {name: STORED[name] for name in ("image", "flags")}))
    apart = study(a_run(data, PARTS))
    kinds = ("accuracy", "balanced", "sampled")
    assert set(apart) == {*(f"{kind}/flags_given_image" for kind in kinds), "majority/flags"}
    for name, scored in apart.items():
        same(scored, together[name])


# Drawn attributes


def unsure(model: MultimodalVAE, sureness: float, slope: float) -> MultimodalVAE:
    """`as_seen`, but z is 1 or -1 as `image` shows, by an expert that is so sure, and flags' logits are `slope` z."""
    model = as_seen(model)
    model.encoders["image"] = Says(lambda x: 2 * x - 1, sureness)
    for name in model.decoders:
        if name not in ("image", "other"):
            answer = model.decoders[name].answer
            model.decoders[name] = Says(lambda z, answer=answer: slope * answer(z))  # type: ignore[misc]
    return model


def drawn_over_seeds(data: str, modalities: dict[str, AnyModality], sureness: float, slope: float) -> list[Scored]:
    run = a_run(data, modalities, 1000)
    model = unsure(MultimodalVAE(modalities, COUNT), sureness, slope)
    return [study(replace(run, seed=seed), model)["sampled/flags_given_image"] for seed in range(30)]


@pytest.mark.parametrize("modalities", [STORED, PARTS])
@pytest.mark.parametrize(
    ("sureness", "slope", "share"),
    [
        (30.0, np.log(4.0), 0.8),  # z is certain, an attribute has a probability of 0.8
        (0.0, 99.0, norm.cdf(0.5 / np.sqrt(0.5))),  # an attribute is certain given z, which is drawn from N(1/2, 1/2)
    ],
)
def test_attributes_are_drawn_as_likely_as_they_are(
    data: str, modalities: dict[str, AnyModality], sureness: float, slope: float, share: float
) -> None:
    drawn = drawn_over_seeds(data, modalities, sureness, slope)
    there = rows("test", "flags", "image")
    agree = (there["flags"] == there["image"]).mean()
    expected = agree * share + (1 - agree) * (1 - share)
    values = [scored.value for scored in drawn]
    assert len(set(values)) > 10, "of the seed"
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.sqrt(share * (1 - share) / (30 * there["flags"].size)))
    assert np.std(values) == pytest.approx(np.sqrt(share * (1 - share) / there["flags"].size), rel=0.4)
    assert {scored.count for scored in drawn} == {len(there["flags"])}
    assert agree - np.mean(values) > 0.1, "the likelier answers are right more often"


def test_of_a_mixture_attributes_are_drawn_too(data: str) -> None:
    run = a_run(data, STORED, system="mmvae")
    one, other = (study(replace(run, train=Training(batch=batch)), build(run)) for batch in (1000, 7))
    for seen in ("image", "other", "image_other"):
        same(one[f"sampled/flags_given_{seen}"], other[f"sampled/flags_given_{seen}"])
        assert 0.2 < one[f"sampled/flags_given_{seen}"].value < 0.8


@pytest.mark.parametrize("modalities", [STORED, PARTS])
def test_the_batch_size_changes_nothing(data: str, modalities: dict[str, AnyModality]) -> None:
    model = small_model(modalities)
    one, *others = (study(a_run(data, modalities, batch), model) for batch in (1000, 7, 1))
    assert {scored.value for scored in one.values()} != {0.0, 1.0}
    for other in others:
        assert set(other) == set(one)
        for name in one:
            same(other[name], one[name])


def on_a_rank(run: Run) -> dict[str, Scored]:
    return study(run, small_model(run.modalities), distributed.start("cpu", 1))


@pytest.mark.parametrize("modalities", [STORED, PARTS])
def test_two_ranks_find_what_one_does(data: str, modalities: dict[str, AnyModality], ranks: Ranks) -> None:
    run = a_run(data, modalities, batch=7)
    alone = study(run, small_model(run.modalities))
    for shared in ranks.run(on_a_rank, run):
        assert set(shared) == set(alone)
        for name in alone:
            same(shared[name], alone[name])


def test_of_the_training_split_attributes_alone_are_read(data: str, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "d")
    run = a_run(str(tmp_path / "d"), STORED)
    run = replace(run, train=replace(run.train, damage=0.0))
    manifest = check_data(run)
    path = tmp_path / "d" / "train-000000.tar"
    whole = bytearray(path.read_bytes())
    pictures = [manifest.column([name])[0] for name in ("image", "other")]
    split = manifest.split("train")
    for member in range(int(manifest.first[split.start]), int(manifest.first[split.stop])):
        if manifest.modality[member] in pictures:
            whole[int(manifest.block[member]) * BLOCK] ^= 1
    path.write_bytes(whole)
    assert study(run) == study(a_run(data, STORED))


def test_no_answers_where_there_is_no_question(data: str) -> None:
    def asked(modalities: dict[str, AnyModality], system: str = "mvae") -> list[str]:
        return [" ".join(seen) for _, _, seen in questions(a_run(data, modalities, system=system))]

    images = {name: STORED[name] for name in ("image", "other")}
    assert study(a_run(data, images), MultimodalVAE(images, COUNT)) == {}
    assert asked({"label": Label(3), "image": IMAGE}) == []
    assert asked({"flags": STORED["flags"]}) == []
    assert asked(STORED, "jmvae") == ["image", "other"]  # there is no posterior of two
    assert asked({"image": IMAGE, "flags": STORED["flags"]}, "cvae") == []  # pictures given attributes
    assert asked({"flags": STORED["flags"], "image": IMAGE}, "cvae") == ["image"]


# Balanced accuracy


def test_balanced_accuracy_by_hand() -> None:
    truth = np.array([[1, 0], [1, 0], [1, 0], [0, 1]])
    said = np.array([[1, 0], [0, 1], [0, 0], [0, 0]])
    # first: a third of the ones, all of the zeros; second: none of the ones, two thirds of the zeros
    assert balanced_accuracy(truth, said).value == pytest.approx(((1 / 3 + 1) / 2 + (0 + 2 / 3) / 2) / 2)
    assert balanced_accuracy(truth, said).count == 4


def test_balanced_accuracy_is_scikit_learn_s_and_half_of_guesses() -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random((400, 6)) < rng.random(6) * 0.5).astype(np.float32)
    said = np.where(rng.random((400, 6)) < 0.8, truth, 1 - truth)
    scored = balanced_accuracy(truth, said)
    assert scored.value == pytest.approx(balanced(truth, said))
    for constant in (0, 1):
        assert balanced_accuracy(truth, np.full_like(truth, constant)).value == 0.5
    assert balanced_accuracy(truth, truth) == Scored(1.0, 0.0, 400)
    assert balanced_accuracy(truth, 1 - truth).value == 0.0
    truth, said = truth[:, :2], said[:, :2]
    errors = [balanced(truth[rows], said[rows]) for rows in rng.integers(0, 400, (150, 400))]
    assert balanced_accuracy(truth, said).error == pytest.approx(np.std(errors), rel=0.2)


def test_attributes_of_one_kind_are_left_out() -> None:
    truth = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    said = np.array([[1, 0, 0], [1, 1, 1], [1, 0, 0]])
    assert balanced_accuracy(truth, said).value == 0.5  # of the first alone: all of the ones, none of the zeros
    assert np.isnan(balanced_accuracy(truth[:, 1:], said[:, 1:]).value)
    nothing = balanced_accuracy(truth[:0], said[:0])
    assert np.isnan(nothing.value)
    assert nothing.count == 0
