"""Arrays in files: the same values as in memory, whatever is asked for; training from them gives the same bits."""

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_patches

from nbutils import ROOT, evaluation, networks, objectives, patches, shards, study, training
from nbutils.batches import Batches
from nbutils.shards import ShardError, Shards


@pytest.fixture
def small(monkeypatch):
    """Files of two patches each, of which none is held."""
    row = toy_patches(n=2).images[0].nbytes
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * row)
    monkeypatch.setattr(shards, "HELD_BYTES", 0)


@pytest.fixture
def data(small, tmp_path, monkeypatch):
    """The same patches in memory and on disk."""
    monkeypatch.setattr(patches, "CACHE", tmp_path / "patches")
    held = toy_patches(n=24)
    patches.store(held)
    return held, patches.load(held.fingerprint)


# ---- like an array in memory

ROWS = st.one_of(
    st.integers(-7, 6),
    st.slices(7),
    st.lists(st.integers(-7, 6), max_size=9).map(lambda rows: np.array(rows, np.intp)),
    st.lists(st.booleans(), min_size=7, max_size=7).map(np.array),
)
PIXELS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 3)), max_size=9).map(
    lambda found: tuple(np.array(found, np.intp).reshape(-1, 3).T)
)
KEYS = ROWS | PIXELS | st.tuples(ROWS, st.just(slice(None, None, 2))) | st.just(...)


def filed(folder, array, rows):
    """An array in files of so many rows."""
    before, shards.SHARD_BYTES = shards.SHARD_BYTES, rows * array[:1].nbytes
    try:
        shards.save(folder, "array", array)
    finally:
        shards.SHARD_BYTES = before
    return shards.open_array(folder, "array", rows=len(array))


@pytest.fixture(scope="module", params=[1, 3, 7], ids=lambda rows: f"{rows} rows a file")
def pair(request, tmp_path_factory):
    array = np.random.default_rng(0).integers(0, 60000, (7, 3, 4), dtype=np.uint16)
    return array, filed(tmp_path_factory.mktemp("array"), array, request.param)


@given(KEYS)
def test_what_is_read_is_what_numpy_gives(pair, key):
    array, inside = pair
    assert np.array_equal(inside[key], array[key]) and inside[key].dtype == array.dtype


@given(st.lists(ROWS.filter(lambda key: isinstance(key, np.ndarray)), min_size=1, max_size=2), KEYS)
def test_a_choice_of_a_choice_is_one(pair, choices, key):
    array, inside = pair
    for index in choices:
        if index.dtype == bool and len(index) != len(array) or index.dtype != bool and not len(array):
            return
        index = index if index.dtype == bool else index % len(array)
        array, inside = array[index], inside.choose(index)
    assert (inside.shape, len(inside), inside.nbytes) == (array.shape, len(array), array.nbytes)
    assert np.array_equal(np.asarray(inside), array)


