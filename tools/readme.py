"""Write the claims of the committed figures into the README.

    python tools/readme.py

Reads `claims.csv` of every folder of figures and replaces what stands between the two marks in README.md; nothing else
there is touched.
"""

from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- claims: written by tools/readme.py -->\n", "<!-- end of claims -->\n"


def read_claims(figures: Path) -> pd.DataFrame:
    """Return the claims of a folder of figures and of the folders in it, in that order."""
    paths = [path for path in (figures / "claims.csv", *sorted(figures.glob("*/claims.csv"))) if path.is_file()]
    return pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)


def table(claims: pd.DataFrame) -> str:
    """Return a Markdown table with a row per claim and a column per data set; differences in points."""
    worlds = list(dict.fromkeys(claims.world))
    lines = [["claim", *worlds], ["---"] * (1 + len(worlds))]
    for text in dict.fromkeys(claims.text):
        found = claims[claims.text == text].set_index("world")
        lines.append([text, *(told(found.loc[world]) if world in found.index else "–" for world in worlds)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def told(claim: pd.Series) -> str:
    """Return effect, interval and verdict of one claim."""
    effect, low, high = (100 * claim[["effect", "low", "high"]]).astype(float).round(1) + 0.0  # no -0.0
    return f"{effect:+.1f} [{low:+.1f}, {high:+.1f}] {claim.verdict}"


def put(readme: str, figures: Path) -> str:
    """Return a README with the table in its place.

    Raises:
        ValueError: The two marks are not there, each once.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md: expected the lines {BEGIN.strip()!r} and {END.strip()!r}, each once")
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + table(read_claims(figures)) + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    scratch = path.with_name(".README.md.tmp")  # renamed when it is whole
    scratch.write_text(put(path.read_text(encoding="utf-8"), ROOT / "figures"), encoding="utf-8")
    scratch.replace(path)
