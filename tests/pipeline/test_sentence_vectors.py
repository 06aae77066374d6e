"""Sentences as means of FastText's vectors of their words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gensim import models

from infra.errors import UserError
from pipeline.evaluate.sentence_vectors import SIZE, SentenceVectors
from tests.ranks import Ranks

KINDS = ["red owl", "grey wren", "blue crow", "black gull"]
FILLERS = ["a", "the", "small", "bird"] * 2
TEXTS = [" ".join([KINDS[n % 4], *FILLERS[n % 4 : n % 4 + n % 3]]) for n in range(120)] + ["heron"]


def test_a_sentence_is_the_plain_mean_of_its_words() -> None:
    vectors = SentenceVectors.fit(TEXTS)
    found = vectors(["red owl the bird", "the  owl bird red", "owl owl gull", "", "   "])
    by_hand = np.mean([vectors.words[word] for word in ("red", "owl", "the", "bird")], 0)
    assert found.shape == (5, SIZE)
    assert found[:2] == pytest.approx(np.stack([by_hand, by_hand]), abs=1e-7)
    assert found[2] == pytest.approx((2 * vectors.words["owl"] + vectors.words["gull"]) / 3, abs=1e-7)
    assert not found[3:].any(), "a sentence without words is zeros"
    assert vectors([]).shape == (0, SIZE)


def test_a_word_that_training_did_not_have_is_made_of_its_parts() -> None:
    vectors = SentenceVectors.fit(TEXTS)
    assert "owlish" not in vectors.words.key_to_index
    unknown, nonsense = vectors(["owlish", "ж"])
    assert np.isfinite(unknown).all()
    assert unknown.any()
    assert nonsense.any()

    def cosine(word: str) -> float:
        known = vectors.words[word]
        return float(unknown @ known / np.linalg.norm(unknown) / np.linalg.norm(known))

    assert cosine("owl") > max(cosine("wren"), cosine("the")), "it shares n-grams with owl"


def test_every_word_of_the_training_sentences_has_a_vector_of_its_own() -> None:
    assert set(SentenceVectors.fit(TEXTS).words.key_to_index) == set(" ".join(TEXTS).split())


def fitted(texts: list[str]) -> np.ndarray:
    return SentenceVectors.fit(texts)(texts)


def test_vectors_are_the_same_in_any_process_and_order(ranks: Ranks) -> None:
    """Python hashes strings anew in each process."""
    alone = fitted(TEXTS)
    for shared in ranks.run(fitted, TEXTS):
        assert np.array_equal(shared, alone)
    assert np.array_equal(fitted(TEXTS[::-1])[::-1], alone)


def test_sentences_are_shuffled_before_they_are_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie in the shards by class, of which the last would be learnt best."""
    read: list[list[str]] = []

    class Spy(models.FastText):
        def __init__(self, sentences: list[list[str]], **settings: Any) -> None:
            read.extend(sentences)
            super().__init__(sentences, **settings)

    monkeypatch.setattr(models, "FastText", Spy)
    SentenceVectors.fit(TEXTS)
    assert sorted(" ".join(words) for words in read) == sorted(TEXTS)
    place = np.argsort([" ".join(words) for words in read], kind="stable")
    assert abs(np.corrcoef(place, np.arange(len(read)))[0, 1]) < 0.3


def test_sentences_without_a_word_are_refused() -> None:
    with pytest.raises(UserError, match="hold no word"):
        SentenceVectors.fit(["", " "])
