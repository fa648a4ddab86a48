"""Confidence intervals: of a mean (Student's t), of shares, of a straight line's slope. Plain Python, no scipy.

A value stands for one independent unit, a seed or a draw. What a unit has many of (tokens, layers) is first made one number.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

#: Of every interval in this package's reports.
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A number with the ends of its 95 % interval; the ends are NaN where one value alone gives none."""

    value: float
    low: float
    high: float

    def within(self, low, high):
        """Whether the whole interval lies between ``low`` and ``high``; one that is NaN does not."""
        return low <= self.low and self.high <= high

    def outside(self, low, high):
        """Whether the whole interval lies below ``low`` or above ``high``; one that is NaN does not."""
        return self.high < low or high < self.low

    def beyond(self, low, high):
        """How far the interval, or the value that has none, reaches past ``low`` or ``high``; below 0 inside."""
        ends = (self.value, self.value) if math.isnan(self.low) else (self.low, self.high)
        return max(low - ends[0], ends[1] - high)


def worst(estimates, low, high):
    """The key of the estimate that speaks most against all of them lying between ``low`` and ``high``.

    ``estimates``: a dict. One that lies outside comes before one across an end, and that before one inside; of each kind it is
    the one that reaches farthest beyond.
    """

    def against(key):
        estimate = estimates[key]
        return estimate.outside(low, high), not estimate.within(low, high), estimate.beyond(low, high)

    return max(estimates, key=against)


def t_quantile(freedom):
    """The t for which P(|T| < t) is :data:`CONFIDENCE`, with ``freedom`` >= 1 degrees of freedom.

    By bisection on the closed form for whole degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4); from 200 on the
    expansion about the normal quantile (26.7.5), whose error is then below 1e-6.
    """
    if freedom >= 200:
        z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < CONFIDENCE else (low, middle)
    return high


def t_probability(t, freedom):
    """P(|T| < t)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    for k in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if freedom % 2 == 0:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))


def mean(values):
    """The mean of ``values`` and its interval."""
    values = [float(value) for value in values]
    center = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(center, math.nan, math.nan)
    variance = math.fsum((value - center) ** 2 for value in values) / (len(values) - 1)
    half = t_quantile(len(values) - 1) * math.sqrt(variance / len(values))
    return Estimate(center, center - half, center + half)


def share(values):
    """The mean of ``values``, shares of independent units, and its interval, which ends at 0 and at 1."""
    return Estimate(*(min(max(end, 0.0), 1.0) if not math.isnan(end) else end for end in mean(values)))


def proportion(count, total):
    """The share ``count / total`` of a sample and Wilson's interval of it."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    value = count / total
    center = (value + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(value * (1 - value) / total + z**2 / (4 * total**2))
    return Estimate(value, center - half, center + half)


def slope(x, y):
    """The slope of the least-squares line through the points ``(x, y)``, and its interval (NaN for two points).

    Raises:
        ValueError: all ``x`` are equal.

    """
    center_x, center_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((a - center_x) ** 2 for a in x)
    if spread == 0:
        raise ValueError("a slope needs two different x")
    value = math.fsum((a - center_x) * (b - center_y) for a, b in zip(x, y, strict=True)) / spread
    if len(x) == 2:
        return Estimate(value, math.nan, math.nan)
    residual = math.fsum((b - center_y - value * (a - center_x)) ** 2 for a, b in zip(x, y, strict=True))
    half = t_quantile(len(x) - 2) * math.sqrt(residual / (len(x) - 2) / spread)
    return Estimate(value, value - half, value + half)


def exponent(x, y):
    """The exponent b of ``y = a x^b``, from a line through the logarithms."""
    return slope([math.log(value) for value in x], [math.log(value) for value in y])


def mean_slope(lines):
    """The mean, over independent units, of the slope of each one's own points, and its interval.

    ``lines``: a pair of lists ``(x, y)`` for each unit. Points of one unit, such as the layers of one model, are no independent
    values, so that a line through the points of all units would have too narrow an interval.

    Raises:
        ValueError: a unit's ``x`` are all equal.

    """
    return mean([slope(x, y).value for x, y in lines])


def mean_factor(lines):
    """The factor f of ``y = a f^x``, from :func:`mean_slope` of the logarithms of ``y``."""
    return Estimate(*map(math.exp, mean_slope([(x, [math.log(value) for value in y]) for x, y in lines])))


def mean_exponent(lines):
    """The exponent b of ``y = a x^b``, from :func:`mean_slope` of the logarithms."""
    return mean_slope([([math.log(value) for value in x], [math.log(value) for value in y]) for x, y in lines])
