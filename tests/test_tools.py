"""The drivers behind `make study`, `refresh` and the pages, on notebooks of a few cells."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import pages
import papermill
import psutil
import pytest
import refresh
import study
from bs4 import BeautifulSoup
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = 'dataset = "x"  # card\noutput = ""  # folder\nn_steps = 3  # steps'
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
FIGURE = (
    "import pathlib, PIL.Image\n"
    "if output:\n    PIL.Image.new('L', (8, 8)).save(pathlib.Path('..') / output / '01_scene.png')"
)
SAY = "print(n_steps, end=' ', flush=True)\nprint(dataset)"  # two messages of the kernel


def write_notebook(path: Path, *code: str, opening: str = "# 01 · Maps\n\n**Question.** How good is a *map*?") -> None:
    cells = [nbformat.v4.new_markdown_cell(opening), nbformat.v4.new_code_cell(SETTINGS)]
    cells[1].metadata["tags"] = ["parameters"]
    for source in code:
        kind = nbformat.v4.new_markdown_cell if source.startswith("## ") else nbformat.v4.new_code_cell
        cells.append(kind(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)


@pytest.fixture
def kernels(monkeypatch):
    """Kernels that are spoken to over sockets in a folder of their own.

    Of TCP, five free ports are looked up for a kernel that binds them when it has started, seconds later; any program
    may have them by then. Paths of sockets have at most 103 characters, too few for pytest's folders.
    """
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", folder)
        config = Config(sockets(folder))
        monkeypatch.setattr(study.papermill, "execute_notebook", partial(papermill.execute_notebook, config=config))
        yield Path(folder)


def sockets(folder: str | Path) -> dict[str, dict[str, str]]:
    """Settings of kernels whose sockets lie in a folder: they run in other ones than those who speak to them."""
    return {"KernelManager": {"transport": "ipc", "ip": str(Path(folder) / "kernel")}}


@pytest.fixture
def repository(tmp_path, monkeypatch, kernels):
    """A repository with nothing but the city card, in which the tools work."""
    (tmp_path / "data/datasets").mkdir(parents=True)
    shutil.copy(ROOT / "data/datasets/city.yaml", tmp_path / "data/datasets")
    monkeypatch.chdir(tmp_path)
    for tool in (study, refresh):
        monkeypatch.setattr(tool, "ROOT", tmp_path)
        monkeypatch.setattr(tool, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def test_the_overview_runs_last(tmp_path):
    for name in ("02_b", "00_overview", "01_a"):
        write_notebook(tmp_path / f"{name}.ipynb")
    (tmp_path / "scratch.ipynb").touch()
    assert [path.stem for path in study.find_notebooks(tmp_path)] == ["01_a", "02_b", "00_overview"]


def test_each_notebook_gets_what_it_knows_and_a_misspelt_name_is_an_error(tmp_path):
    write_notebook(tmp_path / "01_a.ipynb")
    (path,) = study.find_notebooks(tmp_path)
    assert study.parameters_for([path], {"n_steps": 5}) == {path: {"n_steps": 5}}
    with pytest.raises(study.StudyError, match=r"'n_stesp' - did you mean n_steps\?"):
        study.parameters_for([path], {"n_stesp": 5})


def test_an_unknown_profile_names_the_known(tmp_path):
    (tmp_path / "evidence.yaml").write_text("n_steps: 9")
    assert study.read_profile("evidence", tmp_path) == {"n_steps": 9}
    assert study.read_profile("reading", tmp_path) == {}
    with pytest.raises(study.StudyError, match=r"'evidense' - did you mean evidence\?; there are reading, evidence"):
        study.read_profile("evidense", tmp_path)


def test_a_profile_knows_its_data_set_and_the_user_knows_better(repository, monkeypatch):
    write_notebook(repository / "notebooks/01_a.ipynb")
    (repository / "notebooks/profiles").mkdir()
    (repository / "notebooks/profiles/far.yaml").write_text("dataset: data/datasets/far.yaml")
    seen = []
    monkeypatch.setattr(study, "check_dataset", lambda card: seen.append(card.name) or sys.exit())
    for arguments in (["--profile", "far"], ["--profile", "far", "--dataset", "data/datasets/city.yaml"], []):
        with pytest.raises(SystemExit):
            study.main(arguments)
    assert seen == ["far.yaml", "city.yaml", "city.yaml"]


def test_lines_of_other_processes_are_echoed(tmp_path, capsys):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    with study.echo_lines(log, period_s=0.01), log.open("a") as file:
        file.write("one\ntwo\nunfinish")
    assert capsys.readouterr().out.split() == ["one", "two"]


@pytest.mark.notebook
def test_study_and_refresh_end_to_end(repository, capfd):
    source = repository / "notebooks/01_a.ipynb"
    write_notebook(source, "## The scene\n\nWhat to *look* for.", FIGURE, SAY)
    stored = source.read_bytes()
    assert study.main([]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    assert "[1/1] 01_a" in told.out
    folder = repository / "build/reading/city"
    (said,) = nbformat.read(folder / "01_a.ipynb", 4).cells[-1].outputs
    assert said.text == "3 data/datasets/city.yaml\n", "one output, whenever the kernel sent its parts"
    assert source.read_bytes() == stored
    front = (folder / "index.html").read_text()
    assert "How good is a map?" in front
    assert "What to look for." in front
    assert "figures/01_scene.png" in front

    assert refresh.main([]) == 0
    first = source.read_bytes()
    assert b"3 x" in first and b'"papermill"' not in first and str(repository).encode() not in first
    assert refresh.main([]) == 0
    assert source.read_bytes() == first


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("def f():\n    raise ValueError('first\\nlast')\nf()", 1, "01_a.ipynb failed in cell [3]:"),
        ("class DataMissing(OSError): ...\nraise DataMissing('no folder x\\nget it')", 3, "no folder x\nget it\n"),
        ("import os; os._exit(9)", 1, "01_a.ipynb: Kernel died (out of memory?)"),
    ],
    ids=["error", "data missing", "kernel died"],
)
def test_a_failing_notebook_is_named_without_a_traceback(repository, capfd, code, status, message):
    write_notebook(repository / "notebooks/01_a.ipynb", code)
    assert study.main([]) == status
    told = capfd.readouterr()
    assert message in told.err
    assert "Traceback" not in told.out + told.err
    if status == 1:
        assert "build/reading/city/01_a.ipynb" in told.err


@pytest.mark.parametrize(
    ("line", "instead", "status", "message"),
    [("root: ", "rot: ", 2, "rot"), ("world: ", "# world: ", 3, "nowhere")],
    ids=["misspelt key", "no data"],
)
def test_a_bad_card_or_missing_data_ends_before_anything_runs(repository, capfd, line, instead, status, message):
    write_notebook(repository / "notebooks/01_a.ipynb", "open('ran', 'w')")
    text = (ROOT / "data/datasets/city.yaml").read_text().replace("data/cache/city", str(repository / "nowhere"))
    (repository / "my.yaml").write_text(text.replace(f"\n{line}", f"\n{instead}"))
    assert study.main(["--dataset", "my.yaml"]) == status
    told = capfd.readouterr()
    assert message in told.err
    assert "Traceback" not in told.err
    assert not (repository / "build").exists()


def test_a_damaged_catalogue_ends_before_anything_runs(repository, capfd):
    write_notebook(repository / "notebooks/01_a.ipynb", "open('ran', 'w')")
    text = (ROOT / "data/datasets/city.yaml").read_text().replace("data/cache/city", str(repository / "there"))
    (repository / "my.yaml").write_text(text.replace("\nworld: ", "\n# world: "))
    (repository / "there").mkdir()
    (repository / "there/catalog.json").write_text('{"type": "Cat')
    assert study.main(["--dataset", "my.yaml"]) == 2
    told = capfd.readouterr()
    assert "catalog.json" in told.err and "Traceback" not in told.err
    assert not (repository / "build").exists()


@pytest.mark.slow
def test_notebooks_run_in_their_own_folder_and_leave_that_of_the_study_alone(tmp_path):
    """Papermill's own way changes it for all that run at once, and one that ends late leaves it changed."""
    names = ("01_beside.ipynb", "03_in_order.ipynb")
    for name in names:
        cells = [nbformat.v4.new_code_cell("import os, time\ntime.sleep(1)\nprint(os.getcwd())")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), tmp_path / name)
    before, seen, done = Path.cwd(), set(), threading.Event()

    def look():
        while not done.wait(0.01):
            seen.add(Path.cwd())

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    study.run_all({tmp_path / name: {} for name in names}, tmp_path / "build")
    done.set()
    looking.join()
    assert seen | {Path.cwd()} == {before}
    for name in names:
        assert nbformat.read(tmp_path / "build" / name, 4).cells[-1].outputs[0].text.strip() == str(tmp_path)


