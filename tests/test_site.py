"""The static site: all pages, links that lead somewhere, pictures with words, nothing from elsewhere."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pages
import pytest
import site_pages
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, BeautifulSoup]:
    folder = tmp_path_factory.mktemp("pages") / "site"
    assert site_pages.write(folder) == folder / "index.html"
    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in folder.glob("*.html")}


def test_every_notebook_and_text_has_its_page_and_is_in_the_menu_of_all(site):
    names = {path.name for path in site}
    assert {"index.html", "data_readme.html", "changelog.html"} <= names
    assert {f"{path.stem}.html" for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")} <= names
    for path, page in site.items():
        menu = page.select("nav.site a")
        assert {link["href"] for link in menu} == names
        assert [link["href"] for link in menu if link.get("aria-current")] == [path.name]
        assert page.html["lang"] == "en" and page.select_one("meta[name=viewport]") and len(page.select("h1")) == 1


def test_links_and_pictures_lead_to_files_of_the_site(site):
    for path, page in site.items():
        for tag in page.select("[href], [src]"):
            parts = urlsplit(tag.get("href") or tag["src"])
            if parts.scheme or not parts.path:
                continue
            assert (path.parent / unquote(parts.path)).is_file(), f"{path.name}: {parts.path}"


def test_nothing_is_loaded_from_elsewhere(site):
    for path, page in site.items():
        assert not page.select("script, iframe, link[rel=stylesheet]"), path.name
        assert all(not urlsplit(image["src"]).netloc for image in page.select("img")), path.name


def test_pictures_have_words(site):
    for path, page in site.items():
        for image in page.select("img"):
            assert len(image.get("alt", "")) > 10 and image["alt"] != pages.NO_ALT, f"{path.name}: {image.get('alt')}"


def test_a_link_to_nothing_is_an_error_and_one_to_a_file_left_behind_is_text():
    with pytest.raises(FileNotFoundError, match=r"README.md links gone.md"):
        site_pages.on_site("gone.md", "README.md", {})
    assert site_pages.on_site("nbutils/disk.py", "README.md", {}) is None
    assert site_pages.on_site("../README.md#x", "data/README.md", {"README.md": "index.html"}) == "index.html#x"
    assert site_pages.on_site("https://example.org/a", "README.md", {}) == "https://example.org/a"
