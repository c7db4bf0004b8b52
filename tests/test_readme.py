"""The README's numbers are those of the committed figures."""

import re

import pandas as pd

from nbutils import ROOT, figures


def test_every_difference_in_the_readme_stands_in_the_claims():
    claims = pd.read_csv(ROOT / "figures" / "claims.csv")
    percent = (100 * claims[["effect", "low", "high"]]).round(1)
    known = {
        (
            row.group,
            f"{figures.label_of(row.decoder)}, {'frozen' if row.frozen else 'fine-tuned'}, {row.budget} patches",
        ): (
            f"{points.effect:+.1f} [{points.low:+.1f}, {points.high:+.1f}]",
            row.verdict,
        )
        for row, points in zip(claims.itertuples(), percent.itertuples(), strict=True)
    }
    pattern = r"^\| (\w+ > \w+) \| (.+?) \| (.+?) \| (\w+) \|$"
    quoted = re.findall(pattern, (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(quoted) >= 6
    for claim, cell, difference, verdict in quoted:
        assert known[claim, cell] == (difference, verdict)


def test_every_claim_names_runs_that_the_results_hold():
    claims, results = (pd.read_csv(ROOT / "figures" / name) for name in ("claims.csv", "results.csv"))
    assert results["run"].is_unique and results["run"].str.fullmatch(r"[0-9a-f]{20}").all()
    cells = results.groupby(["arm", "decoder", "frozen", "budget"])["seed"].nunique()
    for row in claims.itertuples():
        for arm in row.group.split(" > "):
            assert cells[arm, row.decoder, row.frozen, row.budget] == row.n_seeds
