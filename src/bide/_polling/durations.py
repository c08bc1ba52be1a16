"""How long the tasks of a model take, as ended tasks have shown, and how far their progress can be believed.

There is one `Durations` for each (provider, kind, model), and for each variant of its requests. The end of a task adds
a `Sample` to it. It uses no clock and no I/O. The ledger keeps it as text. The pace uses it to decide.
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

ENDS_KEPT, RATIOS_KEPT = 128, 64
"""So many ended tasks of a model are remembered, and so many ratios of each stage of progress."""
FEWEST_SAMPLES = 8
"""A stage is used once it has so many ratios, and a variant once it has twice as many tasks."""
PRIORS = 8
LEAST_WEIGHT = 0.03
CLEAR_SHARE, CHANCE_MARGIN = 0.8, 1.5
"""A variant's own durations are used once their spread is less than this share of the spread of all. If its tasks are
few, the share is smaller: by the margin, divided by the square root of their number."""
SHORTEST_SECONDS, LONGEST_SECONDS = 0.05, 1e7
STAGES = 5


def stage_of(progress: float) -> int:
    """The quarter of the progress; the last percent is a stage of its own, where many services wait."""
    return 4 if progress >= 99 else int(progress // 25)


class Sample(NamedTuple):
    """What the end of one task teaches.

    Attributes:
        queue, run: its seconds in the service's queue and at work.
        lag: the detection delay: seconds from its end to the poll that has shown it.
        late: the part of the lag that the pace has caused, in floors; None where that is unknown.
        ratios: for each hint its stage, and the real remaining time divided by the promised one.
    """

    queue: float
    run: float
    lag: float
    late: float | None
    ratios: tuple[tuple[int, float], ...] = ()


class Durations:
    """What is known of the tasks of one provider, kind and model (and of one variant of its requests).

    Attributes:
        prior: run times to start with; each task that ends replaces one.
        seen: tasks that have ended.
        lag: an average of the detection delay, in seconds. It changes slowly.
        late: the same of the part that the pace has caused, in floors.
        ends: of the last tasks, the seconds (in the queue, at work).
        rests: for each stage of progress, real remaining times divided by the promised ones.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        self.prior: tuple[float, ...] = tuple(map(_bound, prior))
        self.seen: int = 0
        self.lag: float = 0.0
        self.late: float = 0.0
        self.ends: deque[tuple[float, float]] = deque(maxlen=ENDS_KEPT)
        self.rests: tuple[deque[float], ...] = tuple(deque(maxlen=RATIOS_KEPT) for _ in range(STAGES))
        self._computed: dict[object, Distribution] = {}
        self._computed_at = 0

    @classmethod
    def from_documents(cls, low: float, high: float) -> Self:
        """Nothing is learned yet; the service documents that 10 % and 90 % of such tasks take *low* and *high*
        seconds."""
        low, high = _bound(low), _bound(high)
        middle, width = (
            math.sqrt(low * high),
            math.log(max(high, low) / low) / (2 * NormalDist().inv_cdf(0.9)),
        )
        return cls(
            [middle * math.exp(width * NormalDist().inv_cdf((i + 0.5) / PRIORS)) for i in range(PRIORS)]
        )

    def is_clearer_than(self, parent: Durations) -> bool:
        """Whether this variant's own tasks are clearly a better guide than those of all variants. A few tasks may
        spread less by chance."""
        few = CHANCE_MARGIN / math.sqrt(max(1, len(self.ends)))
        return (
            self.seen >= 2 * FEWEST_SAMPLES
            and self.totals().width() < (CLEAR_SHARE - few) * parent.totals().width()
        )

    def learn(self, sample: Sample) -> None:
        """Add the *sample* of a task that has ended."""
        self.seen += 1
        self.ends.append((_bound(sample.queue, 0.0), _bound(sample.run)))
        weight = max(LEAST_WEIGHT, 1 / (self.seen + 1))  # few tasks have equal weights
        self.lag += (_bound(sample.lag, 0.0) - self.lag) * weight
        if sample.late is not None:
            self.late += (_bound(sample.late, 0.0) - self.late) * weight
        for stage, ratio in sample.ratios:
            self.rests[stage].append(_bound(ratio, 1e-3, 1e4))
        if self.seen - self._computed_at > len(self.ends) // 16:
            self._computed.clear()
            self._computed_at = self.seen

    # When tasks end, as distributions. They are computed at the first use, and again after some more tasks have ended.

    def totals(self) -> Distribution:
        """Seconds from the create to the end."""
        return self._points("totals", lambda: [*self._priors(), *(queue + run for queue, run in self.ends)])

    def runs(self) -> Distribution:
        """Seconds from the start to the end."""
        return self._points("runs", lambda: [*self._priors(), *(run for _, run in self.ends)])

    def ratios(self, stage: int) -> Distribution | None:
        """Real remaining times divided by the promised ones of this *stage*; None where too few are known."""
        rests = self.rests[stage]
        return self._points(stage, lambda: rests) if len(rests) >= FEWEST_SAMPLES else None

    def waits_and_runs(self, age: float) -> Distribution:
        """Seconds from the create to the end of tasks that are still queued at *age*."""
        waits = sorted(queue for queue, _ in self.ends if queue > age)
        if len(waits) < len(TAIL_POINTS):  # it waits longer than almost all before it: use a heavy tail
            waits += [age + part * max(age, 1.0) for part in TAIL_POINTS]
        runs = self.runs().xs
        some = [runs[int(len(runs) * part)] for part in NINE_SHARES]
        return Distribution([wait + run for wait in waits[:: -(-len(waits) // 64)] for run in some])

    def queue_spread(self) -> float:
        """Half the width of the middle two thirds of the queue times."""
        if "queues" not in self._computed:
            self._computed["queues"] = Distribution([queue for queue, _ in self.ends] or [0.0])
        return self._computed["queues"].spread(-1.0)

    def _priors(self) -> Iterable[float]:
        """The values of the prior that are not replaced yet. Tasks replace values from the middle and from the ends
        alternately, so that the width stays the same."""
        return [self.prior[i] for i in ORDER_OF_LEAVING[min(self.seen, PRIORS) :] if i < len(self.prior)]

    def _points(self, name: object, values: Callable[[], Iterable[float]]) -> Distribution:
        points = self._computed.get(name)
        if points is None:
            points = self._computed[name] = smooth(list(values()))
        return points


TAIL_POINTS = (0.11, 0.43, 1.0, 2.33, 9.0)
"""A Lomax distribution at 10, 30, 50, 70 and 90 %."""
NINE_SHARES = tuple((i + 0.5) / 9 for i in range(9))
ORDER_OF_LEAVING = (5, 2, 7, 0, 4, 1, 6, 3)


def _bound(value: float, least: float = SHORTEST_SECONDS, most: float = LONGEST_SECONDS) -> float:
    return min(max(value, least), most)


class Distribution:
    """Sorted numbers with their running sums, so that the pace needs two bisections for a decision."""

    __slots__ = ("middle", "sums", "xs")

    def __init__(self, numbers: Iterable[float]) -> None:
        self.xs: list[float] = sorted(numbers)
        self.sums: list[float] = [0.0, *accumulate(self.xs)]
        self.middle: float = max(self.xs[len(self.xs) // 2], SHORTEST_SECONDS)

    def times(self, factor: float) -> Distribution:
        """The same points with each multiplied by *factor*."""
        return Distribution(x * factor for x in self.xs)

    def spread(self, beyond: float) -> float:
        """Half the width of the middle two thirds of the points beyond a number; infinity if these are too few."""
        first = bisect_right(self.xs, beyond)
        left = len(self.xs) - first
        if left < len(KERNEL):
            return math.inf
        return (self.xs[first + int(left * 5 / 6)] - self.xs[first + int(left / 6)]) / 2

    def width(self) -> float:
        """How far apart the 10 % and the 90 % points are, as a ratio."""
        return math.log(
            max(self.xs[int(len(self.xs) * 0.9)], SHORTEST_SECONDS)
            / max(self.xs[len(self.xs) // 10], SHORTEST_SECONDS)
        )


KERNEL = tuple(NormalDist().inv_cdf(part) for part in (0.1, 0.3, 0.5, 0.7, 0.9))


def smooth(numbers: Sequence[float]) -> Distribution:
    """*numbers* above 0, each as five points of a normal kernel in log time, as wide as Silverman's rule says."""
    numbers = sorted(numbers)
    logs = [math.log(number) for number in numbers]
    quarter = (logs[len(logs) * 3 // 4] - logs[len(logs) // 4]) / 1.34
    mean = math.fsum(logs) / len(logs)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in logs) / len(logs))
    width = 0.9 * (min(deviation, quarter) or deviation) * len(logs) ** -0.2
    # The list has five sorted parts, so sorting it only has to merge them.
    return Distribution(
        number * factor for factor in [math.exp(width * z) for z in KERNEL] for number in numbers
    )


# Its plain form ------------------------------------------------------------------------------------------------

FORM = 1


def plain_of(durations: Durations) -> str:
    """*durations* as JSON, a few kilobytes."""
    averages = {"seen": durations.seen, "lag": round(durations.lag, 4), "late": round(durations.late, 4)}
    prior = [round(x, 3) for x in durations.prior]
    ends = [[round(queue, 3), round(run, 3)] for queue, run in durations.ends]
    rests = [[round(ratio, 4) for ratio in ratios] for ratios in durations.rests]
    return json.dumps(
        {"form": FORM, **averages, "prior": prior, "ends": ends, "rests": rests}, separators=(",", ":")
    )


def durations_from(text: str) -> Durations:
    """The durations that `plain_of` has written.

    Raises:
        ValueError: the text is something else.
    """
    try:
        plain = json.loads(text)
        if plain["form"] != FORM:
            raise ValueError(f"learned durations of another form: {plain['form']!r}")
        durations = Durations([_number(x) for x in _list(plain["prior"], 1, PRIORS)])
        durations.seen = int(_number(plain["seen"]))
        durations.lag, durations.late = _number(plain["lag"]), _number(plain["late"])
        for pair in _list(plain["ends"])[-ENDS_KEPT:]:
            queue, run = _list(pair, 2, 2)
            durations.ends.append((_number(queue), _bound(_number(run))))
        for ratios, kept in zip(_list(plain["rests"], STAGES, STAGES), durations.rests, strict=True):
            kept.extend(_bound(_number(ratio), 1e-3, 1e4) for ratio in _list(ratios))
    except (KeyError, TypeError, RecursionError) as fault:
        raise ValueError(f"not learned durations: {type(fault).__name__}: {fault}") from fault
    if len(durations.ends) != min(durations.seen, ENDS_KEPT):
        raise ValueError(f"not learned durations: {len(durations.ends)} ends of {durations.seen} tasks")
    return durations


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_SECONDS:
        raise ValueError(
            f"not learned durations: expected a number from 0 to {LONGEST_SECONDS:g}, not {str(value)[:60]}"
        )
    return float(value)


def _list(value: object, least: float = 0, most: float = math.inf) -> list[object]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise ValueError(
            f"not learned durations: expected a list of {least} to {most}, not {str(value)[:60]}"
        )
    return value


def duration_of(durations: Durations, part: float) -> float | None:
    """Seconds within which this *part* of the remembered tasks has ended; None if there are none."""
    totals = sorted(queue + run for queue, run in durations.ends)
    return totals[max(0, math.ceil(len(totals) * part) - 1)] if totals else None
