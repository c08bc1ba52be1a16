"""When to look again, as plain functions: what holds for any history, and one example for each part of the rule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bide import Pace
from bide._polling.durations import Durations, Sample
from bide._polling.pace import (
    Observed,
    PollTerms,
    bounds,
    eta,
    forecast,
    next_list,
    next_poll,
    sample_of,
    unseen_seconds,
)

pytestmark = pytest.mark.no_cover  # tracing doubles its time, and other tests run the same lines

# Any history -----------------------------------------------------------------------------------------------------

unhurried = settings(deadline=None, max_examples=60)
# No clock and no progress is finer than this; a float may be, and then a quotient of two is none any more.
finite = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: round(number, 9))
usual = st.floats(-1e3, 1e5).map(lambda number: round(number, 9))
ages = usual | st.floats(-1e12, 1e12).map(lambda number: round(number, 9))
wild = ages | finite
percents = st.floats(0, 100).map(lambda number: round(number, 9))
chances = st.floats(0, 1)
spans = st.floats(1e-3, 1e4)
lessons = st.builds(
    Sample,
    queue=wild,
    run=wild,
    lag=wild,
    late=st.none() | wild,
    ratios=st.lists(st.tuples(st.integers(0, 4), st.floats(0, 10) | finite), max_size=3).map(tuple),
)


@st.composite
def experiences(draw: st.DrawFn) -> Durations:
    """What any finite lessons have taught, up to more than are remembered."""
    learned = Durations.from_documents(draw(wild), draw(wild))
    for lesson in draw(st.lists(lessons, max_size=12)) * draw(st.sampled_from([1, 2, 15])):
        learned.learn(lesson)
    return learned


@st.composite
def sights(draw: st.DrawFn, ages: st.SearchStrategy[float] = ages) -> Observed:
    """A task after any looks, in any order of ages."""
    observed = Observed()
    look = st.tuples(ages, st.booleans(), st.none() | percents | wild, st.none() | wild)
    for age, running, progress, started in draw(st.lists(look, max_size=6)):
        observed.note_poll(age, running=running, progress=progress, started=started)
    return observed


paces = st.builds(
    lambda price, floor, cap, fixed: Pace.fixed(*fixed) if fixed else Pace(price, floor, cap),
    st.floats(1e-6, 1e6),
    st.none() | spans,
    st.none() | spans,
    st.just(()) | st.lists(spans, max_size=3),
)
views = st.builds(PollTerms, st.floats(0, 60), st.floats(0, 100) | finite, chances)


@unhurried
@given(pace=paces, observed=sights(wild), learned=experiences(), look=views)
def test_no_look_comes_under_the_floor_or_over_the_cap_whatever_has_happened(
    pace: Pace, observed: Observed, learned: Durations, look: PollTerms
) -> None:
    following = next_poll(pace, observed, learned, look)
    floor = max(look.floor, pace.floor or 0.0)
    cap = max(5.0, observed.seen / 2) if pace.cap is None else pace.cap

    assert math.isfinite(following)
    assert following >= observed.seen + floor
    if pace.gaps:
        cap = max(pace.gaps)
        assert following <= observed.seen + max(floor, cap * 1.025)
    else:
        assert following <= observed.seen + max(floor, cap)
    assert bounds(pace, observed.seen, look.floor) == (floor, max(floor, cap))


@unhurried
@given(prices=st.tuples(spans, spans), observed=sights(), learned=experiences(), look=views)
def test_a_dearer_look_never_comes_sooner(
    prices: tuple[float, float], observed: Observed, learned: Durations, look: PollTerms
) -> None:
    cheap, dear = (next_poll(Pace(price), observed, learned, look) for price in sorted(prices))

    assert dear >= cheap - 1e-6 * max(1.0, cheap)


@unhurried
@given(
    pressures=st.tuples(st.floats(0, 9), st.floats(0, 9)),
    observed=sights(),
    learned=experiences(),
    floor=st.floats(0, 10),
    price=spans,
)
def test_the_more_requests_wait_for_the_slots_the_sooner_is_the_look(
    pressures: tuple[float, float], observed: Observed, learned: Durations, floor: float, price: float
) -> None:
    calm, pressed = (
        next_poll(Pace(price), observed, learned, PollTerms(floor, each)) for each in sorted(pressures)
    )

    assert pressed <= calm + 1e-6 * max(1.0, calm)


@unhurried
@given(
    observed=sights(),
    learned=experiences(),
    gaps=st.lists(st.floats(0, 1e4), min_size=3, max_size=3, unique=True),
)
def test_what_is_expected_unseen_begins_at_nothing_and_grows_ever_faster(
    observed: Observed, learned: Durations, gaps: list[float]
) -> None:
    ahead = forecast(observed, learned)
    low, middle, high = sorted(gaps)
    (first, _), (second, slope), (third, _) = (ahead.unseen(ahead.since + gap) for gap in (low, middle, high))
    slack = 1e-9 * max(1.0, abs(ahead.since - ahead.origin) + high + ahead.points.xs[-1])

    assert abs(ahead.unseen(ahead.since)[0]) <= slack
    assert -slack <= first <= second + slack <= third + 2 * slack
    part = (middle - low) / (high - low)
    assert second <= first + part * (third - first) + 4 * slack, "convex"
    assert -1e-9 <= slope <= 1 + 1e-9, "no more than one second is added in a second"


@unhurried
@given(
    tasks=st.lists(st.tuples(sights(), experiences(), st.floats(0, 1e4)), min_size=1, max_size=4),
    price=spans,
    floor=st.floats(0.1, 10),
    cap=st.floats(0.1, 100),
)
def test_a_list_comes_no_later_than_the_first_of_the_single_looks_that_it_replaces(
    tasks: list[tuple[Observed, Durations, float]], price: float, floor: float, cap: float
) -> None:
    ends = [(forecast(observed, learned), observed.seen + later) for observed, learned, later in tasks]
    together = next_list(ends, price, floor, cap)

    assert floor <= together <= max(floor, cap)
    assert together <= min(next_list([end], price, floor, cap) for end in ends) + 1e-6 * max(1.0, cap)


@unhurried
@given(observed=sights(), age=ages, started=st.none() | wild, ended=st.none() | wild)
def test_an_end_lies_between_the_last_two_looks_whatever_is_told(
    observed: Observed, age: float, started: float | None, ended: float | None
) -> None:
    lesson = sample_of(observed, age, started, ended)
    end, last = lesson.queue + lesson.run, max(age, observed.seen)
    slack = 1e-9 * max(1.0, last)

    assert observed.sure - slack <= end <= last + slack
    assert lesson.lag == pytest.approx(last - end, abs=4 * slack)
    assert lesson.queue >= 0
    assert lesson.run >= 0
    assert all(math.isfinite(ratio) and ratio > 0 for _, ratio in lesson.ratios)


@unhurried
@given(observed=sights(), learned=experiences(), age=ages)
def test_the_time_that_is_left_is_a_finite_number_of_seconds(
    observed: Observed, learned: Durations, age: float
) -> None:
    left = eta(observed, learned, age)

    assert math.isfinite(left)
    assert left >= 0
    assert math.isfinite(unseen_seconds(observed, learned, age))


@unhurried
@given(observed=sights(), learned=experiences(), later=st.floats(0, 1e5))
def test_how_likely_it_has_ended_is_a_share(observed: Observed, learned: Durations, later: float) -> None:
    ahead = forecast(observed, learned)

    assert (
        -1e-9
        <= ahead.end_probability(ahead.since + later / 2)
        <= ahead.end_probability(ahead.since + later) + 1e-9
        <= 1 + 2e-9
    )
