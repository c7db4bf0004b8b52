"""The repository as a small static site: front door, notebooks as they are stored, documentation, figures.

    python tools/site_pages.py            # -> build/site/index.html

Nothing is run: pages show the stored outputs and the committed figures. They need no script and no network, so that any
server of files will do. A link to a file of the repository that is not on the site stays text.
"""

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jinja2
import nbformat
import pages
from bs4 import BeautifulSoup
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("figures", "LICENSE", "CITATION.cff", "constraints.txt", "environment.yml", "data/datasets")


@dataclass(frozen=True)
class Entry:
    """A page: its source in the repository, its address on the site, and its title."""

    source: str
    page: str
    title: str
    number: str = ""


def entries() -> list[Entry]:
    """All pages in the order they are read."""
    books = [path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    found = [Entry("README.md", "index.html", "Noisy maps, useful encoders")]
    for path in books:
        told = pages.describe_notebook(nbformat.read(path, as_version=4), path)
        found.append(Entry(f"notebooks/{path.name}", told["page"], told["title"], told["number"]))
    documents = [ROOT / "data/README.md", ROOT / "nbutils/README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = [*documents, ROOT / "CHANGELOG.md"]
    for path in texts:
        source = path.relative_to(ROOT).as_posix()
        title = re.search(r"^# (.+)$", path.read_text(), re.MULTILINE)
        found.append(Entry(source, source.removesuffix(".md").replace("/", "_").lower() + ".html", title[1]))
    return found


def body_of(entry: Entry, addresses: dict[str, str]) -> str:
    """Inner HTML of a page, its links brought to the site."""
    source = ROOT / entry.source
    if source.suffix == ".ipynb":
        html = pages.notebook_body(nbformat.read(source, as_version=4), source, source.parent)
    else:
        html = pages.render_markdown(source.read_text())
    soup = BeautifulSoup(html, "html.parser")
    for tag, name in [*((a, "href") for a in soup.select("a[href]")), *((i, "src") for i in soup.select("img[src]"))]:
        if (address := on_site(tag[name], entry.source, addresses)) is None:
            tag.unwrap()  # the file is in the repository alone
        else:
            tag[name] = address
    return str(soup)


def on_site(href: str, source: str, addresses: dict[str, str]) -> str | None:
    """Where a link of a file of the repository leads on the site; None where it leads to nothing there.

    Raises:
        FileNotFoundError: It leads to nothing in the repository either.
    """
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or not parts.path:
        return href
    there = (ROOT / source).parent / unquote(parts.path)
    if not there.exists() and there.suffix == ".html":  # `pages` has made it a page already
        there = there.with_suffix(".ipynb")
    if not there.exists():
        raise FileNotFoundError(f"{source} links {href}, which is not there; correct the link")
    path = there.resolve().relative_to(ROOT).as_posix()
    if path in addresses:
        return parts._replace(path=addresses[path]).geturl()
    copied = any(path == name or path.startswith(f"{name}/") for name in COPIED) and there.is_file()
    return parts._replace(path=path).geturl() if copied else None


def write(folder: Path) -> Path:
    """Write the site into a new folder in place of the old one; returns its front page."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = entries()
    addresses = {entry.source: entry.page for entry in found}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(pages.TEMPLATES), autoescape=True, trim_blocks=True)
    environment.globals["highlight_css"] = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    template = environment.get_template("site.html.j2")
    for entry in found:
        html = template.render(entry=entry, entries=found, body=body_of(entry, addresses))
        (folder / entry.page).write_text(html, encoding="utf-8")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    return folder / "index.html"


if __name__ == "__main__":
    print(f"open {write(ROOT / 'build/site').relative_to(ROOT)}")
    sys.exit()
