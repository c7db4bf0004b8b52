"""The verdict: what an owner of a noisy map is told, each sentence with its number, and the page it is read on.

A *statement* answers one question. Its answer follows from a tested difference by a rule that stands here, and says
"cannot tell" where the interval does not decide.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from nbutils.preflight import AHEAD, BEHIND, Forecast
from nbutils.statistics import Difference
from nbutils.worth import Equivalent

ENOUGH = 5  # seeds, and test scenes, from which on an answer is no longer called provisional
CLEANING = {  # kinds of errors as `audit.examine` shares them out, and what to do about each
    "shift": "align the map scene by scene first: notebook 02 measures by how much each is displaced",
    "boundary": "clean boundaries first: leave a rim of two or three pixels around edges of classes void",
    "omission": "look for missed objects first: add them, or make void what may hold some",
    "commission": "look for made-up objects first: remove them, or make them void",
    "confusion": "look at mixed-up classes first: correct or merge those that the audit names",
    "speckle": "sieve the map first: drop areas of less than four pixels",
}


@dataclass(frozen=True)
class Statement:
    """One sentence of the verdict.

    Attributes:
        question: What was asked.
        answer: What follows, in words.
        evidence: The number behind it, with its interval where it has one.
        figure: Name of the figure that shows it, without its folder and ending; "" for none.
    """

    question: str
    answer: str
    evidence: str
    figure: str = ""


def points(difference: Difference) -> str:
    """A difference in words: "+6.8 points [+0.9, +13.2]"."""
    effect, low, high = (100 * each for each in (difference.effect, difference.low, difference.high))
    return f"{effect:+.1f} points [{low:+.1f}, {high:+.1f}]"


def recommend(over: Mapping[str, Difference]) -> str:
    """Whether to pretrain on the map, from its lead over what one would do without it.

    Args:
        over: By rival, the lead of the noisy arm; one of them at least.

    Returns:
        "pretrain ..." where every lead is supported, "do not ..." where one is contradicted, else "cannot tell ...";
        "provisional" before it with fewer than `ENOUGH` seeds or test scenes.
    """
    if not over:
        raise ValueError("a recommendation takes one rival at least")
    n = [min(getattr(each, what) for each in over.values()) for what in ("n_seeds", "n_scenes")]
    sizes = f"{n[0]} seed(s), {n[1]} test scene(s)"
    if min(n) < 2:
        return f"cannot tell: {sizes}, and one says nothing about the next"
    lost = [rival for rival, each in over.items() if each.verdict == "contradicted"]
    still = [rival for rival, each in over.items() if each.verdict == "undecided"]
    if not lost and still:
        return f"cannot tell: the lead over {' and '.join(still)} is undecided ({sizes})"
    answer = f"do not pretrain on this map: {' and '.join(lost)} did better here" if lost else (
        f"pretrain on this map: it beat {' and '.join(over)} here")  # fmt: skip
    return answer if min(n) >= ENOUGH else f"provisional ({sizes}): {answer}"


def pretrain(over: Mapping[str, Difference], figure: str) -> Statement:
    """Should I pretrain on the map? By the rule of `recommend`."""
    evidence = "; ".join(f"over {rival} {points(each)}, {each.verdict}" for rival, each in over.items())
    return Statement("Pretrain on this map?", recommend(over), evidence, figure)


def foreseen(forecasts: Sequence[Forecast], hits: pd.DataFrame) -> Statement:
    """What the probe said before.

    Args:
        forecasts: One for each rival.
        hits: As `preflight.hit_rates` gives them.
    """
    told = {AHEAD: "the map will be ahead of {}", BEHIND: "{} will be ahead"}
    answers = [told.get(each.answer, "against {} it cannot be told").format(each.rival) for each in forecasts]
    numbers = [f"gain over {f.rival} {100 * f.gain:+.1f} points, probability {f.probability:.0%}" for f in forecasts]
    row = hits.loc["all"]
    record = f"so far {row.right:.0f} of {row.told:.0f} answers were right, of {row.cases:.0f} forecasts"
    record += f", where always saying ahead would have been right {row.always * row.cases:.0f} times"
    return Statement("What did the short probe foresee?", "; ".join(answers), "; ".join([*numbers, record]))


def carry(decoder_too: Difference, figure: str) -> Statement:
    """Which layers should be carried over? `decoder_too`: carrying the decoder as well, less the encoder alone."""
    answer = _by_verdict(
        decoder_too,
        supported="carry the encoder and the decoder",
        contradicted="carry the encoder alone and start the decoder afresh",
        undecided="carry the encoder; whether the decoder should come along cannot be told",
    )
    return Statement("Which layers to carry over?", answer, f"decoder too: {points(decoder_too)}", figure)


def remedy(name: str, gain: Difference, figure: str) -> Statement:
    """Is a remedy for wrong labels worth using? `gain`: the arm with the remedy less the plain one."""
    answer = _by_verdict(
        gain,
        supported=f"train with {name}",
        contradicted=f"train plainly: {name} did worse",
        undecided=f"train plainly; that {name} helps is not shown",
    )
    return Statement("Which remedy for wrong labels?", answer, f"{name}: {points(gain)}", figure)


def _by_verdict(difference: Difference, **answers: str) -> str:
    """The answer to a difference's verdict; one seed or scene decides nothing, few decide for the time being."""
    least = min(difference.n_seeds, difference.n_scenes)
    verdict = difference.verdict if least > 1 else "undecided"
    provisional = verdict != "undecided" and least < ENOUGH
    return f"{'provisional: ' if provisional else ''}{answers[verdict]}"


