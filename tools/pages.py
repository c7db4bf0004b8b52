"""Executed notebooks as web pages, with a front page of figures, results and provenance.

    python tools/pages.py build/reading/city

The pages need no network: images are embedded, formulas become MathML, and nothing is loaded from elsewhere.
"""

import argparse
import base64
import datetime
import importlib.metadata
import mimetypes
import os
import platform
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
import nbformat
import pandas as pd
import yaml
from bs4 import BeautifulSoup
from latex2mathml.converter import convert as latex_to_mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).with_name("templates")
NO_ALT = "No description has been provided for this image"  # what nbconvert writes
HEADLINES = ("05_budget_curves", "05_claims")  # wide, at the top
PACKAGES = (
    "torch",
    "segmentation-models-pytorch",
    "lightly",
    "lightning-fabric",
    "rasterio",
    "laspy",
    "numpy",
)


class MathRenderer(IPythonRenderer):
    """Markdown with formulas as MathML, which browsers show without a script."""

    def inline_math(self, body: str) -> str:
        """A formula within a line."""
        return latex_to_mathml(body)

    def block_math(self, body: str) -> str:
        """A formula on its own."""
        return latex_to_mathml(body, display="block")


class PageExporter(HTMLExporter):
    """Notebook to the inner HTML of a page."""

    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        """Markdown cell to HTML; attachments are embedded."""
        attachments = context.get("cell", {}).get("attachments", {})
        return render_markdown(source, attachments=attachments)


def render_markdown(source: str, **options: Any) -> str:
    """Markdown to HTML, formulas to MathML."""
    return MarkdownWithMath(renderer=MathRenderer(escape=False, anchor_link_text="", **options)).render(source)


def notebook_body(book: nbformat.NotebookNode, source: Path, folder: Path) -> str:
    """Inner HTML of an executed notebook whose links were written for the folder of `source`."""
    html, _ = PageExporter(template_name="basic").from_notebook_node(book)
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup.select("script, link, iframe"):
        tag.decompose()
    for paragraph in soup.select("p"):  # the notebook's own navigation line: the page has one
        rest = "".join(text for text in paragraph.find_all(string=True) if not text.find_parent("a"))
        if paragraph.select("a[href*='.ipynb']") and not re.search(r"\w", rest):
            paragraph.decompose()
    for image in soup.select("img[src]"):
        file = source.parent / image["src"]
        if not urlsplit(image["src"]).scheme and file.is_file():
            kind = mimetypes.guess_type(file.name)[0]
            image["src"] = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
    for link in soup.select("a[href]"):
        link["href"] = page_link(link["href"], source.parent, folder)
    describe_pictures(soup)
    return str(soup)


def describe_pictures(soup: BeautifulSoup) -> None:
    """Give pictures that cells made an alternative text: the heading and the paragraph above them."""
    heading, paragraph = "", ""
    for tag in soup.find_all(["h1", "h2", "h3", "p", "img"]):
        if tag.name == "p":
            paragraph = " ".join(tag.get_text().split())
        elif tag.name != "img":
            heading, paragraph = " ".join(tag.get_text().split()), ""
        elif tag.get("alt", NO_ALT) == NO_ALT:
            tag["alt"] = f"{heading}. {paragraph}".strip()


