"""The workloads of the benchmark of the pace: what each is, and the tasks drawn from it.

A workload is one JSON object (the README of this folder names its terms). `WORKLOADS` holds ours in the same terms: I
and V stand for images and videos as services make them, A for adversaries. Nothing of bide is imported, so a simulator
can draw from here too. The fate of a task is decided when it is drawn, so every pace gets the same tasks.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import draws

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

DAY = 86_400.0
DEFAULTS: dict[str, Any] = {
    "count": 1000,
    "fails": 0.03,
    "failing_polls": 0.005,
    "round_trip": [0.15, 0.35],
    "slots": None,
    "ends_after_poll": 0.0,
    "queue": 0,
    "progress": "none",
    "drift": {"run": 0.0, "queue": 0.0},
    "switch": {"every": 1, "factors": [1]},
    "classes": [],
}
NEEDED = ("name", "kind", "documented", "arrivals", "run", "ts")
KINDS, TIMES = ("image", "video"), ("none", "end1", "full")


@dataclass(frozen=True, slots=True)
class Life:
    """One task as the service lives it; seconds. *arrives* counts from the begin of the run of all."""

    arrives: float
    queue: float
    run: float
    """At work; where the task fails, until then."""
    fails: bool
    variant: str | None
    bar: Callable[[float], float | None]

    def progress(self, ran: float) -> float | None:
        """The percent shown after *ran* seconds of the run; None where the service shows none."""
        return self.bar(ran)


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of tasks, how they come and what the service reports of them. `terms` is what it was read from."""

    name: str
    kind: str
    documented: tuple[float, float]
    """What the documents say of a task's seconds."""
    count: int
    ts: str
    """Times that the service reports: none, `end1` (created and ended, whole seconds), `full` (with the start, ms)."""
    fails: float
    failing_polls: float
    """Share of polls that are answered with an error."""
    round_trip: tuple[float, float]
    """Median and sigma of the lognormal seconds of one exchange."""
    slots: int | None
    """Tasks in flight at most, where the client is saturated."""
    ends_after_poll: float
    """Share of polls that find a task unfinished, and after which it ends at once."""
    terms: Mapping[str, Any]

    def lives(self, seed: int, count: int | None = None) -> list[Life]:
        """The first *count* tasks of the run *seed*; those of a shorter run are the same."""
        amount = self.count if count is None else count
        draw = _Drawing(self, seed)
        return [draw.life(index, at) for index, at in enumerate(itertools.islice(draw.arrivals, amount))]


