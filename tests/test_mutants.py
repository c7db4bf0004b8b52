"""Mutation testing: what is changed, and that a test that sees nothing is found."""

import numpy as np
import pytest

pytest.importorskip("cosmic_ray", reason="no cosmic-ray: pip install 'noisy-maps[dev]'")

import mutants  # noqa: E402 it imports cosmic-ray

SOURCE = '''
def larger(a: int | None, b: int | None = 3) -> int | None:
    """No mutant is made of a word."""
    return a if a > b else b
'''


def test_annotations_and_words_are_no_places():
    found = mutants.sites(SOURCE)
    assert [SOURCE.splitlines()[site.line - 1][site.column :][:1] for site in found if site.line == 2] == ["3"]
    assert {site.line for site in found} == {2, 4} and all(site.ways for site in found)


def test_a_seed_draws_the_same_mutants_and_each_differs_at_its_line():
    one, again, other = (list(mutants.drawn(SOURCE, 9, np.random.default_rng(seed))) for seed in (0, 0, 1))
    assert one == again != other
    for line, changed in one:
        told = mutants.difference(SOURCE, changed)
        assert told["was"] == SOURCE.splitlines()[line - 1].strip() != told["became"]
        compile(changed, "mutant", "exec")


@pytest.mark.parametrize(
    ("asserted", "seen"), [("larger(4) == 4 and larger(2) == 3 == larger(3)", True), ("larger(9) == 9", False)]
)
def test_a_weak_test_leaves_survivors_and_the_room_is_put_back(tmp_path, monkeypatch, asserted, seen):
    for folder in ("nbutils", "tests", "tools"):
        (tmp_path / folder).mkdir()
    (tmp_path / "nbutils/toyroom.py").write_text(SOURCE)
    (tmp_path / "tests/test_toy.py").write_text(f"from toyroom import larger\n\ndef test():\n    assert {asserted}\n")
    (tmp_path / "tests/conftest.py").write_text(f"import sys\nsys.path.insert(0, {str(tmp_path / 'nbutils')!r})\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setitem(mutants.ROOMS, "toyroom", ["toy"])
    row, survivors = mutants.try_room("toyroom", tmp_path, 9, 0)
    assert (
        row["mutants"] == row["killed"] + row["left"] == len(list(mutants.drawn(SOURCE, 9, np.random.default_rng(0))))
    )
    assert len(survivors) == row["left"] and (row["killed"] == row["mutants"] or not seen)
    assert seen or survivors
    assert (tmp_path / "nbutils/toyroom.py").read_text() == SOURCE
    (tmp_path / "tests/test_toy.py").write_text("def test():\n    assert False\n")
    with pytest.raises(RuntimeError, match="toyroom: toy fail without any change"):
        mutants.try_room("toyroom", tmp_path, 9, 0)


def test_what_was_said_of_a_survivor_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "LOOKED_AT", tmp_path / "said.csv")
    (tmp_path / "said.csv").write_text('room,was,became,said\na,"f(1, 2)","f(1, 3)",the same\n')
    survivor = {"room": "a", "line": 9, "was": "f(1, 2)", "became": "f(1, 3)"}
    assert mutants.said_of(survivor) == "the same" and mutants.said_of(survivor | {"room": "b"}) == "not looked at"
    rows = [{"room": r, "tests": "t", "places": 9, "mutants": 3, "killed": 2, "left": 1} for r in "ab"]
    assert mutants.summed(rows) == {"room": "all", "tests": "", "places": 18, "mutants": 6, "killed": 4, "left": 2}


def test_a_room_tried_again_replaces_its_own_rows_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants.measured, "PATH", tmp_path / "kept.json")

    def gave(room, left):
        row = {"room": room, "tests": "t", "places": 9, "mutants": 3, "killed": 3 - left, "left": left}
        return row, [{"room": room, "line": line, "was": "f(1)", "became": "f(2)"} for line in range(left, 0, -1)]

    for room, left in (("worth", 1), ("legend", 2), ("worth", 0), ("claims", 1)):
        mutants.keep(*gave(room, left), 0)
    kept = mutants.measured.read()
    assert [(row["room"], row["left"]) for row in kept["mutants"]["rows"]] == [
        ("legend", 2), ("claims", 1), ("worth", 0), ("all", 3)]  # fmt: skip
    assert [(each["room"], each["line"]) for each in kept["survivors"]["rows"]] == [
        ("legend", 1), ("legend", 2), ("claims", 1)]  # fmt: skip
    mutants.keep(*gave("worth", 1), seed=1)
    assert [row["room"] for row in mutants.measured.read()["mutants"]["rows"]] == ["worth", "all"], "of one seed"
