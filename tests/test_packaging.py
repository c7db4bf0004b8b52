"""Packages are named once, the tested set satisfies them, and tracked files name nobody's machine."""

import ast
import re
import subprocess
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nbutils
from nbutils import sources

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TESTED_EXTRAS = ("notebooks", "test")


def requirements(*extras: str) -> list[Requirement]:
    return [Requirement(line) for line in [*PROJECT["dependencies"], *(x for e in extras for x in EXTRAS[e])]]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines if line and not line.startswith("#")]
    assert all(pins), "constraints.txt holds exact pins without local labels only"
    return {canonicalize_name(pin[1]): pin[2] for pin in pins}


def imported(folder: str) -> set[str]:
    """Top-level modules that the Python files and notebooks of a folder import."""
    texts = [path.read_text() for path in (ROOT / folder).rglob("*.py")]
    for path in (ROOT / folder).glob("*.ipynb"):
        texts += [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return set(re.findall(r"^\s*(?:from|import) (\w+)", "\n".join(texts), re.MULTILINE))


def test_environment_names_no_package_that_pyproject_does_not():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert [re.match(r"\w+", item)[0] for item in conda] == ["python", "pip"]
    assert conda[0] == f"python{PROJECT['requires-python']}"
    assert pip == ["-c constraints.txt", f"-e .[{','.join(TESTED_EXTRAS)}]"]


def test_bounds_are_from_below_only():
    for requirement in requirements(*EXTRAS):
        assert [bound.operator for bound in requirement.specifier] == [">="], requirement
    assert PROJECT["requires-python"].startswith(">=")


def test_constraints_hold_a_version_of_every_package_within_its_bound():
    pins = constraints()
    for requirement in requirements(*TESTED_EXTRAS):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("nbutils", ("export",)),
        ("benchmarks", ()),
        ("notebooks", ("notebooks",)),
        ("tools", ("notebooks", "test", "dev")),
        ("tests", TESTED_EXTRAS),
    ],
)
def test_every_imported_package_is_named_in_pyproject(folder, extras):
    owners = packages_distributions()  # modules of installed packages: the standard library is not among them
    named = {canonicalize_name(requirement.name) for requirement in requirements(*extras)} | {"noisy-maps"}
    missing = {
        module
        for module in imported(folder)
        if module in owners and not named & {canonicalize_name(owner) for owner in owners[module]}
    }
    assert not missing


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert nbutils.__version__ == PROJECT["version"] == citation["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_links_of_the_documents_lead_to_files():
    """Figures may be missing altogether (nobody has run `make figures`), but not one of them."""
    made = (ROOT / "figures").is_dir()
    broken = []
    named = [ROOT / name for name in ("README.md", "CHANGELOG.md", "data/README.md", "nbutils/README.md")]
    for document in (*named, *(ROOT / "docs").glob("*.md")):
        text = document.read_text()
        anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if target.startswith(("http:", "https:")) or (path.startswith("figures/") and not made):
                continue
            if not (document.parent / path).exists() or (not path and anchor not in anchors):
                broken.append((document.name, target))
    assert not broken


def test_the_readme_opens_with_a_described_figure_the_commands_and_every_notebook():
    text = (ROOT / "README.md").read_text()
    pictures = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text)
    assert pictures[0][1] == "figures/05_budget_curves.png" and all(len(described) > 80 for described, _ in pictures)
    places = [text.index(part) for part in ("# Noisy maps", "![", "make study\n", "make test\n", "| # |")]
    assert places == sorted(places)
    notebooks = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    assert re.findall(r"\]\(notebooks/(\d\d_\w+\.ipynb)\)", text[places[-1] :])[: len(notebooks)] == notebooks


def test_rooms_in_the_readme_are_the_files_of_the_package():
    section = (ROOT / "nbutils/README.md").read_text()
    rooms = re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)
    files = [p.relative_to(ROOT / "nbutils").with_suffix("") for p in (ROOT / "nbutils").rglob("*.py")]
    assert sorted(rooms) == sorted(".".join(p.parts) for p in files if p.name != "__init__")


def test_rooms_import_only_from_rooms_further_up_in_the_readme():
    section = (ROOT / "nbutils/README.md").read_text()
    order = [f"nbutils.{room}" for room in re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)]
    uses = {room: _rooms_imported(ROOT / f"{room.replace('.', '/')}.py", order) for room in order}
    list(TopologicalSorter(uses).static_order())  # raises where rooms import in a circle
    folder = lambda room: room.rpartition(".")[0]  # noqa: E731 a folder of rooms belongs below the room that opens it
    up = [
        (a, b) for a, used in uses.items() for b in used if folder(a) == folder(b) and order.index(b) > order.index(a)
    ]
    assert not up


def _rooms_imported(path: Path, rooms: list[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & set(rooms)


def test_cards_in_the_documents_are_valid(tmp_path):
    found = 0
    for document in (ROOT / "README.md", ROOT / "data/README.md"):
        for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL)):
            card = tmp_path / f"{number}.yaml"
            card.write_text(text)
            assert sources.load_card(card).name and len(text.splitlines()) <= 25
            found += 1
    assert found >= 4


def test_committed_figures_stay_small_and_each_is_of_a_notebook():
    folder = ROOT / "figures"
    if not folder.is_dir():
        pytest.skip("no figures/ yet: make figures")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 7_000_000
    assert not [p.name for p in files if not re.fullmatch(r"0[0-6]_\w+\.(png|csv)|(results|claims)\.csv", p.name)]


def test_tracked_files_name_no_machine():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.])/(?:work|home/\w|Users/\w|root)/|file:///|localhost:\d")
    found = {}
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cfg", ".cff", ".ipynb", ".json", ""}:
            hit = pattern.search(path.read_text(errors="replace"))
            if hit and path != Path(__file__).resolve() and path.name != "test_notebook_state.py":
                found[name] = hit[0]
    assert not found