def test_publishing_replaces_what_is_stale_and_nothing_else(tmp_path):
    source, target = tmp_path / "made", tmp_path / "figures"
    for folder, names in ((source, ("05_new.png", "05_new.csv", "results.csv", "claims.csv", "notes.txt")),
                          (target, ("04_stale.png", "04_stale.csv", "claims.csv", "kept.md"))):  # fmt: skip
        folder.mkdir()
        for name in names:
            (folder / name).write_text(str(folder))
    assert study.publish(source, target) == 4
    assert {path.name for path in target.iterdir()} == {
        "05_new.png", "05_new.csv", "results.csv", "claims.csv", "kept.md"}  # fmt: skip
    assert (target / "claims.csv").read_text() == str(source)


def test_what_other_notebooks_drew_stays_when_some_were_run(tmp_path):
    source, target = tmp_path / "made", tmp_path / "figures"
    for folder, names in ((source, ("05_new.png", "04_made_before.png", "claims.csv")),
                          (target, ("04_kept.png", "05_stale.csv", "claims.csv", "results.csv"))):  # fmt: skip
        folder.mkdir()
        for name in names:
            (folder / name).write_text(str(folder))
    assert study.publish(source, target, numbers=["05"]) == 2
    assert {path.name for path in target.iterdir()} == {"04_kept.png", "05_new.png", "claims.csv", "results.csv"}
    assert (target / "claims.csv").read_text() == str(source) != (target / "results.csv").read_text()


