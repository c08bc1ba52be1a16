"""The results of the pace's benchmark: means with their intervals, gains, and the goals that they have."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from goals import Row
from paces import EVERY_3, ours
from wire import FLOOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from paces import Figures, Policy

    Runs = Mapping[Policy, Mapping[int, Figures]]

LESS_LAG = {"I1": 2.2, "I2": 2.1, "I3": 2.0, "I4": 1.7, "V1": 1.4, "V2": 2.1, "V3": 1.75, "V4": 1.9}
"""By workload, the least gain at equal polls."""
LAG_AT_WORST, POLLS_AT_WORST = 1.15, 1.30
"""Shares of what "every 3 s" has, that the pace may have against an adversary."""
BUSY = {"I1, 3 slots": 95.0, "V2, 3 slots": 99.2}
"""Percent of the time of three saturated slots in which a task is at the service, at least."""
DECISION = 150.0
"""Microseconds that one decision may take."""
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % points of Student's t for 1, 2, 3, ... degrees of freedom."""


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and the half width of its 95 % interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ±{self.half:.2f}" if math.isfinite(self.half) else f"{self.mean:.2f}"


def spread(values: Iterable[float]) -> Spread:
    """The mean of *values*; its interval by Student's t."""
    seen = list(values)
    if not all(map(math.isfinite, seen)):
        return Spread(math.nan, math.nan)
    if len(seen) < 2:
        return Spread(seen[0] if seen else math.nan, math.nan)
    freedom = len(seen) - 1
    student = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.6 / freedom
    return Spread(statistics.fmean(seen), student * statistics.stdev(seen) / math.sqrt(len(seen)))


# What is made of the runs ---------------------------------------------------------------------------------


def between(points: Iterable[tuple[float, float]], at: float) -> float:
    """The second value where the first one is *at*, straight between two points in logarithms; nan outside of them."""
    ordered = sorted(points)
    for (x, y), (next_x, next_y) in itertools.pairwise(ordered):
        if x <= at <= next_x:
            share = 0.0 if x == next_x else math.log(at / x) / math.log(next_x / x)
            return y * (next_y / y) ** share
    return math.nan


def gains(runs: Runs, seed: int, *, spared: float = 0.0) -> tuple[float, float]:
    """Of one seed: lag of "every 3 s" by ours at equal polls, and polls of it by ours at equal lag.

    Args:
        spared: polls a task that the other pace is forgiven.
    """
    base = runs[EVERY_3][seed]
    curve = [seeds[seed] for policy, seeds in runs.items() if policy.price is not None and seed in seeds]
    polls = base.polls - spared
    lag = between(((each.polls, each.lag) for each in curve), polls)
    fewer = between(((each.lag, each.polls) for each in curve), base.lag)
    return base.lag / lag, polls / fewer


def gain_rows(name: str, runs: Runs) -> list[Row]:
    """Both gains of a workload; and the first as if the other pace did not poll at once, when nothing has ended."""
    pairs = [gains(runs, seed) for seed in sorted(runs[EVERY_3])]
    kinder = spread(gains(runs, seed, spared=1.0)[0] for seed in sorted(runs[EVERY_3]))
    lag, polls = spread(pair[0] for pair in pairs), spread(pair[1] for pair in pairs)
    goal = LESS_LAG.get(name)
    return [
        Row(
            name,
            f"less lag at equal polls, times{_wide(lag)}",
            lag.mean,
            "" if goal is None else f"at least {goal:g}",
            None if goal is None else lag.mean >= goal,
        ),
        Row(name, f"fewer polls at equal lag, times{_wide(polls)}", polls.mean),
        Row(name, "less lag, without a poll at once", kinder.mean),
    ]


def bound_rows(name: str, runs: Runs) -> list[Row]:
    """What an adversary can make of the pace, at its default price."""
    rows = []
    for figure, bound in (("lag", LAG_AT_WORST), ("polls", POLLS_AT_WORST)):
        own, other = (
            statistics.fmean(getattr(each, figure) for each in runs[policy].values())
            for policy in (ours(), EVERY_3)
        )
        text = f"mean {figure}, share of every 3 s"
        rows.append(Row(name, text, own / other, f"at most {bound:.2f}", own / other <= bound))
    return rows


def slot_rows(name: str, runs: Runs) -> list[Row]:
    """How busy saturated slots are, under each pace."""
    rows = []
    for policy, seeds in runs.items():
        if policy.price is not None and policy != ours():
            continue
        busy = spread(each.use for each in seeds.values())
        goal = BUSY.get(name) if policy == ours() else None
        rows.append(
            Row(
                f"{name}, {policy.name}",
                f"of the time a task is at the service, %{_wide(busy)}",
                busy.mean,
                "" if goal is None else f"at least {goal:g}",
                None if goal is None else busy.mean >= goal,
            )
        )
    return rows


def floor_row(found: Iterable[Runs]) -> Row:
    """The least time between two polls of one task, of all runs of ours."""
    least = min(
        each.least_gap
        for runs in found
        for policy, seeds in runs.items()
        if policy.price is not None
        for each in seeds.values()
    )
    return Row("all", "least seconds between two polls", least, f"at least {FLOOR:g}", least >= FLOOR)


def decision_rows(costs: Mapping[str, float]) -> list[Row]:
    """What one decision costs, in microseconds."""
    return [
        Row(f"one decision, {name}", "CPU, microseconds", cost, f"at most {DECISION:g}", cost <= DECISION)
        for name, cost in costs.items()
    ]


def _wide(seen: Spread) -> str:
    return f" (±{seen.half:.2f})" if math.isfinite(seen.half) else ""
