"""Sentences: recurrent decoders that read what they score, against loops in float64; and convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, distributions, nn
from torch.nn.utils.rnn import pack_padded_sequence

from modalities import Sentences
from modalities import recurrent as networks
from modalities.networks import GaussianEncoder, parameter_count
from modalities.recurrent import SentenceReader, SentenceWriter
from modalities.sentences import UNKNOWN
from modalities.text import END, START, drawn
from tests.modalities import test_modalities as contract
from tests.modalities.cases import Case, npy

LSTM = Sentences(vocabulary=11, length=7, embedding=5, hidden=6, word_dropout=0.4)
GRU = replace(LSTM, network="gru")
CNN = Sentences(vocabulary=11, length=8, embedding=32, network="cnn")
BOTH = pytest.mark.parametrize("kind", [LSTM, GRU], ids=["lstm", "gru"])
SENTENCES = torch.tensor([
    [3, 5, 10, 2, 4, 4, 0], [4, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [9, 9, 2, 0, 0, 0, 0],
])  # fmt: skip
LATENT = 3


def a_decoder(kind: Sentences, scale: float = 3) -> Any:
    """A decoder whose rows differ much."""
    torch.manual_seed(1)
    decoder = kind.decoder(LATENT)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1)
    return decoder


def all_sentences(vocabulary: int, length: int) -> Tensor:
    """Whatever so many places may hold up to an end, starts and endless sentences among them."""
    rows = itertools.product(range(vocabulary), repeat=length)
    return torch.tensor([row for row in rows if 0 not in row or not any(row[row.index(0) :])])


# What every modality promises

STORED = [np.array(row) for row in SENTENCES.tolist()]
PROMISES = [
    contract.test_bytes_and_back, contract.test_several_members_are_one_batch,
    contract.test_what_does_not_fit_is_refused, contract.test_networks_have_the_promised_shapes,
    contract.test_rows_do_not_see_each_other, contract.test_a_modality_is_a_value, contract.test_as_json_and_back,
]  # fmt: skip


@BOTH
@pytest.mark.parametrize("promise", PROMISES)
def test_a_recurrent_kind_keeps_the_contract(kind: Sentences, promise: Callable[[Case], None]) -> None:
    """What the contract says of parameters that come of z alone is said of the decoder below."""
    assert kind.autoregressive
    assert not CNN.autoregressive
    case = Case(
        kind, "npy", (7,), np.int64, stored=STORED, decoded=STORED,
        unfit=[STORED[0] + 1, STORED[0][:6], np.array([3, 1, 0, 0, 0, 0, 0]), STORED[0] / 2],
        garbage=[b"", npy(STORED[0]), npy(np.array([3, 0, 4, 0, 0, 0, 0], np.uint8))],
        log_prob=kind.log_likelihood, outcomes=None,
    )  # fmt: skip
    promise(case)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"vocabulary": 3}, "vocabulary is 3 and length 70: choose at least 4"),
        ({"vocabulary": 9, "length": 1}, "a word and its end"),
        ({"vocabulary": 9, "hidden": 0}, "at least 1"),
        ({"vocabulary": 9, "embedding": 0}, "at least 1"),
        ({"vocabulary": 9, "word_dropout": 1.5}, "word_dropout is 1.5: choose a share"),
        ({"vocabulary": 9, "word_dropout": -0.1}, "word_dropout is -0.1"),
        ({"vocabulary": 9, "network": "cnn", "length": 32, "word_dropout": 0.1}, "network cnn reads no words"),
        ({"vocabulary": 9, "network": "cnn"}, "70 and 256 must be multiples of 8 and 32"),
        ({"vocabulary": 9, "network": "cnn", "length": 32, "embedding": 100}, "32 and 100 must be multiples"),
        ({"vocabulary": 9, "network": "cnn", "length": 12}, "12 and 256 must be multiples"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sentences(**settings)


# A recurrent decoder

DROPPED = torch.tensor([[0.9, 0.1, 0.5, 0.39, 0.41, 0.0, 0.2]]).repeat(4, 1)
"""Below 0.4, and so not read: the words of places 1, 3, 5 and 6."""


def by_hand(kind: Sentences, decoder: SentenceWriter, z: Tensor, tokens: list[int], dropped: list[int]) -> list[Tensor]:
    """The distribution of each token up to the end, from torch's cells and in float64."""
    twin, cells = decoder.double(), {"lstm": nn.LSTMCell, "gru": nn.GRUCell}
    cell = cells[kind.network](kind.embedding, kind.hidden).double()  # type: ignore[index]
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in twin.layer.state_dict().items()})
    first = twin.start(z.double())
    state: Any = first if kind.network == "gru" else (first[: kind.hidden], first[kind.hidden :])
    word, scores = START, []
    for place, token in enumerate(tokens):
        state = cell(twin.embedding(torch.tensor(word)), state)
        output = state if kind.network == "gru" else state[0]
        scores.append(distributions.Categorical(logits=twin.words(output)).log_prob(torch.tensor(token)))
        word = UNKNOWN if place in dropped else token
    decoder.float()
    return scores


