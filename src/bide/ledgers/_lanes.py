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
PROBE_SECONDS = 9.8
"""So long after a refusal for want of a slot, one more task is tried than the service has taken."""
LONGEST_PROBE_SECONDS = 300.0
"""On a lane without a documented cap, the time to the next probe doubles up to this."""
PROBE_JITTER_SHARE = 0.02
"""A probe comes earlier by up to this share of its time, so that several ledgers do not probe at once."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 60.0
"""How long a lane pauses without a `Retry-After`: the first pause, doubled each time up to the longest."""
SHORTEST_PAUSE_SECONDS = 0.5
"""The shortest pause with a `Retry-After`, which doubles too: a service may answer `Retry-After: 0` each time."""
JITTER_SHARE = 0.1
"""A pause is longer than computed by up to this share of it, and by one second at most. It is never shorter."""
LATEST_RELEASE_SECONDS = 3.0
"""A service can count a task as in flight for some seconds after its end, but not longer than this."""
FIRST_RELEASE_SECONDS, RELEASE_GROWTH = 0.2, 1.2
"""After a refusal that comes so soon after an end, the next try follows in a fraction of a second, then a little later
each time."""
RELEASE_STEP_SECONDS = 0.08
"""The learned delay shrinks by this with each create that is accepted at once after it."""
MOST_FREED = 16
"""So many ends are remembered."""
FIRST_CREATES, CREATES_SHARE = 3, 0.25
"""On a lane without a known cap, so many creates wait for their answers at once, and one more for each four tasks in
flight. So one round of refusals is small, whatever the cap is."""
MOST_COUNTED_SLOTS = 400
"""With so many tasks in flight on a lane without a known cap, creates are not limited any more."""
ANSWER_SECONDS = 5.0
"""A create that tests a lane after a pause, and has no answer after so long, does not hold back the next one."""
PASS_OVER_SECONDS = 2.0
"""An owner that does not take a free slot within so many seconds after it was offered is passed over."""

Setback: TypeAlias = Literal["slots", "rate", "capacity"]
"""Why a create made no task, for now."""


@frozen
class LaneState:
    """What a ledger remembers of a lane.

    Attributes:
        paused_until: no create is sent before this moment.
        learned: how many tasks in flight the service has taken when it last refused one more; None if it never did.
        probe_at: when one more than that is tried.
        probe_wait: the seconds from the last such refusal to `probe_at`.
        raised_at: when such a try was last accepted.
        setbacks: rounds of refusals in a row. They double the pauses.
        setback_at: when the last round started. A create that was sent before it and fails belongs to the same round.
        probing: after a pause, one create at a time is sent until the service accepts one.
        window: seconds for which an answered create counts for the create rate; 0 without a rate, None if not known.
        freed: the latest ends of tasks whose slots no create has taken again, oldest first.
        late: refusals in a row that came so soon after an end that the service may still have counted that task.
        release_delay: seconds from the end of a task until the service gives its slot to another one, as learned.
    """

    paused_until: float = -math.inf
    learned: int | None = None
    probe_at: float = 0.0
    probe_wait: float = 0.0
    raised_at: float = -math.inf
    setbacks: int = 0
    setback_at: float = -math.inf
    probing: bool = False
    window: float | None = None
    freed: tuple[float, ...] = ()
    late: int = 0
    release_delay: float = 0.0


@frozen
class LaneLoad:
    """How a lane is used at a moment.

    Attributes:
        slots: the number of records that use a slot.
        submitting: the number of those whose create has not been answered.
        last_admitted: when the newest of those was admitted.
        answered: when the recent creates were answered, oldest first. The time of the answer, not of the sending: the
            service has counted the create no later than that, so its window cannot end after ours.
        next_free: when the first slot becomes free by its `slot_until`.
    """

    slots: int = 0
    submitting: int = 0
    last_admitted: float = -math.inf
    answered: Sequence[float] = field(factory=tuple)
    next_free: float = math.inf


def known_cap(limits: Limits) -> int | None:
    """How many tasks may be in flight by *limits*; None is no limit."""
    most = limits.concurrency
    return None if most is None or most == math.inf else int(most)


def cap(state: LaneState, limits: Limits, now: float) -> int | None:
    """How many tasks may be in flight now; None is no limit."""
    known = known_cap(limits)
    if state.learned is None:
        return known
    learned = state.learned + (now >= state.probe_at)
    return learned if known is None else min(learned, known)


def window(limits: Limits) -> tuple[int, float]:
    """The create rate as (how many, in how many seconds)."""
    rate = limits.creates_per_minute
    if rate is None or rate == math.inf:
        return 0, 0.0
    whole = max(1, int(rate))
    return whole, MINUTE_SECONDS * whole / rate


def may_start_at(state: LaneState, load: LaneLoad, limits: Limits, now: float) -> float:
    """When the lane can take one more create.

    Returns:
        *now* or earlier if it can at once; a later moment if it only has to wait; infinity if something else must
        happen first: a slot becomes free, a create is answered.
    """
    at = state.paused_until
    if state.probing and load.submitting:
        at = max(at, load.last_admitted + ANSWER_SECONDS)
    most = cap(state, limits, now)
    if most is None:
        if load.slots < MOST_COUNTED_SLOTS and load.submitting >= _creates_at_once(load):
            return math.inf
    elif load.slots >= most:
        known = known_cap(limits)
        is_below_cap = known is None or most < known
        is_next = state.learned is not None and load.slots == state.learned
        probe_at = state.probe_at if is_below_cap and is_next else math.inf
        at = max(at, min(load.next_free, probe_at))
    whole, seconds = window(limits)
    if whole:
        newest_first = list(takewhile(lambda moment: moment > now - seconds, reversed(load.answered)))
        over = len(newest_first) + load.submitting - whole
        if over >= 0:
            # *over* of the oldest creates, and one more, have to leave the window.
            at = max(at, newest_first[-1 - over] + seconds if over < len(newest_first) else math.inf)
    return at


def _creates_at_once(load: LaneLoad) -> int:
    accepted = load.slots - load.submitting
    return min(accepted + 1, FIRST_CREATES + int(accepted * CREATES_SHARE))


def after_refusal(
    state: LaneState,
    limits: Limits,
    setback: Setback,
    *,
    retry_after: float | None,
    others: int,
    sent: float,
    now: float,
    chance: float,
) -> LaneState:
    """The lane's state after a create that made no task.

    A refusal for want of a slot shortly after the end of a task means that the service gives slots back late: a lane
    with a documented cap learns that delay. Any other one means that the service takes fewer tasks than expected:
    another program uses the key, or the cap was not known. The lane then stays at the number that the service has
    taken. From time to time it tries one more.

    Args:
        others: the number of slots in use, this create's apart.
        sent: when the create was admitted. Ten creates refused together are one round, and double the pause once.
        chance: a random number from 0 to 1, for the jitter.
    """
    # A task that ended long before was not counted by the service any more.
    freed = tuple(moment for moment in state.freed if sent - moment < LATEST_RELEASE_SECONDS)
    is_soon = bool(freed) and freed[0] <= sent and (retry_after or 0.0) < LATEST_RELEASE_SECONDS
    if setback == "slots" and is_soon and _is_usual(state, limits, others + 1, sent):
        pause = max(retry_after or 0.0, FIRST_RELEASE_SECONDS * RELEASE_GROWTH**state.late)
        paused_until = max(state.paused_until, now + pause)
        return evolve(state, paused_until=paused_until, probing=True, freed=freed, late=state.late + 1)
    same_round = sent <= state.setback_at
    rounds = state.setbacks - 1 if same_round else state.setbacks
    after = evolve(
        state,
        setbacks=rounds + 1,
        setback_at=state.setback_at if same_round else now,
        freed=freed,
    )
    pause = 0.0
    if setback == "slots":
        is_known = known_cap(limits) is not None
        after = _after_full_lane(after, is_known=is_known, others=others, same_round=same_round, now=now)
        after = evolve(after, late=0, probe_at=after.probe_at - chance * PROBE_JITTER_SHARE * PROBE_SECONDS)
        if retry_after is None and not others:
            pause = max(0.0, after.probe_at - now)
    elif retry_after is None:
        pause = _doubled(FIRST_PAUSE_SECONDS, rounds)
    if retry_after is not None:
        pause = max(retry_after, _doubled(SHORTEST_PAUSE_SECONDS, rounds))
    if pause == 0.0:
        return after
    if setback != "slots" or retry_after is not None:
        pause += chance * min(1.0, JITTER_SHARE * pause)
    return evolve(
        after,
        paused_until=max(state.paused_until, now + pause),
        probe_at=max(after.probe_at, now + pause) if setback == "slots" else after.probe_at,
        probing=True,
    )


def _is_usual(state: LaneState, limits: Limits, tasks: int, sent: float) -> bool:
    """Whether a lane with a documented cap has taken so many tasks at once before."""
    known = known_cap(limits)
    if known is None or tasks > known:
        return False
    # A task that had ended unseen may have made room for the last probe: that shows nothing of the cap.
    is_new = sent - state.raised_at < PROBE_SECONDS
    return state.learned is None or (tasks <= state.learned and not is_new)


def _after_full_lane(
    state: LaneState, *, is_known: bool, others: int, same_round: bool, now: float
) -> LaneState:
    """The state of a lane on which the service takes no more than *others* tasks now."""
    probe_at, wait = now + PROBE_SECONDS, 0.0
    if not is_known:
        doubled = min(LONGEST_PROBE_SECONDS, max(PROBE_SECONDS, 2 * state.probe_wait))
        wait = state.probe_wait if same_round else doubled
        probe_at = now + wait
    elif state.learned is None:
        wait = PROBE_SECONDS
    elif state.late or (same_round and state.probe_wait):
        # It was refused several times in a short time: there is about one refusal in each such time.
        probe_at = now + 2 * PROBE_SECONDS
    elif same_round:
        probe_at = max(state.probe_at, probe_at)
    return evolve(state, learned=max(1, others), probe_at=probe_at, probe_wait=wait)


def _doubled(first: float, rounds: int) -> float:
    doubled: float = first * 2.0 ** min(rounds, 16)
    return min(LONGEST_PAUSE_SECONDS, doubled)


def after_accept(state: LaneState, *, tasks: int, sent: float, now: float) -> LaneState:
    """The lane's state after an accepted create.

    Args:
        tasks: how many tasks the service has accepted that are in flight now, this one included. It matters only on a
            lane that has learned a cap.
        sent: when the create was admitted.
    """
    learned, probe_at, wait, raised_at = state.learned, state.probe_at, state.probe_wait, state.raised_at
    if learned is not None and tasks > learned:
        # There was room for one more, so there may be room for the next one, too.
        learned, probe_at, wait, raised_at = tasks, now, wait / 2, now
    delay = state.release_delay
    if state.freed:
        # The delay was over at some moment between the last refusal and this create.
        waited = sent - state.freed[0] - FIRST_RELEASE_SECONDS / 2
        delay = waited if state.late else delay - RELEASE_STEP_SECONDS
    return evolve(
        state,
        learned=learned,
        probe_at=probe_at,
        probe_wait=wait,
        raised_at=raised_at,
        setbacks=0,
        setback_at=-math.inf,
        probing=False,
        freed=state.freed[1:],
        late=0,
        release_delay=min(max(0.0, delay), LATEST_RELEASE_SECONDS),
    )


def after_end(state: LaneState, now: float) -> LaneState:
    """The lane's state after the end of a task."""
    freed = tuple(moment for moment in state.freed if now - moment < LATEST_RELEASE_SECONDS)
    return evolve(state, freed=(*freed[1 - MOST_FREED :], now))


def is_passed_over(offered_at: float | None, now: float) -> bool:
    """Whether an owner that was offered a slot at *offered_at*, and has not asked since, is passed over."""
    return offered_at is not None and now - offered_at >= PASS_OVER_SECONDS


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
