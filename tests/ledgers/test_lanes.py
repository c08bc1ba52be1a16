"""Who may create a task now, as plain functions: tables and properties."""

from __future__ import annotations

import math

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from bide._service.query_rate import SlidingWindow
from bide.ledgers._lanes import (
    LATEST_RELEASE_SECONDS,
    LONGEST_PROBE_SECONDS,
    LaneLoad,
    LaneState,
    after_accept,
    after_end,
    after_refusal,
    cap,
    is_passed_over,
    may_start_at,
    portion,
    window,
)
from bide.models import Limits

NOW = 1000.0


def refuse(state: LaneState, limits: Limits, setback: str = "slots", **changes: object) -> LaneState:
    given = {
        "retry_after": None,
        "others": 2,
        "sent": NOW,
        "now": NOW,
        "chance": 0.0,
        **changes,
    }
    return after_refusal(state, limits, setback, **given)  # type: ignore[arg-type]


def accept(state: LaneState, *, tasks: int = 1, sent: float = NOW, now: float = NOW) -> LaneState:
    return after_accept(state, tasks=tasks, sent=sent, now=now)


def test_a_lane_without_limits_takes_any_number_once_many_are_in_flight() -> None:
    load = LaneLoad(slots=10_000, submitting=500)

    assert may_start_at(LaneState(), load, Limits(), NOW) <= NOW


@pytest.mark.parametrize(("accepted", "at_once"), [(0, 1), (1, 2), (2, 3), (3, 3), (4, 4), (40, 13)])
def test_on_a_lane_without_a_known_cap_few_creates_wait_for_their_answers_at_once(
    accepted: int, at_once: int
) -> None:
    def waits(submitting: int) -> float:
        load = LaneLoad(slots=accepted + submitting, submitting=submitting)
        return may_start_at(LaneState(), load, Limits(), NOW)

    assert waits(at_once - 1) <= NOW
    assert waits(at_once) == math.inf


def test_a_full_lane_waits_for_the_first_slot_that_frees_itself() -> None:
    load = LaneLoad(slots=3, next_free=NOW + 40)

    assert may_start_at(LaneState(), load, Limits(3), NOW) == NOW + 40
    assert may_start_at(LaneState(), evolve(load, next_free=math.inf), Limits(3), NOW) == math.inf


def test_nobody_creates_before_the_end_of_a_pause() -> None:
    state = refuse(LaneState(), Limits(3), retry_after=30.0)

    assert may_start_at(state, LaneLoad(), Limits(3), NOW) == NOW + 30


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_the_jitter_makes_a_pause_longer_and_never_shorter(chance: float) -> None:
    state = refuse(LaneState(), Limits(3), retry_after=30.0, chance=chance)

    assert NOW + 30 <= state.paused_until <= NOW + 31


def test_without_a_retry_after_pauses_start_at_five_seconds_and_double_to_sixty() -> None:
    state, pauses, moment = LaneState(), [], NOW
    for _ in range(6):
        state = refuse(state, Limits(3), "rate", sent=moment, now=moment + 1)
        pauses.append(state.paused_until - moment - 1)
        moment = state.paused_until

    assert pauses == [5, 10, 20, 40, 60, 60]


def test_creates_that_are_refused_together_are_one_round_and_double_no_pause() -> None:
    state = LaneState()
    for number in range(10):
        state = refuse(state, Limits(), sent=NOW, now=NOW + 0.1 * number, retry_after=1.0)

    assert state.setbacks == 1
    assert state.paused_until == pytest.approx(NOW + 1.9)


def test_an_accepted_create_makes_the_next_pause_short_again() -> None:
    state = accept(refuse(refuse(LaneState(), Limits(3)), Limits(3)))

    assert not state.probing
    assert state.setbacks == 0


def test_after_a_pause_one_create_at_a_time_is_tried() -> None:
    state = evolve(refuse(LaneState(), Limits(9), "rate"), paused_until=NOW - 1)
    load = LaneLoad(slots=1, submitting=1, last_admitted=NOW - 1)

    assert may_start_at(state, LaneLoad(), Limits(9), NOW) <= NOW
    assert may_start_at(state, load, Limits(9), NOW) == NOW + 4, "an answer may be lost"
    assert may_start_at(accept(state), load, Limits(9), NOW) <= NOW


