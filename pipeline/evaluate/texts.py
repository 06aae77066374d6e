"""How well texts are predicted and written: perplexity, BLEU and chrF of translations, the digits of a string.

Texts are written greedily from the mean of q(z|x_given), one text a row, and compared with the row's own. Errors are
bootstrapped over rows (`scored.bootstrap`); what a text scores is counted once and the counts are resampled.

Shape legend: R rows of a split, B rows of a batch, L places in a text, N orders of n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.helpers import extract_all_char_ngrams

from modalities import Text
from modalities.text import END, Tokens, after_end
from pipeline.batch import Batch
from pipeline.description import model_file, readers
from pipeline.evaluate.scored import Scored, bootstrap
from pipeline.evaluate.subject import Subject, filled
from pipeline.experts import Mixture
from pipeline.noise import normal
from pipeline.posteriors import generates

TOKENIZER = "13a"
"""BLEU's words: those of mteval-v13a, which WMT scores by. It comes with sacreBLEU and looks at punctuation only, so it
serves every language that puts spaces between words, or syllables as Vietnamese does."""
Pair = tuple[str, str]
"""(what is written, what is given)"""


@torch.no_grad()
def perplexity(subject: Subject) -> dict[str, Scored]:
    """`perplexity/NAME` and `perplexity_recon/NAME` of each modality of tokens, over the rows that have it. Collective.

    exp(Σ nats / Σ tokens), both summed over the split's texts, their ends among the tokens (`evaluate/tokens.py`).
    `perplexity` takes -ELBO of the text alone, -log p(x|z) + log q(z|x) - log p(z) with one z from q(z|x) a row. Since
    ELBO <= log p(x), it is an upper bound of the model's own perplexity, which comes near exp(-log_p/NAME over
    tokens.NAME) of `evaluate --samples`; so VAEs of text are compared (Bowman et al. 2015, table 2). `perplexity_recon`
    takes -log p(x|z) of the same z alone: how well a text is rewritten that the model has read. It bounds nothing, and
    the KL is what lies between the two.

    Perplexities compare between equal tokens only. {} where q(z|x) of a text alone is not defined (cvae).
    """
    model, run = subject.model, subject.run
    columns = {name: column for column, name in enumerate(model.modalities)}
    texts = [name for name in _texts(subject) if generates(model.family, list(columns), name, frozenset([name]))]

    def look(batch: Batch, _: Batch) -> dict[str, np.ndarray]:
        prior, told = model.prior(batch.row_B.device), {}
        for name in texts:
            shown = batch.only(frozenset([name]))
            posterior = model.posterior(shown)
            width = posterior.noise if isinstance(posterior, Mixture) else model.latent
            z_1BZ = posterior.sample(normal(run.seed, "perplexity", batch.row_B, 1, width))
            recon_B = model.decode_all(shown, z_1BZ, shown.present_BM[None])[0][0, :, columns[name]]
            elbo_B = recon_B + (prior.log_prob(z_1BZ) - posterior.log_prob(z_1BZ))[0]
            there = shown.present_BM[:, columns[name]]
            tokens = (~after_end(torch.from_numpy(filled(batch, name, END)))).sum(1).numpy()
            told[f"perplexity/{name}"] = np.where(there, -elbo_B.double().cpu().numpy(), 0.0)
            told[f"perplexity_recon/{name}"] = np.where(there, -recon_B.double().cpu().numpy(), 0.0)
            told[name] = np.where(there, tokens, 0)
        return told

    found = subject.collect(look) if texts else {}
    scores = {}
    for metric in (metric for metric in found if metric not in texts):
        tokens = found[metric.partition("/")[2]]
        scores[metric] = _ratio(found[metric][tokens > 0], tokens[tokens > 0], np.exp)
    return scores


@torch.no_grad()
def translation(subject: Subject) -> dict[str, Scored]:
    """`bleu/vi_given_en`, `chrf/vi_given_en`: texts written from one another, 0 to 100. Collective.

    For every ordered pair of modalities of tokens whose tokenizers lie beside the shards, over the rows that have both.
    Both texts are read off their tokens: what the tokenizer has no token for, and what was cut off a long text, is
    missed by neither. {} where there are no two such modalities.
    """
    readable = readers(subject.manifest, {name: subject.run.modalities[name] for name in _tokenized(subject)})
    scores = {}
    for (wanted, given), (written, real) in _written(subject, list(permutations(readable, 2))).items():
        texts, references = ([readable[wanted](row) for row in rows] for rows in (written, real))
        scores[f"bleu/{wanted}_given_{given}"] = bleu(texts, references)
        scores[f"chrf/{wanted}_given_{given}"] = chrf(texts, references)
    return scores


@torch.no_grad()
def digit_accuracy(subject: Subject) -> dict[str, Scored]:
    """`digits/string_given_image`: the share of digits that are right in strings written from each other modality.

    "The average accuracy of predicting each digit correct (by decomposing the string into individual digits, at most
    4)" (MVAE table 10), of texts without a tokenizer. Digits compare place by place from the left: one of the real
    string is right where the written one has the same at the same place; beyond the end of a shorter string all are
    wrong. A longer one loses nothing by what it has too much, and empty strings have nothing to be right about: the
    paper says no more, and if empty places counted, writing nothing would be right at half of MultiMNIST's. Digits
    weigh the same, whatever string they are in; `count` is that of strings. Collective.
    """
    names = list(subject.run.modalities)
    strings = [
        name
        for name in _texts(subject)
        if isinstance(subject.run.modalities[name], Text) and name not in _tokenized(subject)
    ]
    pairs = [(wanted, given) for wanted in strings for given in names if given != wanted]
    scores = {}
    for (wanted, given), (written, real) in _written(subject, pairs).items():
        digits = real != END
        right = ((written == real) & digits).sum(1)
        scores[f"digits/{wanted}_given_{given}"] = _ratio(right[digits.any(1)], digits.sum(1)[digits.any(1)])
    return scores


def bleu(texts: Sequence[str], references: Sequence[str]) -> Scored:
    """sacreBLEU of a corpus with one reference a text, 0 to 100 (Papineni et al. 2002; Post 2018): `signatures`.

    A sentence's score tells the counts that it is made of, and `compute_bleu` takes their sums over a corpus.
    """
    metric = BLEU(tokenize=TOKENIZER, effective_order=True)  # sacreBLEU warns without it; counts are the same
    found = [metric.sentence_score(text, [reference]) for text, reference in zip(texts, references, strict=True)]
    counts = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], np.int64)

    def score(rows: np.ndarray) -> float:
        *ngrams, length, reference = counts[rows].sum(0).tolist()
        orders = len(ngrams) // 2
        return BLEU.compute_bleu(ngrams[:orders], ngrams[orders:], length, reference, smooth_method="exp").score

    return bootstrap(score, len(counts))


def chrf(texts: Sequence[str], references: Sequence[str]) -> Scored:
    """sacreBLEU's chrF2 of a corpus with one reference a text, 0 to 100 (Popović 2015): `signatures`.

    (1 + β²) P R / (β² P + R) with β = 2; P and R are means over n = 1 … 6 of the share of the written texts' n-grams
    of characters that are the references', and of the references' that were written, all summed over the corpus.
    sacreBLEU gives these counts away by private functions only, so they are made here of its n-grams.
    """
    counts = np.array([_ngrams(text, other) for text, other in zip(texts, references, strict=True)], np.int64)

    def score(rows: np.ndarray) -> float:
        written_N, real_N, both_N = counts[rows].sum(0).T
        there_N = (written_N > 0) & (real_N > 0)
        if not both_N.any():
            return 0.0
        precision, recall = (float((both_N[there_N] / all_N[there_N]).mean()) for all_N in (written_N, real_N))
        weight = CHRF.BETA**2
        return 100 * (1 + weight) * precision * recall / (weight * precision + recall)

    return bootstrap(score, len(counts))


def _ngrams(text: str, reference: str) -> list[list[int]]:
    """(N, 3): n-grams of the text, where the reference has any of the kind; of the reference; of both."""
    pairs = zip(*(extract_all_char_ngrams(one, CHRF.CHAR_ORDER) for one in (text, reference)), strict=True)
    return [[one.total() if other else 0, other.total(), (one & other).total()] for one, other in pairs]


def signatures() -> dict[str, str]:
    """sacreBLEU's account of what `bleu` and `chrf` are, to be given beside their numbers (Post 2018)."""
    metrics = {"bleu": BLEU(tokenize=TOKENIZER), "chrf": CHRF()}
    for metric in metrics.values():
        metric.corpus_score([""], [[""]])  # until then it does not know that there is one reference
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


