"""Estimates from samples: the published example, an independent oracle, coverage over repeated sampling; and plans."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils.audit import sampling

# Olofsson et al. 2014, table 8: rows map classes, columns reference; deforestation, forest gain, stable forest, other
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
SIZES = np.array([200_000, 150_000, 3_200_000, 6_450_000])


def _sample(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    noisy, exact = np.indices(counts.shape)
    return np.repeat(noisy.ravel(), counts.ravel()), np.repeat(exact.ravel(), counts.ravel())


def test_the_worked_example_of_olofsson_2014():
    found = sampling.estimate(SIZES, *_sample(COUNTS), 4)
    assert 1 - found.rate.value == pytest.approx(0.947, abs=5e-4)
    assert found.users.value[0] == pytest.approx(0.88, abs=0.005)
    assert 1.96 * found.users.error[0] == pytest.approx(0.07, abs=0.005)
    assert found.producers.value[0] == pytest.approx(0.75, abs=0.005)
    assert 1.96 * found.producers.error[0] == pytest.approx(0.21, abs=0.005)
    assert found.area.value[0] * SIZES.sum() == pytest.approx(235_086, abs=1)
    assert 1.96 * found.area.error[0] * SIZES.sum() == pytest.approx(68_418, rel=1e-3)  # no finite strata there
    assert found.rate.n == 640 and found.users.n.tolist() == [75, 75, 165, 325]


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=3))
def test_strata_of_classes_agree_with_the_equations_of_olofsson_2014(rows):
    counts = np.array(rows) + 2 * np.eye(3, dtype=int)
    sizes = np.array([3, 50, 800]) * 1e7  # so large that the correction for finite strata is nothing
    found = sampling.estimate(sizes, *_sample(counts), 3)
    n, weight = counts.sum(axis=1), sizes / sizes.sum()
    share = counts / n[:, None]
    joint = weight[:, None] * share  # eq. 4
    users, producers = np.diag(share), np.diag(joint) / joint.sum(axis=0)  # eq. 2, 3
    assert found.rate.value == pytest.approx(1 - np.trace(joint))
    assert found.users.value == pytest.approx(users) and found.producers.value == pytest.approx(producers)
    assert found.area.value == pytest.approx(joint.sum(axis=0))
    assert found.transition.value == pytest.approx((joint / joint.sum(axis=0)).T)
    assert found.rate.error == pytest.approx(np.sqrt((weight**2 * users * (1 - users) / (n - 1)).sum()), rel=1e-4)
    assert found.users.error == pytest.approx(np.sqrt(users * (1 - users) / (n - 1)), rel=1e-4)  # eq. 6
    total, spread = joint.sum(axis=0) * sizes.sum(), share * (1 - share) / (n - 1)[:, None]
    off = (sizes[:, None] ** 2 * spread * (1 - np.eye(3))).sum(axis=0)
    own = sizes**2 * (1 - producers) ** 2 * np.diag(spread)
    assert found.producers.error == pytest.approx(np.sqrt(own + producers**2 * off) / total, rel=1e-4, abs=1e-9)  # 7
    area_error = np.sqrt((weight[:, None] ** 2 * spread).sum(axis=0))  # eq. 10
    assert found.area.error == pytest.approx(area_error, rel=1e-4, abs=1e-9)


def test_the_worked_example_of_stehman_2014_with_strata_that_are_no_classes():
    letters = {letter: i for i, letter in enumerate("ABCD")}
    strata = "A" * 10 + "B" * 10 + "C" * 10 + "D" * 10
    noisy = "AAAAAAABBB" + "A" + "B" * 9 + "BB" + "C" * 6 + "BB" + "D" * 10
    exact = "AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB"
    ids = [np.array([letters[c] for c in text]) for text in (noisy, exact, strata)]
    found = sampling.estimate(np.array([4, 3, 2, 1]) * 10**7, ids[0], ids[1], 4, strata=ids[2], names="ABCD")
    assert found.area.value[[0, 2]] == pytest.approx([0.35, 0.20])
    assert found.area.error[[0, 2]] == pytest.approx([0.082, 0.064], abs=5e-4)
    assert 1 - found.rate.value == pytest.approx(0.63) and found.rate.error == pytest.approx(0.085, abs=5e-4)
    assert found.users.value[1] == pytest.approx(0.574, abs=5e-4)
    assert found.users.error[1] == pytest.approx(0.125, abs=5e-4)
    assert found.producers.value[1] == pytest.approx(0.794, abs=5e-4)
    assert found.producers.error[1] == pytest.approx(0.116, abs=1e-3)
