"""Tokenizers: texts come back, the special tokens are where networks expect them, and what does not fit is counted."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import unicodedata
from io import BytesIO

import numpy as np
import pytest
from sentencepiece import SentencePieceTrainer

from infra.errors import UserError
from modalities import Sentences
from modalities.sentences import UNKNOWN
from modalities.text import END, START
from pipeline.tokenizers import Tokenizer, normalised, train

ENGLISH = [
    "this bird has a red crown and a small black beak.", "a small bird with white wings", "the bird is blue and brown",
    "Two birds, three wings and 44 feathers!", "it sings; the others do not",
]  # fmt: skip
VIETNAMESE = [
    "Vào một ngày đẹp trời, nhà báo đi dọc trên con đường trong khu phố.", "Tiếng Việt có nhiều dấu: ắ, ằ, ẵ, ễ, ộ, ữ.",
    "Câu chuyện này nhiều người ở đây đều biết", "Khoa học đằng sau một tiêu đề về khí hậu", "Cảm ơn các bạn!",
]  # fmt: skip
TEXTS = ENGLISH + VIETNAMESE
SUBWORDS = pytest.mark.parametrize("kind", ["unigram", "bpe"])
KINDS = pytest.mark.parametrize("kind", ["unigram", "bpe", "word", "char"])


@KINDS
def test_what_it_was_trained_on_comes_back(kind: str) -> None:
    tokenizer = Tokenizer(train(TEXTS, 500, kind))
    tokens, lost = tokenizer.encode(TEXTS, 100)
    assert tokens.shape == (10, 100)
    assert tokens.dtype == np.int64
    assert not lost.any()
    assert UNKNOWN not in tokens
    assert tokenizer.decode(tokens) == TEXTS
    assert 4 <= tokenizer.size <= 500
    modality = Sentences(tokenizer.size, length=100)
    assert np.array_equal(modality.decode([modality.encode(text) for text in tokens]), tokens)


@SUBWORDS
@pytest.mark.parametrize(
    "text",
    ["漢字 and Ελληνικά", "naïve 🐦 birds", "Ẫ ẵng", "x²", "a\tb\n c  d", "<s> </s> <unk>", "\ufb01ne \u00a0 text"],
)
def test_subwords_lose_nothing(kind: str, text: str) -> None:
    """Letters that no training text has, and the names of special tokens, which are letters here."""
    tokenizer = Tokenizer(train(ENGLISH, 400, kind))
    tokens, lost = tokenizer.encode([text], 60)
    assert not lost.any()
    assert not {START, UNKNOWN} & set(tokens[0].tolist())
    assert tokenizer.decode(tokens) == [" ".join(unicodedata.normalize("NFKC", text).split())] == [normalised(text)]


@SUBWORDS
def test_vietnamese_comes_back_however_it_is_composed(kind: str) -> None:
    """Composed, in parts, or half of each: SentencePiece's own NFKC leaves the last as it is."""
    tokenizer = Tokenizer(train(VIETNAMESE, 500, kind))
    composed = [normalised(text) for text in VIETNAMESE]
    apart = [unicodedata.normalize("NFD", text) for text in VIETNAMESE]
    half = [text.replace("ộ", "ô\u0323").replace("ễ", "ê\u0303").replace("ắ", "ă\u0301") for text in composed]
    assert half != composed
    expected, _ = tokenizer.encode(VIETNAMESE, 100)
    for texts in (composed, apart, half):
        tokens, _ = tokenizer.encode(texts, 100)
        assert tokenizer.decode(tokens) == composed
        assert np.array_equal(tokens, expected)


