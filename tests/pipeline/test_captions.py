"""The correlation of features and captions, on birds of four kinds and models whose answers are known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infra import distributed
from infra.distributed import World
from infra.errors import UserError
from infra.journal import points
from modalities import AnyModality, Features, Label, Sentences
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.data import check_data
from pipeline.evaluate import captions as study
from pipeline.evaluate.captions import Reference, caption_names, captions, joint, sides
from pipeline.evaluate.correlation import Cca
from pipeline.evaluate.run import evaluate_run
from pipeline.evaluate.subject import Subject
from pipeline.manifest import open_manifest
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.settings import Model, Optim, Tracking, Training
from pipeline.tokenizers import Tokenizer, train
from pipeline.train import train as optimise
from pipeline.writing import write
from tests.pipeline.batches import LATENT, small_model
from tests.pipeline.tiny import given
from tests.ranks import Ranks

KINDS = ["red owl", "grey wren", "blue crow", "black gull"]
CENTRES = 3 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
FILLERS = ["a", "the", "this", "small", "bird"]
RARE = "heron"
"""A word of one training caption, beside which there are no features."""


def sentence(kind: int, rng: np.random.Generator) -> str:
    return f"{KINDS[kind]} {' '.join(rng.choice(FILLERS, 2))}"


TEXTS = [sentence(number % 4, np.random.default_rng([7, number])) for number in range(120)] + [RARE]
TOKENIZER = Tokenizer(train(TEXTS, 100, kind="word"))
MODALITIES: dict[str, AnyModality] = {
    "features": Features(3, hidden=(6,)),
    "caption": Sentences(TOKENIZER.size, length=8, network="cnn", embedding=32),
}
RUN = Run("toy", "data", MODALITIES, model=Model(4), train=Training(batch=7), seed=5)


def birds(split: str, count: int, seed: int = 0) -> list[Entry]:
    """Of three birds one lacks its features and one its caption in every ninth place; training birds have two."""
    entries = []
    for number in range(count):
        rng = np.random.default_rng([seed, len(split), number])
        kind = number % 4
        texts = [sentence(kind, rng) for _ in range(2 if split == "train" else 1)]
        values: dict[str, np.ndarray | list[np.ndarray]] = {
            "features": CENTRES[kind] + 0.5 * rng.normal(size=3),
            "caption": list(TOKENIZER.encode(texts, 8)[0]),
        }
        if number % 9 == 4:
            del values["features"]
        if number % 9 == 7:
            del values["caption"]
        entries.append(Entry(f"{split}{number:03d}", split, values))
    return entries


RARE_ONE = Entry("trainrare", "train", {"caption": [*TOKENIZER.encode([TEXTS[0], RARE], 8)[0]]})
TEST_BIRDS, TEST_PAIRS = 45, 35


def data(out: Path, entries: Sequence[Entry], tokenizer: bool = True) -> Path:
    files = {"caption.model": TOKENIZER.model} if tokenizer else {}
    write(out, replace(given("toy", MODALITIES, entries), files=files))
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entries = [*birds("train", 60), RARE_ONE, *birds("val", 20), *birds("test", TEST_BIRDS)]
    return data(tmp_path_factory.mktemp("birds") / "data", entries)


class Says(nn.Module):
    """A function as an expert that is sure of itself, or as a decoder."""

    def __init__(self, answer: Callable[[Tensor], Tensor], expert: bool = False) -> None:
        super().__init__()
        self.answer, self.expert = answer, expert
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, value: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        said = self.answer(value).float() + self.nothing
        return (said, torch.full_like(said, -3.0)) if self.expert else said


def one_hot(kind: Tensor) -> Tensor:
    return 9 * torch.eye(4)[kind]


def looks(features: Tensor) -> Tensor:
    return one_hot((features @ torch.tensor(CENTRES.T, dtype=torch.float32)).argmax(1))


def reads(tokens: Tensor) -> Tensor:
    """An empty one, which stands in where no row has a caption, as the first kind."""
    texts = TOKENIZER.decode(tokens.numpy())
    return one_hot(torch.tensor([[text.startswith(kind) for kind in KINDS] for text in texts]).int().argmax(1))


def draws(z: Tensor) -> Tensor:
    return torch.tensor(CENTRES)[z.argmax(1)]


def writes(z: Tensor) -> Tensor:
    tokens, _ = TOKENIZER.encode([f"{kind} the bird" for kind in KINDS], 8)
    return torch.nn.functional.one_hot(torch.from_numpy(tokens), TOKENIZER.size)[z.argmax(1)]


def always(decoder: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda z: decoder(torch.eye(4)[:1].expand(len(z), 4))


def other(decoder: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Of a kind that has nothing to do with z."""
    return lambda z: decoder(z.roll(1, 1) * torch.tensor([3.0, -1.0, 2.0, -5.0]))


