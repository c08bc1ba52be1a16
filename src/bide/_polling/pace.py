"""When to look at a task again.

**Look again when the expected seconds of an end that nobody has seen reach the price of one look.** With *t* the age
(seconds since the create) at which the task was last seen unfinished, and *ends* the ages at which such tasks end, as
those before it have taught, the expected seconds at a later age *x* are

    A(x) = sum(x - end for end in ends if t < end <= x) / number of ends beyond t

and the next look comes at the first *x* with `A(x) >= price`, not before `t + floor` and not after `t + cap`.
A grows only where ends are likely: nothing is asked while nothing can have ended, and often near the likely end. For a
known distribution that was simulated to come within 5 to 36 % of the best schedule there is. All figures below are from
such simulations; `benchmarks/pace.py` shows what they do in the whole client.

No clock, no I/O, standard library only. A `Sight` is what is known of one task and a `Learned` what is known of those
before it; `next_poll` says when to look (the first time too), and `finished` what an end teaches. Ages and spans are
seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from bide._polling.durations import LONGEST, Lesson, stage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bide._polling.durations import Learned, Points

PRICE = 0.1

# What a user may set -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a client looks at its tasks: the learned pace, or `Pace.fixed(3.0)`.

    Args:
        price: the seconds of lateness that one look is worth. With less, ends are seen sooner and more is asked. It is
            less by itself while little is known, while ends prove to be seen late, and (down to a fifth) while requests
            wait for the slots of the task.
        floor: the least seconds between two looks at a task; the provider's own floor holds besides.
        cap: the most seconds between two looks; None is 5 s or half of the task's age, whichever is longer. A floor
            that is longer wins.

    Raises:
        TypeError, ValueError: a figure is no number, or not above 0.
    """

    price: float = PRICE
    floor: float | None = None
    cap: float | None = None
    gaps: tuple[float, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        for name in ("price", "floor", "cap"):
            value = getattr(self, name)
            if value is not None or name == "price":
                _checked(f"Pace, {name}", value)

    @classmethod
    def fixed(cls, *gaps: float) -> Self:
        """A look every so many seconds, whatever is known: `Pace.fixed(3.0)`.

        Args:
            gaps: seconds from the create to the first look, from there to the second, and so on; the last one repeats.
                The provider's floor is the least.

        Raises:
            TypeError, ValueError: there is none, or one is no number or not above 0.
        """
        if not gaps:
            raise ValueError("Pace.fixed needs the seconds between two looks, such as Pace.fixed(3.0)")
        pace = cls()
        object.__setattr__(pace, "gaps", tuple(_checked("Pace.fixed", gap) for gap in gaps))
        return pace


def _checked(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected seconds, a number above 0, not {value!r}")
    if not 0 < value < math.inf or value > 1e9:
        raise ValueError(f"{name}: expected seconds above 0, not {str(value)[:40]}")
    return float(value)


# The rule ------------------------------------------------------------------------------------------------------

JITTER = 0.05
"""A gap varies by this share of itself, so that many tasks are not looked at in step."""
SHORTEST_CAP, CAP_OF_AGE = 5.0, 0.5
BRAKE, LATE = 16.0, 1.5
"""How hard (for each second), and from how many floors of average lateness on, a model that proves late lowers the
price. Whoever sets a higher price bears more."""
PRESSURE = 4.0


class Look(NamedTuple):
    """What a decision depends on besides the task and what is learned.

    Attributes:
        floor: the least seconds between two looks.
        pressure: requests that wait for the slots of this lane, for each of its slots.
        chance: a random number from 0 to 1, for the jitter.
    """

    floor: float
    pressure: float = 0.0
    chance: float = 0.5


def next_poll(pace: Pace, sight: Sight, learned: Learned, look: Look) -> float:
    """The age at which to look again at a task that was last seen unfinished at `sight.seen`."""
    floor, cap = bounds(pace, sight.seen, look.floor)
    if pace.gaps:
        gap = pace.gaps[min(sight.looks, len(pace.gaps) - 1)]
    else:
        ends = outlook(sight, learned)
        gap = ends.when(price_of(pace, learned, look), floor, cap)
    gap *= 1 + JITTER * (look.chance - 0.5)
    return sight.seen + max(floor, gap if pace.gaps else min(gap, cap))


def bounds(pace: Pace, age: float, floor: float) -> tuple[float, float]:
    """The least and the most seconds to the next look."""
    floor = max(floor, pace.floor or 0.0)
    cap = max(SHORTEST_CAP, CAP_OF_AGE * age) if pace.cap is None else pace.cap
    return floor, max(floor, *pace.gaps) if pace.gaps else max(floor, cap)


def price_of(pace: Pace, learned: Learned, look: Look) -> float:
    """The price of a look: lower while little is known, while ends are seen late, and where others want the slot."""
    known = (learned.seen + 1) / (learned.seen + 6)
    floor = max(1.0, bounds(pace, 0.0, look.floor)[0])
    over = floor * max(0.0, learned.late - LATE * max(1.0, math.sqrt(pace.price / PRICE)))
    return pace.price * known * math.exp(-BRAKE * over) / (1 + min(PRESSURE, max(0.0, look.pressure)))


def blame(pace: Pace, lag: float, waited: float, floor: float) -> float | None:
    """The part of a *lag* for which the learned pace is to blame, in floors: clients with other floors learn of it too.

    The time that the look *waited* for the budget is none of it. A long one (of a task that failed right after a look)
    counts as three times what is borne: a single one must not make the dozens of tasks after it dear.
    """
    if pace.gaps or pace.cap is not None:
        return None  # whoever looks by the clock, or seldom, is late by choice
    waited = waited if waited > floor / 2 else 0.0  # an answer takes a moment, too
    return min(max(0.0, lag - waited) / max(1.0, floor), 3 * LATE)


@dataclass(frozen=True, slots=True)
class Outlook:
    """When a task may end that was unfinished at *since*: points of equal weight, and a heavy tail.

    The tail (a Lomax distribution with the median of the points) makes sure that there is always a chance: a task far
    beyond all experience is still looked at.

    Attributes:
        origin: the age that the points count from.
    """

    points: Points
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
        return _reached(lambda gap: self.unseen(self.since + gap), price, floor, cap)

    def ended(self, age: float) -> float:
        """How likely it has ended by *age*."""
        xs, scale, body = self.points.xs, self.points.middle, (1 - self.tail) / len(self.points.xs)

        def left(at: float) -> float:
            u = max(0.0, at - self.origin)
            return body * (len(xs) - bisect_right(xs, u)) + self.tail * scale / (scale + u)

        return 1 - left(age) / left(self.since)

    def half(self, age: float) -> float:
        """The age at which half of those that go on at *age* have ended."""
        xs, u = self.points.xs, age - self.origin
        first = bisect_right(xs, u)
        if first < len(xs):
            return self.origin + xs[(first + len(xs)) // 2]
        return age + self.points.middle + max(0.0, u)


def unseen_now(sight: Sight, learned: Learned, age: float) -> float:
    """The expected seconds of an unseen end at *age*: which of many overdue looks is worth most."""
    return outlook(sight, learned).unseen(max(age, sight.seen))[0]


def unseen_together(ends: Sequence[tuple[Outlook, float]], seconds: float) -> tuple[float, float]:
    """The sum of A over many tasks, each with its age now, *seconds* from now, and by how much it grows in a second."""
    each = [ahead.unseen(max(ahead.since, age + seconds)) for ahead, age in ends]
    return sum(unseen for unseen, _ in each), sum(slope for _, slope in each)


def next_list(ends: Sequence[tuple[Outlook, float]], price: float, floor: float, cap: float) -> float:
    """Seconds from now at which one list of all these tasks is worth *price*: their As are added up."""
    return _reached(lambda gap: unseen_together(ends, gap), price, floor, cap)


def _reached(unseen: Callable[[float], tuple[float, float]], price: float, floor: float, cap: float) -> float:
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


def eta(sight: Sight, learned: Learned, age: float) -> float:
    """Seconds from *age* at which half of such tasks have ended."""
    return max(0.0, outlook(sight, learned).half(max(age, sight.seen)) - age)


# What is known of one task -------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Sight:
    """What the looks at one task have told.

    Attributes:
        seen: the age at which it was last seen unfinished, by a look or by a list.
        sure: the same by looks alone: a list may lag behind.
        looks: how many have been answered.
        queued, running: the ages of the last look that found it queued, and of the first that found it running.
        started: the age at which it began to run, where the service tells.
        progress: the last percent that was new.
        hints: what the changes of progress have promised.
    """

    seen: float = 0.0
    sure: float = 0.0
    looks: int = 0
    queued: float = 0.0
    running: float | None = None
    started: float | None = None
    progress: float | None = None
    hints: list[Hint] | None = None

    def looked(
        self,
        age: float,
        *,
        running: bool,
        progress: float | None = None,
        started: float | None = None,
        listed: bool = False,
    ) -> None:
        """A look at *age* has found the task unfinished.

        Args:
            progress: in percent.
            started: the age at which the service says that it began to run.
            listed: it was no look at this task, but a list.
        """
        age = min(max(self.seen, age), LONGEST)
        self.seen, self.looks = age, self.looks + 1
        if not listed:
            self.sure = age
        if not running:
            self.queued = age
            return
        if self.running is None:
            self.running = age
        if (told := believed(started, self.queued, self.running)) is not None:
            self.started = told
        if progress is not None and progress != self.progress and 1 <= progress < 100:
            self.progress = progress
            rest = (age - self.start()[0]) * (100 - progress) / progress
            if rest > 0:
                self.hints = [*(self.hints or ())[-MOST_HINTS + 1 :], Hint(stage_of(progress), age, rest)]

    def start(self) -> tuple[float, float]:
        """The age at which it began to run, and how much that may be wrong."""
        if self.started is not None:
            return self.started, 0.0
        running = self.seen if self.running is None else self.running
        return (self.queued + running) / 2, (running - self.queued) * 0.3


class Hint(NamedTuple):
    """A change of progress: at *age* so many seconds were left, had it gone on evenly."""

    stage: int
    age: float
    rest: float


MOST_HINTS = 12


SLACK = 1.5
"""Seconds by which a time that a service tells may miss what the looks have seen: many tell whole seconds."""


def believed(told: float | None, least: float, most: float) -> float | None:
    """The age that a service tells of an event between two looks; None where it cannot be true (another zone, a clock
    that was set, a computer that slept)."""
    if told is None or not least - SLACK <= told <= most + SLACK:
        return None
    return min(max(told, least), most)


def finished(sight: Sight, age: float, started: float | None = None, ended: float | None = None) -> Lesson:
    """What the end of a task teaches that a look has seen at *age*.

    Args:
        started, ended: the ages that the service tells, as far as they can be true. Where it tells no end, that lies
            halfway between the last two looks.
    """
    age = max(age, sight.seen)
    told = believed(ended, sight.sure, age)
    end = (sight.seen + age) / 2 if told is None else told
    start = sight.started if sight.started is not None else believed(started, sight.queued, end)
    if start is None:
        start = (sight.queued + min(end, end if sight.running is None else sight.running)) / 2
    start = min(start, end)
    ratios = tuple((hint.stage, (end - hint.age) / hint.rest) for hint in sight.hints or () if end > hint.age)
    return Lesson(start, end - start, age - end, None, ratios)


def outlook(sight: Sight, learned: Learned) -> Outlook:
    """When the task of *sight* may end, by the narrowest of what is known."""
    start, doubt = sight.start()
    if sight.running is not None and doubt <= max(SURE_START, learned.queue_spread()):
        points, origin = learned.runs(), start
    elif sight.running is None and sight.looks:
        points, origin = learned.waits_and_runs(sight.seen), 0.0
    else:
        points, origin = learned.totals(), 0.0
    if sight.hints:
        stage, age, rest = sight.hints[-1]
        ratios = learned.ratios(stage)
        # A bar that lies promises less surely than the past does, and so goes unheard.
        if ratios and ratios.spread((sight.seen - age) / rest) * rest < points.spread(sight.seen - origin):
            points, origin = ratios.times(rest), age
    return Outlook(points, origin, sight.seen, min(1.0, TAIL + TAIL_AT_FIRST / (1 + learned.seen)))


TAIL, TAIL_AT_FIRST = 0.05, 0.5
"""The weight of the heavy tail: always, and besides while nothing is learned."""
SURE_START = 0.25


# Faults --------------------------------------------------------------------------------------------------------

RECHECK = 60.0
"""Seconds between looks where the last one told a lasting fault, or where the task is overdue."""
SHORTEST_BACKOFF, LONGEST_BACKOFF = 0.1, 60.0


def after_fault(floor: float, failures: int, retry_after: float | None, chance: float) -> float:
    """Seconds to the next look, after *failures* looks in a row that gave no answer."""
    backoff: float = min(LONGEST_BACKOFF, max(SHORTEST_BACKOFF, floor) * 2.0 ** min(failures - 1, 10))
    return max(backoff, retry_after or 0.0) * (1 + JITTER * chance)
