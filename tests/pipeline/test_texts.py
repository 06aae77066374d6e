"""Perplexity, translations and strings, on models whose words are known, and beside sacreBLEU on the same texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from infra import distributed
from infra.distributed import World
from modalities import AnyModality, Image, Label, Sentences, Text
from modalities.text import END
from pipeline.config import Run
from pipeline.corpora.corpus import Entry
from pipeline.description import model_file
from pipeline.evaluate.scored import Scored
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.texts import bleu, chrf, digit_accuracy, perplexity, signatures, translation
from pipeline.manifest import open_manifest
from pipeline.model import MultimodalVAE
from pipeline.noise import normal
from pipeline.objectives.systems import family_of
from pipeline.settings import Model, Training
from pipeline.tokenizers import Tokenizer, train
from pipeline.writing import write
from tests.pipeline.batches import small_model
from tests.pipeline.tiny import given
from tests.ranks import Ranks

LENGTH = 16
EN = [
    "the cat sat on the mat .", "a bird sings again and again", "we hear it today", "the cat", "a small song", "the",
    "today we hear a small bird , again", "the mat sat on the cat", "it sings", "we sat on a mat and hear the bird",
]  # fmt: skip
VI = [
    "the cat sat on a mat .", "a bird sings again and again", "today we hear it", "the cat sat", "a small song today",
    "a", "today we hear a small bird , today", "the mat sat on it", "we sing", "we sat on the mat and hear a bird",
]  # fmt: skip
"""What stands beside EN, in the same words, so that one tokenizer reads both."""
WORLD = World(0, 1, 0, torch.device("cpu"))


# sacreBLEU's numbers


@pytest.mark.parametrize("rows", [slice(0, 10), slice(0, 3), slice(3, 6), slice(5, 6), slice(8, 9)])
def test_bleu_and_chrf_are_sacrebleu_s(rows: slice) -> None:
    """Also of a few words, where orders of n-grams are missing or match nowhere."""
    texts, references = [*EN, "", "x & y"][rows], [*VI, "a b", "x &amp; y"][rows]
    for ours, theirs in ((bleu, BLEU(tokenize="13a")), (chrf, CHRF())):
        assert ours(texts, references).value == pytest.approx(theirs.corpus_score(texts, [references]).score, abs=1e-9)


def test_texts_without_a_word_score_nothing() -> None:
    texts, references = ["", "", EN[0]], [VI[0], "", ""]
    assert bleu(texts, references).value == BLEU().corpus_score(texts, [references]).score == 0
    assert chrf(texts, references).value == CHRF().corpus_score(texts, [references]).score == 0
    assert bleu([*texts, EN[0]], [*references, VI[0]]).value == pytest.approx(
        BLEU().corpus_score([*texts, EN[0]], [[*references, VI[0]]]).score
    )


def test_bleu_by_hand() -> None:
    """Of 6 words 5 are right, of 5 pairs 3, of 4 threes 2, of 3 fours 1; as long as the reference."""
    found = bleu(["a b c d x f"], ["a b c d e f"])
    assert found.value == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    unmatched = bleu(["a b c x y z"], ["a b c d e f"])  # no four: half of one counts, 1 / (2 * 3)
    assert unmatched.value == pytest.approx(100 * (3 / 6 * 2 / 5 * 1 / 4 * 1 / 6) ** 0.25)
    shorter = bleu(["a b c d"], ["a b c d e f"])
    assert shorter.value == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert bleu(["a b , d"], ["a b, d"]).value == pytest.approx(100)  # 13a takes punctuation off words
    assert math.isnan(found.error)
    assert found.count == 1


def test_chrf_by_hand() -> None:
    """P = (2/3 + 1/2) / 2 and R = (2/2 + 1/1) / 2 of single letters and pairs; spaces do not count."""
    precision, recall = (2 / 3 + 1 / 2) / 2, 1.0
    assert chrf(["a bc"], ["ab"]).value == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


def test_errors_are_those_of_resampled_sentences() -> None:
    """Of the sentences themselves, scored by sacreBLEU as a whole each time."""
    generator = np.random.default_rng(1)
    drawn = [generator.integers(0, len(EN), len(EN)) for _ in range(300)]
    for ours, theirs in ((bleu, BLEU()), (chrf, CHRF())):
        scores = [theirs.corpus_score([EN[i] for i in rows], [[VI[i] for i in rows]]).score for rows in drawn]
        assert ours(EN, VI).error == pytest.approx(np.std(scores), rel=0.25)
        assert ours(EN, VI) == ours(EN, VI)


def test_signatures_say_how_scores_are_made() -> None:
    told = signatures()
    assert {"tok:13a", "smooth:exp", "nrefs:1", "eff:no", "case:mixed"} <= set(told["bleu"].split("|"))
    assert {"nc:6", "nw:0", "nrefs:1", "space:no"} <= set(told["chrf"].split("|"))


# A model whose words are known: z is what its encoder read


class Reads(nn.Module):
    """An expert, sure of itself, whose mean is a function of the tokens."""

    def __init__(self, answer: Callable[[Tensor], Tensor], sureness: float = 12.0) -> None:
        super().__init__()
        self.answer, self.sureness, self.nothing = answer, sureness, nn.Parameter(torch.zeros(1))

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        said = self.answer(value).float() + self.nothing
        return said, torch.full_like(said, -self.sureness)


class Writes(nn.Module):
    """A decoder that writes what is nearest to z, as tokens or as logits of these."""

    def __init__(self, vocabulary: int = 0) -> None:
        super().__init__()
        self.vocabulary, self.nothing = vocabulary, nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        tokens = z.round().long()
        return nn.functional.one_hot(tokens, self.vocabulary).float() if self.vocabulary else tokens


def model_of(run: Run, encoders: dict[str, nn.Module], decoders: dict[str, nn.Module]) -> MultimodalVAE:
    model = MultimodalVAE(run.modalities, run.model.latent, family_of(run)).eval()
    for bank, networks in ((model.encoders, encoders), (model.decoders, decoders)):
        for name, network in networks.items():
            bank[name] = network
    return model


def same(tokens: Tensor) -> Tensor:
    return tokens


def nothing(tokens: Tensor) -> Tensor:
    """An encoder that ignores what it is given."""
    return torch.zeros_like(tokens)


def translator(data: Path, encoders: Callable[[Tensor], Tensor], world: World = WORLD, batch: int = 4) -> Subject:
    manifest = open_manifest(data)
    model = Tokenizer(manifest.file(model_file("en")))
    kind = Sentences(vocabulary=model.size, length=LENGTH, embedding=4, hidden=4)
    run = Run("toy", str(data), {"en": kind, "vi": kind}, model=Model(LENGTH), train=Training(batch=batch))
    built = model_of(run, dict.fromkeys(run.modalities, Reads(encoders)), dict.fromkeys(run.modalities, Writes()))
    return Subject(built, run, manifest, "test", world)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EN and VI as the split `test`, and beside them sentences of one language alone."""
    words = train(EN + VI, 60, "word")
    modality = Sentences(vocabulary=Tokenizer(words).size, length=LENGTH)
    tokens = {name: Tokenizer(words).encode(texts, LENGTH)[0] for name, texts in (("en", EN), ("vi", VI))}
    entries = [Entry(f"k{i:02d}", "test", {n: tokens[n][i] for n in ("en", "vi")}) for i in range(len(EN))]
    entries += [Entry(f"en{i}", "test", {"en": tokens["en"][i]}) for i in range(3)]
    entries += [Entry(f"vi{i}", "test", {"vi": tokens["vi"][i]}) for i in range(2)]
    out = tmp_path_factory.mktemp("pairs") / "data"
    files = {model_file(name): words for name in ("en", "vi")}
    write(out, replace(given("toy", {"en": modality, "vi": modality}, entries), files=files))
    return out


