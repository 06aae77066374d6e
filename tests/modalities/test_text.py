"""Text: what is stored, that nothing after the end counts, and torch's own recurrent networks as the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.nn.utils.rnn import pack_padded_sequence

from modalities import Text
from modalities.networks import JointEncoder
from modalities.recurrent import Reader, Writer
from modalities.text import END, START

NUMBER = Text(vocabulary=12, length=5, embedding=7, hidden=6)
NUMBERS = torch.tensor([[2, 5, 3, 11, 0], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0], [9, 9, 2, 0, 0]])


@pytest.mark.parametrize(("vocabulary", "size"), [(12, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 4)])
def test_tokens_take_as_few_bytes_as_they_can(vocabulary: int, size: int) -> None:
    text = Text(vocabulary, 3)
    value = np.array([vocabulary - 1, 2, END])
    data = text.encode(value)
    empty = text.encode(np.zeros(3, np.int64))
    assert len(data) % 64 == 3 * size  # after a header of .npy
    decoded = text.decode([data, memoryview(empty)])
    assert decoded.dtype == np.int64
    np.testing.assert_array_equal(decoded, [value, [END] * 3])
    with pytest.raises(ValueError, match=f"expected 0 to {vocabulary - 1}"):
        text.encode(value + np.array([1, 0, 0]))


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ([2, 12, 0, 0, 0], "from 0 to 12, expected 0 to 11"),
        ([2, START, 0, 0, 0], "stands for the start"),
        ([2, 3, 4, 5, 6], "must end with token 0 within 5 tokens"),
        ([2, 0, 0, 3, 0], "hold none after it"),
    ],
)
def test_a_reason_for_every_refusal(tokens: list[int], sentence: str) -> None:
    wrong, right = np.array(tokens, np.uint8), np.array([2, 3, 0, 0, 0])
    with pytest.raises(ValueError, match=sentence):
        NUMBER.encode(wrong)
    whole = NUMBER.encode(right)
    with pytest.raises(ValueError, match=sentence):
        NUMBER.decode([whole, whole[:-5] + wrong.tobytes()])


def test_more_room_for_longer_texts_changes_nothing() -> None:
    torch.manual_seed(0)
    longer = replace(NUMBER, length=9)
    roomy = torch.cat([NUMBERS, torch.zeros(4, 4, dtype=torch.int64)], 1)
    short, long = NUMBER.encoder(3), longer.encoder(3)
    long.load_state_dict(short.state_dict())
    for ours, theirs in zip(short(NUMBERS), long(roomy), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    parameters = torch.randn(4, 9, 12)
    torch.testing.assert_close(
        longer.log_likelihood(parameters, roomy), NUMBER.log_likelihood(parameters[:, :5], NUMBERS)
    )


def test_the_reader_is_torchs_bidirectional_gru_on_packed_texts() -> None:
    torch.manual_seed(0)
    reader = Reader(12, 7, 6)
    gru = nn.GRU(7, 6, batch_first=True, bidirectional=True)
    backwards = {f"{name}_reverse": weight for name, weight in reader.backwards.state_dict().items()}
    gru.load_state_dict(reader.forwards.state_dict() | backwards)
    endless = torch.tensor([[2, 3, 4, 5, 6]])  # a decoder may fail to write an end
    for texts, lengths in ((NUMBERS, torch.tensor([5, 2, 1, 4])), (endless, torch.tensor([5]))):
        packed = pack_padded_sequence(reader.embedding(texts), lengths, batch_first=True, enforce_sorted=False)
        torch.testing.assert_close(reader(texts), gru(packed)[1].sum(0))


def test_the_writer_is_torchs_gru_of_two_layers_fed_with_what_it_wrote() -> None:
    torch.manual_seed(0)
    writer = Writer(3, 12, 7, 6, 5)
    for weight in writer.parameters():
        weight.data.mul_(3)  # so that rows write different texts
    gru = nn.GRU(7 + 3, 6, num_layers=2)
    for layer, cell in enumerate((writer.lower, writer.upper)):
        gru.load_state_dict({f"{name}_l{layer}": weight for name, weight in cell.state_dict().items()}, strict=False)
    z = 2 * torch.randn(20, 3)
    logits = writer(z)
    assert logits.shape == (20, 5, 12)
    assert len(logits.argmax(2).unique(dim=0)) > 5
    for row, latent in zip(logits, z, strict=True):
        token, state = torch.tensor(START), writer.start(latent)[None].repeat(2, 1)
        for place in range(5):
            output, state = gru(torch.cat([silu(writer.embedding(token)), latent])[None], state)
            torch.testing.assert_close(writer.logits(torch.cat([output[0], latent])), row[place])
            token = row[place].argmax()


def test_a_text_counts_up_to_its_first_end() -> None:
    logits = torch.zeros(1, 5, 12)
    logits[0, 0, 2], logits[0, 1, END] = 5, 3
    value = torch.tensor([[2, 0, 0, 0, 0]])
    expected = 5 - np.log(np.exp(5) + 11) + 3 - np.log(np.exp(3) + 11)
    assert NUMBER.log_likelihood(logits, value).item() == pytest.approx(expected, abs=1e-5)
    logits[0, 2:] = 100 * torch.randn(3, 12)
    assert NUMBER.log_likelihood(logits, value).item() == pytest.approx(expected, abs=1e-5)
    logits[0, 2:, 4] = 1000
    assert NUMBER.mean(logits).tolist() == [[2, 0, 0, 0, 0]]
    logits[0, 1, 7] = 9
    assert NUMBER.mean(logits).tolist() == [[2, 7, 4, 4, 4]]


def fit(network: nn.Module, loss: Callable[[], Tensor], steps: int) -> float:
    """The loss after so many steps."""
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
    return value.item()


def test_texts_are_read_and_written() -> None:
    """Both ways learn: the order of tokens is told, and a latent point becomes its text."""
    torch.manual_seed(0)
    text = replace(NUMBER, embedding=16, hidden=32)
    values = torch.tensor([[2, 3, 0, 0, 0], [3, 2, 0, 0, 0], [2, 2, 3, 4, 0], [0, 0, 0, 0, 0]])
    z = torch.randn(4, 3)
    decoder, encoder = text.decoder(3), JointEncoder([text.features(), text.features()], 3)
    assert fit(decoder, lambda: -text.log_likelihood(decoder(z), values).mean(), 150) < 0.2
    assert torch.equal(text.mean(decoder(z)), values)
    assert fit(encoder, lambda: (encoder(values, values)[0] - z).square().mean(), 100) < 0.05


def test_sampled_texts_follow_the_likelihood() -> None:
    """So many of each of all short texts; and nothing is written after the end."""
    small, count = Text(vocabulary=4, length=3), 5000
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4)
    outcomes = torch.tensor(
        [row for row in product(range(4), repeat=3) if 0 not in row or not any(row[row.index(0) :])]
    )
    uniform = torch.from_numpy(np.random.default_rng(0).random((count, 3), np.float32))
    samples = small.sample(logits.expand(count, -1, -1), uniform)
    found = (samples[:, None] == outcomes).all(2)
    assert found.any(1).all()
    likely = small.log_likelihood(logits.expand(len(outcomes), -1, -1), outcomes).double().exp()
    assert stats.chisquare(found.sum(0).numpy(), (likely / likely.sum() * count).numpy()).pvalue > 1e-3
    torch.testing.assert_close(small.sample(logits, torch.zeros(1, 3)), torch.zeros(1, 3, dtype=torch.int64))
