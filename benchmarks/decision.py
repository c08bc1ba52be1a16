"""The CPU of one decision of the pace, after 128 tasks."""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING

from bide._polling.durations import ENDS_KEPT, Durations
from bide._polling.pace import Observed, Pace, PollTerms, next_poll, sample_of

if TYPE_CHECKING:
    from collections.abc import Callable

PACE, TERMS = Pace(), PollTerms(floor=1.0)
DECISIONS, ROUNDS = 200, 7


def microseconds() -> dict[str, float]:
    """By what is known of the task; and for a decision right after one more task has ended, whose sample is added."""
    durations = durations_of_many()
    times = {
        name: _microseconds(lambda observed=observed: next_poll(PACE, observed, durations, TERMS))
        for name, observed in (("queued", queued()), ("running", running()), ("with progress", progressed()))
    }
    return times | {"after a sample": _microseconds(lambda: _after_a_sample(durations))}


def durations_of_many() -> Durations:
    """The durations of more tasks than are kept, each with progress."""
    dice = Random(1)
    durations = Durations.from_documents(10, 30)
    for _ in range(2 * ENDS_KEPT):
        wait, run = dice.expovariate(1), dice.lognormvariate(2.8, 0.3)
        observed = Observed()
        for share in (0.2, 0.4, 0.6, 0.8):
            observed.note_poll(
                wait + share * run, running=True, progress=100 * share ** dice.uniform(0.9, 1.1)
            )
        durations.learn(sample_of(observed, wait + run + 0.5, wait, wait + run))
    return durations


def queued() -> Observed:
    """A task that was last seen in the service's queue."""
    observed = Observed()
    observed.note_poll(1.0, running=False)
    return observed


def running() -> Observed:
    """A task at work that shows no progress."""
    observed = queued()
    observed.note_poll(5.0, running=True, started=1.5)
    return observed


def progressed() -> Observed:
    """A task at work that shows progress."""
    observed = queued()
    observed.note_poll(5.0, running=True, progress=30.0)
    observed.note_poll(9.0, running=True, progress=55.0)
    return observed


def _after_a_sample(durations: Durations) -> None:
    observed = progressed()
    durations.learn(sample_of(observed, 17.0, 1.0, 16.0))
    next_poll(PACE, observed, durations, TERMS)


def _microseconds(decide: Callable[[], object]) -> float:
    """Of the fastest round: other work of the machine makes the rest slower."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(DECISIONS):
            decide()
        best = min(best, time.thread_time() - start)
    return best / DECISIONS * 1e6
