"""English and Vietnamese sentences as two modalities: MVAE's machine translation (Wu & Goodman, 2018, section 7).

    pairstream prepare iwslt-en-vi --source DIR
    pairstream train iwslt-en-vi                100 epochs; --pairing.view split --pairing.fraction 0.01: 1 % of pairs

On two CPU cores 65 h: 5.0 seconds, the `seconds_per_step` of `pairstream train iwslt-en-vi --steps 12 --json`, times
the steps. No GPU was at hand.

What to expect: not measured here at this length; after one epoch of 100 both decoders write without looking at z
(`pairstream reproduce translation --budget 0.01`, in the README). The paper has a test log p of -478.1 nats with all of
its 133,000 pairs and -483.2 with 1 % of them (table 4), in words of a vocabulary that it does not describe: nats per
sentence compare between equal tokens only, `tokens.en` and `tokens.vi` stand beside them.

From the paper: 100 latent dimensions, 100 epochs, weights of 1, the recurrent networks of Bowman et al. (2015), at
most 70 tokens, word dropout and KL annealing. It gives neither rates, batch, widths nor their amounts: here Adam with
1e-3, batch 100, a quarter of the words dropped, and β rising over the first fifth of training. The size of an epoch is
that of the data at hand, not IWSLT's.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.config import Run
from pipeline.corpora.iwslt import MODALITIES
from pipeline.settings import Model, Objective, Optim, Training

BATCH = 100
EPOCH = 46_500 // BATCH
"""Steps in which about as many rows are seen as there are training pairs in the data that are at hand."""


def iwslt_en_vi() -> Run:
    """MVAE on English and Vietnamese sentences, with the paper's settings: 100 epochs of what is at hand."""
    return Run(
        recipe="iwslt-en-vi",
        data="data/iwslt-en-vi",
        modalities={name: replace(modality, word_dropout=0.25) for name, modality in MODALITIES.items()},
        model=Model(latent=100),
        objective=Objective(anneal=20 / 100),
        optim=Optim(lr=1e-3, clip=5.0),
        train=Training(
            batch=BATCH, steps=100 * EPOCH, log_every=20, validate_every=2 * EPOCH, checkpoint_every=EPOCH // 2
        ),
    )
