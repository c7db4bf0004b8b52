"""A real browser: notebooks run cell by cell in JupyterLab, the site is read on a phone.

Needs Chromium and its driver (on Debian `apt-get install chromium chromium-driver`); skipped where they are missing.
Screenshots are kept in `build/browser/`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import kills
import nbformat
import papermill
import psutil
import pytest
import site_pages
import yaml
from nbconvert.preprocessors import ClearOutputPreprocessor
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from nbutils import ROOT

KEPT = ROOT / "build" / "browser"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1400,1000",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight are not in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # a question in the way
}
START_S, CELL_S = 120, 300

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no browser: chromium and chromedriver are not installed",
    ),
]


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    """Where kernels put their sockets, whose paths have at most 103 characters: too few for pytest's folders."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, runtime) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the notebooks at the smoke profile, with nothing trained yet."""
    place = tmp_path_factory.mktemp("lab") / "copy"
    kills.copied(place)
    smoke = yaml.safe_load((ROOT / "notebooks/profiles/smoke.yaml").read_text())
    for path in (place / "notebooks").glob("0[12]_*.ipynb"):
        known = papermill.inspect_notebook(path)
        chosen = {name: value for name, value in smoke.items() if name in known}
        book = parameterize_notebook(load_notebook_node(str(path)), chosen)
        ClearOutputPreprocessor().preprocess(book, {})  # what is seen then was made in the browser
        nbformat.write(book, path)
    for name, values in SETTINGS.items():
        settings = place / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(values))
    env = {"JUPYTERLAB_SETTINGS_DIR": place / "settings", "JUPYTER_RUNTIME_DIR": runtime, "PYTHONPATH": place,
           "JUPYTER_CONFIG_DIR": place / "config", "OMP_NUM_THREADS": "1"}  # fmt: skip
    options = (
        "--no-browser",
        "--allow-root",
        "--ServerApp.port=0",
        "--IdentityProvider.token=",
        "--KernelManager.transport=ipc",
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={place / 'notebooks'}"],
        env=os.environ | {name: str(value) for name, value in env.items()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _address(runtime, server)
    finally:
        family = psutil.Process(server.pid).children(recursive=True)
        server.terminate()
        server.wait(30)
        for each in family:
            if each.is_running():
                each.kill()


def _address(runtime: Path, server: subprocess.Popen) -> str:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        for path in runtime.glob("jpserver-*.json"):
            return json.loads(path.read_text())["url"]
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start (status {server.poll()})")


PHONE = {"deviceMetrics": {"width": 390, "height": 844, "pixelRatio": 2.0}}


@pytest.fixture
def browser(tmp_path, request) -> Iterator[webdriver.Chrome]:
    """A browser that nobody sees, with the messages of its console; with a parameter, of that device."""
    options = webdriver.ChromeOptions()
    if device := getattr(request, "param", None):
        options.add_experimental_option("mobileEmulation", device)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


CELLS = "document.querySelectorAll('.jp-Notebook .jp-Cell')"
LOOK = f"""
const cell = {CELLS}[arguments[0]], prompt = cell.querySelector('.jp-InputPrompt')?.textContent ?? '';
const said = [...cell.querySelectorAll('[data-mime-type*=stderr]')].map(each => each.textContent);
return {{
    ran: !cell.classList.contains('jp-CodeCell') || /[0-9]/.test(prompt),
    errors: said.filter(each => each.includes('Traceback')),
    bars: said.filter(each => each.includes('%|')).length,
    pictures: [...cell.querySelectorAll('.jp-OutputArea img')].map(each => each.src),
    panels: cell.querySelectorAll('.widget-interact').length,
}}"""  # at once, since Jupyter replaces elements at any time


def run_all(browser: webdriver.Chrome, lab: str, name: str) -> list[dict]:
    """Open a notebook and run it with Shift+Enter, cell by cell; return what every cell then shows."""
    browser.get(f"{lab}lab/tree/{name}?reset")  # without what was open before
    idle = "document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')"
    WebDriverWait(browser, START_S).until(lambda b: b.execute_script(f"return {CELLS}.length > 1 && {idle} !== null"))
    _click(browser, ".jp-Notebook .jp-Cell")
    numbers = range(browser.execute_script(f"return {CELLS}.length"))
    for i in numbers:
        ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
        WebDriverWait(browser, CELL_S).until(lambda b, i=i: b.execute_script(LOOK, i)["ran"], f"cell {i} does not end")
    time.sleep(2)  # outputs are drawn after a cell has ended
    return [browser.execute_script(LOOK, i) for i in numbers]


def _click(browser: webdriver.Chrome, selector: str, which: int = 0) -> None:
    """Click on an element, again if it was replaced or covered just then."""
    moving = [StaleElementReferenceException, ElementClickInterceptedException]
    try:
        WebDriverWait(browser, START_S, ignored_exceptions=moving).until(
            lambda b: b.find_elements(By.CSS_SELECTOR, selector)[which].click() is None
        )
    except TimeoutException:
        dialogs = [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog")]
        pytest.fail(f"{selector} cannot be clicked; dialogs in the way: {dialogs}")


def keep(browser: webdriver.Chrome, i: int, name: str) -> None:
    """Keep a picture of what is seen when a cell is."""
    browser.execute_script(f"{CELLS}[arguments[0]].scrollIntoView()", i)
    time.sleep(0.5)
    KEPT.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(KEPT / f"{name}.png"))


@pytest.mark.parametrize("name", ["01_label_acquisition", "02_noise_injection"])
def test_runs_cell_by_cell_without_an_error(browser, lab, name):
    cells = run_all(browser, lab, f"{name}.ipynb")
    assert [error for seen in cells for error in seen["errors"]] == []
    first = {}  # cell that first shows a progress bar, a picture, a panel
    for what in ("bars", "pictures", "panels"):
        if (i := next((i for i, seen in enumerate(cells) if seen[what]), None)) is not None:
            first[what] = i
            keep(browser, i, f"{name}_{what}")
    assert "pictures" in first
    if name.startswith("02"):
        assert {"bars", "panels"} <= set(first)
        turn(browser, first["panels"])
        keep(browser, first["panels"], f"{name}_panels")
    assert complaints(browser) == []


def complaints(browser: webdriver.Chrome) -> list[str]:
    """Errors on the browser's console."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def turn(browser: webdriver.Chrome, i: int) -> None:
    """Choose another recipe in a panel; the picture below must change."""
    before = browser.execute_script(LOOK, i)["pictures"]
    _click(browser, ".widget-interact .widget-dropdown select option", -1)
    changed = lambda _: browser.execute_script(LOOK, i)["pictures"] not in (before, [])  # noqa: E731
    WebDriverWait(browser, CELL_S).until(changed)


@pytest.mark.parametrize("browser", [PHONE], indirect=True, ids=["phone"])
def test_the_site_is_read_on_a_phone_without_scrolling_sideways(browser, tmp_path):
    index = site_pages.write(tmp_path / "site")
    KEPT.mkdir(parents=True, exist_ok=True)
    for page in sorted(index.parent.glob("*.html")):
        browser.get(page.as_uri())
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        browser.save_screenshot(str(KEPT / f"phone_{page.stem}.png"))
        assert wide <= PHONE["deviceMetrics"]["width"], f"{page.name} is {wide} px wide"
        assert complaints(browser) == [], page.name
