"""What a workload may say of time and progress, written in JSON: seconds to draw, arrivals and progress bars.

Every term is read once into a plain function of a `random.Random`. A wrong term raises `TermError`, which says where it
stands, what was found there and what was expected. Pure, standard library only.
"""

from __future__ import annotations

import bisect
import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    Draw = Callable[[Random], float]
    Arrivals = Callable[[Random], Iterator[float]]
    Bar = Callable[[Random, float], Callable[[float], float | None]]


class TermError(ValueError):
    """A workload says something that has no meaning here."""

    def __init__(self, where: str, seen: object, expected: str) -> None:
        super().__init__(f"{where}: expected {expected}, not {seen!r}")


LARGEST = 1e9
"""No term is as large as this."""


def number(
    where: str, seen: object, *, least: float = 0.0, most: float = math.inf, above: bool = False
) -> float:
    """*seen* as a number from *least* (or only above it) to *most*."""
    expected = f"a number {'above' if above else 'from'} {least:g}" + (
        f" to {most:g}" if most < math.inf else ""
    )
    if isinstance(seen, bool) or not isinstance(seen, int | float) or not -LARGEST < seen < LARGEST:
        raise TermError(where, seen, expected)
    if not least <= seen <= most or (above and seen == least):
        raise TermError(where, seen, expected)
    return float(seen)


def numbers(where: str, seen: object, names: str, **bounds: Any) -> list[float]:
    """*seen* as a list of as many numbers as *names* has words."""
    if not isinstance(seen, list) or len(seen) != len(names.split()):
        raise TermError(where, seen, f"a list [{', '.join(names.split())}]")
    return [
        number(f"{where}, {name}", item, **bounds) for name, item in zip(names.split(), seen, strict=True)
    ]


def only(where: str, seen: object, kinds: str) -> tuple[str, Any]:
    """The one key of *seen*, which is among *kinds*, and its value."""
    expected = f"an object with one of {', '.join(kinds.split())}"
    if not isinstance(seen, dict) or len(seen) != 1:
        raise TermError(where, seen, expected)
    [(kind, value)] = seen.items()
    if kind not in kinds.split():
        raise TermError(where, seen, expected)
    return kind, value


def seconds(where: str, term: object) -> Draw:
    """The draw that *term* describes: a number, or one distribution by its name.

    `{"lognormal": [median, sigma]}`, `{"gamma": [shape, scale]}`, `{"exp": mean}`, `{"uniform": [from, to]}`,
    `{"pareto": [least, alpha]}`, `{"plus": [seconds, draw]}`, `{"mix": [[weight, draw], ...]}`.
    """
    if isinstance(term, int | float):
        fixed = number(where, term)
        return lambda _: fixed
    kind, value = only(where, term, "lognormal gamma exp uniform pareto plus mix")
    where = f"{where}, {kind}"
    if kind == "exp":
        mean = number(where, value, above=True)
        return lambda random: random.expovariate(1 / mean)
    if kind == "uniform":
        low, high = numbers(where, value, "from to")
        return lambda random: random.uniform(low, high)
    if kind == "plus":
        return _later(where, value)
    if kind == "mix":
        return _mixed(where, value)
    return _shaped(where, kind, value)


def _shaped(where: str, kind: str, value: object) -> Draw:
    """A distribution of two numbers, both above 0."""
    words = {"lognormal": "median sigma", "gamma": "shape scale", "pareto": "least alpha"}
    a, b = numbers(where, value, words[kind], above=True)
    if kind == "lognormal":
        return lambda random: a * math.exp(random.gauss(0.0, b))
    if kind == "gamma":
        return lambda random: random.gammavariate(a, b)
    return lambda random: a * random.paretovariate(b)


def _later(where: str, value: object) -> Draw:
    if not isinstance(value, list) or len(value) != 2:
        raise TermError(where, value, "a list [seconds, draw]")
    first, then = number(where, value[0]), seconds(where, value[1])
    return lambda random: first + then(random)


def _mixed(where: str, value: object) -> Draw:
    if not isinstance(value, list) or not value or any(not isinstance(p, list) or len(p) != 2 for p in value):
        raise TermError(where, value, "a list of [weight, draw]")
    bounds = list(itertools.accumulate(number(f"{where}, weight", weight, above=True) for weight, _ in value))
    draws = [seconds(where, draw) for _, draw in value]

    def draw(random: Random) -> float:
        return draws[bisect.bisect(bounds, random.random() * bounds[-1])](random)

    return draw


