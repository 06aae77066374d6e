"""Sentences as tokens and back, by SentencePiece, with the tokens that `modalities.sentences` expects.

Texts are normalised first (`normalised`). Subword vocabularies (unigram, bpe) spell in bytes what they have no piece
for, so they lose nothing, whatever the language; these bytes are 256 tokens of the vocabulary. Whole words and
characters that are not in the vocabulary are the unknown token.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import chain
from typing import Literal

import numpy as np
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from infra.errors import UserError
from modalities.sentences import UNKNOWN
from modalities.text import END, START

ERRORS_ONLY = 2
"""SentencePiece's level of logging."""


def normalised(text: str) -> str:
    """NFKC, and one space between words: what is tokenized, and what comes back.

    Not by SentencePiece's rules, which leave Vietnamese letters of two marks in parts where they come half composed.
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def train(texts: Iterable[str], vocabulary: int, kind: Literal["unigram", "word", "bpe", "char"] = "unigram") -> bytes:
    """A model file of at most `vocabulary` tokens, the same bytes for the same texts.

    Every character of the texts has a token of its own in subword vocabularies, so that no letter of a language with
    many is spelt in bytes. Few texts may make fewer tokens than asked for (`Tokenizer.size`). Raises UserError where
    there is no text, or where the vocabulary is too small for them.
    """
    written = filter(None, map(normalised, texts))
    first = next(written, None)
    if first is None:
        raise UserError("there is no text to train a tokenizer on: all texts are empty")
    model = BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=chain([first], written),
            model_writer=model,
            model_type=kind,
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            character_coverage=1.0,
            byte_fallback=kind in ("unigram", "bpe"),
            normalization_rule_name="identity",
            max_sentence_length=2**30,  # bytes; longer texts would be left out
            eos_id=END,
            bos_id=START,
            unk_id=UNKNOWN,
            pad_id=-1,
            num_threads=1,
            minloglevel=ERRORS_ONLY,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2]
        raise UserError(f"no {kind} vocabulary of {vocabulary} tokens can be made of these texts: {reason}") from None
    return model.getvalue()


class Tokenizer:
    """Texts to tokens and back, by a model file."""

    def __init__(self, model: bytes) -> None:
        """Raises UserError where these bytes are no model, or one with other special tokens than `train` gives it."""
        self.model, self._pieces = model, SentencePieceProcessor(num_threads=1)
        try:
            self._pieces.LoadFromSerializedProto(model)
        except RuntimeError:
            raise UserError("this is no model of SentencePiece: train the tokenizer again") from None
        found = (self._pieces.eos_id(), self._pieces.bos_id(), self._pieces.unk_id())
        if found != (END, START, UNKNOWN):
            raise UserError(
                f"this tokenizer's end, start and unknown are tokens {found}, expected {(END, START, UNKNOWN)}: train "
                f"it with pairstream"
            )

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self.model,)

    @property
    def size(self) -> int:
        """Tokens of the vocabulary."""
        return int(self._pieces.get_piece_size())

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (N, length) with the end after each text, and how many of each text's tokens did not fit (N,)."""
        tokens, lost = np.full((len(texts), length), END, np.int64), np.zeros(len(texts), np.int64)
        for row, pieces in enumerate(self._pieces.encode([normalised(text) for text in texts])):
            kept = pieces[: length - 1]
            tokens[row, : len(kept)], lost[row] = kept, len(pieces) - len(kept)
        return tokens, lost

    def decode(self, tokens: np.ndarray) -> list[str]:
        """The texts (N,) of tokens (N, length), up to the first end of each.

        A model may have room for more tokens than this vocabulary holds: those that it writes are unknown words.
        """
        tokens = np.where(tokens < self.size, tokens, UNKNOWN)
        read = [row[: row.index(END)] if END in row else row for row in tokens.tolist()]
        texts: list[str] = self._pieces.decode(read)
        return texts