class _Drawing:
    """The dice of one run. Each question has its own, so that a change of one does not shift the others."""

    def __init__(self, workload: Workload, seed: int) -> None:
        terms = workload.terms

        def dice(question: str) -> Random:
            return Random(f"{workload.name} {question} {seed}")

        self.workload, self.drift, self.switch = workload, terms["drift"], terms["switch"]
        self.arrivals = draws.arrivals("arrivals", terms["arrivals"])(dice("arrivals"))
        self.queue, self.run = draws.seconds("queue", terms["queue"]), draws.seconds("run", terms["run"])
        self.bar = draws.bar("progress", terms["progress"])
        self.of_queue, self.of_run, self.of_class = dice("queue"), dice("run"), dice("class")
        self.of_failure, self.of_bar = dice("failure"), dice("progress")

    def life(self, index: int, at: float) -> Life:
        name, factor = self._class()
        wave = math.sin(2 * math.pi * at / self.drift.get("period", DAY))
        factor *= 1 + self.drift.get("run", 0.0) * wave
        factors = self.switch["factors"]
        factor *= factors[index // self.switch["every"] % len(factors)]
        queue = self.queue(self.of_queue) * math.exp(self.drift.get("queue", 0.0) * wave)
        whole = max(1e-3, self.run(self.of_run) * factor)
        fails = self.of_failure.random() < self.workload.fails
        early = self.of_failure.uniform(1.0, 3.0)
        return Life(
            at, queue, min(whole, early) if fails else whole, fails, name, self.bar(self.of_bar, whole)
        )

    def _class(self) -> tuple[str | None, float]:
        at = self.of_class.random()
        for one in self.workload.terms["classes"]:
            at -= one["share"]
            if at < 0:
                return one["name"], one["factor"]
        return None, 1.0


def parse(terms: object) -> Workload:
    """The workload that *terms* tell.

    Raises:
        draws.TermError: something in it has no meaning; the message says what was seen and what was expected.
    """
    if not isinstance(terms, dict):
        raise draws.TermError("workload", terms, "a JSON object")
    name = terms.get("name")
    if not isinstance(name, str) or not name:
        raise draws.TermError("workload, name", name, "a word")
    if unknown := sorted(set(terms) - set(NEEDED) - set(DEFAULTS)):
        raise draws.TermError(name, unknown[0], f"one of {', '.join((*NEEDED, *DEFAULTS))}")
    if missing := [word for word in NEEDED if word not in terms]:
        raise draws.TermError(name, sorted(terms), f"{missing[0]!r} too")
    whole = DEFAULTS | terms
    _check_tasks(name, whole)
    low, high = draws.numbers(f"{name}, documented", whole["documented"], "least most", above=True)
    if low >= high:
        raise draws.TermError(f"{name}, documented", whole["documented"], "the lesser first")
    median, sigma = draws.numbers(f"{name}, round_trip", whole["round_trip"], "median sigma")
    shares = {
        key: draws.number(f"{name}, {key}", whole[key], most=1.0)
        for key in ("fails", "failing_polls", "ends_after_poll")
    }
    return Workload(
        name=name,
        kind=_among(name, "kind", whole, KINDS),
        documented=(low, high),
        count=_whole(f"{name}, count", whole["count"]),
        ts=_among(name, "ts", whole, TIMES),
        round_trip=(median, sigma),
        slots=None if whole["slots"] is None else _whole(f"{name}, slots", whole["slots"]),
        terms=whole,
        **shares,
    )


def _check_tasks(name: str, terms: dict[str, Any]) -> None:
    """Read every term of the tasks once, for its errors."""
    draws.arrivals(f"{name}, arrivals", terms["arrivals"])
    draws.seconds(f"{name}, queue", terms["queue"])
    draws.seconds(f"{name}, run", terms["run"])
    draws.bar(f"{name}, progress", terms["progress"])
    _check_drift(f"{name}, drift", terms["drift"])
    _check_switch(f"{name}, switch", terms["switch"])
    if not isinstance(terms["classes"], list):
        raise draws.TermError(f"{name}, classes", terms["classes"], "a list of objects")
    for one in terms["classes"]:
        _check_class(f"{name}, classes", one)
    if terms["classes"] and not math.isclose(sum(one["share"] for one in terms["classes"]), 1.0):
        raise draws.TermError(f"{name}, classes", terms["classes"], "shares that sum up to 1")


def _check_drift(where: str, seen: object) -> None:
    if not isinstance(seen, dict) or not set(seen) <= {"run", "queue", "period"}:
        raise draws.TermError(where, seen, "an object with run, queue and period")
    draws.number(f"{where}, run", seen.get("run", 0.0), most=0.99)
    draws.number(f"{where}, queue", seen.get("queue", 0.0), most=5.0)
    draws.number(f"{where}, period", seen.get("period", DAY), above=True)


def _check_switch(where: str, seen: object) -> None:
    if not isinstance(seen, dict) or set(seen) != {"every", "factors"}:
        raise draws.TermError(where, seen, "an object with every and factors")
    _whole(f"{where}, every", seen["every"])
    if not isinstance(seen["factors"], list) or not seen["factors"]:
        raise draws.TermError(f"{where}, factors", seen["factors"], "a list of numbers")
    for factor in seen["factors"]:
        draws.number(f"{where}, factors", factor, above=True)


def _check_class(where: str, seen: object) -> None:
    if (
        not isinstance(seen, dict)
        or set(seen) != {"name", "share", "factor"}
        or not isinstance(seen["name"], str)
    ):
        raise draws.TermError(where, seen, "an object with name, share and factor")
    draws.number(f"{where}, share", seen["share"], above=True, most=1.0)
    draws.number(f"{where}, factor", seen["factor"], above=True)


def _whole(where: str, seen: object) -> int:
    if isinstance(seen, bool) or not isinstance(seen, int) or seen < 1:
        raise draws.TermError(where, seen, "a whole number from 1")
    return seen


def _among(name: str, key: str, terms: Mapping[str, Any], words: tuple[str, ...]) -> str:
    if terms[key] not in words:
        raise draws.TermError(f"{name}, {key}", terms[key], f"one of {', '.join(words)}")
    return str(terms[key])


def read(path: Path) -> list[Workload]:
    """The workloads of a JSON file: one object or a list of them.

    Raises:
        draws.TermError: the file holds no JSON, or a workload in it is wrong.
    """
    try:
        read = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise draws.TermError(str(path), str(error), "JSON") from error
    found = [parse(terms) for terms in (read if isinstance(read, list) else [read])]
    names = [workload.name for workload in found]
    if len(set(names)) < len(names):
        raise draws.TermError(str(path), names, "each name once")
    return found


IMAGE = {
    "kind": "image",
    "documented": [10, 30],
    "arrivals": {"poisson": 0.25},
    "queue": {"exp": 1},
    "ts": "end1",
}
VIDEO = {
    "kind": "video",
    "documented": [60, 300],
    "arrivals": {"poisson": 0.05},
    "queue": {"exp": 8},
    "ts": "full",
}
HALF_A_MINUTE = {"poisson": 1 / 30}
SHAPES = [
    [0.25, {"lognormal": [4, 0.25]}],
    [0.60, {"lognormal": [15, 0.25]}],
    [0.15, {"plus": [25, {"lognormal": [15, 0.25]}]}],
]
LENGTHS = [{"name": "5s", "share": 0.6, "factor": 1.0}, {"name": "10s", "share": 0.4, "factor": 2.2}]
SOLID: list[dict[str, Any]] = [
    IMAGE | {"name": "I1", "run": {"lognormal": [16, 0.30]}, "progress": "linear"},
    IMAGE | {"name": "I2", "queue": {"exp": 2}, "run": {"gamma": [9, 2.0]}, "progress": "stair"},
    IMAGE | {"name": "I3", "run": {"mix": SHAPES}, "progress": "stuck"},
    IMAGE
    | {"name": "I4", "arrivals": HALF_A_MINUTE, "queue": {"exp": 1.5}, "run": {"lognormal": [14, 0.25]}}
    | {"drift": {"run": 0.5, "queue": 1.0}},
    VIDEO | {"name": "V1", "run": {"lognormal": [110, 0.30]}},
    VIDEO | {"name": "V2", "queue": {"gamma": [2, 20]}, "run": {"gamma": [16, 6.5]}, "progress": "linear"},
    VIDEO | {"name": "V3", "run": {"lognormal": [75, 0.18]}, "classes": LENGTHS},
    VIDEO
    | {"name": "V4", "arrivals": HALF_A_MINUTE, "queue": {"exp": 10}, "run": {"lognormal": [100, 0.25]}}
    | {"progress": "stuck", "drift": {"run": 0.4, "queue": 1.0}},
]
HALVES = [[0.5, 2], [0.5, 120]]
HOSTILE: list[dict[str, Any]] = [
    IMAGE
    | {"name": "A1", "run": {"lognormal": [18, 0.25]}, "switch": {"every": 250, "factors": [1, 0.2, 1, 5]}},
    IMAGE | {"name": "A2", "run": {"exp": 20}},
    VIDEO | {"name": "A3", "run": {"uniform": [0, 300]}},
    IMAGE | {"name": "A4", "run": {"lognormal": [16, 0.30]}, "progress": {"clock": 10}},
    VIDEO | {"name": "A5", "queue": {"exp": 1}, "run": {"lognormal": [6, 0.3]}, "count": 100},
    IMAGE | {"name": "A6", "run": {"pareto": [6, 1.3]}},
    IMAGE | {"name": "A7", "run": {"lognormal": [16, 0.30]}, "progress": "noise"},
    # Without polls the end is an hour away: the polls end these tasks.
    IMAGE | {"name": "A8", "run": 3600, "ends_after_poll": 1 / 7},
    VIDEO
    | {"name": "A9", "run": {"lognormal": [110, 0.25]}, "switch": {"every": 100, "factors": [1, 0.1, 1, 3]}}
    | {"ts": "none"},
    VIDEO | {"name": "A10", "queue": {"exp": 1}, "run": {"mix": HALVES}, "ts": "none"},
    IMAGE | {"name": "A11", "run": {"lognormal": [15, 0.25]}, "progress": {"clock": 300}},
]
WORKLOADS: dict[str, Workload] = {terms["name"]: parse(terms) for terms in (*SOLID, *HOSTILE)}