def page_link(href: str, source_folder: Path, folder: Path) -> str:
    """A notebook's link as the page needs it: other notebooks are pages, files stay where they are."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or not parts.path:
        return href
    if parts.path.endswith(".ipynb"):
        path = Path(parts.path).with_suffix(".html").name
    else:
        path = Path(os.path.relpath(source_folder / parts.path, folder)).as_posix()
    return parts._replace(path=path).geturl()


def describe_notebook(book: nbformat.NotebookNode, path: Path) -> dict[str, Any]:
    """Title, question and run time of an executed notebook."""
    opening = book.cells[0].source
    title = re.search(r"^# (.+)$", opening, re.MULTILINE)
    question = re.search(r"\*\*Question[.:]?\*\*[.:]?\s*(.+?)(?=\n\s*\n|\n\*\*|\Z)", opening, re.DOTALL)
    return {
        "page": path.with_suffix(".html").name,
        "number": path.name[:2],
        "title": re.sub(r"^\d\d\s*[·.:-]?\s*", "", title[1]) if title else path.stem,
        "question": as_text(question[1]) if question else "",
        "seconds": book.metadata.get("papermill", {}).get("duration") or 0.0,
    }


def as_text(markdown: str) -> str:
    """Markdown without its marks, on one line."""
    return " ".join(BeautifulSoup(render_markdown(markdown), "html.parser").get_text().split())


def describe_figure(path: Path, books: dict[str, nbformat.NotebookNode]) -> dict[str, Any]:
    """A figure with the section heading and the paragraph that stand above the cell which saved it."""
    number, _, slug = path.stem.partition("_")
    title, caption, found = "", "", False
    for cell in books[number].cells if number in books else []:
        if cell.cell_type == "markdown":
            heading = re.findall(r"^#{2,} (?:\d[\d.]* )?(.+)$", cell.source, re.MULTILINE)
            title = as_text(heading[-1]) if heading else title
            prose = [p for p in re.split(r"\n\s*\n", re.sub(r"^#.*$", "", cell.source, flags=re.M)) if p.strip()]
            caption = as_text(prose[0]) if prose else caption
        elif re.search(rf"\b{re.escape(path.stem)}\b", cell.source):
            found = True
            break
    plain = slug.replace("_", " ").capitalize()
    return {
        "file": f"figures/{path.name}",
        "table": f"figures/{path.stem}.csv" if path.with_suffix(".csv").is_file() else "",
        "number": number,
        "title": title if found and title else plain,
        "caption": caption if found else "",
        "alt": f"{plain}. {caption}" if found else plain,
        "headline": path.stem in HEADLINES,
    }


def read_table(path: Path, hide: tuple[str, ...]) -> dict[str, Any] | None:
    """A CSV as columns and formatted rows; what is the same in all rows is said once, some columns not at all."""
    if not path.is_file():
        return None
    frame = pd.read_csv(path).drop(columns=list(hide), errors="ignore")
    printed = {name: as_printed(frame[name]) for name in frame}
    same = [name for name, values in printed.items() if len(values) > 1 and len(set(values)) == 1]
    shown = [name for name in frame if name not in same]
    return {
        "columns": [(name, pd.api.types.is_numeric_dtype(frame[name])) for name in shown],
        "rows": list(zip(*(printed[name] for name in shown), strict=True)),
        "same": {name: printed[name][0] for name in same if printed[name][0]},
    }


def as_printed(column: pd.Series) -> list[str]:
    """Values as they are printed: three decimals where there are any, nothing for a missing one."""
    fractions = pd.api.types.is_float_dtype(column) and (column.dropna() % 1 != 0).any()
    pattern = "{:.3f}" if fractions else "{:.0f}" if pd.api.types.is_float_dtype(column) else "{}"
    return ["" if pd.isna(value) else pattern.format(value) for value in column]


def provenance(profile: str, card_path: Path) -> dict[str, str]:
    """Where the results on the page come from."""
    card = yaml.safe_load(card_path.read_text()) if card_path.is_file() else {}
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    facts = {
        "profile": profile,
        "data set": str(card.get("title") or card.get("name") or card_path.stem),
        "attribution": str(card.get("attribution") or ""),
        "data licence": str(card.get("licence") or ""),
        "code": f"noisy-maps {importlib.metadata.version('noisy-maps')}",
        "packages": ", ".join(versions),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "written": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
    }
    return {key: value for key, value in facts.items() if value}


def write(folder: Path, notebooks: Path, *, card: Path, profile: str) -> Path:
    """Write a page for every executed notebook in `folder` and the front page.

    Args:
        folder: Executed copies NN_*.ipynb, with `figures/` beside them.
        notebooks: Folder of their sources, to which their links are relative.
        card: The data set card.
        profile: Name of the profile.

    Returns:
        Path of `index.html`.
    """
    books = {path: nbformat.read(path, as_version=4) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    entries = [describe_notebook(book, path) for path, book in books.items()]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    environment.globals["highlight_css"] = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    page, front = (
        environment.get_template("page.html.j2"),
        environment.get_template("front.html.j2"),
    )
    for i, (path, book) in enumerate(books.items()):
        following = entries[i + 1] if i + 1 < len(entries) else None
        html = page.render(
            entry=entries[i],
            previous=entries[i - 1] if i else None,
            following=following,
            body=notebook_body(book, notebooks / path.name, folder),
        )
        path.with_suffix(".html").write_text(html, encoding="utf-8")
    numbered = {path.name[:2]: book for path, book in books.items()}
    index = folder / "index.html"
    index.write_text(
        front.render(
            notebooks=entries,
            figures=[describe_figure(p, numbered) for p in sorted((folder / "figures").glob("[0-9][0-9]_*.png"))],
            results=read_table(folder / "figures/results.csv", hide=("run", "pretraining")),
            claims=read_table(
                folder / "figures/claims.csv", hide=("id", "p", "p_signs", "dominant", "margin", "level", "runs")
            ),
            facts=provenance(profile, card),
            minutes=sum(entry["seconds"] for entry in entries) / 60,
        ),
        encoding="utf-8",
    )
    return index


def main() -> None:
    """Write the pages of a folder that `tools/study.py` has filled."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="build/<profile>/<data set>")
    folder = parser.parse_args().folder.resolve()
    card = ROOT / "data/datasets" / f"{folder.name}.yaml"
    print(write(folder, ROOT / "notebooks", card=card, profile=folder.parent.name))


if __name__ == "__main__":
    main()
