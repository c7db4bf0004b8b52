"""Audit: what is wrong with a noisy map, and what may be, measured in whatever way the labels at hand allow.

``examine`` compares with exact masks, ``sampling`` with a random sample of checked pixels (as many as ``planning``
says), ``suspicion`` with nothing but the images.
"""

from nbutils.audit import planning, sampling, suspicion
from nbutils.audit.agreement import (
    Audit,
    Profile,
    boundary_profile,
    compare,
    wilson_interval,
)
from nbutils.audit.findings import Findings, examine, pool, statistics_of, with_intervals
from nbutils.audit.structure import EDGES_PX, KINDS, SIZES_PX
from nbutils.distance import boundary_distance

__all__ = [
    "EDGES_PX",
    "KINDS",
    "SIZES_PX",
    "Audit",
    "Findings",
    "Profile",
    "boundary_distance",
    "boundary_profile",
    "compare",
    "examine",
    "planning",
    "pool",
    "sampling",
    "statistics_of",
    "suspicion",
    "wilson_interval",
    "with_intervals",
]