def test_a_429_on_a_free_slot_teaches_a_lower_cap_and_one_more_is_tried_within_ten_seconds() -> None:
    limits = Limits(5)
    state = refuse(LaneState(), limits, others=2)

    probe = state.probe_at
    assert NOW + 9 < probe < NOW + 10
    assert cap(state, limits, NOW) == 2
    assert state.paused_until <= NOW, "what has ended is replaced at once"
    assert may_start_at(state, LaneLoad(slots=2), limits, NOW) == probe
    assert cap(state, limits, probe) == cap(state, limits, probe + 1000) == 3


def test_a_probe_that_is_accepted_is_followed_by_the_next_at_once_until_the_documented_cap() -> None:
    limits = Limits(5)
    state = refuse(LaneState(), limits, others=2)

    for tasks in (3, 4, 5):
        state = accept(state, tasks=tasks, now=NOW + 20)
        assert cap(state, limits, NOW + 20) == min(5, tasks + 1)


def test_where_others_use_the_key_there_is_one_refusal_in_ten_seconds() -> None:
    limits, state, now, refusals = Limits(3), LaneState(), NOW, 0
    state = refuse(state, limits, others=2)
    state = refuse(state, limits, others=1)
    while now < NOW + 600:
        now = may_start_at(state, LaneLoad(slots=1), limits, now)
        state = refuse(state, limits, others=1, sent=now, now=now)
        refusals += 1

    assert refusals <= 62


def test_on_a_lane_of_unknown_cap_probes_come_ever_more_rarely() -> None:
    limits, state, now, gaps = Limits(), LaneState(), NOW, []
    for _ in range(9):
        state = refuse(state, limits, others=3, sent=now, now=now)
        at = may_start_at(state, LaneLoad(slots=3), limits, now)
        gaps.append(at - now)
        now = at

    assert gaps[:3] == pytest.approx([9.8, 19.6, 39.2])
    assert gaps[-1] == pytest.approx(LONGEST_PROBE_SECONDS)


def test_a_refusal_soon_after_an_end_is_tried_again_soon_and_lowers_no_cap() -> None:
    limits = Limits(3)
    state = after_end(LaneState(), NOW - 1)

    after = refuse(state, limits, others=2)

    assert after.learned is None
    assert NOW < after.paused_until < NOW + 0.5


def test_a_delay_of_the_service_is_learned_from_the_first_create_that_it_accepts() -> None:
    limits, now = Limits(3), NOW
    state = after_end(LaneState(), now)
    while now < NOW + 1.5:
        state = refuse(state, limits, others=2, sent=now, now=now)
        now = state.paused_until

    state = accept(state, tasks=3, sent=now, now=now)

    assert 1.3 < state.release_delay < 2.1
    assert state.freed == ()


def test_a_learned_delay_shrinks_while_creates_after_it_are_accepted() -> None:
    state = evolve(LaneState(), release_delay=1.0)
    for number in range(40):
        state = accept(after_end(state, NOW + number), sent=NOW + number + 1, now=NOW + number + 1)

    assert state.release_delay == 0


@pytest.mark.parametrize(
    ("freed", "sent", "others", "limits"),
    [
        (NOW - LATEST_RELEASE_SECONDS - 1, NOW, 2, Limits(3)),  # long after the end
        (NOW, NOW - 1, 2, Limits(3)),  # sent before the end
        (NOW - 1, NOW, 3, Limits(3)),  # more than ever
        (NOW - 1, NOW, 2, Limits()),  # the cap is not known
    ],
)
def test_other_refusals_are_no_sign_of_a_late_release(
    freed: float, sent: float, others: int, limits: Limits
) -> None:
    state = after_end(LaneState(), freed)

    assert refuse(state, limits, others=others, sent=sent).learned == others


def test_a_refusal_after_many_tries_lowers_the_cap() -> None:
    limits, now = Limits(3), NOW
    state, tries = after_end(LaneState(), now), 0
    while state.learned is None:
        state = refuse(state, limits, others=2, sent=now, now=now)
        now = max(now, state.paused_until)
        tries += 1

    assert state.learned == 2
    assert tries <= 9


