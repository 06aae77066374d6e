"""Every kind of modality keeps the contract of `Modality`: bytes and back, networks, a proper likelihood."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, distributions

from modalities import AnyModality, Image, Label, Modality
from modalities.networks import parameter_count

LATENT = 3


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@dataclass(frozen=True)
class Case:
    modality: Modality
    extension: str
    shape: tuple[int, ...]
    dtype: type
    stored: list[np.ndarray]
    """Values as a corpus gives them."""
    decoded: list[np.ndarray]
    """What they become in a batch."""
    unfit: list[np.ndarray]
    """Values that `encode` must refuse."""
    garbage: list[bytes]
    """Bytes that `decode` must refuse."""
    log_prob: Callable[[Tensor, Tensor], Tensor]
    """torch's own log-likelihood of (parameters, values)."""
    outcomes: Callable[[], Tensor] | None
    """All values that there are, where the likelihood must sum to one over them."""


SMALL = Image(height=2, width=3, levels=16, hidden=(8, 4))
BINARY = Image(height=2, width=2, levels=1, hidden=(8,))
FULL = Image(height=1, width=2, hidden=(8, 4))
CLASSES = Label(classes=12, hidden=(8, 4))

INK = np.array([[0, 1, 16], [7, 8, 15]])
DOTS = np.array([[0, 1], [1, 1]], np.uint8)


def bernoulli(parameters: Tensor, value: Tensor) -> Tensor:
    flat = value.flatten(1)
    return distributions.Bernoulli(logits=parameters, validate_args=False).log_prob(flat).sum(1)


def categorical(parameters: Tensor, value: Tensor) -> Tensor:
    return distributions.Categorical(logits=parameters).log_prob(value)


def all_binary() -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).reshape(16, 2, 2)


CASES = {
    "grey image": Case(
        SMALL, "npy", (2, 3), np.float32,
        stored=[INK, INK.astype(np.float64), np.asfortranarray(INK[::-1]), INK.astype(np.uint8)],
        decoded=[INK / 16, INK / 16, INK[::-1] / 16, INK / 16],
        unfit=[
            INK.T, INK[None], INK[:1], INK + 1, INK - 1, INK / 16, INK + 256, np.where(INK, np.nan, 0.0),
            np.full((2, 3), np.inf), np.zeros((0, 3)), np.array(3),
        ],
        garbage=[
            b"", b"not an array", npy(INK.astype(np.uint8))[:-1], npy(INK.astype(np.uint8)) + b"\0",
            npy(INK.T.astype(np.uint8)), npy(INK.astype(np.int8)), npy(INK), npy(INK.astype(np.uint8) + 1),
            npy(np.asfortranarray(INK.astype(np.uint8))),
        ],
        log_prob=bernoulli, outcomes=None,
    ),
    "binary image": Case(
        BINARY, "npy", (2, 2), np.float32,
        stored=[DOTS, DOTS.astype(bool)], decoded=[DOTS, DOTS],
        unfit=[DOTS * 2, DOTS / 2, -DOTS.astype(int)], garbage=[npy(DOTS * 2), npy(DOTS)[1:]],
        log_prob=bernoulli, outcomes=all_binary,
    ),
    "byte image": Case(
        FULL, "npy", (1, 2), np.float32,
        stored=[np.array([[0, 255]])], decoded=[np.array([[0.0, 1.0]])],
        unfit=[np.array([[0, 256]]), np.array([[-1, 0]]), np.array([[0.0, 0.5]])],
        garbage=[npy(np.zeros((1, 3), np.uint8))],
        log_prob=bernoulli, outcomes=None,
    ),
    "label": Case(
        CLASSES, "cls", (), np.int64,
        stored=[np.array(0), np.array(11), np.array(7, np.uint8), np.array(3.0), np.array(10)],
        decoded=[np.array(0), np.array(11), np.array(7), np.array(3), np.array(10)],
        unfit=[
            np.array(12), np.array(-1), np.array([3]), np.array([1, 2]), np.array(2.7), np.array(np.nan),
            np.array(np.inf), np.array("3"), np.array(None),
        ],
        garbage=[b"", b"12", b"-1", b"3.0", b"seven", b"\xff\xfe", b"9" * 30, b"9" * 5000],
        log_prob=categorical, outcomes=lambda: torch.arange(12),
    ),
}  # fmt: skip


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def draw(case: Case, rows: int = 4) -> tuple[Tensor, Tensor]:
    """Decoder parameters of random z, and values, for `rows` rows."""
    torch.manual_seed(1)
    parameters = case.modality.decoder(LATENT)(3 * torch.randn(rows, LATENT)).detach()
    members = [case.modality.encode(case.stored[row % len(case.stored)]) for row in range(rows)]
    return parameters, torch.from_numpy(case.modality.decode(members))


def test_every_kind_is_among_the_cases() -> None:
    assert {type(case.modality) for case in CASES.values()} == set(get_args(AnyModality))
    assert len({modality.kind for modality in (SMALL, CLASSES)}) == 2


def test_bytes_and_back(case: Case) -> None:
    modality = case.modality
    assert (modality.extension, modality.shape, modality.dtype) == (case.extension, case.shape, np.dtype(case.dtype))
    for stored, decoded in zip(case.stored, case.decoded, strict=True):
        data = modality.encode(stored)
        assert type(data) is bytes
        for member in (data, memoryview(data)):
            (value,) = modality.decode([member])
            np.testing.assert_array_equal(value, np.asarray(decoded, modality.dtype))


