"""Sentences run little further than their ends: all that is left out changes nothing, and is really left out."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, linear

from modalities import Sentences, parts, recurrent
from modalities.parts import Parts
from modalities.recurrent import Words
from modalities.sentences import UNKNOWN
from modalities.text import END, START

LSTM = Sentences(vocabulary=23, length=70, embedding=5, hidden=6, word_dropout=0.3)
BOTH = pytest.mark.parametrize("kind", [LSTM, replace(LSTM, network="gru")], ids=["lstm", "gru"])
LAYERS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU}
LATENT = 3
ENDS = {
    "all lengths": [69, 3, 0, 12, 70, 30, 5, 5, 1, 8, 69, 0, 22, 9, 14, 2, 40],
    "few rows": [4, 0, 69],
    "one length": [5] * 9,
    "empty ones": [0, 0],
    "one row": [17],
    "endless": [70, 70],
}
"""The place of each row's end; 70 where there is none, which a value never lacks but a decoder may."""
BATCHES = pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)


def sentences(ends: list[int], junk: int | None = None) -> Tensor:
    """So long, with ends or the words of another seed after the end."""
    rng = np.random.default_rng(len(ends))
    tokens = rng.integers(UNKNOWN, LSTM.vocabulary, (len(ends), LSTM.length))
    after = np.arange(LSTM.length) > np.array(ends)[:, None]
    tokens[after] = END if junk is None else np.random.default_rng(junk).integers(0, LSTM.vocabulary, after.sum())
    for row, end in enumerate(ends):
        tokens[row, end : end + 1] = END
    return torch.from_numpy(tokens)


def a_network(make: Callable[[int], nn.Module]) -> Any:
    torch.manual_seed(2)
    network = make(LATENT)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return network


def over_all_places(network: Any, kind: Sentences, words: Tensor, state: Any) -> Tensor:
    """The states of torch's own layer on whole rows."""
    layer = LAYERS[kind.network](kind.embedding, kind.hidden, batch_first=True)
    states: Tensor = functional_call(layer, dict(network.layer.named_parameters()), (words, state))[0]
    return states


def naive_scores(decoder: Any, kind: Sentences, z: Tensor, tokens: Tensor, uniform: Tensor | None) -> Tensor:
    """log p(x|z) of each row: all places of all rows, all logits at once, then a loop up to each end."""
    read = tokens if uniform is None else torch.where(uniform < kind.word_dropout, UNKNOWN, tokens)
    before = torch.cat([torch.full((len(tokens), 1), START), read[:, :-1]], 1)
    start = decoder.start(z)[None]
    state = start if kind.network == "gru" else (start[..., : kind.hidden], start[..., kind.hidden :])
    states = over_all_places(decoder, kind, decoder.embedding(before), state)
    logs = linear(states, decoder.words.weight, decoder.words.bias).log_softmax(2)
    sums = []
    for row, read_row in zip(logs, tokens.tolist(), strict=True):
        end = read_row.index(END) + 1 if END in read_row else len(read_row)
        sums.append(torch.stack([row[place, read_row[place]] for place in range(end)]).sum())
    return torch.stack(sums)


def with_gradients(network: nn.Module, output: Tensor, *inputs: Tensor) -> list[Tensor]:
    """And the gradient of a sum in which every row weighs otherwise."""
    weight = torch.linspace(-1, 2, len(output), dtype=output.dtype).view(-1, *[1] * (output.dim() - 1))
    gradients = torch.autograd.grad((output * weight).sum(), [*inputs, *network.parameters()])
    return [tensor.detach().double() for tensor in (output, *gradients)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def numbers(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).random((count, LSTM.length), np.float32))


def decoded(decoder: Any, kind: Sentences, tokens: Tensor, dropping: bool = True) -> list[Tensor]:
    """log p of each row from the decoder, its gradients by z and by all parameters."""
    z = torch.linspace(-2, 2, len(tokens) * LATENT).view(-1, LATENT).requires_grad_()
    scores = kind.log_likelihood(decoder(z, tokens, numbers(len(tokens)) if dropping else None), tokens)
    return with_gradients(decoder, scores, z)


def encoded(encoder: Any, tokens: Tensor) -> list[Tensor]:
    return with_gradients(encoder, torch.cat(encoder(tokens), 1))


# What is left out changes nothing


@BOTH
@BATCHES
@pytest.mark.parametrize("dropping", [False, True])
def test_a_decoder_scores_as_over_all_places(kind: Sentences, ends: list[int], dropping: bool) -> None:
    """Log-likelihoods and gradients, against torch's own layers in float64."""
    decoder, tokens = a_network(kind.decoder), sentences(ends)
    twin = deepcopy(decoder).double()
    z = torch.linspace(-2, 2, len(tokens) * LATENT).view(-1, LATENT).double().requires_grad_()
    scores = naive_scores(twin, kind, z, tokens, numbers(len(tokens)) if dropping else None)
    assert_same(decoded(decoder, kind, tokens, dropping), with_gradients(twin, scores, z), 2e-5)


@BOTH
@BATCHES
def test_an_encoder_reads_as_over_all_places(kind: Sentences, ends: list[int]) -> None:
    encoder, tokens = a_network(kind.encoder), sentences(ends)
    twin = deepcopy(encoder).double()
    states = over_all_places(twin.body, kind, twin.body.embedding(tokens), None)
    last = torch.stack([row[min(end, kind.length - 1)] for row, end in zip(states, ends, strict=True)])
    assert_same(encoded(encoder, tokens), with_gradients(twin, twin.heads(last)))


