"""Damage to files, for the tests of readers."""

import numpy as np


def damaged(raw: bytes, rng: np.random.Generator) -> bytes:
    """Truncate, overwrite some bytes, flip bits near the start, or blank a stretch."""
    broken, how = bytearray(raw), rng.integers(4)
    if how == 0:
        return raw[: rng.integers(len(raw))]
    if how == 1:
        for at in rng.integers(len(raw), size=rng.integers(1, 20)):
            broken[at] = rng.integers(256)
    elif how == 2:
        for at in rng.integers(min(len(raw), 2000), size=rng.integers(1, 5)):
            broken[at] ^= 1 << rng.integers(8)
    else:
        start = rng.integers(len(raw))
        broken[start : start + rng.integers(1, 200)] = rng.bytes(len(broken[start : start + 100]))
    return bytes(broken)
