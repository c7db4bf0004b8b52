"""Committed notebooks are as `make refresh` writes them: executed in order, readable, free of a machine's traces.

nbval passes a stripped notebook without comparing anything; these checks close that gap, in a fraction of a second.
"""

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PROFILES = sorted((ROOT / "notebooks/profiles").glob("*.yaml"))
MAX_CELL_LINES, MAX_BYTES = 30, 600_000

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
profiles = pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == kind]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def parameter_cell(path: Path) -> str:
    (cell,) = (cell for cell in cells(path, "code") if "parameters" in tags(cell))
    return cell.source


def parameters(path: Path) -> dict[str, Any]:
    """Name to default of the parameters cell, in which nothing but literals is assigned."""
    found = {}
    for statement in ast.parse(parameter_cell(path)).body:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1, ast.unparse(statement)
        found[ast.unparse(statement.targets[0])] = ast.literal_eval(statement.value)
    return found


def test_there_are_seven_notebooks_with_consecutive_numbers():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(7)]


@notebooks
def test_is_a_valid_notebook_with_the_plain_kernel(path):
    book = read(path)
    nbformat.validate(book)
    assert book.nbformat == 4 and book.nbformat_minor >= 5
    assert book.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < MAX_BYTES


@notebooks
def test_opens_with_its_only_title(path):
    book = read(path)
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith("# ")
    assert sum(len(re.findall(r"^# ", cell.source, re.MULTILINE)) for cell in cells(path, "markdown")) == 1


@notebooks
def test_says_more_often_than_it_codes(path):
    assert len(cells(path, "markdown")) >= len(cells(path, "code"))


@notebooks
def test_code_cells_are_short(path):
    long = {cell.id: n for cell in cells(path, "code") if (n := len(cell.source.splitlines())) > MAX_CELL_LINES}
    assert not long


@notebooks
def test_was_executed_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))


@notebooks
def test_has_one_parameters_cell_and_no_injected_one(path):
    every = [tag for cell in read(path).cells for tag in tags(cell)]
    assert every.count("parameters") == 1
    assert "injected-parameters" not in every
    assert not any(tag.startswith("papermill-error") for tag in every)
    assert "nbval-skip" not in every, "later cells would miss its variables; use nbval-ignore-output"


@notebooks
def test_stores_no_errors_stderr_or_formats_that_cannot_be_compared(path):
    for cell in cells(path, "code"):
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", (cell.id, output.text)
            banned = [kind for kind in output.get("data", {}) if "widget" in kind or kind == "image/svg+xml"]
            assert not banned, (cell.id, banned)


@notebooks
def test_carries_no_run_times(path):
    book = read(path)
    assert not {"papermill", "widgets"} & set(book.metadata)
    assert "version" not in book.metadata.get("language_info", {})
    for cell in book.cells:
        assert not {"papermill", "execution", "ExecuteTime"} & set(cell.metadata), cell.id


@notebooks
def test_names_no_absolute_path(path):
    for cell in read(path).cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text"))]
        for text in texts:
            found = re.search(r"(?<![\w.:/])/(?:home|Users|root|tmp|work|opt|mnt|var)/\S*|\b[A-Z]:\\\S*", text)
            assert not found, (cell.id, found[0])


@notebooks
def test_links_lead_to_files_and_to_the_neighbours(path):
    targets = set()
    for cell in cells(path, "markdown"):
        for link in re.findall(r"\]\(([^)\s]+)\)", cell.source):
            parts = urlsplit(link)
            if not parts.scheme and parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
                assert target.exists(), f"{cell.id}: {link}"
                targets.add(target)
    neighbours = [b if path == a else a for a, b in pairwise(NOTEBOOKS) if path in (a, b)]
    assert set(neighbours) <= targets


@notebooks
def test_every_parameter_says_what_it_is(path):
    assert parameters(path)
    for line in parameter_cell(path).splitlines():
        assert re.search(r"\S\s+# \S", line), f"no comment behind: {line}"


def test_shared_parameters_have_the_same_default_everywhere():
    seen: dict[str, dict[str, Any]] = {}
    for path in NOTEBOOKS:
        for name, value in parameters(path).items():
            seen.setdefault(name, {})[path.stem] = value
    differing = {name: places for name, places in seen.items() if len({repr(v) for v in places.values()}) > 1}
    assert not differing


def test_every_notebook_takes_a_data_set_and_an_output_folder():
    assert not [path.name for path in NOTEBOOKS if not {"dataset", "output"} <= set(parameters(path))]


@profiles
def test_profile_values_fit_the_parameters(profile):
    """Papermill only warns of an unknown name, and YAML reads `1e-4` as text."""
    defaults = {name: value for path in NOTEBOOKS for name, value in parameters(path).items()}
    for name, value in (yaml.safe_load(profile.read_text()) or {}).items():
        assert name in defaults, f"no notebook has a parameter {name}"
        default = defaults[name]
        allowed = (
            (int, float)
            if isinstance(default, float)
            else (list, tuple)
            if isinstance(default, tuple)
            else type(default)
        )
        assert isinstance(value, allowed) and isinstance(value, bool) == isinstance(default, bool), (
            name,
            value,
            default,
        )
