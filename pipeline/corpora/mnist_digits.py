"""MNIST's digits, each paired with 20 of scikit-learn's real 8x8 digits of its class: MNIST-SVHN in small.

    pairstream prepare mnist-digits --source DIR       DIR holds MNIST's four official idx files, gzipped (.gz) or not

Keys and splits are those of the corpora mnist and digits; partners are chosen as `pipeline.corpora.partners` says. The
1,797 pictures come with scikit-learn and are stored as the split `pool`: one that is in the training data of the corpus
digits is a partner of training digits only, and so on.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from modalities import Image
from pipeline.corpora import digits, mnist, partners
from pipeline.corpora.corpus import Corpus, Entry, Listing, of_listing
from pipeline.corpora.partners import Picture


@lru_cache(maxsize=1)
def _listing(source: Path) -> Listing:
    """MNIST's digits, then scikit-learn's; which of the first have fewer partners. Raises UserError as MNIST's do."""
    pictures = [Picture(e.key, e.split, int(digits.load(e)["label"]), e.source) for e in digits.entries()]
    return partners.paired(mnist.entries(source), "digits", pictures)


entries, notes = of_listing(_listing)


def load(entry: Entry) -> dict[str, np.ndarray]:
    """An MNIST digit (28, 28) and its label, or the picture (8, 8) that is a partner."""
    if isinstance(entry.source, mnist.Place):
        return partners.load_digit(entry)
    halves = digits.load(entry)
    return {"digits": np.concatenate([halves["top"], halves["bottom"]])}


MNIST_DIGITS = Corpus(
    "mnist-digits",
    "70,000 MNIST digits, each with 20 of scikit-learn's 8x8 digits of its class, and their label",
    partners.modalities("digits", Image(height=8, width=8, levels=16)),
    entries,
    load,
    needs=mnist.NEEDS,
    notes=notes,
)