@BOTH
@pytest.mark.parametrize("dropping", [False, True])
def test_log_likelihood_is_that_of_a_loop_over_words(kind: Sentences, dropping: bool) -> None:
    decoder, z = a_decoder(kind), torch.randn(4, LATENT)
    parameters = decoder(z, SENTENCES, DROPPED if dropping else None)
    assert parameters.shape == (4, 7)
    assert parameters.dtype == torch.float32
    ours = kind.log_likelihood(parameters, SENTENCES)
    for row, tokens in enumerate(SENTENCES.tolist()):
        read = tokens[: tokens.index(END) + 1]
        expected = by_hand(kind, decoder, z[row], read, [1, 3, 5, 6] if dropping else [])
        torch.testing.assert_close(parameters[row, : len(read)].double(), torch.stack(expected), rtol=0, atol=2e-5)
        assert float(ours[row].detach()) == pytest.approx(float(torch.stack(expected).detach().sum()), abs=5e-5)
    half = decoder.bfloat16()(z.bfloat16(), SENTENCES)
    assert half.dtype == torch.float32


@BOTH
def test_the_likelihood_of_all_sentences_is_one(kind: Sentences) -> None:
    small = replace(kind, vocabulary=4, length=5)
    decoder, everything = a_decoder(small), all_sentences(4, 5)
    assert len(everything) == 3**5 + 3**4 + 3**3 + 3**2 + 3 + 1
    for z in torch.randn(3, LATENT):
        log_p = small.log_likelihood(decoder(z.expand(len(everything), -1), everything), everything)
        assert float(log_p.detach().double().exp().sum()) == pytest.approx(1, abs=1e-5)


def scored(kind: Sentences, decoder: nn.Module, z: Tensor, tokens: Tensor, uniform: Tensor | None) -> list[Tensor]:
    """log p of each sentence, and its gradient by all parameters and z."""
    z = z.clone().requires_grad_()
    log_p = kind.log_likelihood(decoder(z, tokens, uniform), tokens)
    return [log_p, *torch.autograd.grad(log_p.sum(), [z, *decoder.parameters()])]


