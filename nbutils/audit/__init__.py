"""Audit: what is wrong with a noisy map, and what may be, measured in whatever way the labels at hand allow.

``agreement`` compares with exact masks, ``sampling`` with a random sample of checked pixels (as many as ``planning``
says), ``suspicion`` with nothing but the images.
"""

from nbutils.audit import planning, sampling, suspicion
from nbutils.audit.agreement import (
    Audit,
    Profile,
    bootstrap_interval,
    boundary_distance,
    boundary_profile,
    compare,
    wilson_interval,
)

__all__ = [
    "Audit",
    "Profile",
    "bootstrap_interval",
    "boundary_distance",
    "boundary_profile",
    "compare",
    "planning",
    "sampling",
    "suspicion",
    "wilson_interval",
]
