"""How long things take: numbers, ranges and distributions, as users write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import TypeAlias

Duration: TypeAlias = float | tuple[float, float] | str
"""Seconds: a number, a `(low, high)` range (uniform), or text for the command line: `"12"`, `"uniform:8:12"`,
`"lognormal:16:0.3"` (median and sigma)."""

Sampler: TypeAlias = Callable[[Random], float]


def sampler(duration: Duration) -> Sampler:
    """A function that draws seconds from *duration*.

    Raises:
        ValueError: *duration* has none of the documented forms, or is not positive and finite.
    """
    if isinstance(duration, str):
        name, *figures = _parts_of(duration)
        if name == "lognormal":
            return _lognormal(*_pair(figures, duration))
        if name == "uniform":
            return _uniform(*_pair(figures, duration))
        raise ValueError(_FORMS.format(duration))
    if isinstance(duration, tuple):
        return _uniform(*_pair(duration, duration))
    return _uniform(_seconds(duration), _seconds(duration))


_FORMS = "not a duration: {!r}; expected seconds, (low, high), 'uniform:LOW:HIGH' or 'lognormal:MEDIAN:SIGMA'"


def _parts_of(text: str) -> list[str]:
    name, *figures = text.split(":")
    return [name, *figures] if figures else ["uniform", name, name]


def _pair(figures: object, whole: object) -> tuple[float, float]:
    if not isinstance(figures, list | tuple) or len(figures) != 2:
        raise ValueError(_FORMS.format(whole))
    return _seconds(figures[0]), _seconds(figures[1])


def _seconds(figure: object) -> float:
    try:
        seconds = float(figure)  # type: ignore[arg-type]  # the error of float() is replaced below
    except (TypeError, ValueError):
        raise ValueError(_FORMS.format(figure)) from None
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"a duration must be finite and not negative, not {figure!r}")
    return seconds


def _uniform(low: float, high: float) -> Sampler:
    if low > high:
        raise ValueError(f"a range must go from low to high, not from {low:g} to {high:g}")
    return lambda random: random.uniform(low, high)


def _lognormal(median: float, sigma: float) -> Sampler:
    if median <= 0:
        raise ValueError("the median of a lognormal duration must be above 0")
    return lambda random: random.lognormvariate(math.log(median), sigma)
