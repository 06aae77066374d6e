"""Packed trials: runs that differ in data and numbers only train as one program on one device.

Supervision fraction, λ, β, k, learning rate and seed are data to a model, not its shape. N such runs are one batch of
N times the rows; their networks run as one where that pays, and each keeps its own stream, noise, clipping, record and
checkpoints: a packed trial can be resumed alone, and the other way round.
"""

from __future__ import annotations

from pipeline.packing.alike import packable
from pipeline.packing.seat import Member
from pipeline.packing.training import Ended, train_packed

__all__ = ["Ended", "Member", "packable", "train_packed"]
