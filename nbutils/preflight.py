"""Pre-flight: will pretraining on a noisy map pay on these data? A forecast from a few minutes, before hours are spent.

The *probe*: a short pretraining on at most 256 patches, with the noisy map and by self-supervision, then linear probes
on the frozen features of these encoders and of random ones, judged on validation scenes. By how much the noisy map's
features are ahead is its *gain*. What a gain has meant so far is known from cases where the full comparison was run as
well (`data/preflight.csv`, written by `tools/preflight.py`): logistic regression on them turns a gain into a
probability. Where that is near one half the answer is "cannot tell". How often the answers were right, each case
forecast from the others alone, is `leave_one_out`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression

from nbutils import ROOT, statistics, study
from nbutils.patches import PatchSet
from nbutils.store import Result, Run

KNOWN = ROOT / "data" / "preflight.csv"
RIVALS = ("random", "moco")  # what one would do without the map
AHEAD, BEHIND, OPEN = "ahead", "behind", "cannot tell"
SURE = 0.8  # least probability of an answer
PATCHES, STEPS, BATCH, PIXELS = 256, 100, 16, 1500  # of the probe; the known cases hold for these alone
SEEDS = (0, 1)
_UNIT = 0.05  # of gain in the regression, so that its penalty is mild: five points of mean IoU


@dataclass(frozen=True)
class Forecast:
    """What is expected of the full comparison.

    Attributes:
        rival: One of `RIVALS`.
        gain: By how much the map's features are ahead under the probe, mean IoU in [-1, 1].
        probability: That pretraining on the map will be ahead, in [0, 1].
        answer: `AHEAD`, `BEHIND` or `OPEN`.
    """

    rival: str
    gain: float
    probability: float
    answer: str


def short_runs(data: PatchSet, arm: str, *, encoder: str, width: str, precision: str) -> list[Run]:
    """Describe the short pretrainings of one arm, one for each seed."""
    how = dict(encoder=encoder, width=width, precision=precision, steps=STEPS, batch_size=BATCH)
    few = min(PATCHES, int(data.member["pretrain"].sum()))
    return [study.pretraining(data, arm, seed=seed, budget=few, **how) for seed in SEEDS]


def score(data: PatchSet, results: Sequence[Result | None], *, encoder: str) -> float:
    """Mean IoU of linear probes for the exact classes on validation scenes, mean over seeds.

    The layer is the best on these scenes, which favours all arms alike.

    Args:
        data: The patches; some for fine-tuning and for validation have exact masks.
        results: What `short_runs` gave, in its order; None for random encoders.
        encoder: Its name.
    """
    probed = [
        study.probe_layers(result, data, encoder=encoder, n_pixels=PIXELS, seed=seed)["validation"]
        for seed, result in zip(SEEDS, results, strict=True)
    ]
    return max(float(np.mean([statistics.mean_iou(each[layer].sum(axis=0)) for each in probed])) for layer in probed[0])


def gains(data: PatchSet, *, encoder: str, width: str, precision: str, workers: int = 2) -> dict[str, float]:
    """Run the probe: by how much the noisy map's features are ahead of each rival's, mean IoU on validation scenes."""
    trained = {
        arm: study.run_many(short_runs(data, arm, encoder=encoder, width=width, precision=precision), workers=workers)
        for arm in ("noisy", "moco")
    }
    scores = {arm: score(data, results, encoder=encoder) for arm, results in trained.items()}
    scores["random"] = score(data, [None] * len(SEEDS), encoder=encoder)
    return {rival: scores["noisy"] - scores[rival] for rival in RIVALS}


def read_known(path: Path = KNOWN) -> pd.DataFrame:
    """Read the cases whose outcome is known.

    Returns:
        One row per case and rival: `data`, `case`, `wrong` (share of wrong pixels), `rival`, `gain`, and `effect` with
        its interval `low`, `high`: by how much fine-tuning was better from the map's encoder, mean IoU on test scenes.
    """
    return pd.read_csv(path)


def forecast(rival: str, gain: float, known: pd.DataFrame) -> Forecast:
    """Forecast whether pretraining on the map will beat a rival, from what a gain has meant in known cases.

    Args:
        rival: One of `RIVALS`.
        gain: See `gains`.
        known: Cases as `read_known` gives them; those of other rivals are left out.

    Raises:
        ValueError: No case of this rival is known, or the gain is not a number.
    """
    of = known[known.rival == rival]
    if of.empty:
        raise ValueError(f"no known case of {rival!r}; there are {', '.join(sorted(set(known.rival))) or 'none'}")
    if not np.isfinite(gain):
        raise ValueError(f"the gain over {rival} is {gain}; do the validation scenes have exact masks?")
    p = _probability(gain, of.gain.to_numpy(), of.effect.to_numpy() > 0)
    answer = AHEAD if p >= SURE else BEHIND if p <= 1 - SURE else OPEN
    return Forecast(rival, gain, p, answer)


def _probability(gain: float, gains: NDArray, ahead: NDArray[np.bool_]) -> float:
    """Logistic regression; where all went one way, the rule of succession, whatever the gain."""
    if ahead.all() or not ahead.any():
        return (ahead.sum() + 1) / (len(ahead) + 2)
    model = LogisticRegression(C=1.0).fit(gains[:, None] / _UNIT, ahead)
    return float(model.predict_proba([[gain / _UNIT]])[0, 1])


def leave_one_out(known: pd.DataFrame, by: str = "case") -> pd.DataFrame:
    """Forecast every known case from the others.

    Args:
        known: As `read_known` gives them.
        by: What is left out together: ``case``, or ``data`` for all cases of its data set, which is harder: the cases
            of a data set share images, exact masks and rivals.

    Returns:
        The rows of `known` with `probability`, `answer` and `right` (nan where the answer is "cannot tell").

    Raises:
        ValueError: Fewer than two groups are known.
    """
    together = known.data if by == "data" else known.data + " " + known.case
    if together.nunique() < 2:
        raise ValueError(f"to leave one {by} out takes two, got {together.nunique()}")
    told = [
        forecast(row.rival, row.gain, known[together != group])
        for row, group in zip(known.itertuples(), together, strict=True)
    ]
    out = known.assign(probability=[each.probability for each in told], answer=[each.answer for each in told])
    right = (out.answer == AHEAD) == (out.effect > 0)
    return out.assign(right=right.astype(float).where(out.answer != OPEN))


def hit_rates(judged: pd.DataFrame) -> pd.DataFrame:
    """Count how often forecasts were right, against each rival and over all.

    Args:
        judged: As `leave_one_out` gives it.

    Returns:
        Rows by rival and ``all``: `cases`, `told` (an answer was given), `right`, `share` of the told with the 95 %
        interval of Wilson `low`, `high` (which takes cases for independent), and `always`: the share that would be
        right if "ahead" were always said.
    """
    groups: Mapping[str, pd.DataFrame] = {**dict(list(judged.groupby("rival"))), "all": judged}
    rows = []
    for rival, cases in groups.items():
        told, right = int(cases.right.notna().sum()), int(cases.right.sum())
        low, high = stats.binomtest(right, told).proportion_ci(method="wilson") if told else (np.nan, np.nan)
        share = right / told if told else np.nan
        rows.append((rival, len(cases), told, right, share, low, high, float((cases.effect > 0).mean())))
    columns = ["rival", "cases", "told", "right", "share", "low", "high", "always"]
    return pd.DataFrame(rows, columns=columns).set_index("rival")
