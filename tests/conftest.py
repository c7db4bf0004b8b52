"""Shared settings of the tests: one thread each, nothing from the network, no caches outside build/."""

import os
from pathlib import Path

import pytest
from hypothesis import configuration, settings

ROOT = Path(__file__).resolve().parents[1]

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy and torch are imported
    os.environ.setdefault(name, "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # pretrained weights are never downloaded

import nbutils  # noqa: E402, F401 - first, so that tests may import torchvision and what builds on it on their own

configuration.set_hypothesis_home_dir(ROOT / "build/hypothesis")
settings.register_profile("study", deadline=None, derandomize=True)  # the same examples on every machine
settings.load_profile("study")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that run notebooks first: they take longest, and each stays on one worker."""
    slow = {item.path for item in items if item.get_closest_marker("notebook")}
    items.sort(key=lambda item: item.path not in slow)  # stable
