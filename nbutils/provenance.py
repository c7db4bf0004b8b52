"""Provenance: what computed a result - packages, code, machine - and nothing of who did, or where.

The lock, all package versions and a digest of every module here, is the same for thousands of runs: it lies once in the
store, named by its digest.
"""

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from nbutils import ROOT, disk, training

ENVIRONMENTS = ".environments"
_MAIN = ("torch", "segmentation-models-pytorch", "timm", "lightly", "lightning-fabric", "numpy")
_GIT_S = 20  # seconds that git may take; a slow disk is no reason to wait with a result


def record(store: Path) -> dict[str, Any]:
    """Describe what computes here and now, and see to it that the lock is in the store.

    Args:
        store: Folder of the results; the lock goes to ``.environments/<digest>.json`` in it.

    Returns:
        ``finished`` (UTC), ``python``, ``platform``, ``processor``, ``threads``, the versions of the main packages,
        ``environment``, the digest of the lock; and where this is a git checkout ``commit`` and ``dirty``, whether
        tracked files differ from it, else None for both.
    """
    lock = environment()
    digest = digest_of(lock)
    if read(store, {"environment": digest}) is None:
        disk.write_json(store / ENVIRONMENTS / f"{digest}.json", lock)
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine(),
        **{name: lock["packages"][name] for name in _MAIN},
        "environment": digest,
        **_checkout(),
    }


def machine() -> dict[str, Any]:
    """Describe what, besides packages and code, the bits of a result depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": training.processor(),
        "threads": torch.get_num_threads(),
        "processes": 1,  # unless several train together
    }


@cache
def environment() -> dict[str, dict[str, str]]:
    """Return the lock: ``packages``, the version of every installed distribution, and ``code``, digests by module."""
    packages: dict[str, str] = {}
    for each in distributions():
        if name := each.metadata["Name"]:  # else a folder that a broken uninstall left
            packages.setdefault(re.sub(r"[-_.]+", "-", name).lower(), each.version)  # the first is what is imported
    home = Path(__file__).parent
    modules = {".".join(path.relative_to(home.parent).with_suffix("").parts): path for path in home.rglob("*.py")}
    code = {name.removesuffix(".__init__"): disk.source_digest(path.read_text()) for name, path in modules.items()}
    return {"packages": dict(sorted(packages.items())), "code": dict(sorted(code.items()))}


def digest_of(lock: Mapping[str, Any]) -> str:
    """Return the lock's name: the first 20 hex digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(json.dumps(lock, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:20]


def read(store: Path, provenance: Mapping[str, Any]) -> dict[str, dict[str, str]] | None:
    """Return the lock that a record names; None where it names none (older records) or the lock is gone or damaged."""
    try:
        lock = json.loads((store / ENVIRONMENTS / f"{provenance['environment']}.json").read_text())
    except (KeyError, OSError, ValueError):
        return None
    return lock if digest_of(lock) == provenance["environment"] else None


@cache
def _checkout() -> dict[str, str | bool | None]:
    """Commit of the checkout this code lies in, and whether it was changed; None where git cannot tell."""
    top, commit = (_git("rev-parse", *what) for what in (["--show-toplevel"], ["HEAD"]))
    if not top or not commit or Path(top).resolve() != ROOT.resolve():  # installed, perhaps within another checkout
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": _git("status", "--porcelain", "--untracked-files=no") != ""}


def _git(*words: str) -> str | None:
    try:
        asked = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True, timeout=_GIT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()