@BOTH
def test_nothing_after_the_end_counts(kind: Sentences) -> None:
    """Neither what stands there, nor how much room there is: bit for bit, and the gradient too."""
    decoder, z = a_decoder(kind), torch.randn(4, LATENT)
    expected = scored(kind, decoder, z, SENTENCES, DROPPED)
    junk = SENTENCES.clone()
    junk[1, 3:], junk[2, 1:], junk[3, 5] = 7, 3, 10  # behind the first end
    other = DROPPED.clone()
    other[1, 1:], other[2], other[3, 3:] = 0, 0, 0
    for ours, theirs in zip(scored(kind, decoder, z, junk, other), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    roomy = torch.cat([SENTENCES, torch.zeros(4, 4, dtype=torch.int64)], 1)
    for ours, theirs in zip(
        scored(kind, decoder, z, roomy, torch.cat([DROPPED, DROPPED[:, :4]], 1)), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    encoder = kind.encoder(LATENT)
    for ours, theirs in zip(encoder(junk), encoder(SENTENCES), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    gradients = [torch.autograd.grad(encoder(tokens)[0].sum(), encoder.body.parameters()) for tokens in (junk, roomy)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@BOTH
def test_the_reader_is_torchs_layer_on_packed_sentences(kind: Sentences) -> None:
    torch.manual_seed(0)
    encoder = kind.encoder(LATENT)
    assert isinstance(encoder, GaussianEncoder)
    assert isinstance(encoder.body, SentenceReader)
    endless = torch.tensor([[3, 4, 5, 6, 7, 8, 9]])
    for texts, lengths in ((SENTENCES, torch.tensor([7, 2, 1, 4])), (endless, torch.tensor([7]))):
        packed = pack_padded_sequence(encoder.body.embedding(texts), lengths, batch_first=True, enforce_sorted=False)
        state = encoder.body.layer(packed)[1]
        torch.testing.assert_close(encoder.body(texts), (state[0] if kind.network == "lstm" else state)[0])


@BOTH
def test_it_writes_the_likeliest_word_after_the_likeliest(kind: Sentences) -> None:
    decoder, z = a_decoder(kind, 6), 2 * torch.randn(30, LATENT)
    decoder.words.bias.data[END] = 1
    written = kind.mean(decoder(z))
    assert written.shape == (30, 7)
    assert written.dtype == torch.int64
    assert len(written.unique(dim=0)) > 5
    ends = 0
    for row, tokens in enumerate(written.tolist()):
        expected: list[int] = []
        while len(expected) < 7 and END not in expected:
            trials = torch.tensor([expected + [token] + [0] * (6 - len(expected)) for token in range(11)])
            scores = decoder(z[row].expand(11, -1), trials)[:, len(expected)]
            expected.append(int(scores.argmax()))
        ends += len(expected) < 7
        assert tokens == expected + [END] * (7 - len(expected))
    assert ends  # some stop before there is no more room


def numbers(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(shape, np.float32))


def fits(samples: Tensor, outcomes: Tensor, log_p: Tensor) -> float:
    """The p value of so many of each outcome, of four tokens; every sample must be one of them."""
    digits = 4 ** torch.arange(samples.shape[1])
    place = torch.full((int(digits.sum()) * 3 + 1,), -1)
    place[(outcomes * digits).sum(1)] = torch.arange(len(outcomes))
    found = place[(samples * digits).sum(1)]
    assert (found >= 0).all()
    likely = log_p.detach().double().exp()
    expected, count = likely / likely.sum() * len(samples), found.bincount(minlength=len(outcomes)).double()
    rare = expected < 5
    merged = [torch.cat([some[~rare], some[rare].sum()[None]]).numpy() for some in (count, expected)]
    return float(stats.chisquare(*merged).pvalue)


@BOTH
def test_sampled_sentences_follow_the_likelihood(kind: Sentences) -> None:
    small = replace(kind, vocabulary=4, length=4)
    decoder, outcomes, count = a_decoder(small), all_sentences(4, 4), 5000
    z = torch.tensor([[0.5, -1.0, 0.3]])
    samples = decoder.write(z.expand(count, -1), numbers(count, 4))
    log_p = small.log_likelihood(decoder(z.expand(len(outcomes), -1), outcomes), outcomes)
    assert fits(samples, outcomes, log_p) > 1e-3
    assert 0.05 < (samples[:, :-1] == END).any(1).double().mean() < 0.95


def test_a_number_is_the_token_on_whose_stretch_it_lies() -> None:
    logits = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0]).log().expand(8, -1)
    uniform = torch.tensor([0, 0.19, 0.21, 0.69, 0.71, 0.99, 1 - 2**-24, 1 - 2**-24])
    assert drawn(logits, uniform).tolist() == [1, 1, 3, 3, 4, 4, 4, 4]
    rare = torch.full((1, 2**12 + 1), 2.0**-32)  # so many that share what is left beside a likely one
    rare[0, 0] = 1 - 2**-20
    assert drawn(rare.log(), torch.tensor([1 - 2**-21])).item() == pytest.approx(2**11, abs=8)


@BOTH
def test_logits_are_never_held_for_all_places(kind: Sentences, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, z = a_decoder(kind), torch.randn(4, LATENT)
    expected = scored(kind, decoder, z, SENTENCES, DROPPED)
    monkeypatch.setattr(networks, "LOGITS", 60)  # five places of eleven tokens
    made: list[torch.Size] = []
    linear = networks.linear
    monkeypatch.setattr(networks, "linear", lambda *inputs: noted(made, linear(*inputs)))
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: noted(saved, tensor), lambda tensor: tensor):
        ours = scored(kind, decoder, z, SENTENCES, DROPPED)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    # 7 + 2 + 1 + 4 places come before or with an end: forwards, and once more on the way back
    assert [shape.numel() for shape in made] == [55, 55, 44] * 2
    assert not [shape for shape in saved if shape[-1:] == (11,) and len(shape) > 1]


def noted(shapes: list[torch.Size], tensor: Tensor) -> Tensor:
    shapes.append(tensor.shape)
    return tensor


@pytest.mark.parametrize("kind", [LSTM, GRU, CNN], ids=["lstm", "gru", "cnn"])
def test_nothing_is_read_back(kind: Sentences) -> None:
    """On the meta device, which has no values, a wait for one raises."""
    decoder, encoder = kind.decoder(LATENT).to("meta"), kind.encoder(LATENT).to("meta")
    z, uniform = torch.zeros(2, LATENT, device="meta"), torch.zeros(2, kind.length, device="meta")
    tokens = torch.zeros(2, kind.length, dtype=torch.int64, device="meta")
    parameters = decoder(z, tokens, uniform) if kind.autoregressive else decoder(z)
    (kind.log_likelihood(parameters, tokens).sum() + encoder(tokens)[0].sum()).backward()
    written = decoder.write(z, uniform) if kind.autoregressive else kind.sample(parameters, uniform)
    assert written.shape == kind.mean(decoder(z)).shape == (2, kind.length)


# Convolutions


def test_the_convolutions_are_those_of_the_table() -> None:
    """SVAE table F.5 and MMVAE table 6 d: 1590 words, sentences of 32, and 256 features."""
    cub = Sentences(1590, length=32, embedding=256, network="cnn")
    encoder, decoder = cub.encoder(64), cub.decoder(64)
    kernels = [(32, 1, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 1, 4), (512, 256, 1, 4)]
    downs = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    ups = [layer for layer in decoder.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [tuple(layer.weight.shape) for layer in downs] == kernels
    assert [tuple(layer.weight.shape) for layer in ups] == [(64, 512, 4, 8), *kernels[::-1]]
    steps = [((2, 2), (1, 1))] * 3 + [((1, 2), (0, 1))] * 2
    assert [(layer.stride, layer.padding) for layer in downs] == steps
    assert [(layer.stride, layer.padding) for layer in ups] == [((1, 1), (0, 0)), *steps[::-1]]
    convolved = sum(int(np.prod(kernel)) for kernel in kernels)
    norms = 2 * (32 + 64 + 128 + 256)
    assert parameter_count(encoder) == 1590 * 256 + convolved + norms + 2 * 512 + (512 * 4 * 8 + 1) * 128
    assert parameter_count(decoder) == 64 * 512 * 4 * 8 + convolved + norms + 257 * 1590
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in [*encoder.modules(), *decoder.modules()])
    tokens = torch.randint(3, 1590, (2, 32))
    assert encoder(tokens)[0].shape == (2, 64)
    assert decoder(torch.randn(2, 64)).shape == (2, 32, 1590)


@pytest.mark.parametrize(("length", "embedding"), [(8, 32), (16, 96), (40, 64)])
def test_other_lengths_and_widths_fit(length: int, embedding: int) -> None:
    kind = Sentences(20, length=length, embedding=embedding, network="cnn")
    assert kind.encoder(2)(torch.zeros(3, length, dtype=torch.int64))[0].shape == (3, 2)
    assert kind.decoder(2)(torch.zeros(3, 2)).shape == (3, length, 20)


def test_convolutions_see_order_and_place() -> None:
    """A word's place reaches the expert, and each place of what is written has words of its own."""
    torch.manual_seed(0)
    encoder, decoder = CNN.encoder(LATENT), CNN.decoder(LATENT)
    tokens = torch.tensor([[3, 4, 5, 0, 0, 0, 0, 0], [4, 3, 5, 0, 0, 0, 0, 0], [3, 4, 5, 6, 0, 0, 0, 0]])
    assert len(encoder(tokens)[0].unique(dim=0)) == 3
    assert len(decoder(torch.randn(1, LATENT))[0].unique(dim=0)) == 8


def test_convolved_sentences_are_sampled_too() -> None:
    small = replace(CNN, vocabulary=4)
    torch.manual_seed(3)
    logits, outcomes, count = torch.randn(1, 8, 4), all_sentences(4, 8), 20_000
    logits[..., START] -= 2
    logits[..., END] += 1
    log_p = small.log_likelihood(logits.expand(len(outcomes), -1, -1), outcomes)
    samples = small.sample(logits.expand(count, -1, -1), numbers(count, 8))
    assert fits(samples, outcomes, log_p) > 1e-3
