"""MVAE's networks for text. Shape legend: B rows, L places in a sequence, V tokens, H features, Z latent dimensions.

Sequences of all lengths go through together, and nothing here waits for the device to say how long one is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from modalities.text import END, START


class Reader(nn.Module):
    """(B, L) tokens -> (B, H): an embedding, and a GRU in each direction, whose last states are summed.

    Either direction ends at a sequence's own end, so what fills the row after it changes nothing.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.forwards = nn.GRU(embedding, hidden, batch_first=True)
        self.backwards = nn.GRU(embedding, hidden, batch_first=True)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        place_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        going_BL = (tokens_BL == END).cumsum(1) == 0
        last_B1 = going_BL.sum(1, keepdim=True).clamp(max=tokens_BL.shape[1] - 1)  # a text read to its first end
        reversed_BL = tokens_BL.gather(1, (last_B1 - place_L).clamp(min=0))
        states = [
            gru(self.embedding(tokens))[0].take_along_dim(last_B1[..., None], 1).squeeze(1)
            for gru, tokens in ((self.forwards, tokens_BL), (self.backwards, reversed_BL))
        ]
        return states[0] + states[1]


class Writer(nn.Module):
    """(B, Z) -> logits (B, L, V): two layers of GRU that start from z, and at each place see z and the token before.

    That token is the likeliest of the place before, in training too: p(x|z) then has z alone to go by, and given z
    its places are independent. So the authors' code does it (mhw32/multimodal-vae-public, multimnist/model.py), whose
    layers these are; the papers (earlier version, section 4.3; supplement A) sample a token, and say nothing of z.
    """

    def __init__(self, latent: int, vocabulary: int, embedding: int, hidden: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.start = nn.Linear(latent, hidden)
        self.lower = nn.GRUCell(embedding + latent, hidden)
        self.upper = nn.GRUCell(hidden, hidden)
        self.logits = nn.Linear(hidden + latent, vocabulary)

    def forward(self, z_BZ: Tensor) -> Tensor:
        token_B = torch.full((len(z_BZ),), START, device=z_BZ.device)
        lower_BH = upper_BH = self.start(z_BZ)
        logits = []
        for _ in range(self.length):
            lower_BH = self.lower(torch.cat([silu(self.embedding(token_B)), z_BZ], 1), lower_BH)
            upper_BH = self.upper(lower_BH, upper_BH)
            logits.append(self.logits(torch.cat([upper_BH, z_BZ], 1)))
            token_B = logits[-1].argmax(1)
        return torch.stack(logits, 1)