@pytest.mark.parametrize(("seconds", "is_passed"), [(0, False), (1.9, False), (2, True), (1000, True)])
def test_an_owner_that_was_offered_a_slot_two_seconds_ago_is_passed_over(
    seconds: float, is_passed: bool
) -> None:
    assert is_passed_over(NOW - seconds, NOW) is is_passed
    assert not is_passed_over(None, NOW)


def test_the_learned_cap_is_at_least_one() -> None:
    assert cap(refuse(LaneState(), Limits(3), others=0), Limits(3), NOW) == 1


@pytest.mark.parametrize("setback", ["rate", "capacity"])
def test_other_setbacks_pause_and_teach_nothing(setback: str) -> None:
    state = refuse(LaneState(), Limits(3), setback)

    assert state.learned is None
    assert state.paused_until > NOW


def test_a_full_create_rate_waits_until_the_oldest_answer_is_a_minute_old() -> None:
    limits = Limits(creates_per_minute=3)
    answered = (NOW - 50, NOW - 40, NOW - 10)

    assert may_start_at(LaneState(), LaneLoad(answered=answered), limits, NOW) == NOW + 10
    assert may_start_at(LaneState(), LaneLoad(answered=answered[1:]), limits, NOW) <= NOW


def test_a_create_under_way_counts_for_the_rate() -> None:
    limits = Limits(9, creates_per_minute=2)

    assert may_start_at(LaneState(), LaneLoad(submitting=2), limits, NOW) == math.inf
    assert may_start_at(LaneState(), LaneLoad(submitting=1, answered=(NOW - 20,)), limits, NOW) == NOW + 40


def test_a_rate_below_one_a_minute_is_one_in_a_longer_time() -> None:
    assert window(Limits(creates_per_minute=0.5)) == (1, 120)
    assert window(Limits(creates_per_minute=30)) == (30, 60)


def test_each_moment_that_is_promised_is_one_at_which_the_lane_is_free() -> None:
    limits = Limits(5, creates_per_minute=2)
    state = evolve(refuse(LaneState(), limits, others=4, retry_after=7.0), probing=False)
    load = LaneLoad(slots=4, answered=(NOW - 30, NOW - 1))

    at = may_start_at(state, load, limits, NOW)

    assert at == NOW + 30
    assert may_start_at(state, load, limits, at) <= at


@given(
    concurrency=st.none() | st.integers(1, 5),
    rate=st.none() | st.integers(1, 20),
    lengths=st.lists(st.floats(0.5, 40), min_size=1, max_size=60),
    latencies=st.lists(st.floats(0, 3), min_size=1, max_size=10),
)
def test_no_schedule_breaks_the_cap_or_the_rate_at_the_service(
    concurrency: int | None, rate: int | None, lengths: list[float], latencies: list[float]
) -> None:
    """The service sees each create somewhere between its sending and its answer: even so no window is too full."""
    limits = Limits(concurrency, rate)
    now, running, answered, seen = 0.0, [], [], []
    for number, length in enumerate(lengths):
        while True:
            running = [end for end in running if end > now]
            load = LaneLoad(len(running), answered=tuple(answered), next_free=min(running, default=math.inf))
            at = may_start_at(LaneState(), load, limits, now)
            if at <= now:
                break
            now = at
        latency = latencies[number % len(latencies)]
        seen.append(now + latency * (number % 3) / 2)
        now += latency
        answered.append(now)
        running.append(now + length)
        assert concurrency is None or len(running) <= concurrency

    for moment in seen:
        assert rate is None or sum(moment - 60 + 1e-6 < each <= moment for each in seen) <= rate