def score(metric: BLEU | CHRF, texts: Sequence[str], references: Sequence[str]) -> float:
    return float(metric.corpus_score(texts, [references]).score)


def test_a_translation_scores_what_its_words_score(pairs: Path) -> None:
    """A model that writes what it reads, over the rows that have both."""
    found = translation(translator(pairs, same))
    assert {name: one.count for name, one in found.items()} == dict.fromkeys(
        ["bleu/en_given_vi", "bleu/vi_given_en", "chrf/en_given_vi", "chrf/vi_given_en"], len(EN)
    )
    assert found["bleu/vi_given_en"].value == pytest.approx(score(BLEU(), EN, VI))
    assert found["bleu/en_given_vi"].value == pytest.approx(score(BLEU(), VI, EN))
    assert found["chrf/vi_given_en"].value == pytest.approx(score(CHRF(), EN, VI))
    assert found["chrf/en_given_vi"].value == pytest.approx(score(CHRF(), VI, EN))
    assert found["bleu/vi_given_en"].value != found["bleu/en_given_vi"].value
    assert 0 < found["bleu/vi_given_en"].error < 30


def test_a_model_that_ignores_its_input_scores_nothing(pairs: Path) -> None:
    found = translation(translator(pairs, nothing))
    assert [one.value for one in found.values()] == [0, 0, 0, 0]


def test_translations_need_two_tokenizers(pairs: Path) -> None:
    subject = translator(pairs, same)
    del subject.manifest.files[model_file("vi")]
    assert translation(subject) == {}
    alone = replace(subject.run, modalities={"en": subject.run.modalities["en"]})
    assert translation(replace(subject, run=alone)) == {}


