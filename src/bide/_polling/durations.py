"""What the tasks of a model have taught: how long such tasks take, and how far their progress can be believed.

There is one `Learned` for each (provider, kind, model), and for each variant of its requests; the end of a task changes
it by a `Lesson`. No clock, no I/O; as text it lives in the ledger. `_pace` decides with it.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import deque
from itertools import accumulate
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

RING, RATIOS = 128, 64
"""The tasks that are remembered of a model, and the promises of each stage of progress, so that drift is forgotten."""
ENOUGH = 8
"""Promises of a stage, or tasks of a variant, from which on they count."""
PRIORS = 8
SLOWLY = 0.03
CLEARLY, CHANCE = 0.8, 1.5
"""A variant counts once its times spread by less than this part of the spread of all, and by how much less where the
tasks are few (in parts of the root of their number)."""
SHORTEST, LONGEST = 0.05, 1e7
STAGES = 5


def stage_of(progress: float) -> int:
    """The quarter of the way; the last percent is a stage of its own, where many bars wait."""
    return 4 if progress >= 99 else int(progress // 25)


class Lesson(NamedTuple):
    """What the end of one task teaches.

    Attributes:
        queue, run: its seconds in the service's queue and at work.
        lag: seconds from its end to its being known.
        late: those of them for which the pace is to blame, in floors; None where that cannot be told.
        ratios: for each hint its stage, and the real rest in parts of the promised one.
    """

    queue: float
    run: float
    lag: float
    late: float | None
    ratios: tuple[tuple[int, float], ...] = ()


class Learned:
    """What is known of the tasks of one provider, kind and model (and of one variant of its requests).

    Attributes:
        prior: run times to begin with; each task that ends takes the place of one.
        seen: tasks that have ended.
        lag: a slow average of the seconds from an end to its being known.
        late: the same of those for which the pace is to blame, in floors.
        ends: of the last tasks, the seconds (in the queue, at work).
        rests: for each stage of progress, real rests in parts of the promised ones.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        self.prior = tuple(map(_bounded, prior))
        self.seen = 0
        self.lag = 0.0
        self.late = 0.0
        self.ends: deque[tuple[float, float]] = deque(maxlen=RING)
        self.rests: tuple[deque[float], ...] = tuple(deque(maxlen=RATIOS) for _ in range(STAGES))
        self._made: dict[object, Points] = {}
        self._made_of = 0

    @classmethod
    def documented(cls, low: float, high: float) -> Self:
        """Nothing is learned yet, but 10 % and 90 % of such tasks are documented to take *low* and *high* seconds."""
        low, high = _bounded(low), _bounded(high)
        middle, width = (
            math.sqrt(low * high),
            math.log(max(high, low) / low) / (2 * NormalDist().inv_cdf(0.9)),
        )
        return cls(
            [middle * math.exp(width * NormalDist().inv_cdf((i + 0.5) / PRIORS)) for i in range(PRIORS)]
        )

    def is_clearer_than(self, parent: Learned) -> bool:
        """Whether this variant's own tasks tell clearly more than those of all variants. Few spread less by chance."""
        few = CHANCE / math.sqrt(max(1, len(self.ends)))
        return self.seen >= 2 * ENOUGH and self.totals().width() < (CLEARLY - few) * parent.totals().width()

    def learn(self, lesson: Lesson) -> None:
        """A task has ended."""
        self.seen += 1
        self.ends.append((_bounded(lesson.queue, 0.0), _bounded(lesson.run)))
        weight = max(SLOWLY, 1 / (self.seen + 1))  # while there are few, each counts as much as the others do
        self.lag += (_bounded(lesson.lag, 0.0) - self.lag) * weight
        if lesson.late is not None:
            self.late += (_bounded(lesson.late, 0.0) - self.late) * weight
        for stage, ratio in lesson.ratios:
            self.rests[stage].append(_bounded(ratio, 1e-3, 1e4))
        if self.seen - self._made_of > len(self.ends) // 16:
            self._made.clear()
            self._made_of = self.seen

    # When tasks end, in points. They are made when first asked for, and again after some more have ended.

    def totals(self) -> Points:
        """Seconds from the create to the end."""
        return self._points("totals", lambda: [*self._priors(), *(queue + run for queue, run in self.ends)])

    def runs(self) -> Points:
        """Seconds from the start to the end."""
        return self._points("runs", lambda: [*self._priors(), *(run for _, run in self.ends)])

    def ratios(self, stage: int) -> Points | None:
        """Real rests in parts of those that progress promised at this *stage*; None where too few are known."""
        rests = self.rests[stage]
        return self._points(stage, lambda: rests) if len(rests) >= ENOUGH else None

    def waits_and_runs(self, age: float) -> Points:
        """Seconds from the create to the end of tasks that are still queued at *age*."""
        waits = sorted(queue for queue, _ in self.ends if queue > age)
        if len(waits) < len(BEYOND):  # longer than almost all before it: a heavy tail
            waits += [age + part * max(age, 1.0) for part in BEYOND]
        runs = self.runs().xs
        some = [runs[int(len(runs) * part)] for part in SOME]
        return Points([wait + run for wait in waits[:: -(-len(waits) // 64)] for run in some])

    def queue_spread(self) -> float:
        """Half the width of the middle two thirds of the queue times."""
        if "queues" not in self._made:
            self._made["queues"] = Points([queue for queue, _ in self.ends] or [0.0])
        return self._made["queues"].spread(-1.0)

    def _priors(self) -> Iterable[float]:
        """What is left of the prior: from its middle and its ends alternately, so that its width stays."""
        return [self.prior[i] for i in LEAVING[min(self.seen, PRIORS) :] if i < len(self.prior)]

    def _points(self, name: object, values: Callable[[], Iterable[float]]) -> Points:
        points = self._made.get(name)
        if points is None:
            points = self._made[name] = smooth(list(values()))
        return points


BEYOND = (0.11, 0.43, 1.0, 2.33, 9.0)
"""A Lomax distribution at 10, 30, 50, 70 and 90 %."""
SOME = tuple((i + 0.5) / 9 for i in range(9))
LEAVING = (5, 2, 7, 0, 4, 1, 6, 3)


def _bounded(value: float, least: float = SHORTEST, most: float = LONGEST) -> float:
    return min(max(value, least), most)


class Points:
    """Sorted numbers with their running sums, so that A costs two bisections."""

    __slots__ = ("middle", "sums", "xs")

    def __init__(self, numbers: Iterable[float]) -> None:
        self.xs = sorted(numbers)
        self.sums = [0.0, *accumulate(self.xs)]
        self.middle = max(self.xs[len(self.xs) // 2], SHORTEST)

    def times(self, factor: float) -> Points:
        """The same points with each multiplied by *factor*."""
        return Points(x * factor for x in self.xs)

    def spread(self, beyond: float) -> float:
        """Half the width of the middle two thirds of what lies beyond a number; infinity where that is too little."""
        first = bisect_right(self.xs, beyond)
        left = len(self.xs) - first
        if left < len(KERNEL):
            return math.inf
        return (self.xs[first + int(left * 5 / 6)] - self.xs[first + int(left / 6)]) / 2

    def width(self) -> float:
        """How far apart the 10 % and the 90 % points are, as a ratio."""
        return math.log(
            max(self.xs[int(len(self.xs) * 0.9)], SHORTEST) / max(self.xs[len(self.xs) // 10], SHORTEST)
        )


KERNEL = tuple(NormalDist().inv_cdf(part) for part in (0.1, 0.3, 0.5, 0.7, 0.9))


def smooth(numbers: Sequence[float]) -> Points:
    """*numbers* above 0, each as five points of a normal kernel in log time, as wide as Silverman's rule says."""
    numbers = sorted(numbers)
    logs = [math.log(number) for number in numbers]
    quarter = (logs[len(logs) * 3 // 4] - logs[len(logs) // 4]) / 1.34
    mean = math.fsum(logs) / len(logs)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in logs) / len(logs))
    width = 0.9 * (min(deviation, quarter) or deviation) * len(logs) ** -0.2
    # Five rising runs, which a sort only has to merge.
    return Points(number * factor for factor in [math.exp(width * z) for z in KERNEL] for number in numbers)


# Its plain form ------------------------------------------------------------------------------------------------

FORM = 1


def plain_of(learned: Learned) -> str:
    """*learned* as JSON, a few kilobytes."""
    averages = {"seen": learned.seen, "lag": round(learned.lag, 4), "late": round(learned.late, 4)}
    prior = [round(x, 3) for x in learned.prior]
    ends = [[round(queue, 3), round(run, 3)] for queue, run in learned.ends]
    rests = [[round(ratio, 4) for ratio in ratios] for ratios in learned.rests]
    return json.dumps(
        {"form": FORM, **averages, "prior": prior, "ends": ends, "rests": rests}, separators=(",", ":")
    )


def learned_from(plain: str) -> Learned:
    """What `plain_of` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        told = json.loads(plain)
        if told["form"] != FORM:
            raise ValueError(f"a learned pace of another form: {told['form']!r}")
        learned = Learned([_number(x) for x in _some(told["prior"], 1, PRIORS)])
        learned.seen = int(_number(told["seen"]))
        learned.lag, learned.late = _number(told["lag"]), _number(told["late"])
        for pair in _some(told["ends"])[-RING:]:
            queue, run = _some(pair, 2, 2)
            learned.ends.append((_number(queue), _bounded(_number(run))))
        for ratios, kept in zip(_some(told["rests"], STAGES, STAGES), learned.rests, strict=True):
            kept.extend(_bounded(_number(ratio), 1e-3, 1e4) for ratio in _some(ratios))
    except (KeyError, TypeError, RecursionError) as fault:
        raise ValueError(f"not a learned pace: {type(fault).__name__}: {fault}") from fault
    if len(learned.ends) != min(learned.seen, RING):
        raise ValueError(f"not a learned pace: {len(learned.ends)} ends of {learned.seen} tasks")
    return learned


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST:
        raise ValueError(
            f"not a learned pace: expected a number from 0 to {LONGEST:g}, not {str(value)[:60]}"
        )
    return float(value)


def _some(value: object, least: float = 0, most: float = math.inf) -> list[object]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise ValueError(f"not a learned pace: expected a list of {least} to {most}, not {str(value)[:60]}")
    return value


def duration_of(learned: Learned, part: float) -> float | None:
    """Seconds within which this *part* of the remembered tasks has ended; None where there is none."""
    totals = sorted(queue + run for queue, run in learned.ends)
    return totals[max(0, math.ceil(len(totals) * part) - 1)] if totals else None
