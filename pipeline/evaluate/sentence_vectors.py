"""Sentences as vectors: the mean of their words' by FastText, fitted on the training sentences (MMVAE section 4.3).

The paper names FastText (Bojanowski et al. 2017), 300 numbers and the mean, and nothing else. Here it predicts a word's
neighbours from its n-grams of 3 to 6 letters (skip-grams), in gensim's settings: a window of 5, 5 negative samples, 5
passes, words thinned out above a share of 1e-3. Two are others, for small data: every word counts, not from the fifth
time on, and n-grams share 65,536 places, not two million, which would take 2.4 GB (CUB's captions have 14,329).

The same sentences give the same vectors, in whatever order they come and whatever PYTHONHASHSEED says: one thread, one
seed, and an order of its own (gensim hashes letters by a function of its own, too). Shuffled they have to be, as for
any stochastic gradient: in the order of the shards, species by species, CUB's captions make vectors by which its real
pairs correlate less, 0.183 in place of 0.197 (all validation pairs, ridge 10). Its 25,620 training captions take about
10 s of one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from infra.errors import NotInstalled, UserError

SIZE = 300
"""Numbers in a word's vector (MMVAE section 4.3)."""
EPOCHS = 5
PLACES = 2**16
SEED = 0


@dataclass(frozen=True)
class SentenceVectors:
    """Words are what blanks divide."""

    words: Any
    """gensim's vectors by word."""

    @classmethod
    def fit(cls, sentences: Sequence[str]) -> SentenceVectors:
        """Raises UserError where gensim is not installed, and where the sentences hold no word."""
        try:
            models = import_module("gensim.models")
        except ImportError as error:
            raise NotInstalled(
                f"the correlation of captions needs gensim ({error}): pip install 'pairstream[captions]'"
            ) from None
        texts = [sentence.split() for sentence in sorted(sentences)]
        if not any(texts):
            raise UserError("the training sentences hold no word: there is nothing to fit word vectors on")
        order = np.random.default_rng(SEED).permutation(len(texts))
        settings = {"sg": 1, "min_count": 1, "bucket": PLACES, "seed": SEED, "workers": 1}
        return cls(models.FastText([texts[place] for place in order], vector_size=SIZE, epochs=EPOCHS, **settings).wv)

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """(R, 300) in float32. A word that training did not have is the mean of its n-grams; no word at all is zeros.

        A plain mean, as the paper says: gensim's own `get_sentence_vector` scales words to one length first.
        """
        texts = [sentence.split() for sentence in sentences]
        vector = {word: self.words[word] for word in sorted({word for words in texts for word in words})}
        vectors = np.zeros((len(texts), SIZE), np.float32)
        for row, words in enumerate(texts):
            if words:
                vectors[row] = np.mean([vector[word] for word in words], 0)
        return vectors
