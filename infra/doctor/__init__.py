"""A look at a node, or at all nodes of an allocation, before a long run: what every rank finds, judged together."""

from __future__ import annotations

from infra.doctor.checks import check_clock, check_devices, check_folder, check_sums, check_tracking, check_versions
from infra.doctor.finding import Finding, everywhere

__all__ = [
    "Finding", "check_clock", "check_devices", "check_folder", "check_sums", "check_tracking", "check_versions",
    "everywhere",
]  # fmt: skip