def test_only_what_the_system_generates_is_translated(pairs: Path) -> None:
    """cvae: the first modality given the others, and no text has a posterior of its own."""
    subject = translator(pairs, same)
    run = replace(subject.run, model=Model(LENGTH, system="cvae"))
    built = MultimodalVAE(run.modalities, LENGTH, family_of(run)).eval()
    assert set(translation(replace(subject, model=built, run=run))) == {"bleu/en_given_vi", "chrf/en_given_vi"}
    assert perplexity(replace(subject, model=built, run=run)) == {}


# Digits

CANVAS = Image(1, 5, levels=12)


def strings(tmp_path: Path, real: list[str], seen: list[str]) -> Subject:
    """Canvases that show strings to a model that reads them as they are; the last row has no string."""

    def tokens(text: str) -> np.ndarray:
        return np.array([*(int(letter) + 2 for letter in text), *[END] * (5 - len(text))])

    kinds: dict[str, AnyModality] = {"image": CANVAS, "string": Text(12, 5), "label": Label(3)}
    rows = [{"image": tokens(s)[None], "string": tokens(r)} for r, s in zip(real, seen, strict=True)]
    entries = [Entry(f"k{i}", "test", values) for i, values in enumerate([*rows, {"image": tokens("1")[None]}])]
    write(tmp_path / "d", given("toy", kinds, entries))
    run = Run("toy", "d", {n: kinds[n] for n in ("image", "string")}, model=Model(5), train=Training(batch=3))
    model = model_of(run, {"image": Reads(lambda image: 12 * image[:, 0])}, {"string": Writes(12)})
    return Subject(model, run, open_manifest(tmp_path / "d"), "test", WORLD)


@pytest.mark.parametrize(
    ("real", "seen", "right", "digits"),
    [
        (["123", "4567"], ["123", "4567"], 7, 7),
        (["123"], ["124"], 2, 3),
        (["123"], ["23"], 0, 3),  # place by place
        (["123"], ["1"], 1, 3),  # shorter: wrong where it says nothing
        (["12"], ["1234"], 2, 2),  # longer: what it has too much does not count
        (["12"], [""], 0, 2),
        (["1", "2345"], ["9", "2345"], 4, 5),  # digits weigh the same, not strings
        (["", "12"], ["99", "12"], 2, 2),  # nothing to be right about
    ],
)
def test_digits_compare_place_by_place(
    tmp_path: Path, real: list[str], seen: list[str], right: int, digits: int
) -> None:
    (found,) = digit_accuracy(strings(tmp_path, real, seen)).items()
    assert found[0] == "digits/string_given_image"
    assert found[1].value == pytest.approx(right / digits)
    assert found[1].count == sum(map(bool, real))


def test_the_error_of_digits_is_over_strings(tmp_path: Path) -> None:
    """Of strings that are right or wrong as a whole: √(p (1 - p) / strings), not over digits."""
    real = ["1234"] * 40
    found = digit_accuracy(strings(tmp_path, real, ["1234"] * 20 + ["5678"] * 20))["digits/string_given_image"]
    assert found.value == 0.5
    assert found.error == pytest.approx(math.sqrt(0.25 / 40), rel=0.15)


def test_sentences_with_a_tokenizer_have_no_digits(pairs: Path) -> None:
    subject = translator(pairs, same)
    assert digit_accuracy(subject) == {}
    text = Text(subject.run.modalities["en"].vocabulary, LENGTH)  # type: ignore[union-attr]
    run = replace(subject.run, modalities={"en": text, "vi": text})
    assert digit_accuracy(replace(subject, run=run)) == {}


# Perplexity

