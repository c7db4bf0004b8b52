"""Processes that share work: a script without a main guard is told so before one of them starts, and works alone."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nbutils import ROOT, workers

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
CARD = """
name: pictures
licence: CC0
get: made by the test
root: {root}
images: {{glob: "images/*.png", bands: [red, green, blue]}}
exact: {{glob: "exact/*.png", coding: index, legend: autogeo4}}
noisy: {{from: mask, glob: "noisy/*.png", coding: index, legend: autogeo4}}
split: {{test: [c], validation: [b]}}
"""
CUT = """
from pathlib import Path
from nbutils import patches

print("begun")
patches.CACHE = Path("cache")

def cut(workers):
    return patches.cut(patches.open_dataset("card.yaml"), size_px=16, max_patches=9, workers=workers).fingerprint
"""
REFUSED = (
    "processes were asked for outside the main guard of a script; each would run it anew and ask again. "
    'Put what it does under `if __name__ == "__main__":` in a file, or pass workers=1'
)


@pytest.fixture
def folder(tmp_path):
    """A folder for scripts, with a data set of three pictures."""
    rng = np.random.default_rng(0)
    for part, high, shape in (("images", 255, (32, 32, 3)), ("exact", 4, (32, 32)), ("noisy", 4, (32, 32))):
        (tmp_path / part).mkdir()
        for scene in "abc":
            Image.fromarray(rng.integers(0, high, shape, dtype=np.uint8)).save(tmp_path / part / f"{scene}.png")
    (tmp_path / "card.yaml").write_text(CARD.format(root=tmp_path))
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_what_to_do_and_works_alone(folder):
    forget = 'next(patches.CACHE.glob("*.json")).unlink()'
    script = f"{CUT}\nprint(cut(workers=1))\n{forget}\n"
    (folder / "bare.py").write_text(f"{script}print(cut(workers=2))\n")
    bare = python(folder, "bare.py")
    begun, alone = bare.stdout.split()  # no process has run the script anew
    assert bare.returncode == 1 and begun == "begun"
    line = len(script.splitlines()) + 1
    assert bare.stderr.splitlines()[-1] == f"RuntimeError: {folder / 'bare.py'}, line {line}: {REFUSED}"
    assert bare.stderr.count("Traceback") == 1
    assert [path.name for path in (folder / "cache").iterdir()] == [alone], "nothing else is left behind"


@pytest.mark.slow
def test_runs_and_questions_about_layers_are_told_the_same(tmp_path):
    script = """
    from pathlib import Path
    from toy import toy_patches
    from nbutils import layerwise, patches, store, study

    patches.CACHE = store.MEASURED = Path("cache")
    data = toy_patches()
    common = {"steps": 1, "batch_size": 2, "encoder": "tu-test_resnet", "width": "slim", "precision": "fp32"}
    runs = [study.pretraining(data, "noisy", seed=seed, **common) for seed in (0, 1)]
    asked = {run.seed: layerwise.Question("probes", (run,), data.fingerprint, (), Path("runs")) for run in runs}
    for work in (lambda: study.run_many(runs, workers=2, store=Path("runs")), lambda: layerwise.ask(asked, workers=2)):
        try:
            work()
        except RuntimeError as error:
            print(error)
    """
    (tmp_path / "bare.py").write_text(textwrap.dedent(script))
    told = python(tmp_path, "bare.py")
    assert told.returncode == 0 and told.stderr == ""
    assert [line.partition(": ")[2] for line in told.stdout.splitlines()] == [REFUSED] * 2


ASK = "from nbutils import workers; workers.check_script()"
BARE = {
    "statement": ASK,
    "block": f"for _ in range(2):\n    {ASK}",
    "imported": "import inner",
    "named elsewhere": f"print(__name__)\nname = __name__; {ASK}",
}
GUARDED = {
    "guard": f"if __name__ == '__main__':\n    {ASK}",
    "guard in a block": f"try:\n    if '__main__' == __name__:\n        {ASK}\nfinally:\n    pass",
    "guard in a line": f"def main():\n    {ASK}\n\n__name__ == '__main__' and main()",
    "guarded import": "if __name__ == '__main__':\n    import inner",
}


@pytest.mark.parametrize(
    ("script", "fine"),
    [(s, False) for s in BARE.values()] + [(s, True) for s in GUARDED.values()],
    ids=[*BARE, *GUARDED],
)
def test_what_is_under_a_guard_is_told_from_what_is_not(tmp_path, monkeypatch, script, fine):
    """As `python script.py` runs it: the frames of a main module whose file is there."""
    (tmp_path / "inner.py").write_text(ASK)
    (path := tmp_path / "script.py").write_text(script)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "inner", raising=False)
    main = type(sys)("__main__")
    main.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "__main__", main)
    code = compile(script, str(path), "exec")
    if fine:
        exec(code, vars(main))
    else:
        with pytest.raises(RuntimeError, match="outside the main guard"):
            exec(code, vars(main))


@pytest.mark.parametrize(
    ("file", "spec", "fine"),
    [(None, None, True), ("package/__main__.py", "package.__main__", True), ("<stdin>", None, False),
     ("script.py", None, False), ("script.py", "script", False)],
    ids=["notebook", "package", "stdin", "script", "module"],
)  # fmt: skip
def test_what_is_not_imported_anew_may_start_processes_anywhere(tmp_path, monkeypatch, file, spec, fine):
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(ASK)
    main = type(sys)("__main__")
    main.__spec__ = spec and type(sys.__spec__)(spec, None)
    if file:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    code = compile(ASK, file or "<cell>", "exec")
    if fine:
        exec(code, vars(main))
    else:
        with pytest.raises(RuntimeError, match="outside the main guard"):
            exec(code, vars(main))


@pytest.mark.slow
@pytest.mark.parametrize("run", [["guarded.py"], ["-m", "package"]], ids=["guarded", "package"])
def test_a_guarded_script_and_a_package_start_processes(tmp_path, run):
    work = "from nbutils import workers\nwith workers.mapper(2) as each:\n    print(*each(abs, [-1, -2]))\n"
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__main__.py").write_text(work)
    (tmp_path / "guarded.py").write_text(f'if __name__ == "__main__":\n{textwrap.indent(work, "    ")}')
    told = python(tmp_path, *run)
    assert told.stdout == "1 2\n", told.stderr


SLEEPING = """
import os, time
from nbutils import workers