def arrivals(where: str, term: object) -> Arrivals:
    """The moments of the creates, from 0 on; the tasks of a burst come in the same moment.

    `"at once"`, `{"poisson": tasks a second}`, `{"every": seconds}` or `{"bursts": [size, every]}`.
    """
    if term == "at once":
        return lambda _: itertools.repeat(0.0)
    kind, value = only(where, term, "poisson every bursts")
    where = f"{where}, {kind}"
    if kind == "poisson":
        rate = number(where, value, above=True)
        return lambda random: itertools.accumulate(random.expovariate(rate) for _ in itertools.count())
    if kind == "every":
        gap = number(where, value, above=True)
        return lambda _: (gap * index for index in itertools.count())
    size, every = numbers(where, value, "size every", above=True)
    if size != int(size):
        raise TermError(f"{where}, size", value[0], "a whole number from 1")
    return lambda _: (every * (index // int(size)) for index in itertools.count())


STAIRS = [[0.05, 10.0], [0.25, 30.0], [0.50, 60.0], [0.80, 90.0]]
"""Shares of the run and what the bar shows from there."""


def bar(where: str, term: object) -> Bar:
    """The progress bar that *term* describes: what a task of so many seconds shows after some of them, in percent.

    `"none"`; `"linear"`, which is `{"linear": 0.10}`: 100 u^p of the share u, p lognormal with that sigma; `"stair"` or
    `{"stairs": [[share, percent], ...]}`; `{"jump": [share, percent]}`, 0 before it; `"stuck"`, which is
    `{"stuck": [0.55, 0.85]}`: 99 from a share between them on; `{"clock": seconds}`: as if each run took so long, 99 at
    most; `"noise"`.
    """
    plain = {"linear": {"linear": 0.10}, "stair": {"stairs": STAIRS}, "stuck": {"stuck": [0.55, 0.85]}}
    if isinstance(term, str):
        if term == "none":
            return lambda _random, _run: lambda _ran: None
        if term == "noise":
            return _noise
        if term not in plain:
            raise TermError(where, term, f"an object or one of none, noise, {', '.join(plain)}")
    kind, value = only(
        where, plain.get(term, term) if isinstance(term, str) else term, "linear stairs stuck jump clock"
    )
    where = f"{where}, {kind}"
    if kind == "linear":
        return _linear(number(where, value))
    if kind == "clock":
        clock = number(where, value, above=True)
        return lambda _random, _run: lambda ran: min(99.0, 100.0 * ran / clock)
    if kind == "stuck":
        low, high = numbers(where, value, "from to", above=True, most=1.0)
        return _stuck(low, high)
    return _stairs(where, [value] if kind == "jump" else value)


def _noise(random: Random, _run: float) -> Callable[[float], float]:
    """Any percent at each poll, and the same one for the same moment, so that a run can be had again."""
    start = random.random()
    return lambda ran: 99.0 * math.modf(abs(math.sin(start + 12.9898 * ran)) * 43758.5453)[0]


def _linear(sigma: float) -> Bar:
    def drawn(random: Random, run: float) -> Callable[[float], float]:
        power = math.exp(random.gauss(0.0, sigma))
        return lambda ran: 100.0 * min(1.0, ran / run) ** power

    return drawn


def _stuck(low: float, high: float) -> Bar:
    def drawn(random: Random, run: float) -> Callable[[float], float]:
        full = run * random.uniform(low, high)
        return lambda ran: min(99.0, 99.0 * ran / full)

    return drawn


def _stairs(where: str, value: object) -> Bar:
    if not isinstance(value, list) or not value:
        raise TermError(where, value, "a list of [share of the run, percent]")
    steps = [numbers(where, step, "share percent", most=100.0) for step in value]
    shares = [share for share, _ in steps]
    if shares != sorted(shares) or shares[-1] > 1:
        raise TermError(where, value, "shares of the run that rise, 1 at most")
    percents = [0.0, *(percent for _, percent in steps)]
    return lambda _random, run: lambda ran: percents[bisect.bisect(shares, ran / run)]