def _texts(subject: Subject) -> list[str]:
    return [name for name, modality in subject.run.modalities.items() if isinstance(modality, Tokens)]


def _tokenized(subject: Subject) -> list[str]:
    """Texts whose tokenizer lies beside the shards."""
    return [name for name in _texts(subject) if model_file(name) in subject.manifest.files]


def _written(subject: Subject, pairs: Sequence[Pair]) -> dict[Pair, tuple[np.ndarray, np.ndarray]]:
    """Of each pair that the model's system generates: what is written and what is real, both (R, L), of the rows that
    have both modalities. A pair of which no row has both is left out."""
    model, names = subject.model, list(subject.run.modalities)
    asked = [pair for pair in pairs if generates(model.family, names, pair[0], frozenset(pair[1:]))]

    def look(batch: Batch, _: Batch) -> dict[str, np.ndarray]:
        told = {"present": batch.present_BM} | {f"real {one}": filled(batch, one, END) for one, _ in asked}
        for wanted, given in asked:
            shown = batch.only(frozenset([given]))
            parameters = model.decode(wanted, model.posterior(shown).mu, shown)
            told[f"{wanted} {given}"] = model.modalities[wanted].mean(parameters).cpu().numpy()
        return told

    found = subject.collect(look) if asked else {}
    result = {}
    for wanted, given in asked:
        both = found["present"][:, [names.index(wanted), names.index(given)]].all(1)
        if both.any():
            result[wanted, given] = found[f"{wanted} {given}"][both], found[f"real {wanted}"][both]
    return result


def _ratio(above_R: np.ndarray, below_R: np.ndarray, function: np.ufunc = np.positive) -> Scored:
    """A function of the ratio of two sums over rows."""
    return bootstrap(lambda rows: float(function(above_R[rows].sum() / below_R[rows].sum())), len(above_R))
