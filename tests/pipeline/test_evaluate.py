"""Metrics are sums with counts: unweighted, the same for every batch size and number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import sem
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from infra.distributed import World
from modalities import Image, Label
from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.evaluate import Measure, evaluate, metric_names
from pipeline.evaluate.classification import accuracy_names, label_accuracy, sampled_accuracy, subsets
from pipeline.evaluate.likelihood import elbo
from pipeline.evaluate.precision import precision_names, precision_shares
from pipeline.manifest import Manifest, open_manifest
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.settings import Model, Objective, Training
from pipeline.writing import write
from tests.pipeline.batches import LATENT, batch_of, patterns, small_model, value_of
from tests.pipeline.tiny import given

KINDS = {"picture": Image(2, 3, levels=16, hidden=(7, 6)), "label": Label(4, hidden=(7, 6)), "other": Label(3, (7, 6))}
RUN = Run(recipe="toy", data="data", modalities=KINDS, model=Model(LATENT), seed=9)
ROWS = 61


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """61 validation samples, most of them partial, some with nothing at all."""
    present = patterns(ROWS, 3, 8)
    present[10:12] = False

    def samples() -> Iterator[Entry]:
        for row in range(ROWS):
            values = {}
            for column, (name, modality) in enumerate(KINDS.items()):
                value = value_of(modality, row, column)
                if present[row, column]:
                    values[name] = np.rint(value * 16) if name == "picture" else value
            yield Entry(f"key{row:03d}", "val", values)

    out = tmp_path_factory.mktemp("toy") / "data"
    write(out, given("toy", KINDS, samples()))
    return open_manifest(out)


@dataclass(frozen=True)
class Rank(World):
    """One rank of several in this process: notes what it would add up."""

    def sum(self, values: Sequence[float]) -> list[float]:
        NOTED.append(list(values))
        return list(values)


NOTED: list[list[float]] = []


def world(rank: int = 0, size: int = 1) -> Rank:
    return Rank(rank, size, 0, torch.device("cpu"))


def values(model: MultimodalVAE, run: Run, manifest: Manifest) -> dict[str, float]:
    scores = evaluate(model, model, run, manifest, "val", world())
    return {name: score.value for name, score in scores.items()}


def sized(batch: int) -> Run:
    return replace(RUN, train=Training(batch=batch))


def test_the_batch_size_changes_nothing(manifest: Manifest) -> None:
    model = small_model(KINDS)
    results = [values(model, sized(batch), manifest) for batch in (7, 100, 1000, ROWS, 1)]
    assert sorted(results[0]) == sorted(metric_names(RUN, "val"))
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-6)  # sums of float32, in another order
        for name in result:
            if "accuracy" in name:
                assert result[name] == results[0][name]


@pytest.mark.parametrize("size", [2, 3])
def test_the_number_of_ranks_changes_nothing(manifest: Manifest, size: int) -> None:
    model = small_model(KINDS)
    NOTED.clear()
    evaluate(model, model, sized(100), manifest, "val", world())
    for rank in range(size):
        evaluate(model, model, sized(100), manifest, "val", world(rank, size))
    whole, parts = NOTED[0], NOTED[1:]
    assert len(parts) == size
    assert np.sum(parts, 0) == pytest.approx(whole, rel=1e-6)


def test_elbo_is_that_of_each_row_by_itself(manifest: Manifest) -> None:
    """By torch.distributions, with λ = β = 1 and neither k nor cross, whatever the run's objective says."""
    model = small_model(KINDS)
    run = replace(RUN, objective=Objective(k=3, lambda_={"label": 50.0, "picture": 0.0}, beta=0.1, cross=1.0))
    result = evaluate(model, model, run, manifest, "val", world())
    sums: dict[str, list[float]] = {"elbo": [], "kl": [], "recon.picture": [], "recon.label": [], "recon.other": []}
    present = patterns(ROWS, 3, 8)
    present[10:12] = False
    with torch.no_grad():
        for row in np.flatnonzero(present.any(1)):
            shown = {
                name: torch.from_numpy(np.asarray(value_of(KINDS[name], int(row), column)))[None]
                for column, name in enumerate(KINDS)
                if present[row, column]
            }
            experts = [model.encoders[name](value) for name, value in shown.items()]
            precision = 1 + sum(torch.exp(-logvar) for _, logvar in experts)
            mean = sum(mu * torch.exp(-logvar) for mu, logvar in experts) / precision
            q = Normal(mean, precision.rsqrt())
            noise = normal(RUN.seed, "evaluate", torch.tensor([row]), 1, LATENT)[0]
            z = q.mean + q.stddev * noise
            kl = float(kl_divergence(q, Normal(torch.zeros(LATENT), torch.ones(LATENT))).sum())
            recon = 0.0
            for name, value in shown.items():
                logits = model.decoders[name](z)
                if name == "picture":
                    likelihood = Bernoulli(logits=logits, validate_args=False).log_prob(value.flatten(1)).sum()
                else:
                    likelihood = Categorical(logits=logits).log_prob(value).sum()
                sums[f"recon.{name}"].append(float(likelihood))
                recon += float(likelihood)
            sums["kl"].append(kl)
            sums["elbo"].append(recon - kl)
    for name, numbers in sums.items():
        score = result[f"val/{name}"]
        assert score.value == pytest.approx(np.mean(numbers), rel=1e-5), name
        assert score.error == pytest.approx(sem(numbers), rel=1e-4), name
        assert score.count == len(numbers), name


