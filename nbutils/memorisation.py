"""When a network stops learning what the labels have in common and starts to learn their errors.

AIO2 (Liu et al., TGRS 2024) sees three stages in training on noisy labels: early learning, a transition in which the
network is at its best, memorisation of the errors. The accuracy against the *noisy* labels alone tells them apart: it
rises steeply, then hardly, then again as the errors are learnt.

After AIO2: least-squares slopes of that accuracy in windows of several lengths (there 10, 20, 30 and 40 epochs), which
must all agree, and a threshold relative to the mean slope of the curve so far. Our choice: everything else. AIO2
(judging by its published code) waits until the slope has passed its minimum, fits a curve and goes back to a checkpoint
halfway into the transition. A training loop that cannot go back must decide on the spot, so here the transition is
called as soon as every window is flat; windows are counted in points of the curve, for curves of 20 to 100 points; and
a curve must have risen by more than its noise. The numbers below are ours, chosen on synthetic curves.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOWS = (4, 6, 8, 10)  # points; the ratio of the longest to the shortest is less than AIO2's 4, for short curves
FLAT = 0.3  # share of the mean slope so far: 1 - exp(-t) passes it at t = 2.06, when 87 % of the rise is done
MIN_RISE = 0.02  # accuracy; less than this is not called learning
_CERTAIN = 5.0  # the rise must exceed this many standard deviations of the noise


@dataclass(frozen=True)
class Stages:
    """The stages of one training on noisy labels, as steps of its curves.

    Attributes:
        first, last: Ends of the curves.
        transition: Where early learning is called over from the noisy labels alone; None if it never is.
        best: Where the accuracy against the truth peaks: early stopping should end here.
        memorisation: From here on the accuracy against the truth stays clearly below its peak; None if it never does.
    """

    first: int
    last: int
    transition: int | None
    best: int
    memorisation: int | None

    def borders(self) -> dict[str, tuple[int, int]]:
        """Return first and last step of each stage that was reached: early learning, transition, memorisation.

        Where the errors are learnt before the transition is called, there is no stage between the two.
        """
        end = self.last if self.memorisation is None else self.memorisation
        middle = end if self.transition is None else min(self.transition, end)
        stages = {
            "early learning": (self.first, middle),
            "transition": (middle, end),
            "memorisation": (end, self.last),
        }
        return {name: border for name, border in stages.items() if border[0] < border[1]}


def transition(
    steps: ArrayLike,
    accuracy: ArrayLike,
    *,
    windows: tuple[int, ...] = WINDOWS,
    flat: float = FLAT,
    min_rise: float = MIN_RISE,
) -> int | None:
    """Return the step at which early learning is called over, from the accuracy against the noisy labels alone.

    It is the first point at which the least-squares slope in every window that ends there is at most `flat` times the
    mean slope since the start, the accuracy having risen by `min_rise` and by five standard deviations of its noise.
    The decision at a point uses no later one: a longer curve gives the same answer.

    Args:
        steps: (n,) increasing step numbers.
        accuracy: (n,) training accuracy in [0, 1] against the labels as given.
        windows: Lengths in points, each at least 3; before the longest fits nothing is called.
        flat: Share of the mean slope below which a window is flat, in (0, 1).
        min_rise: Least rise of the accuracy that counts as learning.

    Returns:
        The step, or None: the curve is too short, never rises (also: falls), or never flattens.

    Raises:
        ValueError: Shapes, order, windows or values are not as above.
    """
    x, y = _curve(steps, accuracy)
    if not windows or min(windows) < 3 or not 0 < flat < 1:
        raise ValueError(f"need windows of 3 or more points and 0 < flat < 1, got windows {windows} and flat {flat}")
    head = min(windows) // 2  # one noisy point at either end must not decide how far the curve has risen
    for end in range(max(windows), len(y) + 1):
        now = slice(end - head, end)
        rise = y[now].mean() - y[:head].mean()
        if rise < max(min_rise, _CERTAIN * noise(y[:end])):
            continue
        mean_slope = rise / (x[now].mean() - x[:head].mean())
        if all(_slope(x[end - w : end], y[end - w : end]) <= flat * mean_slope for w in windows):
            return int(x[end - 1])
    return None


def stages(
    steps: ArrayLike,
    noisy: ArrayLike,
    exact: ArrayLike,
    *,
    smooth: int = 3,
    drop: float = 0.01,
) -> Stages:
    """Find the stages of a training whose accuracy against the truth is known as well.

    Both borders of memorisation are our choice; AIO2 shows them in its figures and does not define them by the truth.

    Args:
        steps: (n,) increasing step numbers.
        noisy: (n,) training accuracy in [0, 1] against the labels as given.
        exact: (n,) accuracy or mean IoU in [0, 1] of the same network against the truth.
        smooth: Points of the centred running median of `exact`, odd: one lucky point is no peak.
        drop: Memorisation begins where `exact` is below its peak by this much and by three standard deviations of its
            noise, and stays there.

    Raises:
        ValueError: The curves differ in length or are not as above.
    """
    x, y = _curve(steps, exact)
    if smooth < 1 or smooth % 2 == 0 or not len(x):
        raise ValueError(f"need a curve of one point or more and an odd `smooth`, got {len(x)} points and {smooth}")
    padded = np.pad(y, smooth // 2, mode="edge")
    level = np.median(np.lib.stride_tricks.sliding_window_view(padded, smooth), axis=1)
    best = int(level.argmax())
    below = level < level[best] - max(drop, 3 * noise(y))
    after = int(np.flatnonzero(~below)[-1]) + 1  # behind the last point that is as good as the peak
    memorisation = int(x[after]) if after < len(x) else None
    return Stages(int(x[0]), int(x[-1]), transition(steps, noisy), int(x[best]), memorisation)


def noise(values: NDArray[np.float64]) -> float:
    """Return the standard deviation of independent noise on a smooth curve: median absolute second difference, scaled.

    Second differences of noise of variance 1 have variance 6; the median, times 1.4826, ignores a few jumps.
    """
    if len(values) < 3:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(values, 2))) / np.sqrt(6))


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


def _curve(steps: ArrayLike, values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"steps and values of a curve are two rows of one length, got {x.shape} and {y.shape}")
    if (np.diff(x) <= 0).any() or not np.isfinite(y).all():
        raise ValueError("the steps of a curve must increase and its values be finite")
    return x, y
