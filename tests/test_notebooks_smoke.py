"""Every notebook runs at the tiny profile: are parameters passed through, do shapes fit at another size?"""

from pathlib import Path

import papermill
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_at_the_smoke_profile(path, tmp_path):
    smoke = yaml.safe_load((ROOT / "notebooks/profiles/smoke.yaml").read_text())
    values = smoke | {"output": str(tmp_path / "figures")}
    (tmp_path / "figures").mkdir()
    known = papermill.inspect_notebook(path)
    assert known, "papermill finds no parameters"
    book = papermill.execute_notebook(
        path,
        tmp_path / path.name,
        parameters={name: value for name, value in values.items() if name in known},
        cwd=path.parent,
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=300,
    )
    codes = [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in codes)
    for picture in (tmp_path / "figures").glob("*.png"):
        assert picture.name.startswith(path.name[:2] + "_"), f"{picture.name} belongs to another notebook"