def rigged(draw: Callable[[Tensor], Tensor] = draws, write: Callable[[Tensor], Tensor] = writes) -> MultimodalVAE:
    model = MultimodalVAE(MODALITIES, 4)
    model.encoders["features"], model.encoders["caption"] = Says(looks, True), Says(reads, True)
    model.decoders["features"], model.decoders["caption"] = Says(draw), Says(write)
    return model.eval()


def world() -> World:
    return World(0, 1, 0, torch.device("cpu"))


def subject(model: MultimodalVAE, place: Path, run: Run = RUN, split: str = "test") -> Subject:
    return Subject(model, run, open_manifest(place).reading(run.modalities), split, world())


def test_models_that_know_score_as_the_data_do_and_models_that_do_not_as_shuffled_pairs(place: Path) -> None:
    scores = captions(subject(rigged(), place))
    assert set(scores) == {"cca/data", "cca/caption_given_features", "cca/features_given_caption", "cca/joint"}
    assert scores["cca/data"].value > 0.8
    assert scores["cca/joint"].value > 0.8
    assert scores["cca/caption_given_features"].value > 0.8
    assert scores["cca/features_given_caption"].value > 0.8
    assert [scores[name].count for name in sorted(scores)] == [TEST_PAIRS, TEST_PAIRS, TEST_PAIRS, 1000]

    reference = Reference.fit(subject(rigged(), place), "features", "caption")
    kinds = np.arange(200) % 4
    texts = TOKENIZER.encode([f"{KINDS[kind]} the bird" for kind in np.random.default_rng(0).permutation(kinds)], 8)[0]
    shuffled = reference.score(CENTRES[kinds], texts).value
    blind = captions(subject(rigged(always(draws), always(writes)), place))
    for name in ("cca/caption_given_features", "cca/features_given_caption"):
        assert abs(blind[name].value) < 0.2
        assert blind[name].value == pytest.approx(shuffled, abs=0.2)
    assert blind["cca/data"] == scores["cca/data"]
    apart = captions(subject(rigged(draws, other(writes)), place))
    assert apart["cca/joint"].value < 0.2


def test_what_is_generated_is_never_seen(place: Path) -> None:
    """An expert that is surest of all and takes every kind for another spoils only what is generated from its side."""
    for fooled, spoilt in (("caption", "cca/features_given_caption"), ("features", "cca/caption_given_features")):
        model = rigged()
        right: Callable[[Tensor], Tensor] = reads if fooled == "caption" else looks
        model.encoders[fooled] = Says(lambda value, right=right: 99 * right(value).roll(1, 1), True)
        scores = captions(subject(model, place))
        for name in ("cca/features_given_caption", "cca/caption_given_features"):
            assert (scores[name].value > 0.8) == (name != spoilt), (fooled, name)


def test_the_mean_and_its_error_are_those_of_the_pairs_by_hand(place: Path) -> None:
    """Which side is real, and which is generated."""
    scores = captions(subject(rigged(), place))
    reference = Reference.fit(subject(rigged(), place), "features", "caption")
    whole = [e.source for e in birds("test", TEST_BIRDS) if len(e.source) == 2]
    assert len(whole) == TEST_PAIRS
    x = np.stack([values["features"] for values in whole]).astype(np.float32)
    own = TOKENIZER.decode(np.stack([values["caption"][0] for values in whole]))
    kinds = [next(k for k, kind in enumerate(KINDS) if text.startswith(kind)) for text in own]
    expected = {
        "cca/data": (x, own),
        "cca/caption_given_features": (x, [f"{KINDS[kind]} the bird" for kind in kinds]),
        "cca/features_given_caption": (CENTRES[kinds], own),
    }
    for name, (features, texts) in expected.items():
        values = reference.cca.correlation(features, reference.vectors(texts))
        assert scores[name].value == pytest.approx(values.mean(), abs=1e-6)
        assert scores[name].error == pytest.approx(values.std(ddof=1) / np.sqrt(TEST_PAIRS), abs=1e-6)