def test_weights_and_mode_are_left_as_they_were(manifest: Manifest) -> None:
    model = small_model(KINDS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        evaluate(model, model, RUN, manifest, "val", world())
        assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_split_of_one_kind_of_row_has_no_other_metric(tmp_path: Path) -> None:
    """What no row can answer is left out: neither 0 nor a division by it."""
    rows = [Entry(f"k{i}", "val", {"label": np.asarray(i % 4)}) for i in range(5)]
    write(tmp_path / "d", given("toy", KINDS, rows))
    model = small_model(KINDS)
    result = evaluate(model, model, RUN, open_manifest(tmp_path / "d"), "val", world())
    assert sorted(result) == ["val/elbo", "val/kl", "val/recon.label"]


def totals(measure: Measure, model: MultimodalVAE, batch: Batch, run: Run = RUN) -> tuple[dict, dict]:
    """Sums and counts of what a measure says of each row."""
    told = measure(model, model, run, batch)
    return (
        {name: float(rows.nansum()) for name, rows in told.items()},
        {name: int((~rows.isnan()).sum()) for name, rows in told.items()},
    )


@torch.no_grad()
def test_elbo_of_halves_adds_up_and_padding_counts_nothing() -> None:
    model = small_model(KINDS)
    present = patterns(12, 3, 5)
    present[3] = True
    whole, counts = totals(elbo, model, batch_of(KINDS, present))
    padded = batch_of(KINDS, np.concatenate([present, np.zeros((4, 3), bool)]), numbers=[*range(12), 0, 1, 2, 3])
    weightless = batch_of(KINDS, np.concatenate([present, present[:4]]), [*present.any(1), 0, 0, 0, 0])
    for batch in (padded, weightless):
        assert totals(elbo, model, batch)[1] == counts
        assert totals(elbo, model, batch)[0] == pytest.approx(whole, rel=1e-6)
        assert totals(label_accuracy, model, batch) == totals(label_accuracy, model, batch_of(KINDS, present))
    halves = [
        totals(measure, model, batch_of(KINDS, present[rows], numbers=range(12)[rows]))
        for measure in (elbo, label_accuracy)
        for rows in (slice(0, 5), slice(5, 12))
    ]
    for first, second, together in (
        (halves[0], halves[1], (whole, counts)),
        (halves[2], halves[3], totals(label_accuracy, model, batch_of(KINDS, present))),
    ):
        for part in (0, 1):
            added = {name: first[part][name] + second[part][name] for name in together[part]}
            assert added == pytest.approx(together[part], rel=1e-5)


# Accuracy, on a model whose answers are known: four latent dimensions are the scores of four classes.

RIGGED = {"a": Image(1, 4, levels=1, hidden=(3,)), "label": Label(4, hidden=(3, 3)), "b": Image(1, 4, 1, (3,))}
RIGGED_RUN = replace(RUN, modalities=RIGGED, model=Model(4))


class Says(nn.Module):
    """An expert, sure of itself as `sureness` says, whose mean is a function of the picture; or a decoder."""

    def __init__(self, answer: Callable[[Tensor], Tensor], sureness: float | None = None) -> None:
        super().__init__()
        self.answer, self.sureness = answer, sureness
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, value: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        said = self.answer(value.reshape(len(value), -1)).float() + self.nothing
        return said if self.sureness is None else (said, torch.full_like(said, -self.sureness))


def right(picture: Tensor) -> Tensor:
    return 9 * picture


def wrong(picture: Tensor) -> Tensor:
    return 9 * picture.roll(1, 1)


def ignoring(picture: Tensor) -> Tensor:
    return torch.tensor([0.0, 0.0, 9.0, 0.0]).expand(len(picture), 4)


def rigged(a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor]) -> MultimodalVAE:
    model = MultimodalVAE(RIGGED, 4)
    model.encoders["a"], model.encoders["b"] = Says(a, 1.0), Says(b, 5.0)
    model.decoders["label"] = Says(lambda z: z)
    return model


def one_hot_batch(present: np.ndarray) -> Batch:
    """Row b is of class b % 4, and both pictures show it."""
    batch = batch_of(RIGGED, present)
    for name in RIGGED:
        rows = torch.from_numpy(batch.rows_of[name]) % 4
        if len(rows):
            batch.values[name] = rows if name == "label" else torch.eye(4)[rows].view(-1, 1, 4)
    return batch


def accuracies(model: MultimodalVAE, present: np.ndarray) -> dict[str, tuple[float, float]]:
    sums, counts = totals(label_accuracy, model, one_hot_batch(present), RIGGED_RUN)
    assert set(sums) == set(counts) == set(accuracy_names(RIGGED_RUN))
    return {name.removeprefix("accuracy/label_given_"): (sums[name], counts[name]) for name in sums}


