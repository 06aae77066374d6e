"""Baselines predict better than chance, from the labels of the run's pairs alone, and choose nothing by test data."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from infra.errors import UserError
from modalities import Image
from pipeline.baselines import BASELINES, Fitting, codes, complete_samples, fitting, linear, logistic_regression, pairs
from pipeline.baselines.supervised import network
from pipeline.config import Run, override
from pipeline.corpora.digits import DIGITS, load
from pipeline.data import check_data
from pipeline.evaluate.scored import Scored
from pipeline.noise import normal
from pipeline.objectives.terms import beta_at
from pipeline.pairing import is_pair, key_hashes
from pipeline.writing import write
from tests.pipeline.baselines import EPOCHS, a_run, asked, flip, scores
from tests.pipeline.tiny import given

TRAINED = sorted(set(EPOCHS) - {"logistic-regression"})
FRACTIONS = (0.05, 1.0)
CHANCE, ROWS = 0.1, 270


@pytest.fixture(scope="module")
def shuffled_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, with the labels of other digits."""
    order = np.random.default_rng(3).permutation(len(load_digits().target))
    entries = DIGITS.entries(None)
    mixed = [
        entry._replace(source=load(entry) | {"label": load(entries[other])["label"]})
        for entry, other in zip(entries, order, strict=True)
    ]
    out = tmp_path_factory.mktemp("shuffled") / "digits"
    write(out, given("digits", DIGITS.modalities, mixed))
    return out


def test_every_baseline_has_epochs_here() -> None:
    assert set(EPOCHS) == set(BASELINES)
    assert [baseline.title for baseline in BASELINES.values()] == ["AE", "NN", "LOGREG", "RBM", "VAE"]


@pytest.mark.parametrize("name", EPOCHS)
def test_every_baseline_learns(name: str, digits_dir: Path) -> None:
    few, all_of_them = scores(name, [a_run(digits_dir, fraction) for fraction in FRACTIONS])
    for scored in (few, all_of_them):
        assert scored.count == ROWS
        assert scored.error == pytest.approx(math.sqrt(scored.value * (1 - scored.value) / (ROWS - 1)))
    assert few.value > 0.4
    assert all_of_them.value > 0.7
    assert all_of_them.value > few.value + 0.05


@pytest.mark.parametrize("name", EPOCHS)
def test_labels_of_other_digits_teach_nothing(name: str, shuffled_dir: Path) -> None:
    (found,) = scores(name, [a_run(shuffled_dir)])
    assert abs(found.value - CHANCE) < 0.06  # more than three standard errors


@pytest.mark.parametrize("name", EPOCHS)
def test_labels_of_other_rows_are_never_read(name: str, digits_dir: Path, tmp_path: Path) -> None:
    """Nor is anything of the test split, where another one is asked for; with damage in all of it nothing changes."""
    shutil.copytree(digits_dir, tmp_path / "d")
    runs = [a_run(place, 0.05, **{"train.damage": 0.0}) for place in (digits_dir, tmp_path / "d")]
    manifest = check_data(runs[1])
    shown = complete_samples(manifest, runs[1], "train", runs[1].pairing)
    others = np.setdiff1d(complete_samples(manifest, runs[1], "train"), shown)
    assert (len(shown), len(others)) == (63, 1258 - 63)
    flip(manifest, others, "label")
    for modality in ("bottom", "label"):
        flip(manifest, complete_samples(manifest, runs[1], "test"), modality)
    whole, damaged = (scores(name, [run], "val", 2)[0] for run in runs)
    assert damaged == whole
    assert not math.isnan(whole.value)
    flip(manifest, shown[:1], "label")
    with pytest.raises(UserError, match="damaged rows"):
        scores(name, runs[1:], "val", 2)


@pytest.mark.parametrize("name", TRAINED)
def test_a_seed_is_a_result(name: str, digits_dir: Path) -> None:
    once, again, other = (scores(name, [a_run(digits_dir, seed=seed)], epochs=2) for seed in (1, 1, 2))
    assert once == again
    assert once != other


