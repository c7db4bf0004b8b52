"""The README's numbers are those of the committed figures."""

import pandas as pd
import pytest
import readme

from nbutils import ROOT

FOLDERS = sorted(path.parent for path in (ROOT / "figures").rglob("claims.csv"))


def test_the_readme_holds_the_claims_of_the_committed_figures():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.put(text, ROOT / "figures") == text
    assert text.split(readme.BEGIN)[1].split(readme.END)[0].count("] ") >= 20


def test_a_table_has_a_row_for_each_claim_and_a_column_for_each_world():
    row = {"text": "a > b", "world": "city", "effect": 0.0123, "low": -0.004, "high": 0.03, "verdict": "undecided"}
    claims = pd.DataFrame([row, row | {"world": "globe"}, row | {"text": "c > d", "effect": 0.2}])
    assert readme.table(claims).splitlines() == [
        "| claim | city | globe |",
        "| --- | --- | --- |",
        "| a > b | +1.2 [-0.4, +3.0] undecided | +1.2 [-0.4, +3.0] undecided |",
        "| c > d | +20.0 [-0.4, +3.0] undecided | – |",
    ]


@pytest.mark.parametrize("text", ["", readme.BEGIN, readme.END, 2 * (readme.BEGIN + readme.END)])
def test_a_readme_without_its_marks_is_refused(text):
    with pytest.raises(ValueError, match="each once"):
        readme.put(text, ROOT / "figures")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_claim_names_runs_that_the_results_hold(folder):
    claims, results = (pd.read_csv(folder / name) for name in ("claims.csv", "results.csv"))
    assert results["run"].is_unique and results["run"].str.fullmatch(r"[0-9a-f]{20}").all()
    known = results.set_index("run")
    for claim in claims.itertuples():
        behind = known.loc[claim.runs.split()]
        assert behind.seed.nunique() == claim.n_seeds
        assert (
            behind.groupby(["arm", "task", "decoder", "frozen", "budget", "carried"])
            .seed.nunique()
            .eq(claim.n_seeds)
            .all()
        )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_score_names_the_runs_it_is_the_mean_of(folder):
    scores, results = (pd.read_csv(folder / name) for name in ("05_scores.csv", "results.csv"))
    known = results.set_index("run").miou
    for score in scores.itertuples():
        assert known.loc[score.runs.split()].mean() == pytest.approx(score.mean, abs=2e-6)  # tables have six digits
