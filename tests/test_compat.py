"""torchvision beside CPU torch: repaired where its operators are missing, untouched where it loads."""

import subprocess
import sys
import textwrap

import pytest

from nbutils import compat

BROKEN = """
import torch
torch.library.register_fake("torchvision::nms", lambda dets, scores, iou: dets)
from torchvision import part
"""


def _import_with(folder, body: str) -> subprocess.CompletedProcess:
    """Run compat in a fresh interpreter that finds `folder`'s torchvision first."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(body)
    (folder / "torchvision" / "part.py").write_text("")
    script = f"""
        import importlib.util, sys
        sys.path.insert(0, {str(folder)!r})
        spec = importlib.util.spec_from_file_location("compat", {_compat_path()!r})
        compat = importlib.util.module_from_spec(spec); spec.loader.exec_module(compat)
        module = compat.ensure_torchvision()
        print(module.__name__, len(compat._declared), "torchvision.part" in sys.modules)
    """
    return subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)


def _compat_path() -> str:
    from nbutils import compat

    return compat.__file__


def test_missing_operators_are_declared(tmp_path):
    run = _import_with(tmp_path, BROKEN)
    assert run.stdout.split() == ["torchvision", "1", "True"], run.stderr


def test_nothing_happens_where_torchvision_loads(tmp_path):
    run = _import_with(tmp_path, "from torchvision import part")
    assert run.stdout.split() == ["torchvision", "0", "True"], run.stderr


def test_another_fault_is_passed_on(tmp_path):
    run = _import_with(tmp_path, "raise RuntimeError('out of cheese')")
    assert run.returncode == 1 and "out of cheese" in run.stderr


def test_the_real_torchvision_works_after_nbutils():
    pytest.importorskip("nbutils")
    import torch
    from torchvision.transforms import v2

    assert v2.functional.horizontal_flip(torch.arange(3).view(1, 1, 3)).flatten().tolist() == [2, 1, 0]


def test_keeping_memory_is_asked_for_once_and_never_fails(monkeypatch):
    asked = []

    class Library:
        def mallopt(self, name, value):
            asked.append((name, value))
            return int(value < 2**30)  # as where such a value is too large

    compat.keep_memory.cache_clear()
    monkeypatch.setattr(compat.ctypes, "CDLL", lambda name: Library())
    compat.keep_memory()
    compat.keep_memory()
    assert asked == [(-1, 2**30), (-3, 2**30), (-3, 2**25)]
    compat.keep_memory.cache_clear()
    monkeypatch.setattr(compat.ctypes, "CDLL", lambda name: object())  # a C library without it
    compat.keep_memory()
    compat.keep_memory.cache_clear()
