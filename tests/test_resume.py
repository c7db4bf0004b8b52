"""Trainings that are killed, at any moment, go on to the bits of one that was left alone."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toy import toy_patches

from nbutils import ROOT, checkpoint, networks, objectives, training

DATA = toy_patches(size_px=32).split("pretrain")
PLAN = training.Plan(steps=7, batch_size=4, learning_rate=1e-2, precision="fp32", seed=0)


class _Drawing(objectives.Supervised):
    """Loses by random weights drawn from a generator of its own and from the global one, and counts its calls."""

    def __init__(self, network):
        super().__init__(network)
        self.generator, self.calls = torch.Generator().manual_seed(1), 0

    def get_extra_state(self):
        return {"generator": self.generator.get_state(), "calls": self.calls, "words": ["any", None, 0.1]}

    def set_extra_state(self, state):
        self.generator.set_state(state["generator"])
        self.calls = state["calls"]

    def forward(self, images, masks):
        """Return a randomly weighted loss, heavier from call to call."""
        self.calls += 1
        draw = torch.rand((), generator=self.generator) + torch.rand(())
        return super().forward(images, masks) * draw * self.calls


def _build(kind):
    """An objective with a decoder that draws dropout, on an encoder that is small."""
    network = networks.build("tu-test_resnet", "deeplabv3plus", in_channels=4, n_classes=4, seed=0, width="slim")
    if kind == "moco":
        return objectives.MoCo(network.encoder, seed=0, queue=16)
    return {"supervised": objectives.Supervised, "drawing": _Drawing}[kind](network)


def _fit(kind, path=None, **changes):
    """Train and return the curve and the state."""
    objective = _build(kind)
    given = {"truth": DATA.masks["noisy"], "checkpoint": path, "tag": "own", "save_every_s": 0.0, **changes}
    curve = training.fit(objective, DATA, "noisy", PLAN, **given)
    state = curve, checkpoint._pack(objective.state_dict(), tensors := {}), tensors
    if path is not None:
        checkpoint.remove(path)  # as whoever has stored the result does
    return state


def _same(one, other):
    assert one[:2] == other[:2] and one[2].keys() == other[2].keys()
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(place, path, kind, number):
    """Train in this process and be killed at a place in the code, the `number`-th time it is reached."""
    reached = []

    def guard(owner, name, before):
        original = getattr(owner, name)

        def call(*args, **named):
            reached.append(1)
            if len(reached) == number:
                before(*args)
                _die()
            return original(*args, **named)

        setattr(owner, name, call)

    def half(tensors, scratch, *rest):
        """Write the first half of a checkpoint."""
        save_file(tensors, scratch, metadata={"tag": "half"})
        os.truncate(scratch, os.path.getsize(scratch) // 2)

    nothing = lambda *args: None  # noqa: E731
    owner, name, before = {
        "a step": (training._Loop, "learn", nothing),
        "the optimiser": (torch.optim.AdamW, "step", nothing),
        "a point of the curve": (training._Loop, "point", nothing),
        "writing": (checkpoint, "save_file", half),
        "renaming": (checkpoint.os, "replace", nothing),
        "after renaming": (checkpoint, "_flush_folder", nothing),
        "the end": (checkpoint, "remove", nothing),
    }[place]
    guard(owner, name, before)
    _fit(kind, path)


@pytest.fixture(scope="module")
def alone():
    return {kind: _fit(kind) for kind in ("supervised", "moco", "drawing")}


def _killed(*args):
    process = multiprocessing.get_context("fork").Process(target=_die_at, args=args)
    process.start()
    process.join(120)
    return process.exitcode == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        ("supervised", [("writing", 1), ("a step", 3), ("writing", 2), ("the optimiser", 1), ("the end", 1)]),
        ("moco", [("a step", 3), ("renaming", 2), ("a point of the curve", 2)]),
        ("drawing", [("after renaming", 2), ("writing", 2), ("a step", 2)]),
    ],
)
def test_killed_again_and_again_it_ends_with_the_same_bits(kind, moments, alone, tmp_path):
    path = tmp_path / "own.safetensors"
    for place, number in moments:
        assert _killed(place, path, kind, number), f"{place} was not reached"
        assert all(fnmatch(each.name, f"*{path.name}*") for each in tmp_path.iterdir())
    assert path.exists()
    _same(_fit(kind, path), alone[kind])
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_resume as t
t.PLAN = t.replace(t.PLAN, steps=5000)
print("ready", flush=True)
t._fit("supervised", Path({path!r}))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_from_outside_at_any_moment_the_checkpoint_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "own.safetensors"
    script = SCRIPT.format(tests=str(ROOT / "tests"), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (owner,) = _owners(path)
    saved = checkpoint.load(path, owner)
    assert saved is not None and 1 <= saved["step"] < 5000
    # Another process goes on to where a training that was left alone came to, some steps further.
    monkeypatch.setattr(sys.modules[__name__], "PLAN", replace(PLAN, steps=5000))
    until = saved["step"] + 3
    resumed, fresh = _steps("supervised", until, saved), _steps("supervised", until)
    assert json.dumps(resumed[0]) == json.dumps(fresh[0]) and resumed[1].keys() == fresh[1].keys()
    assert all(torch.equal(resumed[1][name], fresh[1][name]) for name in fresh[1])


def _owners(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return [file.metadata()["tag"]]


def _steps(kind, until, saved=None):
    """Take single steps, from a saved state if there is one; all of the state that is reached."""
    loop = training._Loop(_build(kind), DATA, "noisy", PLAN, DATA.masks["noisy"], training.alone_on(PLAN.precision))
    with torch.random.fork_rng():
        torch.manual_seed(PLAN.seed)
        if saved is not None:
            loop.load_state_dict(saved)
        while loop.step < until:
            loop.learn()
        tensors = {}
        return checkpoint._pack(loop.state_dict(), tensors), tensors


def _broken_off(path, kind="supervised", **changes):
    """A checkpoint after a few steps."""

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fit(kind, path, judge=stop, looks=2, **changes)
    assert path.exists()


def test_an_interrupted_training_keeps_its_checkpoint_and_what_differs_starts_anew(alone, tmp_path, monkeypatch):
    path = tmp_path / "own.safetensors"
    loads = []
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda *args: loads.append(load(*args)) or loads[-1])
    for changes in ({"tag": "of other code"}, {"truth": None}):
        _broken_off(path, **changes)
        _same(_fit("supervised", path), alone["supervised"])
        assert loads[-1] is None and not path.exists()
    _broken_off(path, "moco")
    _same(_fit("supervised", path), alone["supervised"])
    assert loads[-1] is None


@pytest.mark.parametrize("damage", ["empty", "half", "a bit", "a word", "other file", "folder of the same tag"])
def test_damage_is_told_and_never_learned_from(damage, tmp_path):
    path, state = tmp_path / "own.safetensors", {"weights": torch.arange(100.0), "step": 12345}
    checkpoint.save(path, "tag", state)
    assert checkpoint.load(path, "tag")["step"] == 12345
    content = path.read_bytes()
    if damage == "other file":
        save_file({"weights": torch.zeros(3)}, path)
    elif damage == "folder of the same tag":
        save_file(load_file(path), path, metadata={"tag": "tag"})
    else:
        flipped = bytearray(content)
        flipped[-5] ^= 1
        written = {"empty": b"", "half": content[: len(content) // 2], "a bit": bytes(flipped)}
        path.write_bytes(written.get(damage, content.replace(b"12345", b"12346")))
    assert checkpoint.load(path, "tag") is None and not path.exists()


def test_no_checkpoint_is_no_state(tmp_path):
    assert checkpoint.load(tmp_path / "absent", "tag") is None


def test_divergence_leaves_no_checkpoint(tmp_path):
    with pytest.raises(training.TrainingError):
        plan = replace(PLAN, learning_rate=1e30)
        training.fit(
            _build("supervised"), DATA, "noisy", plan, checkpoint=tmp_path / "deep" / "own", tag="", save_every_s=0
        )
    assert list((tmp_path / "deep").iterdir()) == []


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text(), inner), max_leaves=10
)


@settings(max_examples=30)
@given(TREES)
def test_a_tree_is_read_back_as_it_was(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "own"
    checkpoint.save(path, "tag", tree)
    assert checkpoint.load(path, "tag") == tree


def test_tensors_are_read_back_whatever_their_type_and_layout(tmp_path):
    weights = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tensors = [weights, weights[0], weights.bfloat16(), torch.tensor(3), torch.empty(0, dtype=torch.long)]
    tensors += [torch.rand(3) > 0.5, torch.Generator().get_state(), weights.t() if weights.ndim < 3 else weights.mT]
    checkpoint.save(tmp_path / "own", "tag", tensors)
    for before, after in zip(tensors, checkpoint.load(tmp_path / "own", "tag"), strict=True):
        assert torch.equal(before, after) and before.dtype == after.dtype


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match="got set"):
        checkpoint.save(tmp_path / "own", "tag", {"a": {1, 2}})
    assert list(tmp_path.iterdir()) == []