def test_several_members_are_one_batch(case: Case) -> None:
    batch = case.modality.decode([memoryview(case.modality.encode(value)) for value in case.stored])
    assert batch.shape == (len(case.stored), *case.shape)
    assert batch.dtype == case.modality.dtype
    assert batch.flags.writeable  # torch.from_numpy warns of anything else
    np.testing.assert_array_equal(batch, np.stack(case.decoded).astype(batch.dtype))
    assert case.modality.decode([]).shape == (0, *case.shape)


def test_what_does_not_fit_is_refused(case: Case) -> None:
    for value in case.unfit:
        with pytest.raises(ValueError, match=r"\w"):
            case.modality.encode(value)
    whole = case.modality.encode(case.stored[0])
    for data in case.garbage:
        for members in ([data], [whole, memoryview(data)]):
            with pytest.raises(ValueError, match=r"\w"):
                case.modality.decode(members)


def test_networks_have_the_promised_shapes(case: Case) -> None:
    parameters, value = draw(case)
    encoder = case.modality.encoder(LATENT)
    mu, logvar = encoder(value)
    assert mu.shape == logvar.shape == (4, LATENT)
    assert mu.dtype == logvar.dtype == torch.float32
    assert parameters.shape[0] == 4
    zero = torch.zeros((1, *case.shape), dtype=value.dtype)
    assert all(part.isfinite().all() for part in encoder(zero))  # what an idle rank feeds it
    half = encoder.to(torch.bfloat16)
    assert half(value)[0].dtype == torch.bfloat16
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_rows_do_not_see_each_other(case: Case) -> None:
    _, value = draw(case)
    encoder, decoder = case.modality.encoder(LATENT), case.modality.decoder(LATENT)
    z = torch.randn(4, LATENT)
    for row in range(4):
        torch.testing.assert_close(encoder(value[row : row + 1])[0][0], encoder(value)[0][row])
        torch.testing.assert_close(decoder(z[row : row + 1])[0], decoder(z)[row])


def test_log_likelihood_is_torchs(case: Case) -> None:
    parameters, value = draw(case)
    ours = case.modality.log_likelihood(parameters, value)
    assert ours.shape == (4,)
    assert ours.dtype == torch.float32
    if case.modality is BINARY or case.log_prob is categorical:
        torch.testing.assert_close(ours, case.log_prob(parameters, value))
    else:  # torch has no Bernoulli of grey levels: the cross-entropy, weighted between black and white
        flat = value.flatten(1)
        white = case.log_prob(parameters, torch.ones_like(value))
        by_hand = (flat * parameters.sigmoid().log() + (1 - flat) * (1 - parameters.sigmoid()).log()).sum(1)
        torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(case.modality.log_likelihood(parameters, torch.ones_like(value)), white)
    half = case.modality.log_likelihood(parameters.bfloat16(), value)
    assert half.dtype == torch.float32  # scores are never summed in bf16
    extreme = case.modality.log_likelihood(parameters.sign() * 1e4, value)
    assert extreme.isfinite().all()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.outcomes])
def test_likelihood_sums_to_one(name: str) -> None:
    """Grey levels under a Bernoulli are no normalised density (modalities/image.py): those are left out."""
    case = CASES[name]
    assert case.outcomes
    parameters, _ = draw(case, rows=3)
    outcomes = case.outcomes()
    for row in parameters:
        log_p = case.modality.log_likelihood(row.expand(len(outcomes), -1), outcomes)
        assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_mean_is_a_value(case: Case) -> None:
    parameters, value = draw(case)
    mean = case.modality.mean(parameters)
    assert mean.shape == value.shape
    if isinstance(case.modality, Label):
        assert mean.dtype == torch.int64
        torch.testing.assert_close(mean, distributions.Categorical(logits=parameters).mode)
        assert 0 <= int(mean.min()) <= int(mean.max()) < case.modality.classes
    else:
        torch.testing.assert_close(mean.flatten(1), distributions.Bernoulli(logits=parameters).mean)
        assert 0 <= float(mean.min()) <= float(mean.max()) <= 1


@pytest.mark.parametrize("kind", [Image, Label])
def test_networks_have_the_sizes_of_mvae_table_1(kind: type) -> None:
    """MNIST image 784-512-512-(64+64), label Embedding(10, 512)-512-(64+64)."""
    modality = Image(28, 28) if kind is Image else Label(10)
    heads, hidden = 513 * 128, 513 * 512
    first = 785 * 512 if kind is Image else 10 * 512
    last = 513 * (784 if kind is Image else 10)
    assert parameter_count(modality.encoder(64)) == first + hidden + heads
    assert parameter_count(modality.decoder(64)) == 65 * 512 + hidden + last


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (Image, {"height": 2, "width": 2, "levels": 0}, "levels is 0"),
        (Image, {"height": 2, "width": 2, "levels": 256}, "choose 1 to 255"),
        (Image, {"height": 0, "width": 2}, "at least 1"),
        (Image, {"height": 2, "width": 2, "hidden": ()}, "at least one width"),
        (Label, {"classes": 0}, "at least 1"),
        (Label, {"classes": 2, "hidden": ()}, "at least one width"),
    ],
)
def test_settings_that_make_no_sense(kind: type, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**settings)


def test_a_modality_is_a_value(case: Case) -> None:
    case.modality.encode(case.stored[0])  # whatever it keeps for itself is no part of the value
    assert replace(case.modality) == case.modality
    assert hash(replace(case.modality)) == hash(case.modality)
    with pytest.raises(FrozenInstanceError):
        case.modality.hidden = (1,)  # type: ignore[attr-defined]