def clean_first(audited: pd.DataFrame, figure: str) -> Statement:
    """What to clean first: the kind that most wrong pixels are of.

    Args:
        audited: The table of `audit.examine`; of it the rows of the statistic ``kinds``.
        figure: Name of the figure.

    Raises:
        ValueError: There is no such row, or no pixel is wrong.
    """
    kinds = audited[audited.statistic == "kinds"].dropna(subset="value").sort_values("value", ascending=False)
    if kinds.empty:
        raise ValueError("no wrong pixel was found, so there is nothing to clean")
    first, second = kinds.iloc[0], kinds.iloc[min(1, len(kinds) - 1)]
    answer = CLEANING[first.key]
    if len(kinds) > 1 and not first.low > second.high:  # NaN of one scene, too
        answer += f" (closely followed by {second.key})"
    interval = f"[{first.low:.0%}, {first.high:.0%}]" if np.isfinite(first.low) else "(one scene, no interval)"
    evidence = f"{first.key}: {first.value:.0%} {interval} of the wrong pixels"
    return Statement("What to clean first?", answer, evidence, figure)


def more_patches(found: Equivalent, rival: str, figure: str) -> Statement:
    """How many more exact patches would make the map unnecessary?

    Args:
        found: What the noisy arm's budget is worth to the rival.
        rival: Its name.
        figure: Name of the figure.
    """
    more = found.equals.moved(1.0, -found.budget)
    beyond = {"more than": more.value < 0, "fewer than": more.value > 0}
    if beyond.get(found.equals.bound):
        answer = "not measured: the budgets that were tried do not reach there"
    elif found.equals.bound == "more than":
        answer = f"more than {more.value:.0f}: no budget that was tried gets there"
    elif found.equals.bound == "fewer than" or more.value <= 0:
        answer = "none: with as many exact patches one does as well without the map"
    else:
        answer = f"about {more.value:.0f} more than the {found.budget} at hand"
    at_least = found.low.value - found.budget
    spared = found.low.bound != "fewer than" and (at_least > 0 or (at_least == 0 and found.low.bound == "more than"))
    none = found.high.bound != "more than" and found.high.value <= found.budget
    if not (spared or none):  # NaN of one seed and scene, too
        answer = f"cannot tell; the best guess is {answer}"
    ends = f"[{found.low}, {found.high}]"
    evidence = f"{found.budget} patches with the map equal {found.equals} {ends} with {rival}"
    return Statement("How many more exact patches would do without the map?", answer, evidence, figure)


_STYLE = """body{font:17px/1.55 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.05rem;margin:2.2rem 0 .2rem;color:#555;font-weight:600}
p.answer{font-size:1.15rem;margin:.1rem 0}p.answer::first-letter{text-transform:uppercase}
p.evidence{color:#444;margin:.2rem 0 .6rem}img{max-width:100%;height:auto}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;color:#444}dt{font-weight:600}dd{margin:0}
@media(max-width:30rem){dl{grid-template-columns:1fr}}"""


def page(title: str, statements: Sequence[Statement], facts: Mapping[str, str], figures: Path) -> str:
    """Put the verdict on one page that needs no other file.

    Args:
        title: Heading.
        statements: In the order they are read.
        facts: What else belongs to it, by name: data set, licence, sizes, machine.
        figures: Folder of the figures; one that is not there is left out.

    Returns:
        HTML with the figures inside.
    """
    shown: set[str] = set()
    parts = []
    for each in statements:
        parts.append(f'<h2>{escape(each.question)}</h2>\n<p class="answer">{escape(each.answer)}.</p>\n'
                     f'<p class="evidence">{escape(each.evidence)}.</p>')  # fmt: skip
        file = figures / f"{each.figure}.png"
        if each.figure and each.figure not in shown and file.is_file():
            shown.add(each.figure)
            data = base64.b64encode(file.read_bytes()).decode()
            parts.append(f'<img src="data:image/png;base64,{data}" alt="{escape(each.question, quote=True)}">')
    about = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n" + "\n".join(parts)
            + f"\n<h2>Where this comes from</h2>\n<dl>\n{about}\n</dl>\n</body>\n</html>\n")  # fmt: skip