def test_what_measures_is_fitted_on_every_training_caption_and_pair(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "RIDGES", (0.1,))
    first = Reference.fit(subject(rigged(), place), "features", "caption")
    assert RARE in first.vectors.words.key_to_index
    x, y = [], []
    for entry in birds("train", 60):
        if len(entry.source) == 2:
            x += [entry.source["features"].astype(np.float32)] * 2
            y += TOKENIZER.decode(np.stack(entry.source["caption"]))
    by_hand = Cca.fit(np.stack(x), first.vectors(y), 3, 0.1)
    assert first.cca.mean_M == pytest.approx(by_hand.mean_M, abs=1e-7)
    assert first.cca.canonical_K == pytest.approx(by_hand.canonical_K, abs=1e-6)
    assert first.cca.mean_N == pytest.approx(by_hand.mean_N, abs=1e-6)

    train_and_val = [*birds("train", 60), RARE_ONE, *birds("val", 20)]
    other_test = data(tmp_path / "test", [*train_and_val, *birds("test", 20, seed=3)])
    same = Reference.fit(subject(rigged(), other_test), "features", "caption")
    for name in ("mean_N", "mean_M", "weight_NK", "weight_MK"):
        assert np.array_equal(getattr(same.cca, name), getattr(first.cca, name)), name
    other_train = data(tmp_path / "train", [*birds("train", 60, seed=3), *birds("val", 20), *birds("test", 20)])
    different = Reference.fit(subject(rigged(), other_train), "features", "caption")
    assert not np.allclose(different.cca.mean_N, first.cca.mean_N)


def test_validation_pairs_choose_the_ridge(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*ridges: float) -> tuple[float, float]:
        """cca/data of the splits val and test."""
        monkeypatch.setattr(study, "RIDGES", ridges)
        there = subject(rigged(), place)
        return tuple(captions(replace(there, split=split))["cca/data"].value for split in ("val", "test"))  # type: ignore[return-value]

    weak, strong = of(1e-3), of(100.0)
    assert abs(weak[0] - strong[0]) > 1e-3
    assert of(1e-3, 100.0) == of(100.0, 1e-3) == max(weak, strong)


@torch.no_grad()
def test_joint_pairs_are_decoded_from_the_prior_by_their_numbers(place: Path) -> None:
    model = rigged()
    features, tokens = joint(subject(model, place), "features", "caption")
    assert (len(features), len(tokens)) == (1000, 1000)
    z = normal(RUN.seed, "captions", torch.arange(1000), 1, 4)[0]
    assert np.array_equal(features, CENTRES[z.argmax(1)])
    assert np.array_equal(tokens, writes(z).argmax(2))
    large = joint(subject(model, place, replace(RUN, train=Training(batch=600))), "features", "caption")
    assert np.array_equal(large[0], features)
    assert np.array_equal(large[1], tokens)
    assert not np.array_equal(joint(subject(model, place, replace(RUN, seed=6)), "features", "caption")[0], features)


RECURRENT: dict[str, AnyModality] = {
    **MODALITIES,
    "caption": Sentences(TOKENIZER.size, length=8, network="gru", embedding=5, hidden=6),
}


def scores_of(place: Path, system: str, modalities: dict[str, AnyModality]) -> dict[str, tuple[float, float, int]]:
    """Of a model that is neither rigged nor trained, on the ranks there are."""
    model = small_model(modalities, system=system).eval()
    run = replace(RUN, modalities=modalities, model=Model(LATENT, system))  # type: ignore[arg-type]
    there = replace(subject(model, place, run), world=distributed.start("cpu", 1))
    return {name: (one.value, one.error, one.count) for name, one in captions(there).items()}


def test_two_ranks_find_what_one_finds(place: Path, ranks: Ranks) -> None:
    for system, modalities in (("svae", RECURRENT), ("mmvae", MODALITIES)):
        alone = scores_of(place, system, modalities)
        assert len(alone) == 4
        assert len({value for value, _, _ in alone.values()}) == 4
        for shared in ranks.run(scores_of, place, system, modalities):
            assert shared.keys() == alone.keys()
            for name in alone:
                assert shared[name] == pytest.approx(alone[name], rel=1e-5), name


def scores_of_ranks_that_differ(place: Path) -> dict[str, float]:
    """As on other processors: the second rank decodes other pairs."""
    with pytest.MonkeyPatch.context() as patched:
        if distributed.start("cpu", 1).rank == 1:
            patched.setattr(study, "joint", lambda *known: tuple(made[::2] for made in joint(*known)))
        return {name: value for name, (value, _, _) in scores_of(place, "svae", MODALITIES).items()}