@pytest.mark.parametrize("name", ["autoencoder", "vae", "rbm"])
def test_what_needs_no_label_is_trained_once(name: str, digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    plain = pairs.Question.pictures
    monkeypatch.setattr(pairs.Question, "pictures", lambda self: looked.append(1) or plain(self))
    runs = [a_run(digits_dir, fraction) for fraction in (0.02, *FRACTIONS)]
    together = scores(name, runs, epochs=2)
    assert len(looked) == 1
    assert together == [scores(name, [run], epochs=2)[0] for run in runs]
    assert together[0] != together[-1]


@pytest.mark.parametrize("name", ["network", "vae"])
def test_convolutions_too(name: str, digits_dir: Path) -> None:
    conv = {"modalities.bottom.network": "conv-shallow", "modalities.bottom.hidden": [64]}
    assert scores(name, [a_run(digits_dir, **conv)], epochs=3)[0].value > 0.3


def test_pairs_of_one_class_teach_nothing(digits_dir: Path) -> None:
    lone, none = a_run(digits_dir, 1 / 1258), a_run(digits_dir, 0.0)
    for name in BASELINES:
        for scored in scores(name, [lone, none], epochs=1):
            assert math.isnan(scored.value)
            assert math.isnan(scored.error)
            assert scored.count == 0
    assert math.isnan(logistic_regression(check_data(lone), lone, "label", ["bottom"]))


# The networks, and how they are trained


def scripted(net: nn.Linear, scores: list[float], run: Run, epochs: int) -> list[tuple[int, Tensor]]:
    """(steps, weights) at every validation of training that is validated by these scores, 10 rows an epoch."""
    seen: list[tuple[int, Tensor]] = []
    steps = []

    def loss(chosen: Tensor, step: int) -> Tensor:
        steps.append(step)
        return net(torch.ones(1, 2)).sum()

    def score() -> float:
        seen.append((len(steps), net.weight.detach().clone()))
        return scores[len(seen) - 1]

    fitting.fit(net, loss, 10, run, Fitting(epochs), "test", score)
    return seen


@pytest.mark.parametrize(("found", "best"), [([0.1, 0.5, 0.4, 0.5, 0.2], 1), ([0.6, 0.5], 0), ([0.1, 0.4, 0.6], 2)])
def test_the_weights_of_the_best_validation_are_kept(found: list[float], best: int, digits_dir: Path) -> None:
    run, net = a_run(digits_dir, **{"train.batch": 1}), nn.Linear(2, 1)
    seen = scripted(net, found, run, len(found))
    assert [steps for steps, _ in seen] == [10 * (number + 1) for number in range(len(found))]
    assert torch.equal(net.weight, seen[best][1])
    assert all(torch.equal(net.weight, weights) == (number == best) for number, (_, weights) in enumerate(seen))


def test_however_long_nothing_better_comes_training_goes_on_to_its_end(digits_dir: Path) -> None:
    """A learning rate that falls makes the best weights at the end."""
    run, net = a_run(digits_dir, **{"train.batch": 1, "optim.decay": 0.5}), nn.Linear(2, 1)
    seen = scripted(net, [0.5, *[0.4] * 48, 0.6], run, 250)
    assert [steps for steps, _ in seen] == list(range(50, 2501, 50))
    assert torch.equal(net.weight, seen[-1][1])


@pytest.mark.parametrize(
    ("batch", "epochs", "at"),
    [
        (10, 23, [10, 20, 23]),
        (4, 23, [12, 24, 36, 48, 60, 69]),
        (1, 23, range(10, 240, 10)),
        (1, 99, [*range(20, 981, 20), 990]),
    ],
)
def test_validations_are_some_steps_apart(batch: int, epochs: int, at: Sequence[int], digits_dir: Path) -> None:
    """After whole epochs, of one step each, of three, or of ten: after ten steps, or a fiftieth of all."""
    run, net = a_run(digits_dir, **{"train.batch": batch}), nn.Linear(2, 1)
    assert [steps for steps, _ in scripted(net, [0.0] * 60, run, epochs)] == list(at)


def test_an_epoch_is_every_row_once_in_batches_of_the_run(digits_dir: Path) -> None:
    changes = {"train.batch": 4, "optim.betas": (0.5, 0.6), "optim.decay": 1.0}
    run, net, seen = a_run(digits_dir, **changes), nn.Linear(3, 1), []
    data, reference = torch.randn(10, 3), nn.Linear(3, 1)
    reference.load_state_dict(net.state_dict())

    def loss(chosen: Tensor, step: int) -> Tensor:
        seen.append((step, chosen))
        return net(data[chosen]).square().mean()

    fitting.fit(net, loss, 10, run, Fitting(3), "test")
    assert [step for step, _ in seen] == list(range(9))
    assert [len(chosen) for _, chosen in seen] == [4, 4, 2] * 3
    epochs = [torch.cat([chosen for _, chosen in seen[i : i + 3]]).tolist() for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    adam = torch.optim.Adam(reference.parameters(), lr=2e-3, betas=(0.5, 0.6))
    for step, chosen in seen:
        adam.param_groups[0]["lr"] = 2e-3 * (9 - step) / 9
        adam.zero_grad()
        reference(data[chosen]).square().mean().backward()
        adam.step()
    assert torch.equal(net.weight, reference.weight)


def loss_of(learn: codes.Learn, run: Run, epochs: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The network and the loss that it would be trained by."""
    caught: list[Any] = []
    monkeypatch.setattr(codes, "fit", lambda net, loss, *_: caught.extend((net, loss)))
    learn(asked(run), Fitting(epochs))
    return caught[0], caught[1]


@pytest.mark.parametrize("step", [0, 3, 70])
def test_losses_are_those_of_torch_distributions(step: int, digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, chosen = a_run(digits_dir, seed=5), torch.tensor([3, 1, 700])
    pictures = torch.from_numpy(asked(run).pictures())[chosen].flatten(1)
    net, loss = loss_of(codes.autoencoder, run, 10, monkeypatch)
    mu, _ = net.encoder(pictures)
    error = -Bernoulli(logits=net.decoder(mu), validate_args=False).log_prob(pictures).sum(1)
    torch.testing.assert_close(loss(chosen, step), error.mean())

    net, loss = loss_of(codes.vae, run, 10, monkeypatch)
    mu, logvar = net.encoder(pictures)
    q = Normal(mu, (logvar / 2).exp())
    noise = normal(5, "baseline", step * 100 + torch.arange(3), 1, 32)[0]
    likely = Bernoulli(logits=net.decoder(q.mean + q.stddev * noise), validate_args=False).log_prob(pictures).sum(1)
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
    beta = 0.3 * min(1.0, step / (0.4 * 130))  # 13 steps an epoch
    assert beta_at(run.objective, step, 130) == pytest.approx(beta)
    torch.testing.assert_close(loss(chosen, step), (beta * kl - likely).mean())


def test_codes_are_means(digits_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(digits_dir)
    caught: list[Any] = []
    monkeypatch.setattr(codes, "fit", lambda net, *_: caught.append(net))
    monkeypatch.setattr(fitting, "PART", 7)
    pictures = asked(run).rows("val")[0][:20]
    for learn in (codes.autoencoder, codes.vae):
        found = learn(asked(run), Fitting(1))(pictures)
        expected = caught[-1].encoder(torch.from_numpy(pictures))[0]
        assert found.shape == (20, 32)
        torch.testing.assert_close(torch.from_numpy(found), expected.detach())
    assert codes.rbm(asked(run), Fitting(1))(pictures).shape == (20, 128)
    assert codes.pixels(asked(run), Fitting(1))(pictures).shape == (20, 32)


def test_the_network_is_the_run_s_own_without_the_stochastic_layer(
    digits_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, caught = a_run(digits_dir, 0.05), []
    plain = fitting.fit

    def spy(net: fitting.Net, loss: Callable[[Tensor, int], Tensor], *arguments: Any) -> None:
        seen, labels = (torch.from_numpy(one)[[5, 2]] for one in asked(run).pairs(run.pairing))
        expected = nn.functional.cross_entropy(net.decoder(net.encoder(seen)[0]), labels)
        torch.testing.assert_close(loss(torch.tensor([5, 2]), 0), expected)
        caught.append([tuple(parameter.shape) for parameter in net.parameters()])
        plain(net, loss, *arguments)

    monkeypatch.setattr("pipeline.baselines.supervised.fit", spy)
    scores("network", [run], epochs=1)
    parts = [run.modalities["bottom"].encoder(32), run.modalities["label"].decoder(32)]
    assert caught == [[tuple(parameter.shape) for part in parts for parameter in part.parameters()]]


def test_the_network_sees_pictures_moved_about_as_its_run_does(
    digits_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = a_run(digits_dir, 0.05), []
    moved = override(run, {"modalities.bottom.shift": 1.0})

    def same(pictures: Tensor, image: Image, seed: int, name: str, row_N: Tensor) -> Tensor:
        seen.append((tuple(pictures.shape), image.shift, name, row_N.tolist(), seed))
        return pictures

    def found(run: Run) -> Scored:
        return network(check_data(run), [run], "label", "bottom", "test", Fitting(20))[0]

    plain = found(run)
    assert found(moved) != plain
    monkeypatch.setattr("pipeline.baselines.supervised.augmented", same)
    assert found(moved) == plain
    steps = round(20 * 1258 / 63)  # as many rows as 20 epochs of all training samples have
    assert [told[:4] for told in seen] == [((63, 4, 8), 1.0, "bottom", list(range(63)))] * steps
    seeds = [told[4] for told in seen]
    assert len(set(seeds)) == steps
    assert all(0 <= seed < 2**63 for seed in seeds)
    seen.clear()
    found(moved)
    assert [told[4] for told in seen] == seeds
    seen.clear()
    found(run)
    assert not seen


def test_logistic_regression_is_scikit_learn_s_on_the_pairs(digits_dir: Path) -> None:
    """By hand, from scikit-learn's own arrays and the definition of pairs."""
    run, raw = a_run(digits_dir, 0.05), load_digits()
    manifest = check_data(run)
    keys = {split: manifest.keys(manifest.split(split)) for split in ("train", "test")}
    chosen = is_pair(key_hashes(keys["train"], run.seed), 0.05)
    train, test = (
        np.array([int(key.removeprefix("digit")) for key in some])
        for some in (np.array(keys["train"])[chosen], keys["test"])
    )
    for names, part in {("bottom",): slice(4, 8), ("top", "bottom"): slice(0, 8)}.items():
        pixels = raw.images[:, part].reshape(1797, -1) / 16
        model = LogisticRegression(max_iter=2000).fit(pixels[train], raw.target[train])
        found = logistic_regression(manifest, run, "label", names)
        assert found == pytest.approx(model.score(pixels[test], raw.target[test]), abs=0.004)
    assert scores("logistic-regression", [run])[0].value == logistic_regression(manifest, run, "label", ["bottom"])


def test_flat_of_nothing() -> None:
    assert linear.flat(np.zeros((0, 4, 8))).shape == (0, 32)