def test_words_that_are_not_in_the_vocabulary_are_unknown() -> None:
    tokenizer = Tokenizer(train(["a b c d"] * 3 + ["a b c"] * 3 + ["a b"], 6, "word"))  # three words and three more
    tokens, lost = tokenizer.encode(["a d c x", "", "d"], 5)
    assert tokenizer.size == 6
    assert tokens.tolist() == [[3, UNKNOWN, 5, UNKNOWN, END], [END] * 5, [UNKNOWN, END, END, END, END]]
    assert lost.tolist() == [0, 0, 0]
    assert tokenizer.decode(np.array([[4, 3, END, 5, 5], [5, 5, 4, 3, 3]])) == ["b a", "c c b a a"]
    assert tokenizer.decode(np.array([[START, 3, 4, END, END]])) == ["a b"]  # what a decoder may come to write


@KINDS
def test_what_does_not_fit_is_counted(kind: str) -> None:
    tokenizer = Tokenizer(train(TEXTS, 500, kind))
    whole, _ = tokenizer.encode(TEXTS, 200)
    sizes = (whole != END).sum(1)
    length = int(np.median(sizes)) + 1
    tokens, lost = tokenizer.encode(TEXTS, length)
    assert lost.tolist() == np.maximum(0, sizes - (length - 1)).tolist()
    assert lost.any()
    assert not lost.all()
    assert (tokens[:, -1] == END).all()
    for row, kept in enumerate(np.minimum(sizes, length - 1)):
        assert np.array_equal(tokens[row, :kept], whole[row, :kept])
        assert not tokens[row, kept:].any()


@KINDS
def test_the_same_texts_make_the_same_bytes(kind: str) -> None:
    """In another process too, which may hash and thread otherwise."""
    program = (
        f"import sys; from pipeline.tokenizers import train; sys.stdout.buffer.write(train({TEXTS!r}, 450, {kind!r}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True
    )
    model = train(iter(TEXTS), 450, kind)
    assert answer.stdout == model
    assert not answer.stderr  # SentencePiece's progress is nobody's business
    assert train(TEXTS[::-1] + TEXTS[:3], 450, kind) != model


def test_a_tokenizer_goes_to_another_process() -> None:
    tokenizer = Tokenizer(train(TEXTS, 500))
    twin = pickle.loads(pickle.dumps(tokenizer))
    assert twin.model == tokenizer.model
    assert np.array_equal(twin.encode(TEXTS, 30)[0], tokenizer.encode(TEXTS, 30)[0])


def test_a_sentence_for_every_failure() -> None:
    for nothing in ([], ["", " \n", "\u00a0"]):
        with pytest.raises(UserError, match="no text to train a tokenizer on"):
            train(nothing, 100)
    with pytest.raises(
        UserError, match="no unigram vocabulary of 20 tokens can be made of these texts: Vocabulary size"
    ):
        train(TEXTS, 20)
    for damaged in (b"", b"nothing of the kind", train(TEXTS, 500)[:-3]):
        with pytest.raises(UserError, match="no model of SentencePiece"):
            Tokenizer(damaged)
    others = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=others, vocab_size=100, model_type="char", minloglevel=2
    )
    with pytest.raises(UserError, match=r"are tokens \(2, 1, 0\), expected \(0, 1, 2\)"):
        Tokenizer(others.getvalue())


def test_a_very_long_text_counts() -> None:
    """SentencePiece leaves out texts of more than 4192 bytes where nothing else is said."""
    tokenizer = Tokenizer(train(["ab " * 3000, "c"], 10, "char"))
    tokens, _ = tokenizer.encode(["abc"], 6)
    assert UNKNOWN not in tokens


@KINDS
def test_tokens_beyond_the_vocabulary_are_unknown_words(kind: str) -> None:
    """A model with room for more tokens than there are may write them, least of all before it has learnt."""
    tokenizer = Tokenizer(train(TEXTS, 500, kind))
    within = np.array([[UNKNOWN, 5, UNKNOWN, END], [END, 9, 9, 9]])
    beyond = np.array([[tokenizer.size, 5, 10**6, END], [END, 10**6, 9, 9]])
    assert tokenizer.decode(beyond) == tokenizer.decode(within)
