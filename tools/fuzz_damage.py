"""Ways to damage a file: its bytes, the numbers in its headers, and the tree that YAML or JSON describes."""

import json
import re
import struct
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from typing import Any

import numpy as np
import yaml

Damage = Callable[[bytes, np.random.Generator], bytes]

EXTREMES = [
    *(struct.pack(f"<{kind}", value) for kind in "bhiq" for value in (0, -1, 1, 127)),
    *(struct.pack("<I", value) for value in (0x7FFFFFFF, 0x80000000, 0xFFFFFFFE)),
    *(struct.pack("<Q", 1 << power) for power in (32, 40, 62)),
    *(struct.pack("<d", value) for value in (float("nan"), float("inf"), -1e308, 5e-324)),
]
ODD = [
    *(None, True, -1, 0, 10**30, 1e308, 5e-324, float("nan"), float("inf"), [], {}, [[]], {"a": {"a": 1}}),
    *("", " ", "\0", "/", "\ud800", "x" * 100_000, "../../../../etc/passwd", "/etc/passwd", "~nobody-of-that-name/x"),
    *("file:" + "///etc/passwd", "https://example.invalid/a.json", "/vsicurl/https://example.invalid/a.tif"),
    *("(a+)+$", r"((\w|/)*)*\.$", "(", "(a{99999})", "**/" * 30 + "*", "*" * 500 + "x", "[", "{a}" * 100),
    *(["x"] * 5000, [1e308] * 3, date(2024, 2, 29), list(range(300)), {str(i): i for i in range(300)}),
]
LAUGHS = ", ".join(["&a0 [x, x]", *(f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))])
YAML_PARTS = [
    f"[{LAUGHS}]",  # each list holds ten times the one before: 10^11 entries
    "&loop [*loop]",
    "&loop {a: *loop}",
    "!!python/object/apply:os.system ['exit 7']",
    "!!python/name:os.system",
    "!!binary '%%%'",
    "!!timestamp 'never'",
    "!!int 'x'",
    "!!float 'x'",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "{<<: 1}",
    "{<<: {a: 1}, a: 2}",
    "{? [a, b] : c}",
    "{? {a: b} : c}",
    "{1: a, true: b, null: c, 2024-01-01: d}",
    "*nowhere",
    "2024-99-99",
    "1" + ":59" * 2000,
    "9" * 5000,
    "0x" + "f" * 100_000,
    "[" * 3000 + "]" * 3000,
    "{a: " * 3000 + "}" * 3000,
    '"\\ud800"',
    "{a: 1, a: 2}",
]
JSON_PARTS = ["[" * 200_000, "[" * 3000 + "]" * 3000, '{"a": ' * 100_000, '{"a": 1, "a": 2}', "1e999", "-1e-999",
              "9" * 5000, '"\\ud800"', "NaN", "-Infinity", "'a'", "//", '"\\u0000"']  # fmt: skip


def of_bytes(raw: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, flip bits, overwrite, blank, exchange or repeat stretches."""
    broken, how = bytearray(raw), rng.integers(7)
    near = len(raw) if rng.random() < 0.5 else min(len(raw), 4000)  # headers are where damage hurts
    start, length = int(rng.integers(near)), int(2 ** rng.uniform(0, 7.6))
    if how == 0:
        return raw[:start]
    if how == 1:
        for at in rng.integers(near, size=int(2 ** rng.uniform(0, 4))):
            broken[at] ^= 1 << rng.integers(8)
    elif how == 2:
        broken[start : start + length] = rng.bytes(len(broken[start : start + length]))
    elif how == 3:
        broken[start : start + length] = bytes(len(broken[start : start + length]))
    elif how == 4:
        other = int(rng.integers(len(raw)))
        broken[start : start + length] = broken[other : other + length]
    elif how == 5:
        broken[start:start] = broken[start : start + length]
    else:
        del broken[start : start + length]
    return bytes(broken)


def of_numbers(raw: bytes, rng: np.random.Generator) -> bytes:
    """Write numbers no program expects where a binary format keeps counts, sizes and offsets."""
    broken = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        value = EXTREMES[rng.integers(len(EXTREMES))]
        at = int(rng.integers(min(len(raw), 600) if rng.random() < 0.8 else len(raw))) // 2 * 2
        broken[at : at + len(value)] = value
    return bytes(broken[: len(raw)])


def of_yaml(raw: bytes, rng: np.random.Generator, below: tuple[str, ...] = ()) -> bytes:
    """Change one or two nodes of a YAML document, below one of some keys if they are given."""
    return _tree(yaml.safe_load(raw), rng, lambda tree: yaml.safe_dump(tree, sort_keys=False), YAML_PARTS, below)


def of_json(raw: bytes, rng: np.random.Generator) -> bytes:
    """Change one or two nodes of a JSON document."""
    return _tree(json.loads(raw), rng, lambda tree: json.dumps(tree, default=str), JSON_PARTS)


def of_text(raw: bytes, rng: np.random.Generator) -> bytes:
    """Change JSON, be it the whole file or the header of a safetensors file, whose length is told as it then is."""
    if raw[:1] == b"{":
        return of_json(raw, rng)
    (length,) = struct.unpack("<Q", raw[:8])
    header = of_json(raw[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def _tree(
    tree: Any, rng: np.random.Generator, dump: Callable[[Any], str], parts: list[str], below: tuple[str, ...] = ()
) -> bytes:
    """Put a value of the wrong kind, a bomb or nothing in the place of a node, or a key that nobody knows beside it."""
    for _ in range(rng.integers(1, 3)):
        places = [place for place in _places(tree) if not below or place[1][0] in below]
        if not places:
            break
        parent, path = places[rng.integers(len(places))]
        key, how = path[-1], rng.integers(7)
        if how < 3:
            parent[key] = deepcopy(ODD[rng.integers(len(ODD))])
        elif how == 3:
            del parent[key]
        elif how == 4 and isinstance(parent, dict):
            parent[["colour", "", "\0", str(key).upper(), " " + str(key)][rng.integers(5)]] = parent.pop(key)
        elif how == 5:
            parent[key] = [parent[key]] * int(rng.integers(1, 4))
        else:
            parent[key] = "PART HERE"
            text = dump(tree)
            return re.sub("[\"']?PART HERE[\"']?", lambda _: parts[rng.integers(len(parts))], text).encode(*_LENIENT)
    return dump(tree).encode(*_LENIENT)


_LENIENT = ("utf-8", "surrogatepass")  # half a character is among what may stand in a file


def _places(tree: Any, path: tuple = ()) -> list[tuple[Any, tuple]]:
    """Every node but the root, as its parent and the path of keys to it."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    found = [(tree, (*path, key)) for key, _ in items]
    return found + [place for key, value in items for place in _places(value, (*path, key))]
