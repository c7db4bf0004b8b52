"""The numbers of README and findings are those of the committed figures."""

import re

import pandas as pd
import prose
import pytest
import readme

from nbutils import ROOT

FOLDERS = sorted(path.parent for path in (ROOT / "figures").rglob("claims.csv"))
TEXTS = [ROOT / "README.md", ROOT / "docs/findings.md"]
PARAGRAPHS = [each for path in TEXTS for each in prose.paragraphs(path.read_text(encoding="utf-8"))]
STATEMENTS = [statement for paragraph in PARAGRAPHS for statement in prose.statements(paragraph)]


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


# --- prose


def backed(statement: prose.Statement, root=ROOT) -> bool:
    return any(prose.says(statement, row) for row in prose.rows(statement.linked, root))


@pytest.mark.parametrize("statement", STATEMENTS, ids=str)
def test_every_interval_in_prose_is_a_row_of_a_table_that_its_paragraph_links(statement):
    assert any(prose.rows(statement.linked)), f"{statement}: link the table it is from in its paragraph"
    assert backed(statement), f"{statement}: no row of {', '.join(statement.linked)} holds these three numbers"


def test_no_digit_in_prose_can_change_unseen():
    known = {statement.linked: list(prose.rows(statement.linked)) for statement in STATEMENTS}
    changed = [(other, known[other.linked]) for held in STATEMENTS for other in prose.with_a_digit_changed(held)]
    assert len(changed) > 100
    assert not [str(other) for other, rows in changed if any(prose.says(other, row) for row in rows)]


SAID = [
    ("ahead by +4.6 [-0.6, +9.7]", "figures"),
    ("better by 4.6 points [-0.6, 9.7]", "figures/a.csv"),
    ("worse by 4.6 % [-0.6, 9.7]", "figures/b.csv"),
    ("it is -4.6 per cent [-9.7, +0.6] more", "figures"),
    ("with 16 of them it does what a random one does with 40 [19, more than 288]", "figures/c.csv"),
    ("with 4, DINO takes 7 [fewer than 4, 12]", "figures"),
]


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.csv").write_text("effect,low,high\n0.0457129,-0.00602882,0.0974546\n0.2,,\n")
    (tmp_path / "figures/b.csv").write_text("effect,low,high\n-0.0457129,-0.0974546,0.00602882\n")
    worth = ["random,16,40.4,18.6,more than 288", "moco,16,41.4,18.6,more than 288", "dino,4,6.7,fewer than 4,11.5"]
    (tmp_path / "figures/c.csv").write_text("\n".join(["baseline,budget,equals,low,high", *worth]))
    (tmp_path / "figures/d.png").touch()
    return tmp_path


@pytest.mark.parametrize(("said", "linked"), SAID)
def test_an_interval_is_found_in_its_table_and_with_any_other_digit_it_is_not(tables, said, linked):
    (statement,) = prose.statements(f"{said}, see [tables]({linked}).")
    assert backed(statement, tables)
    for place in (match.start() for match in re.finditer(r"\d", said)):
        for digit in set("0123456789") - {said[place]}:
            (wrong,) = prose.statements(f"{said[:place]}{digit}{said[place + 1 :]}, see [tables]({linked}).")
            assert not backed(wrong, tables), wrong


@pytest.mark.parametrize(
    ("said", "linked"),
    [("+4.6 [-9.7, +0.6]", "figures"), ("+4.6 [-0.6, +9.7]", "figures/b.csv"),
     ("-4.6 [-9.7, +0.6]", "figures/a.csv"), ("+4.6 [-0.6, +9.7]", "figures/d.png"),
     ("4.6 [0.6, 9.7]", "figures"), ("with 16, MoCo takes 40 [19, more than 288]", "figures/c.csv"),
     ("with 4 of random, 40 [19, more than 288]", "figures"), ("with 4, DINO takes 7 [more than 4, 12]", "figures")],
)  # fmt: skip
def test_what_no_linked_row_says_is_not_backed(tables, said, linked):
    (statement,) = prose.statements(f"{said} ([table]({linked}))")
    assert not backed(statement, tables)


@pytest.mark.parametrize("said", ["better [1.2, 3.4]", "+1.2 [0.3 to 4.5]", "+1.2 [about 0.3, 4.5]"])
def test_an_interval_in_another_form_is_refused(said):
    with pytest.raises(ValueError, match="without an effect before it"):
        prose.statements(said)


def test_the_table_and_code_are_not_prose():
    row = "\n+1.2 [0.3, 4.5]\n"
    text = f"a{row}\nb\n```py\n{row}```\n{readme.BEGIN}{row}{readme.END}`[0, 1]` c"
    assert prose.paragraphs(text) == ["a +1.2 [0.3, 4.5]", "b", "c"]


def test_linear_probes_in_prose_are_those_of_the_tables():
    said = [probes for paragraph in PARAGRAPHS for probes in prose.probes(paragraph)]
    assert said == [prose.probed(folder) for folder in (ROOT / "figures", ROOT / "figures/globe")]
    assert all(len(probes) == len(prose.ARMS) for probes in said)


def test_a_probe_is_read_with_all_arms_that_share_a_number():
    told = "Linear probe: random 25 % mean IoU, MoCo and DINO 26, noisy map 32; no more."
    assert prose.probes(told) == [{"random": 25, "moco": 26, "dino": 26, "noisy": 32}]