def test_accuracy_of_models_whose_answers_are_known() -> None:
    whole = np.ones((40, 3), bool)
    assert accuracies(rigged(right, right), whole) == {"a": (40, 40), "b": (40, 40), "a_b": (40, 40)}
    assert accuracies(rigged(wrong, wrong), whole) == {"a": (0, 40), "b": (0, 40), "a_b": (0, 40)}
    assert accuracies(rigged(ignoring, ignoring), whole) == {"a": (10, 40), "b": (10, 40), "a_b": (10, 40)}
    # together the surer expert, b, decides
    assert accuracies(rigged(right, wrong), whole) == {"a": (40, 40), "b": (0, 40), "a_b": (0, 40)}
    assert accuracies(rigged(wrong, right), whole) == {"a": (0, 40), "b": (40, 40), "a_b": (40, 40)}


def test_the_label_itself_is_never_seen() -> None:
    """With an encoder of the label that is surest of all and says what is wrong, nothing changes."""
    model = rigged(right, right)
    model.encoders["label"] = Says(lambda label: 99 * torch.eye(4)[(label.flatten() + 1) % 4], 20.0)
    assert accuracies(model, np.ones((8, 3), bool)) == {"a": (8, 8), "b": (8, 8), "a_b": (8, 8)}


def test_only_rows_count_that_have_the_label_and_all_of_the_subset() -> None:
    present = patterns(200, 3, 9)
    a, label, b = present.T
    found = accuracies(rigged(right, right), present)
    expected = {"a": (a & label).sum(), "b": (b & label).sum(), "a_b": (a & b & label).sum()}
    assert found == {name: (count, count) for name, count in expected.items()}
    none = accuracies(rigged(right, right), np.zeros((3, 3), bool))
    assert set(none.values()) == {(0, 0)}


def test_which_subsets_are_asked() -> None:
    assert subsets(["a", "b", "c"]) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert len(subsets(list("abcd"))) == 15
    assert subsets(list("abcdefgh"))[-2:] == [("h",), tuple("abcdefgh")]
    assert len(subsets([str(i) for i in range(64)])) == 65
    assert subsets([]) == []
    assert accuracy_names(replace(RUN, modalities={"label": Label(3)})) == []
    assert len(accuracy_names(RUN)) == 6  # two labels, each from three subsets of the others


@torch.no_grad()
def test_drawn_labels_are_right_as_often_as_they_are_likely() -> None:
    """A z and a label drawn with p(label | z) = 1/2 and 1/2: half of them right; sure of themselves: as the argmax."""
    rows = 4000
    torn = rigged(right, right)
    torn.decoders["label"] = Says(lambda z: torch.stack([z[:, 0] * 0, z[:, 0] * 0, z[:, 0] - 99, z[:, 0] - 99], 1))
    batch = one_hot_batch(np.ones((rows, 3), bool))
    drawn = sampled_accuracy(torn, torn, RIGGED_RUN, batch)["sampled/label_given_a"]
    by_class = drawn.view(-1, 4).mean(0)
    assert by_class[:2].tolist() == pytest.approx([0.5, 0.5], abs=4 * 0.5 / np.sqrt(rows / 4))
    assert by_class[2:].tolist() == [0, 0]
    sure = rigged(right, right)
    sure.encoders["a"], sure.encoders["b"] = Says(lambda x: 200 * x, 9.0), Says(right, 5.0)
    assert sampled_accuracy(sure, sure, RIGGED_RUN, batch)["sampled/label_given_a"].mean() == 1
    few = sampled_accuracy(torn, torn, RIGGED_RUN, one_hot_batch(np.ones((9, 3), bool)))
    assert torch.equal(drawn[:9], few["sampled/label_given_a"])


@torch.no_grad()
def test_a_sure_expert_has_the_precision_of_the_joint_posterior() -> None:
    """Log-variances of -1, -3 and -5: precisions e, e³ and e⁵ beside the prior's 1, in every dimension."""
    model = rigged(right, right)
    model.encoders["label"] = Says(lambda label: torch.eye(4)[label.flatten()], 3.0)
    present = np.ones((6, 3), bool)
    present[2, 1] = False
    told = precision_shares(model, model, RIGGED_RUN, one_hot_batch(present))
    parts = np.exp([1.0, 3.0, 5.0]) / (1 + np.exp([1.0, 3.0, 5.0]).sum())
    assert list(told) == precision_names(RIGGED_RUN) == ["precision.a", "precision.label", "precision.b"]
    for share, part in zip(told.values(), parts, strict=True):
        assert share[[0, 1, 3, 4, 5]].tolist() == pytest.approx([part] * 5, rel=1e-5)
        assert share[2].isnan()
    for system in ("mvae-moe", "mmvae", "vaevae-b", "jmvae"):
        assert precision_names(replace(RIGGED_RUN, model=Model(4, system))) == []  # type: ignore[arg-type]
