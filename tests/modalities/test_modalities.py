"""Every kind of modality keeps the contract of `Modality`: bytes and back, networks, a proper likelihood."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Annotated, Any, get_args

import numpy as np
import pytest
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, distributions

from modalities import AnyModality, Attributes, Features, Image, Label, Text
from modalities.networks import parameter_count
from modalities.text import Tokens
from tests.modalities.cases import CASES, SMALL, Case
from tests.modalities.references import bernoulli

LATENT = 3


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def draw(case: Case, rows: int = 4) -> tuple[Tensor, Tensor]:
    """Decoder parameters of random z, and values, for `rows` rows."""
    torch.manual_seed(1)
    parameters = case.modality.decoder(LATENT)(3 * torch.randn(rows, LATENT)).detach()
    members = [case.writer.encode(case.stored[row % len(case.stored)]) for row in range(rows)]
    return parameters, torch.from_numpy(case.modality.decode(members))


def test_every_kind_is_among_the_cases() -> None:
    kind_of = {type(case.modality): case.modality.kind for case in CASES.values()}  # type: ignore[attr-defined]
    assert set(kind_of) == set(get_args(AnyModality))
    assert len(set(kind_of.values())) == len(kind_of)


def test_bytes_and_back(case: Case) -> None:
    modality = case.modality
    assert (modality.extension, modality.shape, modality.dtype) == (case.extension, case.shape, np.dtype(case.dtype))
    for stored, decoded in zip(case.stored, case.decoded, strict=True):
        data = case.writer.encode(stored)
        assert type(data) is bytes
        for member in (data, memoryview(data)):
            (value,) = modality.decode([member])
            np.testing.assert_allclose(value, np.asarray(decoded, modality.dtype), rtol=0, atol=case.loss)


def test_several_members_are_one_batch(case: Case) -> None:
    batch = case.modality.decode([memoryview(case.writer.encode(value)) for value in case.stored])
    assert batch.shape == (len(case.stored), *case.shape)
    assert batch.dtype == case.modality.dtype
    assert batch.flags.writeable  # torch.from_numpy warns of anything else
    np.testing.assert_allclose(batch, np.stack(case.decoded).astype(batch.dtype), rtol=0, atol=case.loss)
    assert batch.flags.c_contiguous
    assert case.modality.decode([]).shape == (0, *case.shape)


def test_what_does_not_fit_is_refused(case: Case) -> None:
    for value in case.unfit:
        with pytest.raises(ValueError, match=r"\w"):
            case.writer.encode(value)
    whole = case.writer.encode(case.stored[0])
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
    if case.outcomes or case.log_prob is not bernoulli:
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
        log_p = case.modality.log_likelihood(row.expand(len(outcomes), *row.shape), outcomes)
        assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_mean_is_a_value(case: Case) -> None:
    parameters, value = draw(case)
    mean = case.modality.mean(parameters)
    assert mean.shape == value.shape
    if isinstance(case.modality, Label):
        assert mean.dtype == torch.int64
        torch.testing.assert_close(mean, distributions.Categorical(logits=parameters).mode)
        assert 0 <= int(mean.min()) <= int(mean.max()) < case.modality.classes
    elif isinstance(case.modality, Tokens):
        assert mean.dtype == torch.int64
        likeliest = parameters.argmax(2).tolist()
        for row, tokens in zip(mean.tolist(), likeliest, strict=True):
            read = tokens.index(0) if 0 in tokens else len(tokens)
            assert row == tokens[:read] + [0] * (len(tokens) - read)
    elif isinstance(case.modality, Features):
        assert torch.equal(mean, parameters)
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
        (Image, {"height": 2, "width": 2, "codec": "jpg", "levels": 16}, "choose 255"),
        (Image, {"height": 2, "width": 2, "codec": "jpg", "quality": 0}, "quality is 0"),
        (Image, {"height": 2, "width": 2, "codec": "jpg", "quality": 101}, "choose 1 to 100"),
        (Attributes, {"count": 0}, "at least 1"),
        (Attributes, {"count": 3, "hidden": (4, 0)}, "at least one width"),
        (Attributes, {"count": 1, "among": 18}, "first is 0 and among 18: of must name the member"),
        (Attributes, {"count": 1, "first": 3}, "first is 3 and among 0: of must name"),
        (Attributes, {"count": 1, "of": "attributes"}, "the 1 attributes from 0 on are not among the 0 of attributes"),
        (Attributes, {"count": 1, "of": "attributes", "first": 18, "among": 18}, "first [+] count at most among"),
        (Attributes, {"count": 1, "of": "attributes", "first": -1, "among": 18}, "first must be at least 0"),
        (Features, {"count": 0}, "at least 1"),
        (Features, {"count": 3, "hidden": ()}, "at least one width"),
        (Features, {"count": 3, "scale": 0.0}, "scale is 0.0: choose a number above 0"),
        (Image, {"height": 2, "width": 2, "scale": 0.5}, "scale is 0.5: a Bernoulli has none"),
        (Image, {"height": 2, "width": 2, "likelihood": "laplace", "scale": -1.0}, "scale is -1.0: choose a number"),
        (Image, {"height": 2, "width": 2, "likelihood": "gaussian", "scale": math.nan}, "scale is nan: choose"),
        (Image, {"height": 2, "width": 2, "likelihood": "gaussian", "scale": math.inf}, "scale is inf: choose"),
        (Image, {"height": 32, "width": 32, "network": "conv-svhn", "hidden": (8, 0)}, "hidden must be at least 1"),
        (Image, {"height": 32, "width": 32, "network": "conv-svhn", "activation": "relu"}, "conv-svhn has its own"),
        (Image, {"height": 7, "width": 28, "network": "conv-split"}, "from 8 x 8 pixels, not 7 x 28"),
        (Image, {"height": 31, "width": 64, "network": "conv"}, "network conv takes pictures from 32 x 32 pixels"),
        (Image, {"height": 64, "width": 3, "network": "conv-shallow"}, "from 4 x 4 pixels, not 64 x 3: choose"),
        (Text, {"vocabulary": 2, "length": 4}, "vocabulary is 2 and length 4: choose at least 3"),
        (Text, {"vocabulary": 3, "length": 1}, "a token and its end"),
        (Text, {"vocabulary": 3, "length": 2, "hidden": 0}, "at least 1"),
        (Text, {"vocabulary": 3, "length": 2, "embedding": 0}, "at least 1"),
        (Label, {"classes": 0}, "at least 1"),
        (Label, {"classes": 2, "hidden": ()}, "at least one width"),
    ],
)
def test_settings_that_make_no_sense(kind: type, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**settings)


def test_a_modality_is_a_value(case: Case) -> None:
    case.modality.decode([case.writer.encode(case.stored[0])])  # whatever it keeps for itself is no part of the value
    assert replace(case.modality) == case.modality
    assert hash(replace(case.modality)) == hash(case.modality)
    with pytest.raises(FrozenInstanceError):
        case.modality.hidden = (1,)  # type: ignore[attr-defined]


UNION: TypeAdapter[AnyModality] = TypeAdapter(Annotated[AnyModality, Field(discriminator="kind")])


def test_as_json_and_back(case: Case) -> None:
    """What a checkpoint holds of a modality, by its kind."""
    assert UNION.validate_json(UNION.dump_json(case.modality)) == case.modality  # type: ignore[arg-type]


def test_json_of_before_there_were_codecs() -> None:
    old = {"height": 2, "width": 3, "levels": 16, "hidden": [8, 4], "kind": "image"}
    assert UNION.validate_python(old) == SMALL
    for wrong in (
        {"codec": "gif"}, {"channels": 2}, {"kind": "sound"}, {"network": "convolved"}, {"likelihood": "cauchy"},
        {"activation": "elu"},
    ):  # fmt: skip
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            UNION.validate_python(old | wrong)