def test_tables_alone_can_be_published(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("04_loss.png", "04_loss.csv", "claims.csv", "notes.csv"):
        (source / name).write_text("x")
    assert study.publish(source, target, study.TABLES) == 2
    assert {path.name for path in target.iterdir()} == {"04_loss.csv", "claims.csv"}


def test_publishing_that_is_cut_short_leaves_every_file_as_it_was(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder, text in ((source, "new"), (target, "old")):
        folder.mkdir()
        for name in ("03_a.csv", "04_b.csv"):
            (folder / name).write_text(text)
    copy = study.shutil.copyfile

    def torn(one, other):
        if one.name == "04_b.csv":
            Path(other).write_text("n")
            raise KeyboardInterrupt
        return copy(one, other)

    monkeypatch.setattr(study.shutil, "copyfile", torn)
    with pytest.raises(KeyboardInterrupt):
        study.publish(source, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"03_a.csv": "old", "04_b.csv": "old"}


def test_only_some_notebooks_are_run(tmp_path):
    for name in ("00_a.ipynb", "03_b.ipynb", "04_c.ipynb"):
        (tmp_path / name).write_text("{}")
    assert [p.name for p in study.find_notebooks(tmp_path, "04, 00")] == ["04_c.ipynb", "00_a.ipynb"]
    with pytest.raises(study.StudyError, match="no notebook 07; there are 00, 03, 04"):
        study.find_notebooks(tmp_path, "04,07")


@pytest.mark.parametrize(("size", "message"), [(0, "no figures"), (8_000_000, r"8\.0 MB.*01_big\.png")])
def test_nothing_is_published_when_there_is_nothing_or_too_much(tmp_path, size, message):
    source, target = tmp_path / "made", tmp_path / "figures"
    for folder in (source, target):
        folder.mkdir()
    (target / "05_old.png").touch()
    if size:
        (source / "01_big.png").write_bytes(bytes(size))
    with pytest.raises(study.StudyError, match=message):
        study.publish(source, target)
    assert (target / "05_old.png").exists()


def wait_until(happened: Callable[[], object], process: subprocess.Popen, seconds: float = 300) -> None:
    """Wait for what a process does; fail if it ends before or never does it."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.1)


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; one that nobody has asked for its exit status yet has."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.notebook
def test_interrupting_leaves_no_process(repository, kernels):
    spawn = "import subprocess, pathlib, time\nchild = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    up = "pathlib.Path('.up').write_text(str(child.pid))\npathlib.Path('.up').rename('up')\ntime.sleep(600)"
    write_notebook(repository / "notebooks/01_a.ipynb", spawn + up)
    start = (
        "import functools, pathlib, sys, study\nfrom traitlets.config import Config\n"
        "study.ROOT = pathlib.Path.cwd()\nstudy.NOTEBOOKS = study.ROOT / 'notebooks'\n"
        "study.check_dataset = lambda card: None\n"  # spares the import of torch
        f"sockets = functools.partial(study.papermill.execute_notebook, config=Config({sockets(kernels)!r}))\n"
        "study.papermill.execute_notebook = sockets\n"
        "study.stop_on_signals()\nsys.exit(study.main())"
    )
    tools = {"PYTHONPATH": str(ROOT / "tools")}
    process = subprocess.Popen(
        [sys.executable, "-c", start], cwd=repository, env=os.environ | tools, stderr=subprocess.PIPE, text=True
    )
    family = []
    try:
        wait_until((repository / "notebooks/up").exists, process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert int((repository / "notebooks/up").read_text()) in [child.pid for child in family]
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=300)[1]
        assert (process.returncode, said) == (130, "stopped; finished runs are kept and will be reused\n")
        end = time.monotonic() + 60
        while (alive := [child for child in family if not is_gone(child)]) and time.monotonic() < end:
            time.sleep(0.1)
        assert not alive
    finally:
        for child in (process, *family):
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass
        process.wait()


def test_pages_need_no_network(tmp_path):
    folder, notebooks = tmp_path / "build/reading/city", tmp_path / "notebooks"
    (tmp_path / "README.md").touch()
    (folder / "figures").mkdir(parents=True)
    (folder / "figures/results.csv").write_text("arm,steps,miou\nnoisy,10,0.61234\nrandom,10,0.5\n")
    (folder / "figures/claims.csv").write_text("claim,effect,verdict\nnoisy > random,0.1,supported\n")
    opening = "# 00 · Start\n\n[next](01_a.ipynb#x) | [< former](02_b.ipynb)\n\n"
    opening += "See [01](01_a.ipynb) of [us](../README.md): $a_i$"
    write_notebook(folder / "00_start.ipynb", opening=opening)
    write_notebook(folder / "01_a.ipynb", "## Formula\n\n$$\\frac{a}{b}$$")
    pages.write(folder, notebooks, card=ROOT / "data/datasets/city.yaml", profile="reading")
    html = {path.stem: path.read_text() for path in folder.glob("*.html")}
    assert set(html) == {"00_start", "01_a", "index"}
    for text in html.values():
        soup = BeautifulSoup(text, "html.parser")
        assert not soup.select("script, link, iframe, [src^=http]")
        assert not re.search(r"@import|url\(http", text)
        for link in soup.select("a[href]"):
            href = link["href"].partition("#")[0]
            assert not href or href.startswith("https://") or (folder / href).exists(), href
        assert all(image.get("alt") for image in soup.select("img"))
    assert "<math" in html["00_start"] and 'display="block"' in html["01_a"]
    assert "former" not in html["00_start"], "the notebook's own navigation line is replaced"
    assert "See <a" in html["00_start"]
    assert "0.612" in html["index"] and "steps 10" in html["index"] and "badge supported" in html["index"]
