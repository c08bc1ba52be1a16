"""Who may create a task now: the state of a lane and the rules over it, as plain functions.

A lane is where a limit applies: (provider origin, key, kind of work). Every ledger keeps a `LaneState` for each lane,
and calls these functions inside its atomic step of admission. Times are seconds by the ledger's clock.

`portion` divides the query rate of an account among processes.
"""

from __future__ import annotations

import math
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import evolve, field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bide.models import Limits


MINUTE_SECONDS = 60.0
RAISE_EVERY_SECONDS = 20.0
"""A learned cap grows by one after so long without a 429."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 60.0
"""How long a lane pauses without a `Retry-After`: the first pause, doubled each time up to the longest."""
FIRST_RETRY_SECONDS = 0.5
"""The first pause where no connection was made, since the service received nothing. With a `Retry-After` it is the
shortest pause, and doubles too."""
JITTER_SHARE = 0.1
"""A pause is longer than computed by up to this share of it, and by one second at most. It is never shorter."""

Setback: TypeAlias = Literal["slots", "rate", "capacity", "unreachable"]
"""Why a create made no task, for now."""


@frozen
class LaneState:
    """What a ledger remembers of a lane.

    Attributes:
        paused_until: no create is sent before this moment.
        learned: the cap learned from a 429 at `learned_at`, lower than the documented one; None without one.
        setbacks: rounds of refusals and failed connections in a row. They double the pauses.
        setback_at: when the last round started. A create that was sent before it and fails belongs to the same round.
        probing: after a pause, one create at a time is sent until the service accepts one.
        window: seconds for which an answered create counts for the create rate; 0 without a rate, None if not known.
    """

    paused_until: float = -math.inf
    learned: int | None = None
    learned_at: float = 0.0
    setbacks: int = 0
    setback_at: float = -math.inf
    probing: bool = False
    window: float | None = None


@frozen
class LaneLoad:
    """How a lane is used at a moment.

    Attributes:
        slots: the number of records that use a slot.
        submitting: the number of those whose create has not been answered.
        answered: when the recent creates were answered, oldest first. The time of the answer, not of the sending: the
            service has counted the create no later than that, so its window cannot end after ours.
        next_free: when the first slot becomes free by its `slot_until`.
    """

    slots: int = 0
    submitting: int = 0
    answered: Sequence[float] = field(factory=tuple)
    next_free: float = math.inf


def cap(state: LaneState, limits: Limits, now: float) -> int | None:
    """How many tasks may be in flight now; None is no limit."""
    if state.learned is None:
        return limits.concurrency
    grown = state.learned + max(0, int((now - state.learned_at) / RAISE_EVERY_SECONDS))
    return grown if limits.concurrency is None else min(grown, limits.concurrency)


def window(limits: Limits) -> tuple[int, float]:
    """The create rate as (how many, in how many seconds)."""
    rate = limits.creates_per_minute
    if rate is None:
        return 0, 0.0
    whole = max(1, int(rate))
    return whole, MINUTE_SECONDS * whole / rate


def may_start_at(state: LaneState, load: LaneLoad, limits: Limits, now: float) -> float:
    """When the lane can take one more create.

    Returns:
        *now* or earlier if it can at once; a later moment if it only has to wait; infinity if something else must
        happen first: a slot becomes free, a create is answered.
    """
    if state.probing and load.submitting:
        return math.inf
    at = state.paused_until
    most = cap(state, limits, now)
    if most is not None and load.slots >= most:
        grows = math.inf
        if state.learned is not None and (limits.concurrency is None or most < limits.concurrency):
            steps = load.slots + 1 - state.learned
            grows = state.learned_at + RAISE_EVERY_SECONDS * steps
        at = max(at, min(load.next_free, grows))
    whole, seconds = window(limits)
    if whole:
        newest_first = list(takewhile(lambda moment: moment > now - seconds, reversed(load.answered)))
        over = len(newest_first) + load.submitting - whole
        if over >= 0:
            # *over* of the oldest creates, and one more, have to leave the window.
            at = max(at, newest_first[-1 - over] + seconds if over < len(newest_first) else math.inf)
    return at


def after_refusal(
    state: LaneState,
    limits: Limits,
    setback: Setback,
    *,
    certain: bool,
    retry_after: float | None,
    others: int,
    sent: float,
    now: float,
    chance: float,
) -> LaneState:
    """The lane's state after a create that made no task.

    Args:
        certain: whether the service named the reason. A bare 429 on a lane without a known cap teaches nothing.
        others: the number of slots in use, this create's apart.
        sent: when the create was admitted. Ten creates refused together are one round, and double the pause once.
        chance: a random number from 0 to 1, for the jitter.
    """
    no_advice = retry_after is None and setback != "unreachable"
    first = FIRST_PAUSE_SECONDS if no_advice else FIRST_RETRY_SECONDS
    # Even a service that answers `Retry-After: 0` each time is not called without a pause.
    same_round = sent <= state.setback_at
    rounds = state.setbacks - 1 if same_round else state.setbacks
    pause: float = max(retry_after or 0.0, min(LONGEST_PAUSE_SECONDS, first * 2.0 ** min(rounds, 16)))
    pause += chance * min(1.0, JITTER_SHARE * pause)
    learned, learned_at = state.learned, state.learned_at
    if setback == "slots" and (certain or limits.concurrency is not None):
        # The lane counted a free slot, so another program uses the key too.
        learned, learned_at = max(1, others), now + pause
    return evolve(
        state,
        paused_until=max(state.paused_until, now + pause),
        learned=learned,
        learned_at=learned_at,
        setbacks=rounds + 1,
        setback_at=state.setback_at if same_round else now,
        probing=True,
    )


def after_accept(state: LaneState) -> LaneState:
    """The lane's state after an accepted create. The learned cap stays, and grows with time."""
    return evolve(state, setbacks=0, setback_at=-math.inf, probing=False)


def portion(rate: float, weights: Sequence[int], mine: int) -> float:
    """The part of *rate* (queries a second) of process number *mine*, when processes share it by their *weights*.

    Parts are whole numbers of at least 1, since whole queries are counted. If there are more processes than queries,
    each has the same fraction. Processes that know the same weights compute parts whose sum is at most *rate*.
    """
    if len(weights) == 1:
        return rate
    whole = int(rate)
    if whole < len(weights):
        return rate / len(weights)
    spare, total = whole - len(weights), sum(weights)
    parts = [spare * each / total for each in weights]
    floors = [int(part) for part in parts]
    by_remainder = sorted(range(len(weights)), key=lambda number: (floors[number] - parts[number], number))
    extra = 1 if by_remainder.index(mine) < spare - sum(floors) else 0
    return float(1 + floors[mine] + extra)