def test_ranks_that_differ_say_what_the_first_says(place: Path, ranks: Ranks) -> None:
    """By it they would choose their best checkpoints, which all have to save."""
    first, second = ranks.run(scores_of_ranks_that_differ, place)
    assert first == second


def test_what_a_system_does_not_generate_has_no_score(place: Path) -> None:
    assert set(scores_of(place, "cvae", MODALITIES)) == {"cca/data", "cca/features_given_caption"}
    for system in ("jmvae", "mvae-q", "mopoe"):
        assert len(scores_of(place, system, MODALITIES)) == 4


def test_names_are_known_before_there_is_a_model(place: Path) -> None:
    for system in ("mvae", "svae", "cvae", "vaevae-b"):
        run = replace(RUN, model=Model(LATENT, system))  # type: ignore[arg-type]
        assert {"cca/data", *caption_names(run)} == set(scores_of(place, system, MODALITIES)), system
    assert caption_names(replace(RUN, modalities={"label": Label(3)})) == []


def test_the_best_checkpoint_may_be_that_of_the_most_joint_coherence(place: Path, tmp_path: Path) -> None:
    """As SVAE chooses it for CUB (appendix F.3)."""
    training = Training(batch=7, steps=12, validate_every=3, checkpoint_every=3, log_every=3, best="val/cca/joint")
    run = replace(RUN, data=str(place), optim=Optim(lr=0.02), train=training, tracking=Tracking(enabled=False))
    best = optimise(run, tmp_path).best
    curve = {step: values["val/cca/joint"] for step, values in points(tmp_path) if "val/cca/joint" in values}
    assert list(curve) == [3, 6, 9, 12]
    assert len(set(curve.values())) == 4
    assert best == {"metric": "val/cca/joint", "step": max(curve, key=curve.__getitem__), "value": max(curve.values())}
    looked = evaluate_run(tmp_path, "val", few=0, studies=(captions,)).scores["val/cca/joint"]
    assert looked.value == pytest.approx(max(curve.values()))
    with pytest.raises(UserError, match=r"no validation metric 'val/cca/joined'; did you mean 'val/cca/joint'"):
        check_data(replace(run, train=replace(training, best="val/cca/joined")))


def test_runs_without_one_of_each_kind_have_no_such_score(place: Path) -> None:
    for modalities in (
        {"features": MODALITIES["features"]},
        {"caption": MODALITIES["caption"], "label": Label(3)},
        {**MODALITIES, "attributes": Features(2)},
        {**MODALITIES, "title": MODALITIES["caption"]},
    ):
        run = replace(RUN, modalities=modalities)
        assert sides(run) is None
        assert captions(Subject(rigged(), run, open_manifest(place), "test", world())) == {}
    assert sides(replace(RUN, modalities={"label": Label(3), **MODALITIES})) == ("features", "caption")


# What is missing


def test_without_gensim_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(UserError, match=r"gensim .*pip install 'pairstream\[captions\]'"):
        captions(subject(rigged(), place))


@pytest.mark.parametrize(
    ("few", "said"),
    [
        ({"train": birds("train", 60)[4:5] + birds("train", 60)[:1]}, "split 'train' has 2, and 4 are needed"),
        ({"train": birds("train", 60)[7:8]}, "split 'train' has none"),
        ({"val": birds("val", 60)[4:5]}, "split 'val' has none"),
        ({"val": birds("val", 60)[7:8]}, "split 'val' has none"),
        ({"test": birds("test", 60)[4:5] + birds("test", 60)[7:8]}, "split 'test' has none"),
    ],
)
def test_too_few_pairs_are_refused_by_the_split_that_has_them(
    tmp_path: Path, few: dict[str, list[Entry]], said: str
) -> None:
    splits = {"train": birds("train", 60), "val": birds("val", 20), "test": birds("test", 20)} | few
    there = data(tmp_path / "data", [entry for entries in splits.values() for entry in entries])
    with pytest.raises(UserError, match=said):
        captions(subject(rigged(), there))


def test_without_a_tokenizer_nobody_can_read_captions(tmp_path: Path) -> None:
    there = data(tmp_path / "data", [*birds("train", 60), *birds("val", 20), *birds("test", 20)], tokenizer=False)
    with pytest.raises(UserError, match=r"no caption\.model lies beside the shards"):
        captions(subject(rigged(), there))