def test_the_whole_can_be_compared_and_counted(pair):
    array, inside = pair
    assert np.array_equal(inside == 3, array == 3) and np.array_equal(2 * inside, 2 * array)
    assert inside.max() == array.max() and inside.ndim == 3 and np.array_equal([*inside], array)
    assert np.array_equal(np.where(inside > 9, 1, inside), np.where(array > 9, 1, array))
    halved = inside.changed(lambda rows: rows // 2).changed(lambda rows: rows + 1)
    assert np.array_equal(halved[2:4], array[2:4] // 2 + 1) and np.array_equal(inside, array)
    assert (inside.size, inside.itemsize) == (array.size, 2) and array[5, 1, 2] in inside and 60001 not in inside
    assert np.array_equal(inside[()], array) and np.array_equal(inside[True], array[True])
    assert not hasattr(inside, "colour") and not hasattr(inside, "fill")  # nothing that would change a copy unseen
    for wrong in (7, -8, np.array([0, 7]), np.zeros(6, bool), np.array([0.5])):
        for ask in (array.__getitem__, inside.__getitem__):
            with pytest.raises(IndexError):
                ask(wrong)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(inside)


def test_what_would_write_to_the_whole_is_refused(pair):
    _, inside = pair
    with pytest.raises(TypeError):
        np.add(inside, 1, out=inside)
    with pytest.raises(TypeError):
        inside += 1


def test_processes_and_copies_open_files_of_their_own(pair):
    array, inside = pair
    inside[0]
    for other in (pickle.loads(pickle.dumps(inside)), copy.deepcopy(inside), copy.copy(inside)):
        assert np.array_equal(other, array)


def test_files_are_closed_with_the_last_array_that_reads_them(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    inside = filed(tmp_path, np.zeros((6, 2)), 2)
    part = inside.choose(np.arange(3))
    inside[:]
    del inside
    assert np.array_equal(part, np.zeros((3, 2))) and len(os.listdir("/proc/self/fd")) > before
    del part
    assert len(os.listdir("/proc/self/fd")) == before


# ---- faults


@pytest.mark.parametrize("how", ["cut", "gone", "another", "no array", "last gone", "columns first"])
def test_a_damaged_array_is_told_by_its_file(how, tmp_path):
    array = np.zeros((6, 5), np.uint8)
    filed(tmp_path, array, 2)
    path = tmp_path / ("array-00002.npy" if how == "last gone" else "array-00001.npy")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "another":
        np.save(path, np.zeros((2, 5), np.uint16))
    elif how == "columns first":  # would be read in another order than it was written
        np.save(path, np.asfortranarray(np.zeros((2, 5), np.uint8)))
    elif how == "no array":
        path.write_bytes(b"PK\x03\x04")
    else:
        path.unlink()
    with pytest.raises(ShardError, match=r"array-0000[012]\.npy.* delete its folder"):
        shards.open_array(tmp_path, "array", rows=6)


def test_a_file_cut_off_while_it_is_read_is_an_error(tmp_path):
    inside = filed(tmp_path, np.zeros((6, 5), np.uint8), 2)
    path = tmp_path / "array-00001.npy"
    path.write_bytes(path.read_bytes()[:-3])
    assert inside[:3].sum() == 0
    with pytest.raises(ShardError, match="array-00001.npy: ends before"):
        inside[3]


def test_pickled_objects_are_no_arrays(tmp_path):
    np.save(tmp_path / "array.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ShardError, match="array.npy"):
        Shards([tmp_path / "array.npy"])


def test_rows_of_another_shape_are_not_written(tmp_path):
    out = shards.create(tmp_path, "array", np.dtype(np.uint8), (4, 2, 2))
    with pytest.raises(ValueError, match="a row has shape"):
        out[0] = np.zeros((2, 3))
    with pytest.raises(OSError):
        shards.open_array(tmp_path, "array")[0] = np.zeros((2, 2))
    for array, row in ((out, -1), (out, 4), (out.choose(np.array([2, 3])), 0), (out.changed(np.negative), 0)):
        with pytest.raises(IndexError, match="can be written"):
            array[row] = np.zeros((2, 2))
    assert not shards.open_array(tmp_path, "array", rows=4).any()


def test_numbers_can_be_kept_too(tmp_path):
    for array in (np.arange(5.0), np.zeros((0, 3), np.int16), np.zeros((4, 0), np.int16)):
        inside = filed(tmp_path, array, 2)
        assert np.array_equal(inside, array) and inside.dtype == array.dtype and inside.shape == array.shape
        for path in tmp_path.iterdir():
            path.unlink()


def test_many_files_need_few_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN", 3)
    inside = filed(tmp_path, np.arange(40), 2)
    before = len(os.listdir("/proc/self/fd"))
    assert np.array_equal(inside[::-1], np.arange(40)[::-1]) and len(os.listdir("/proc/self/fd")) <= before + 3


def test_what_a_training_cannot_read_is_told_as_such(data, tmp_path):
    held, _ = data
    how = dict(encoder="tu-test_resnet", width="slim", steps=4, batch_size=4, precision="fp32", seed=0)
    run = study.pretraining(held, "noisy", **how)
    path = patches.CACHE / held.fingerprint / "images-00001.npy"
    whole, opened = path.read_bytes(), patches.load
    with pytest.MonkeyPatch.context() as context:
        context.setattr(patches, "load", lambda name: (opened(name), path.write_bytes(whole[:-99]))[0])
        with pytest.raises(ShardError, match=f"{path}: ends before"):
            study.execute(run, tmp_path / "runs")


# ---- patches that stay on disk


def test_a_stored_set_is_in_several_files_and_its_choices_stay_there(data):
    held, filed = data
    folder = patches.CACHE / held.fingerprint
    assert len(list(folder.glob("images-*.npy"))) == 12 and patches.content_hash(filed) == held.fingerprint
    for part, same in ((filed.split("pretrain"), held.split("pretrain")), (filed.take([3, 1]), held.take([3, 1]))):
        assert isinstance(part.images, Shards) and isinstance(part.masks["exact"], Shards)
        assert np.array_equal(part.images, same.images) and np.array_equal(part.masks["noisy"], same.masks["noisy"])
    assert np.array_equal(filed.exact_as_noisy(), held.exact_as_noisy())
    again = patches.reordered(filed, 5)
    assert again.fingerprint == patches.reordered(held, 5).fingerprint
    assert patches.content_hash(patches.load(again.fingerprint)) == again.fingerprint


def test_small_choices_are_held(data, monkeypatch):
    _, filed = data
    monkeypatch.setattr(shards, "HELD_BYTES", filed.images[:6].nbytes)
    assert isinstance(filed.take(np.arange(6)).images, np.ndarray)
    assert isinstance(filed.take(np.arange(7)).images, Shards)


@pytest.mark.parametrize("paired", [False, True])
def test_batches_from_disk_are_those_from_memory(data, paired):
    places = np.repeat(np.arange(12), 2)
    streams = [
        Batches(replace(each, places=places), "noisy", batch_size=5, seed=1, paired=paired, truth=each.masks["exact"])
        for each in data
    ]
    for one, other in islice(zip(*streams, strict=True), 12):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_training_and_judging_from_disk_give_the_same_bits(data):
    found = []
    for each in data:
        network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim")
        training.settle(network, each)
        plan = training.Plan(steps=6, batch_size=4, learning_rate=1e-3, precision="fp32", seed=0)
        curve = training.fit(objectives.Supervised(network), each, "noisy", plan, truth=each.exact_as_noisy())
        tallies = evaluation.evaluate(network, each, each.exact_as_noisy(), 4)
        found.append((network.state_dict(), curve, tallies))
    (state, curve, tallies), (other, other_curve, other_tallies) = found
    assert curve == other_curve and all(torch.equal(state[name], other[name]) for name in state)
    for scene in tallies:
        assert all(np.array_equal(*each) for each in zip(tallies[scene], other_tallies[scene], strict=True))


GROWS = """
import resource, sys, tempfile
from pathlib import Path
import numpy as np
from dataclasses import replace
from itertools import islice
from toy import toy_patches
from nbutils import shards
from nbutils.batches import Batches
shards.HELD_BYTES = 1 << 24
n = int(sys.argv[1])
data = toy_patches(n=16, size_px=64)
with tempfile.TemporaryDirectory() as folder:
    shards.create(Path(folder), "images", np.dtype(np.uint8), (n, 4, 64, 64))
    shards.create(Path(folder), "noisy", np.dtype(np.uint8), (n, 64, 64))
    images, noisy = (shards.open_array(Path(folder), name, rows=n) for name in ("images", "noisy"))
    member = {split: np.ones(n, bool) for split in data.member}
    scenes = np.repeat(np.arange(n // 4), 4).astype(str)
    large = replace(data, images=images, masks={"noisy": noisy, "exact": noisy}, member=member, scenes=scenes)
    for batch in islice(Batches(large.split("pretrain"), "noisy", batch_size=64, seed=0), min(n // 64, 200)):
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_what_is_on_disk():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    most = []
    for n in (1 << 11, 1 << 16):  # 34 MB and 1.1 GB of images, of which 200 batches are drawn
        ran = subprocess.run([sys.executable, "-c", GROWS, str(n)], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        most.append(int(ran.stdout) / 1024)
    assert most[1] < most[0] + 100, f"{most} MB"


def test_files_that_cannot_be_opened_are_told_when_they_are_read_not_when_they_are_expected(tmp_path):
    inside = filed(tmp_path, np.zeros((6, 5), np.uint8), 2)
    (tmp_path / "array-00001.npy").unlink()
    inside.expect(np.arange(6))
    with pytest.raises(ShardError, match="array-00001.npy: cannot be read"):
        inside[2:4]