@given(
    rate=st.integers(1, 30),
    delays=st.lists(st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)), min_size=1, max_size=120),
)
def test_the_service_sees_no_more_queries_in_any_second_than_allowed(
    rate: int, delays: list[tuple[float, float]]
) -> None:
    window, now = SlidingWindow(rate), 0.0
    under_way: list[float] = []
    arrivals: list[float] = []
    for there, back in delays:
        while True:
            for end in sorted(end for end in under_way if end <= now):
                window.end(end)
            under_way = [end for end in under_way if end > now]
            at = window.free_at(now)
            if at <= now:
                break
            now = min([at, *under_way])
        window.start()
        arrivals.append(now + there)
        under_way.append(now + there + back)

    for moment in arrivals:
        assert sum(moment - 1 < each <= moment for each in arrivals) <= rate


@given(
    rate=st.floats(0.05, 60),
    delays=st.lists(st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)), min_size=1, max_size=120),
)
def test_a_rate_that_is_no_whole_number_is_kept_in_whole_queries(
    rate: float, delays: list[tuple[float, float]]
) -> None:
    """No more than the rate rounded down in any second; below one a second, one in as long as that takes."""
    window, now, arrivals = SlidingWindow(rate), 0.0, []
    for there, back in delays:
        now = max(now, window.free_at(now))
        assert now < math.inf
        window.start()
        arrivals.append(now + there)
        now += there + back
        window.end(now)

    most, seconds = max(1, int(rate)), max(1.0, 1 / rate)
    for moment in arrivals:
        assert sum(moment - seconds < each <= moment for each in arrivals) <= most


@given(
    rates=st.lists(st.floats(0.05, 60), min_size=1, max_size=8),
    delays=st.lists(st.floats(0, 0.4), min_size=1, max_size=60),
)
def test_a_rate_that_changes_is_kept_from_then_on(rates: list[float], delays: list[float]) -> None:
    window, now, seen = SlidingWindow(rates[0]), 0.0, []
    for number, delay in enumerate(delays):
        rate = rates[number % len(rates)]
        window.set_rate(rate)
        at = window.free_at(now)
        now = max(now, at)
        assert now < math.inf
        window.start()
        window.end(now + delay)
        seen.append((now + delay, max(1, int(rate))))
        now += delay

    for place, (moment, most) in enumerate(seen):
        assert sum(moment - 1 < each <= moment for each, _ in seen[: place + 1]) <= most


WEIGHTS = st.lists(st.integers(1, 5000), min_size=1, max_size=40)


@given(rate=st.floats(0.01, 500), weights=WEIGHTS)
def test_the_parts_of_a_rate_are_more_than_nothing_and_no_more_than_the_whole(
    rate: float, weights: list[int]
) -> None:
    parts = [portion(rate, weights, number) for number in range(len(weights))]

    assert all(part > 0 for part in parts)
    assert sum(parts) <= rate * (1 + 1e-12)
    assert parts == [portion(rate, weights, number) for number in range(len(weights))]
    assert portion(rate, weights[:1], 0) == rate


@given(rate=st.integers(1, 500), weights=WEIGHTS)
def test_a_whole_rate_is_given_out_whole_and_more_to_whoever_has_more(rate: int, weights: list[int]) -> None:
    parts = [portion(rate, weights, number) for number in range(len(weights))]

    assert sum(parts) == pytest.approx(rate)
    if rate >= len(weights):
        assert all(part == int(part) for part in parts)
    heaviest, lightest = weights.index(max(weights)), weights.index(min(weights))
    assert parts[heaviest] >= parts[lightest]


def test_a_429_on_a_query_pauses_the_queries_and_a_good_answer_shortens_the_next_pause() -> None:
    window = SlidingWindow(20)

    window.note_refusal(NOW, None, 0.0)
    first = window.free_at(NOW) - NOW
    window.note_refusal(NOW, None, 0.0)
    second = window.free_at(NOW) - NOW
    window.note_answer()
    window.note_refusal(NOW + 100, 7.0, 0.0)

    assert (first, second) == (1, 2)
    assert window.free_at(NOW) == NOW + 107


def test_a_budget_without_a_rate_is_always_free_but_for_a_pause() -> None:
    window = SlidingWindow(None)
    for _ in range(1000):
        window.start()

    assert window.free_at(NOW) <= NOW
    window.end(NOW)
    window.note_refusal(NOW, 3.0, 0.0)
    assert window.free_at(NOW) == NOW + 3
