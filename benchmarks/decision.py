"""The CPU of one decision of the pace, after 128 tasks."""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING

from bide._polling.durations import RING, Learned
from bide._polling.pace import Look, Pace, Sight, finished, next_poll

if TYPE_CHECKING:
    from collections.abc import Callable

PACE, LOOK = Pace(), Look(floor=1.0)
DECISIONS, ROUNDS = 200, 7


def microseconds() -> dict[str, float]:
    """By what is known of the task; and for the first decision after a lesson, which has to be taken in."""
    learned = taught()
    times = {
        name: _microseconds(lambda sight=sight: next_poll(PACE, sight, learned, LOOK))
        for name, sight in (("queued", queued()), ("running", running()), ("with progress", progressed()))
    }
    return times | {"after a lesson": _microseconds(lambda: _after_a_lesson(learned))}


def taught() -> Learned:
    """What a full ring of tasks has taught, each with a bar."""
    dice = Random(1)
    learned = Learned.documented(10, 30)
    for _ in range(2 * RING):
        wait, run = dice.expovariate(1), dice.lognormvariate(2.8, 0.3)
        sight = Sight()
        for share in (0.2, 0.4, 0.6, 0.8):
            sight.looked(wait + share * run, running=True, progress=100 * share ** dice.uniform(0.9, 1.1))
        learned.learn(finished(sight, wait + run + 0.5, wait, wait + run))
    return learned


def queued() -> Sight:
    """A task that was last seen in the service's queue."""
    sight = Sight()
    sight.looked(1.0, running=False)
    return sight


def running() -> Sight:
    """A task at work that shows no progress."""
    sight = queued()
    sight.looked(5.0, running=True, started=1.5)
    return sight


def progressed() -> Sight:
    """A task at work that shows some."""
    sight = queued()
    sight.looked(5.0, running=True, progress=30.0)
    sight.looked(9.0, running=True, progress=55.0)
    return sight


def _after_a_lesson(learned: Learned) -> None:
    sight = progressed()
    learned.learn(finished(sight, 17.0, 1.0, 16.0))
    next_poll(PACE, sight, learned, LOOK)


def _microseconds(decide: Callable[[], object]) -> float:
    """Of the fastest round: whatever else runs makes the others slower."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(DECISIONS):
            decide()
        best = min(best, time.thread_time() - began)
    return best / DECISIONS * 1e6
