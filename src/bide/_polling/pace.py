"""When to poll a task again.

**Poll again when the expected seconds of an unseen end reach the price of one poll.** With *t* the age (seconds since
the create) at which the task was last seen unfinished, and *ends* the ages at which such tasks end, as earlier tasks
have shown, the expected seconds at a later age *x* are

    A(x) = sum(x - end for end in ends if t < end <= x) / number of ends beyond t

and the next poll comes at the first *x* with `A(x) >= price`, not before `t + floor` and not after `t + cap`.
A grows only where ends are likely: there are no polls while nothing can have ended, and many near the likely end. In
simulations with a known distribution this came within 5 to 36 % of the best possible schedule. All figures below are
from such simulations; `benchmarks/pace.py` shows their effect in the whole client.

This module uses no clock, no I/O, and only the standard library. `Observed` is what is known of one task, and
`Durations` what is known of earlier tasks. `next_poll` returns when to poll (the first time, too), and `sample_of` what
an end teaches. Ages and spans are in seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from bide._polling.durations import LONGEST_SECONDS, Sample, stage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bide._polling.durations import Distribution, Durations

PRICE = 0.1

# What a user may set -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a client polls its tasks: the learned pace, or `Pace.fixed(3.0)`.

    Args:
        price: the seconds of detection delay that one poll is worth. With a lower price, the client sees ends sooner
            and polls more. The client lowers it while little is known, while it sees ends late, and (down to a fifth)
            while requests wait for the slots of the task.
        floor: the least seconds between two polls of a task; the provider's own floor holds, too.
        cap: the most seconds between two polls; None is 5 s or half of the task's age, whichever is longer. A longer
            floor has precedence.

    Raises:
        TypeError, ValueError: a figure is not a number above 0.
    """

    price: float = PRICE
    floor: float | None = None
    cap: float | None = None
    gaps: tuple[float, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        for name in ("price", "floor", "cap"):
            value = getattr(self, name)
            if value is not None or name == "price":
                _check(f"Pace, {name}", value)

    @classmethod
    def fixed(cls, *gaps: float) -> Self:
        """Poll after fixed gaps, whatever is known: `Pace.fixed(3.0)` polls every 3 s.

        Args:
            gaps: seconds from the create to the first poll, from there to the second, and so on; the last one repeats.
                A gap is never shorter than the provider's floor.

        Raises:
            TypeError, ValueError: there is no gap, or one is not a number above 0.
        """
        if not gaps:
            raise ValueError("Pace.fixed needs the seconds between two polls, such as Pace.fixed(3.0)")
        pace = cls()
        object.__setattr__(pace, "gaps", tuple(_check("Pace.fixed", gap) for gap in gaps))
        return pace


def _check(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected seconds, a number above 0, not {value!r}")
    if not 0 < value < math.inf or value > 1e9:
        raise ValueError(f"{name}: expected seconds above 0, not {str(value)[:40]}")
    return float(value)


# The rule ------------------------------------------------------------------------------------------------------

JITTER = 0.05
"""A gap varies by this share of itself, so that many tasks are not polled at the same moment."""
SHORTEST_CAP_SECONDS, CAP_SHARE_OF_AGE = 5.0, 0.5
BRAKE_PER_SECOND, LATE_FLOORS = 16.0, 1.5
"""The brake lowers the price for a model whose ends are seen late on average, from so many floors on. With a higher
price, more lateness is accepted."""
MOST_PRESSURE = 4.0


class PollTerms(NamedTuple):
    """What a decision depends on besides the task and what is learned.

    Attributes:
        floor: the least seconds between two polls.
        pressure: requests that wait for the slots of this lane, divided by the number of slots.
        chance: a random number from 0 to 1, for the jitter.
    """

    floor: float
    pressure: float = 0.0
    chance: float = 0.5


def next_poll(pace: Pace, observed: Observed, learned: Durations, terms: PollTerms) -> float:
    """The age at which to poll a task again that was last seen unfinished at `observed.seen`."""
    floor, cap = bounds(pace, observed.seen, terms.floor)
    if pace.gaps:
        gap = pace.gaps[min(observed.polls, len(pace.gaps) - 1)]
    else:
        ends = forecast(observed, learned)
        gap = ends.when(price_of(pace, learned, terms), floor, cap)
    gap *= 1 + JITTER * (terms.chance - 0.5)
    return observed.seen + max(floor, gap if pace.gaps else min(gap, cap))


def bounds(pace: Pace, age: float, floor: float) -> tuple[float, float]:
    """The least and the most seconds to the next poll."""
    floor = max(floor, pace.floor or 0.0)
    cap = max(SHORTEST_CAP_SECONDS, CAP_SHARE_OF_AGE * age) if pace.cap is None else pace.cap
    return floor, max(floor, *pace.gaps) if pace.gaps else max(floor, cap)


def price_of(pace: Pace, learned: Durations, terms: PollTerms) -> float:
    """The price of a poll: lower while little is known, while ends are seen late, and while requests wait for slots."""
    known = (learned.seen + 1) / (learned.seen + 6)
    floor = max(1.0, bounds(pace, 0.0, terms.floor)[0])
    over = floor * max(0.0, learned.late - LATE_FLOORS * max(1.0, math.sqrt(pace.price / PRICE)))
    return (
        pace.price
        * known
        * math.exp(-BRAKE_PER_SECOND * over)
        / (1 + min(MOST_PRESSURE, max(0.0, terms.pressure)))
    )


def lateness(pace: Pace, lag: float, waited: float, floor: float) -> float | None:
    """The part of a *lag* that the learned pace has caused. It is in floors: clients with other floors use it, too.

    The time that the poll *waited* for the query rate does not count. A long lag (of a task that failed right after a
    poll) counts as three times what is accepted: one long lag must not make dozens of later tasks expensive.
    """
    if pace.gaps or pace.cap is not None:
        return None  # a caller who polls at fixed times, or rarely, has chosen to be late
    waited = waited if waited > floor / 2 else 0.0  # an answer takes a moment, too
    return min(max(0.0, lag - waited) / max(1.0, floor), 3 * LATE_FLOORS)


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a task that was unfinished at *since* may end: points of equal weight, and a heavy tail.

    The tail (a Lomax distribution with the median of the points) keeps the chance of an end above zero at any age, so
    that a task that takes much longer than all before it is still polled.

    Attributes:
        origin: the age that the points count from.
    """

    points: Distribution
    origin: float
    since: float
    tail: float

    def unseen(self, age: float) -> tuple[float, float]:
        """A at *age*, and by how much it grows there in a second."""
        xs, sums, scale = self.points.xs, self.points.sums, self.points.middle
        u, x = max(0.0, self.since - self.origin), age - self.origin
        body = (1 - self.tail) / len(xs)
        first, last = bisect_right(xs, u), bisect_right(xs, x)
        at_u, at_x = scale / (scale + u), scale / (scale + x)  # shares of the tail that lie beyond
        left = body * (len(xs) - first) + self.tail * at_u
        unseen = body * ((last - first) * x - (sums[last] - sums[first]))
        unseen += self.tail * ((x - u) * at_u - scale * math.log((scale + x) / (scale + u)))
        return unseen / left, (body * (last - first) + self.tail * (at_u - at_x)) / left

    def when(self, price: float, floor: float, cap: float) -> float:
        """Seconds from *since* at which A reaches *price*, between *floor* and *cap*."""
        return _gap_until(lambda gap: self.unseen(self.since + gap), price, floor, cap)

    def end_probability(self, age: float) -> float:
        """The probability that it has ended by *age*."""
        xs, scale, body = self.points.xs, self.points.middle, (1 - self.tail) / len(self.points.xs)

        def left(at: float) -> float:
            u = max(0.0, at - self.origin)
            return body * (len(xs) - bisect_right(xs, u)) + self.tail * scale / (scale + u)

        return 1 - left(age) / left(self.since)

    def half(self, age: float) -> float:
        """The age at which half of the tasks that go on at *age* have ended."""
        xs, u = self.points.xs, age - self.origin
        first = bisect_right(xs, u)
        if first < len(xs):
            return self.origin + xs[(first + len(xs)) // 2]
        return age + self.points.middle + max(0.0, u)


def unseen_seconds(observed: Observed, learned: Durations, age: float) -> float:
    """The expected seconds of an unseen end at *age*: which of many overdue polls is worth most."""
    return forecast(observed, learned).unseen(max(age, observed.seen))[0]


def unseen_together(ends: Sequence[tuple[Forecast, float]], seconds: float) -> tuple[float, float]:
    """The sum of A over many tasks, each with its age now, *seconds* from now, and by how much it grows in a second."""
    each = [ahead.unseen(max(ahead.since, age + seconds)) for ahead, age in ends]
    return sum(unseen for unseen, _ in each), sum(slope for _, slope in each)


def next_list(ends: Sequence[tuple[Forecast, float]], price: float, floor: float, cap: float) -> float:
    """Seconds from now at which one list of all these tasks is worth *price*: their As are added up."""
    return _gap_until(lambda gap: unseen_together(ends, gap), price, floor, cap)


def _gap_until(
    unseen: Callable[[float], tuple[float, float]], price: float, floor: float, cap: float
) -> float:
    """The gap from *floor* to *cap* at which *unseen* reaches *price*."""
    if cap <= floor or unseen(floor)[0] >= price:
        return floor
    gap = cap
    for _ in range(40):  # Newton's steps: A is convex, so from beyond its root they never pass it
        value, slope = unseen(gap)
        if value <= price or slope <= 0 or (step := (value - price) / slope) < 1e-9:
            break
        gap = max(floor, gap - step)
    return gap


def eta(observed: Observed, learned: Durations, age: float) -> float:
    """Seconds from *age* at which half of such tasks have ended."""
    return max(0.0, forecast(observed, learned).half(max(age, observed.seen)) - age)


# What is known of one task -------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Observed:
    """What the polls of one task have shown.

    Attributes:
        seen: the age at which it was last seen unfinished, by a poll or by a list.
        sure: the same by polls alone: a list may lag behind.
        polls: how many were answered, lists included.
        queued, running: the ages of the last poll that found it queued, and of the first that found it running.
        started: the age at which it started to run, where the service reports that.
        progress: the last new progress, in percent.
        hints: the remaining times that the changes of progress have promised.
    """

    seen: float = 0.0
    sure: float = 0.0
    polls: int = 0
    queued: float = 0.0
    running: float | None = None
    started: float | None = None
    progress: float | None = None
    hints: list[ProgressHint] | None = None

    def note_poll(
        self,
        age: float,
        *,
        running: bool,
        progress: float | None = None,
        started: float | None = None,
        listed: bool = False,
    ) -> None:
        """A poll at *age* has found the task unfinished.

        Args:
            progress: in percent.
            started: the age at which it started to run, as the service reports.
            listed: whether it was a list and not a poll of this task.
        """
        age = min(max(self.seen, age), LONGEST_SECONDS)
        self.seen, self.polls = age, self.polls + 1
        if not listed:
            self.sure = age
        if not running:
            self.queued = age
            return
        if self.running is None:
            self.running = age
        if (reported := plausible(started, self.queued, self.running)) is not None:
            self.started = reported
        if progress is not None and progress != self.progress and 1 <= progress < 100:
            self.progress = progress
            rest = (age - self.start()[0]) * (100 - progress) / progress
            if rest > 0:
                self.hints = [
                    *(self.hints or ())[-HINTS_KEPT + 1 :],
                    ProgressHint(stage_of(progress), age, rest),
                ]

    def start(self) -> tuple[float, float]:
        """The age at which it started to run, and by how much that may be wrong."""
        if self.started is not None:
            return self.started, 0.0
        running = self.seen if self.running is None else self.running
        return (self.queued + running) / 2, (running - self.queued) * 0.3


class ProgressHint(NamedTuple):
    """A change of progress: at *age*, *rest* seconds were left if the progress went on evenly."""

    stage: int
    age: float
    rest: float


HINTS_KEPT = 12


SLACK_SECONDS = 1.5
"""Seconds by which a reported time may differ from what the polls have shown: many services report whole seconds."""


def plausible(reported: float | None, least: float, most: float) -> float | None:
    """The age of an event between two polls that a service has *reported*; None where it cannot be true (another time
    zone, a clock that was set, a computer that was suspended)."""
    if reported is None or not least - SLACK_SECONDS <= reported <= most + SLACK_SECONDS:
        return None
    return min(max(reported, least), most)


def sample_of(
    observed: Observed, age: float, started: float | None = None, ended: float | None = None
) -> Sample:
    """What the end of a task teaches. A poll has shown this end at *age*.

    Args:
        started, ended: the ages that the service reports; they are used only if they can be true. Without a reported
            end, the end is assumed to be halfway between the last two polls.
    """
    age = max(age, observed.seen)
    reported = plausible(ended, observed.sure, age)
    end = (observed.seen + age) / 2 if reported is None else reported
    start = observed.started if observed.started is not None else plausible(started, observed.queued, end)
    if start is None:
        start = (observed.queued + min(end, end if observed.running is None else observed.running)) / 2
    start = min(start, end)
    ratios = tuple(
        (hint.stage, (end - hint.age) / hint.rest) for hint in observed.hints or () if end > hint.age
    )
    return Sample(start, end - start, age - end, None, ratios)


def forecast(observed: Observed, learned: Durations) -> Forecast:
    """When the task may end, by the narrowest distribution that is known."""
    start, doubt = observed.start()
    if observed.running is not None and doubt <= max(SURE_START_SECONDS, learned.queue_spread()):
        points, origin = learned.runs(), start
    elif observed.running is None and observed.polls:
        points, origin = learned.waits_and_runs(observed.seen), 0.0
    else:
        points, origin = learned.totals(), 0.0
    if observed.hints:
        stage, age, rest = observed.hints[-1]
        ratios = learned.ratios(stage)
        # Where progress has been a worse guide than the durations of earlier tasks, it is ignored.
        if ratios and ratios.spread((observed.seen - age) / rest) * rest < points.spread(
            observed.seen - origin
        ):
            points, origin = ratios.times(rest), age
    return Forecast(points, origin, observed.seen, min(1.0, TAIL + TAIL_AT_FIRST / (1 + learned.seen)))


TAIL, TAIL_AT_FIRST = 0.05, 0.5
"""The weight of the heavy tail: always, and in addition while nothing is learned."""
SURE_START_SECONDS = 0.25


# Faults --------------------------------------------------------------------------------------------------------

RECHECK_SECONDS = 60.0
"""Seconds between polls where the last one has shown a lasting fault, or where the task is overdue."""
