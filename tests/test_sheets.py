"""Maps are written whole or not at all, in memory that does not grow with the image."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import rasterio
from grounds import environment, left_in, mapped, pixels_of, write

from nbutils import ROOT, sheets, sources
from nbutils.legend import VOID
from nbutils.mapping import Squares


@contextmanager
def files_of_at_most(size: int):
    """Let no file of this process grow beyond a size, as on a full disk."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.8, 0.95, 0.999])
def test_a_full_disk_leaves_the_old_map_and_nothing_else(tmp_path, share):
    path = write(tmp_path / "a.tif", pixels_of(900, 900))
    place = mapped(path, tmp_path / "maps", squares=Squares(320, 32))
    before = place.classes.read_bytes()
    with (
        files_of_at_most(int(share * len(before))),
        pytest.raises(OSError, match="a_classes.tif: cannot be written: .*; make room"),
    ):
        mapped(path, tmp_path / "maps", squares=Squares(320, 32), overwrite=True)
    assert left_in(tmp_path / "maps") == ["a_classes.tif"] and place.classes.read_bytes() == before


def test_what_does_not_read_back_is_not_kept(tmp_path, monkeypatch):
    copy = rasterio.shutil.copy

    def lose_a_block(source, target, **options):
        with rasterio.open(source, "r+") as data:
            data.write(np.full((1, 32, 32), VOID, np.uint8), window=((0, 32), (0, 32)))
        copy(source, target, **options)

    monkeypatch.setattr(sheets.rasterio.shutil, "copy", lose_a_block)
    with pytest.raises(OSError, match="a_classes.tif: cannot be written: it does not read back as it was written"):
        mapped(write(tmp_path / "a.tif", pixels_of(64, 64)), tmp_path / "maps")
    assert not left_in(tmp_path / "maps")


def test_an_image_that_ends_early_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.tif"
    rasterio.shutil.copy(write(tmp_path / "plain.tif", pixels_of(600, 600)), path, driver="COG", blocksize=128)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(sources.SourceError, match="a.tif: cannot be read"):
        mapped(path, tmp_path / "maps")
    assert not left_in(tmp_path / "maps")


def test_what_a_killed_process_leaves_goes_with_the_next_map(tmp_path):
    path, folder = write(tmp_path / "a.tif", pixels_of(200, 200)), tmp_path / "maps"

    def die_at_the_third_block():
        write_block, seen = sheets.Sheet.write, []

        def counted(sheet, *block):
            seen.append(block)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            write_block(sheet, *block)

        sheets.Sheet.write = counted
        mapped(path, folder)

    process = multiprocessing.get_context("fork").Process(target=die_at_the_third_block)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [name.startswith(".writing-") for name in left_in(folder)] == [True], "and no map"
    with sheets.workshop(folder) as busy:
        (busy / "block").touch()
        mapped(path, folder)
        assert left_in(folder) == [busy.name, "a_classes.tif"] and (busy / "block").exists(), "in use: left alone"
    assert left_in(folder) == ["a_classes.tif"]


MEASURE = """
import resource, sys
sys.path.insert(0, "tests")
import grounds as t
from nbutils import sheets, files
files.GDAL_CACHE = sheets.GDAL_CACHE = 1 << 22
path, folder = t.Path(sys.argv[1]), t.Path(sys.argv[2])
t.mapped(path, folder, squares=t.Squares(512, 32))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
def test_memory_does_not_grow_with_the_image(tmp_path):
    most = []
    for side in (1000, 3000):  # 4 and 36 MB of pixels
        path = write(tmp_path / f"{side}.tif", np.tile(pixels_of(1000, 1000), (1, side // 1000, side // 1000)))
        asked = [sys.executable, "-c", MEASURE, path, tmp_path / "maps"]
        found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True, env=environment())
        most.append(int(found.stdout) / 1000)
    assert most[1] - most[0] < 18, f"{most} MB"