KINDS: dict[str, AnyModality] = {
    "text": Sentences(vocabulary=9, length=6, embedding=5, hidden=6, network="gru", word_dropout=0.5),
    "label": Label(3, hidden=(5, 4)),
    "string": Text(vocabulary=7, length=4, embedding=4, hidden=5),
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 rows of texts of all lengths; some lack one of them."""
    rng = np.random.default_rng(3)

    def tokens(modality: Sentences | Text) -> np.ndarray:
        text = np.full(modality.length, END)
        size = rng.integers(0, modality.length)
        text[:size] = rng.integers(2, modality.vocabulary, size)
        return text

    rows = []
    for row in range(23):
        values = {name: tokens(KINDS[name]) for name in ("text", "string")} | {"label": np.asarray(row % 3)}  # type: ignore[arg-type]
        rows.append(Entry(f"k{row:02d}", "val", {n: v for n, v in values.items() if row % 5 or n == "label"}))
    out = tmp_path_factory.mktemp("spoken") / "data"
    write(out, given("toy", KINDS, rows))
    return out


def speaker(data: Path, system: str = "mvae", world: World = WORLD, batch: int = 5) -> Subject:
    run = Run("toy", str(data), KINDS, seed=4, model=Model(5, system=system), train=Training(batch=batch))
    return Subject(small_model(KINDS, system=system).eval(), run, open_manifest(data), "val", world)


@torch.no_grad()
def test_perplexity_is_that_of_every_text_by_itself(spoken: Path) -> None:
    """By torch.distributions, row after row and token after token."""
    subject = speaker(spoken)
    nats = {kind: {"text": 0.0, "string": 0.0} for kind in ("perplexity", "perplexity_recon")}
    tokens, rows = {"text": 0, "string": 0}, 0
    for batch, _ in subject.batches():
        for name in tokens:
            for place, row in enumerate(batch.rows_of[name]):
                value = batch.values[name][place : place + 1]
                mu, logvar = subject.model.encoders[name](value)
                q = Normal(mu / (1 + logvar.exp()), (1 + torch.exp(-logvar)).rsqrt())
                z = q.mean + q.stddev * normal(4, "perplexity", batch.row_B[row : row + 1], 1, 5)[0]
                size = int((value[0] != END).sum()) + 1
                if name == "text":  # what the decoder says of each token after those before it
                    recon = float(subject.model.decoders[name](z, value)[0, :size].sum())
                else:
                    logits = subject.model.decoders[name](z)[0, :size]
                    recon = float(Categorical(logits=logits).log_prob(value[0, :size]).sum())
                prior = Normal(torch.zeros(5), torch.ones(5))
                nats["perplexity_recon"][name] -= recon
                nats["perplexity"][name] -= recon + float((prior.log_prob(z) - q.log_prob(z)).sum())
                tokens[name] += size
                rows += name == "text"
    found = perplexity(subject)
    assert len(found) == 4
    for kind, of in nats.items():
        for name in of:
            assert found[f"{kind}/{name}"].value == pytest.approx(math.exp(of[name] / tokens[name]), rel=1e-5)
            assert found[f"{kind}/{name}"].count == rows == 18
            assert 0 < found[f"{kind}/{name}"].error < found[f"{kind}/{name}"].value


def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_tokens(spoken: Path) -> None:
    """With q = p and uniform logits, by both definitions."""
    subject = speaker(spoken)
    for parameter in subject.model.parameters():
        nn.init.zeros_(parameter)
    for name in ("text", "string"):  # a precision of almost nothing beside the prior's
        subject.model.encoders[name] = Reads(lambda tokens: torch.zeros(len(tokens), 5), -60.0)
    found = {name: one.value for name, one in perplexity(subject).items()}
    expected = {
        f"{kind}/{n}": size for kind in ("perplexity", "perplexity_recon") for n, size in (("text", 9), ("string", 7))
    }
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("system", ["mmvae", "mopoe", "jmvae", "svae"])
def test_every_family_has_perplexities(spoken: Path, system: str) -> None:
    found = perplexity(speaker(spoken, system))
    assert set(found) == {
        f"{kind}/{name}" for kind in ("perplexity", "perplexity_recon") for name in ("text", "string")
    }
    assert all(math.isfinite(one.value) and one.value > 1 for one in found.values())


def test_the_bound_lies_above_importance_samples(spoken: Path) -> None:
    """exp(-log p(x) per token) from 3,000 samples a row, with a posterior that is far from the true one."""
    from pipeline.evaluate.importance import log_likelihood

    subject, total, tokens = speaker(spoken), 0.0, 0
    for batch, _ in subject.batches():
        log_p = log_likelihood(subject.model, batch, frozenset(["text"]), frozenset(["text"]), 3000).log_p_B
        total += float(log_p.nansum())
        tokens += int((batch.values["text"][: len(batch.rows_of["text"])] != END).sum()) + len(batch.rows_of["text"])
    assert perplexity(subject)["perplexity/text"].value > math.exp(-total / tokens)


# Ranks


def studies(pairs: str, spoken: str, batch: int = 6) -> dict[str, Scored]:
    """On every rank."""
    world = distributed.start("cpu", 1)
    return translation(translator(Path(pairs), same, world, batch)) | perplexity(
        speaker(Path(spoken), "mopoe", world, batch)
    )


def test_ranks_and_batches_change_nothing(pairs: Path, spoken: Path, ranks: Ranks) -> None:
    one = translation(translator(pairs, same)) | perplexity(speaker(spoken, "mopoe"))
    for batch in (6, 50):
        for found in ranks.run(studies, str(pairs), str(spoken), batch):
            assert list(found) == list(one)
            for name, score in one.items():
                assert found[name].count == score.count
                assert (found[name].value, found[name].error) == pytest.approx((score.value, score.error), rel=1e-5)