def sleep(_):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    with workers.mapper(2) as each:
        list(each(sleep, range(2)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="whether a process lives is read from /proc")
def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    (tmp_path / "sleeping.py").write_text(SLEEPING)
    parent = subprocess.Popen([sys.executable, "sleeping.py"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(alive(pid) for pid in pids)
        parent.kill()
        parent.wait()
        until = time.monotonic() + 60
        while any(alive(pid) for pid in pids) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(alive(pid) for pid in pids)
    finally:
        parent.kill()
        parent.stdout.close()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def pools(monkeypatch):
    pools = workers.Waiting(workers._pools.close)
    monkeypatch.setattr(workers, "_pools", pools)
    yield pools
    pools.end()


def at_work(n: int = 2) -> set[int]:
    """Process ids of the workers that answer."""
    with workers.mapper(n) as each:
        pids = set(each(own_pid, [0.5] * 4 * n))
    assert len(pids) == n and os.getpid() not in pids
    return pids


def own_pid(seconds: float) -> int:
    """Take long enough for the other workers to have their turn."""
    time.sleep(seconds)
    return os.getpid()


@pytest.mark.slow
def test_workers_wait_for_the_like_call_and_are_replaced_if_killed(pools, tmp_path, monkeypatch):
    first = at_work()
    assert at_work() == first
    os.kill(min(first), signal.SIGKILL)
    until = time.monotonic() + 60
    while alive(min(first)) and time.monotonic() < until:
        time.sleep(0.1)
    second = at_work()
    assert second.isdisjoint(first)
    monkeypatch.setenv("NOISY_MAPS_TRIED", "1")
    third = at_work()
    assert third.isdisjoint(second)
    monkeypatch.chdir(tmp_path)
    assert at_work().isdisjoint(third)
    assert not any(alive(pid) for pid in {*first, *second, *third})


def test_what_waits_serves_neither_other_code_nor_a_forked_child(monkeypatch):
    ended, things = [], iter("abc")
    waiting = workers.Waiting(ended.append, idle_s=3600)

    def use():
        with waiting.one(lambda: next(things), lambda thing: True) as thing:
            return thing

    about = list(workers._surroundings())
    monkeypatch.setattr(workers, "_surroundings", lambda: tuple(about))
    assert (use(), use()) == ("a", "a")
    about[3] += 1  # a file of the package was saved
    assert (use(), ended) == ("b", ["a"])
    about[0] += 1  # in a child what it inherits is its parent's, who goes on using it
    assert (use(), ended) == ("c", ["a"])


def test_what_cannot_be_ended_is_told_and_hides_no_error():
    def close(thing):
        raise OSError("it hangs")

    waiting = workers.Waiting(close, idle_s=3600)
    with waiting.one(lambda: 1, lambda thing: True):
        pass
    with pytest.warns(UserWarning, match="could not be ended: OSError"):
        with waiting.one(lambda: 2, lambda thing: False) as thing:
            assert thing == 2
    with pytest.warns(UserWarning, match="it hangs"), pytest.raises(KeyError):
        with waiting.one(lambda: 3, lambda thing: {}["fits"]):
            pass


def test_what_waits_is_used_again_if_it_fits_and_ended_in_time():
    ended, started = [], iter("abcdefgh")
    waiting = workers.Waiting(ended.append, idle_s=3600)

    def use(fits=lambda thing: True):
        with waiting.one(lambda: next(started), fits) as thing:
            return thing

    assert (use(), use(), ended) == ("a", "a", [])
    assert (use(lambda thing: thing != "a"), ended) == ("b", ["a"])
    with pytest.raises(KeyboardInterrupt), waiting.one(lambda: next(started), lambda thing: True):
        raise KeyboardInterrupt
    assert ended == ["a", "b"]
    with waiting.one(lambda: next(started), lambda thing: True) as outer:
        assert (use(), outer) == ("d", "c")
    assert (ended, use()) == (["a", "b", "d"], "c")
    waiting.end()
    waiting.end()
    assert ended == ["a", "b", "d", "c"]


def test_what_waits_too_long_is_ended_but_not_what_was_used_meanwhile():
    ended = threading.Event()
    waiting = workers.Waiting(lambda thing: ended.set(), idle_s=2.0)
    with waiting.one(lambda: "it", lambda thing: True):
        pass
    with waiting.one(lambda: "another", lambda thing: True) as thing:
        assert thing == "it" and not ended.wait(3)
    assert ended.wait(60)


def test_one_process_asks_for_nothing(monkeypatch):
    monkeypatch.setattr(workers, "check_script", lambda: pytest.fail("asked"))
    with workers.mapper(1) as each:
        assert list(each(abs, [-1])) == [1]


def test_every_room_takes_its_processes_from_here():
    for path in (ROOT / "nbutils").rglob("*.py"):
        if path.stem != "workers":
            assert not re.search(r"ProcessPool|get_context", path.read_text()), path
