"""Audit: what is wrong with a noisy map, measured against exact masks of the same ground."""

from nbutils.audit.agreement import (
    Audit,
    Profile,
    bootstrap_interval,
    boundary_profile,
    compare,
    wilson_interval,
)
from nbutils.audit.findings import Findings, examine, statistics_of, with_intervals
from nbutils.audit.structure import EDGES_PX, KINDS, SIZES_PX
from nbutils.distance import boundary_distance

__all__ = [
    "EDGES_PX",
    "KINDS",
    "SIZES_PX",
    "Audit",
    "Findings",
    "Profile",
    "bootstrap_interval",
    "boundary_distance",
    "boundary_profile",
    "compare",
    "examine",
    "statistics_of",
    "wilson_interval",
    "with_intervals",
]
