"""Noise as a pure function of (seed, step, global row, term): the same on any rank, device and number of ranks.

torch's own generators are sequential, so the noise of a row would hang on the rows before it. Here every pair of
normal numbers is the hash of its own address (SplitMix64's finaliser, Steele et al. 2014), turned by Box-Muller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import on_device
from pipeline.order import seed_of

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_LOW = 2**32 - 1


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors, whose products wrap as unsigned ones do."""
    value = (value ^ ((value >> 30) & (2**34 - 1))) * _FIRST
    value = (value ^ ((value >> 27) & (2**37 - 1))) * _SECOND
    return value ^ ((value >> 31) & (2**33 - 1))


def _keyed(value: Tensor, base: int | Tensor) -> Tensor:
    """The hash of whole numbers under a seed, an unsigned number of 64 bits, or under one for each of them, signed."""
    if isinstance(base, int) and base >= 2**63:
        base -= 2**64
    return _mix(value * _GOLDEN + base)


def normal(seed: int | Sequence[int], purpose: str, row_B: Tensor, terms: int, latent: int) -> Tensor:
    """Standard normal numbers (terms, B, latent) in float32 on row_B's device.

    `row_B` numbers the rows in the whole run, so it carries the step; `purpose` keeps training's noise apart from
    validation's. Of several runs together the seeds, each for its part of the rows, which are equally many.
    """
    half = -(-latent // 2)
    lane = torch.arange(1, terms * half + 1, device=row_B.device).view(terms, 1, half)
    base: int | Tensor
    if isinstance(seed, int):
        base = seed_of(seed, "noise", purpose)
    else:
        bases = np.array([seed_of(one, "noise", purpose) for one in seed], np.uint64).view(np.int64)
        base = on_device(bases.repeat(len(row_B) // len(seed)), row_B.device)
    row_key = _keyed(row_B, base)
    bits = _mix(row_key.view(1, -1, 1) + lane * _GOLDEN)
    radius = (((bits >> 32) & _LOW).float() + 0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (bits & _LOW).float().mul_(2 * math.pi / 2**32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=2)[..., :latent]


def uniform(normal_N: Tensor, purpose: str, places: int) -> Tensor:
    """More numbers for rows and terms that have noise: uniform in [0, 1), (N, places) in float32.

    Each is the hash of a normal number's bits, its own place and the purpose, so it hangs on what that number hangs on.
    """
    base = seed_of("uniform", purpose)
    lane = torch.arange(1, places + 1, device=normal_N.device)
    key = _keyed(normal_N.float().view(torch.int32).long(), base)
    bits = _mix(key[:, None] + lane * _GOLDEN)
    return ((bits >> 40) & (2**24 - 1)).float().mul_(2.0**-24)