@BOTH
@BATCHES
def test_what_comes_after_the_end_is_never_seen(kind: Sentences, ends: list[int]) -> None:
    decoder, encoder = a_network(kind.decoder), a_network(kind.encoder)
    tokens, junk = sentences(ends), sentences(ends, junk=5)
    assert_same(decoded(decoder, kind, junk), decoded(decoder, kind, tokens), 0)
    assert_same(encoded(encoder, junk), encoded(encoder, tokens), 0)


@BOTH
def test_lengths_need_not_be_known(kind: Sentences, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device is not asked for them: every row is run to its last place there, and all rows together."""
    decoder, encoder, tokens = a_network(kind.decoder), a_network(kind.encoder), sentences(ENDS["all lengths"])
    expected = decoded(decoder, kind, tokens), encoded(encoder, tokens)
    assert (parts.lengths(tokens.to("meta")) == np.full(len(tokens), kind.length)).all()
    assert parts.lengths(tokens).tolist() == [min(end + 1, 70) for end in ENDS["all lengths"]]
    monkeypatch.setattr(parts, "lengths", lambda tokens: np.full(*tokens.shape))
    everything = Parts(tokens)
    assert torch.equal(everything.place_N, torch.arange(tokens.numel()))
    assert [some.shape for some in everything.of_rows(tokens)] == [tokens.shape]
    assert_same(decoded(decoder, kind, tokens), expected[0])
    assert_same(encoded(encoder, tokens), expected[1])


# What is left out is left out


@BATCHES
def test_every_place_up_to_the_end_once_and_few_others(ends: list[int]) -> None:
    tokens = sentences(ends)
    some = Parts(tokens)
    wanted = [row * 70 + place for row, end in enumerate(ends) for place in range(min(end, 69) + 1)]
    assert sorted(some.place_N.tolist()) == wanted
    assert torch.equal(some.place_R[some.kept_N], some.place_N)
    assert torch.equal(some.place_R[some.first_B], 70 * torch.arange(len(ends)))
    rows, places = some.of_rows(torch.arange(len(ends))[:, None]), some.of_places(some.place_R[:, None])
    assert len(rows) == len(places) <= parts.PARTS
    for part, run in zip(rows, places, strict=True):
        assert torch.equal(run.squeeze(2), 70 * part + torch.arange(run.shape[1]))
        assert run.shape[1] == max(min(ends[int(row)], 69) + 1 for row in part)
    if len(set(ends)) > 3:
        assert len(some.place_R) < 1.4 * len(wanted) < 0.5 * tokens.numel()


@BOTH
@BATCHES
def test_each_network_runs_once_and_over_no_more(kind: Sentences, ends: list[int]) -> None:
    """Once: ZeRO 3 gathers weights call by call, on all ranks, whatever sentences these have."""
    decoder, encoder, tokens = a_network(kind.decoder), a_network(kind.encoder), sentences(ends)
    places: dict[str, list[int]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, inputs, __: places.setdefault(name, []).append(
            sum(one.shape[:-1].numel() for one in inputs[0]) if isinstance(inputs[0], list) else len(inputs[0])
        )

    for name, module in [*decoder.named_children(), *encoder.body.named_children()]:
        module.register_forward_hook(note(name))
    decoder(torch.zeros(len(ends), LATENT), tokens)
    run, rows = len(Parts(tokens).place_R), len(ends)
    kept = sum(min(end, 69) + 1 for end in ends)
    assert places == {"start": [rows], "embedding": [run], "layer": [run], "words": [kept]}
    encoder(tokens)
    assert places == {"start": [rows], "embedding": [run] * 2, "layer": [run] * 2, "words": [kept]}


@BOTH
def test_no_code_is_made_for_lengths(kind: Sentences) -> None:
    """torch.compile leaves these networks as they are; else it would compile them for every batch."""
    made: list[Any] = []
    encoder, decoder = a_network(kind.encoder), a_network(kind.decoder)
    expected = [encoder(sentences(ends))[0] for ends in ENDS.values()]
    for network in (encoder, decoder):
        network.compile(backend=lambda graph, _: made.append(graph) or graph.forward)
    for ends, mean in zip(ENDS.values(), expected, strict=True):
        z, tokens = torch.zeros(len(ends), LATENT), sentences(ends)
        torch.testing.assert_close(encoder(tokens)[0], mean)
        assert decoder(z, tokens).shape == tokens.shape
    assert len(made) <= 3  # an encoder's heads: of one row, of several


# Log-probabilities of words


@pytest.mark.parametrize("scale", [1, 100, 1e4])
@pytest.mark.parametrize("logits", [2**24, 500, 1])
def test_words_are_scored_as_by_cross_entropy(scale: float, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "LOGITS", logits)
    torch.manual_seed(0)
    words, states, tokens = Words(6, 23), scale * torch.randn(40, 6), torch.randint(23, (40,))
    states.requires_grad_()
    ours = with_gradients(words, words(states, tokens), states)
    theirs = with_gradients(words, -cross_entropy(words(states), tokens, reduction="none"), states)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1, float(other.abs().max())))


def test_words_of_half_precision_add_up_their_gradient_in_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """One place at a time, which bfloat16's eight bits would not survive."""
    monkeypatch.setattr(recurrent, "LOGITS", 1)
    torch.manual_seed(0)
    words, states, tokens = Words(6, 23).bfloat16(), torch.randn(3000, 6).bfloat16(), torch.randint(23, (3000,))
    states.requires_grad_()
    scores = words(states, tokens)
    assert scores.dtype == torch.float32
    gradients = torch.autograd.grad(scores.sum(), [states, *words.parameters()])
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
    twin, whole = deepcopy(words).float(), states.detach().float().requires_grad_()
    expected = torch.autograd.grad(-cross_entropy(twin(whole), tokens, reduction="sum"), [whole, *twin.parameters()])
    for one, other in zip(gradients, expected, strict=True):
        assert float((one.float() - other).norm() / other.norm()) < 0.01
