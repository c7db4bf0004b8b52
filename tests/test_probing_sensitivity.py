"""The sensitivity score: closed forms, its unit, and the advice that follows."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils import claims, probing, statistics
from nbutils.probing import LayerScore, advice, layer_scores, seed_spread


def _counts(shares, scenes=4, pixels=1000):
    """Counts (S, C, 2, 2) whose mean IoU is exactly that of a share of right pixels, for each seed."""
    right = np.round(np.asarray(shares) * pixels).astype(int)
    table = np.stack([np.stack([right, pixels - right], -1), np.stack([pixels - right, right], -1)], -2)
    return np.repeat(table[:, None], scenes, axis=1)


def _iou(share):
    return share / (2 - share)


EXACT = {"stem": _counts([0.80, 0.82, 0.78]), "stage1": _counts([0.9, 0.9, 0.91])}


def test_costs_and_unit_are_the_closed_forms():
    noisy = {"stem": _counts([0.70, 0.72, 0.68]), "stage1": _counts([0.9, 0.9, 0.91])}
    first, second = layer_scores(noisy, EXACT)
    shares = {"stem": [0.80, 0.82, 0.78], "stage1": [0.9, 0.9, 0.91]}
    squares = [(_iou(a) - _iou(b)) ** 2 for each in shares.values() for a, b in combinations(each, 2)]
    unit = np.sqrt(np.mean(squares))
    cost = np.mean([_iou(a) - _iou(a - 0.1) for a in shares["stem"]])
    assert first.cost == pytest.approx(cost) and first.seed_spread == pytest.approx(unit)
    assert first.score == pytest.approx(cost / unit) and 0 < first.low <= first.score <= first.high
    assert (second.layer, second.cost, second.low, second.high) == ("stage1", 0, 0, 0)
    assert advice([first, second]) == 0 and advice([second, first]) == 1


def test_the_interval_is_the_paired_one_in_seed_spreads():
    rng = np.random.default_rng(1)
    exact = rng.integers(50, 99, (3, 4))[..., None, None] * np.eye(2, dtype=int) + 10
    noisy = np.flip(exact, -1)  # the same exact pixels, all said wrong
    (score,) = layer_scores({"head": noisy}, {"head": exact}, level=0.9)
    plain = claims.paired_interval(exact, noisy, level=0.9)
    unit = seed_spread([exact])
    assert (score.low * unit, score.high * unit) == pytest.approx((plain.low, plain.high))


def test_without_harm_the_carry_seldom_ends_early():
    """At the level for all layers together: 2.5 % are expected, 8 of 120 have a chance below 0.02."""
    rng, early = np.random.default_rng(0), 0
    for _ in range(120):
        arms = [{}, {}]
        for layer in "abcdef":
            scene = 0.7 + 0.02 * rng.normal(size=(1, 5))
            for arm in arms:
                share = scene + 0.01 * (rng.normal(size=(3, 1)) + rng.normal(size=(3, 5)) + rng.normal(size=(1, 5)))
                right = np.round(share * 400).astype(int)
                arm[layer] = np.stack([right, 400 - right, 400 - right, right], -1).reshape(3, 5, 2, 2)
        early += advice(layer_scores(*arms, level=1 - 0.05 / 6)) < 6
    assert early < 8


@given(st.lists(st.floats(0.3, 0.95), min_size=2, max_size=6))
def test_noise_that_changes_nothing_is_never_called_harmful(shares):
    exact = {"stem": _counts(shares), "head": _counts([0.5, 0.6, *shares][: len(shares)])}
    scores = layer_scores(exact, exact)
    assert all(score.score == 0 for score in scores) and advice(scores) == 2


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_unit_is_the_mean_over_pairs_of_seeds(shares):
    counts = _counts(shares, scenes=1)
    scores = [float(statistics.mean_iou(each.sum(0))) for each in counts]
    expected = np.sqrt(np.mean([(a - b) ** 2 for a, b in combinations(scores, 2)]))
    if expected > 1e-9:
        assert seed_spread([counts]) == pytest.approx(expected)


def _score(low, high):
    return LayerScore("x", (low + high) / 2, low, high, 0.1, 0.1)


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0, 2)), max_size=8))
def test_advice_ends_the_carry_at_the_first_harmed_layer(spans):
    scores = [_score(low, low + width) for low, width in spans]
    k = advice(scores)
    assert all(score.low <= 0 for score in scores[:k])
    assert k == len(scores) or scores[k].low > 0


def test_what_is_not_known_ends_no_carry():
    unknown = replace(_score(1, 2), low=float("nan"), high=float("nan"))
    assert advice([unknown, _score(-1, 1), _score(0.1, 1), unknown]) == 2 and advice([]) == 0


def test_what_cannot_be_scored_is_refused():
    one, equal = _counts([0.8]), _counts([0.8, 0.8])
    with pytest.raises(ValueError, match="two seeds"):
        layer_scores({"stem": one}, {"stem": one})
    with pytest.raises(ValueError, match="agree in everything"):
        layer_scores({"stem": equal}, {"stem": equal})
    with pytest.raises(ValueError, match="same layers in both, got head and stem, stage1"):
        layer_scores({"head": one}, EXACT)
    with pytest.raises(ValueError, match=r"are not the same \(seeds, scenes"):
        layer_scores({k: v[:2] for k, v in EXACT.items()}, EXACT)


def test_scores_come_from_probes_as_they_are():
    """From the counts that `probe_layers` returns, stacked over seeds."""
    from toy import toy_patches

    from nbutils import networks

    data, arms = toy_patches(n=20), {"noisy": (0, 1), "exact": (2, 3)}
    stacks = {}
    for arm, seeds in arms.items():
        each = []
        for i, seed in enumerate(seeds):
            network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=2, seed=seed, width="slim")
            rng = np.random.default_rng(i)  # the same pixels in both arms
            judges = {"test": data.split("test")}
            asked = {"n_pixels": 150, "rng": rng, "layers": ["stem", "decoder1"]}
            each.append(probing.probe_layers(network.eval(), data.split("finetune"), judges, "exact", **asked)["test"])
        stacks[arm] = {layer: np.stack([counts[layer] for counts in each]) for layer in each[0]}
    scores = layer_scores(stacks["noisy"], stacks["exact"])
    assert [score.layer for score in scores] == ["stem", "decoder1"]
    assert all(np.isfinite([score.score, score.low, score.high]).all() for score in scores)
