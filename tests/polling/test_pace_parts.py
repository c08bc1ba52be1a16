"""When to look again, part by part: what a user may set, and what each part of the rule is for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bide import Pace
from bide._polling.durations import Durations, Sample
from bide._polling.pace import (
    Forecast,
    Observed,
    PollTerms,
    bounds,
    eta,
    forecast,
    lateness,
    next_list,
    next_poll,
    price_of,
    sample_of,
    unseen_seconds,
    unseen_together,
)

# What a user may set ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["price", "floor", "cap"])
@pytest.mark.parametrize("wrong", [0, -1.5, math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_span_of_time_is_refused(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"Pace, {name}: expected seconds above 0, not {wrong!r}"):
        Pace(**{name: wrong})


@pytest.mark.parametrize("name", ["price", "floor", "cap"])
@pytest.mark.parametrize("wrong", ["3", True, (3,), 3j])
def test_a_figure_that_is_no_number_is_refused_and_shown(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Pace(**{name: wrong})

    assert str(caught.value) == f"Pace, {name}: expected seconds, a number above 0, not {wrong!r}"


def test_a_price_must_be_there() -> None:
    with pytest.raises(TypeError, match=r"Pace, price: .* not None"):
        Pace(price=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "error", "shown"),
    [((), ValueError, "needs the seconds"), ((0,), ValueError, "not 0"), ((1, -2), ValueError, "not -2"),
     ((math.nan,), ValueError, "not nan"), ((math.inf,), ValueError, "not inf"), (("3",), TypeError, "not '3'"),
     ((True,), TypeError, "not True"), ((None,), TypeError, "not None")],
)  # fmt: skip
def test_fixed_gaps_are_numbers_above_zero(
    wrong: tuple[Any, ...], error: type[Exception], shown: str
) -> None:
    with pytest.raises(error, match=shown):
        Pace.fixed(*wrong)


def looks_of(pace: Pace, learned: Durations, floor: float, number: int, chance: float = 0.5) -> list[float]:
    """The ages of the first looks at a task that never ends."""
    observed, seen = Observed(), [first_look(pace, learned, PollTerms(floor, chance=chance))]
    while len(seen) < number:
        observed.note_poll(seen[-1], running=True)
        seen.append(next_poll(pace, observed, learned, PollTerms(floor, chance=chance)))
    return seen


def first_look(pace: Pace, learned: Durations, look: PollTerms) -> float:
    return next_poll(pace, Observed(), learned, look)


def gaps_of(moments: Sequence[float]) -> list[float]:
    return [later - sooner for sooner, later in itertools.pairwise([0.0, *moments])]


def test_fixed_gaps_follow_each_other_and_the_last_one_repeats() -> None:
    looks = looks_of(Pace.fixed(1, 2, 4), IMAGES, 0.5, 6)

    assert gaps_of(looks) == pytest.approx([1, 2, 4, 4, 4, 4])


def test_the_floor_wins_over_fixed_gaps() -> None:
    assert gaps_of(looks_of(Pace.fixed(1, 2, 4), IMAGES, 3.0, 4)) == pytest.approx([3, 3, 4, 4])


def test_a_pace_is_a_value() -> None:
    assert Pace() == Pace(price=0.1)
    assert Pace.fixed(3) == Pace.fixed(3.0) != Pace()
    assert len({Pace(), Pace(), Pace.fixed(3.0)}) == 2


def test_chance_moves_a_look_by_a_twentieth_at_most() -> None:
    [soon], [late] = (looks_of(Pace.fixed(10.0), IMAGES, 1.0, 1, chance) for chance in (0, 1))

    assert (soon, late) == pytest.approx((9.75, 10.25))


# Its parts -------------------------------------------------------------------------------------------------------

IMAGES = Durations.from_documents(10, 30)
VIDEOS = Durations.from_documents(60, 300)
UNBOUNDED = Pace(floor=0.01, cap=1e6)


def taught(runs: Sequence[float], queues: Sequence[float] = (1.0,), **told: Any) -> Durations:
    """What tasks have taught that took these seconds at work, after these in the queue."""
    learned = Durations.from_documents(10, 30)
    for run, queue in zip(runs, itertools.cycle(queues), strict=False):
        learned.learn(Sample(queue, run, told.get("lag", 0.5), told.get("late", 0.5), told.get("ratios", ())))
    return learned


def around(middle: float, part: float = 0.02, number: int = 128) -> list[float]:
    """Run times within a *part* of *middle*, evenly."""
    return [middle * (1 + part * (2 * (i * 37 % number) / number - 1)) for i in range(number)]


def seen_at(age: float, **told: Any) -> Observed:
    observed = Observed()
    observed.note_poll(age, **{"running": True, **told})
    return observed


def gap(
    observed: Observed,
    learned: Durations,
    *,
    floor: float = 0.01,
    pace: Pace = UNBOUNDED,
    pressure: float = 0.0,
) -> float:
    return next_poll(pace, observed, learned, PollTerms(floor, pressure)) - observed.seen


def test_nothing_is_asked_while_nothing_can_have_ended_and_often_where_it_is_likely() -> None:
    looks = looks_of(UNBOUNDED, taught(around(100)), 0.01, 30)

    assert sum(look < 97 for look in looks) <= 5
    assert sum(97 < look < 103 for look in looks) >= 5


def test_the_look_comes_where_the_expected_unseen_seconds_reach_the_price() -> None:
    learned, observed, look = taught(around(100, 0.3)), seen_at(80), PollTerms(0.01)
    following = next_poll(UNBOUNDED, observed, learned, look)

    assert forecast(observed, learned).unseen(following)[0] == pytest.approx(
        price_of(UNBOUNDED, learned, look), rel=1e-4
    )


def test_what_is_expected_unseen_is_the_mean_over_the_points_that_are_still_possible() -> None:
    points = taught(around(100, 0.3)).totals()
    ahead = Forecast(points, origin=0.0, since=95.0, tail=0.0)
    beyond = [x for x in points.xs if x > 95]

    for age in (95.0, 96.5, 110.0, 200.0):
        expected = sum(age - x for x in beyond if x <= age) / len(beyond)
        assert ahead.unseen(age)[0] == pytest.approx(expected, abs=1e-9)


def test_a_cold_start_takes_the_documented_times_and_a_lower_price() -> None:
    image, video = (first_look(UNBOUNDED, each, PollTerms(0.01)) for each in (IMAGES, VIDEOS))
    prices = [price_of(Pace(), taught([15.0] * number), PollTerms(1.0)) for number in (0, 1, 4, 14, 994)]

    assert image < 10
    assert 1.3 * image < video < 60
    assert prices == pytest.approx([0.1 / 6, 0.2 / 7, 0.05, 0.075, 0.0995])


def test_the_first_look_at_an_unknown_model_comes_within_five_seconds() -> None:
    assert first_look(Pace(), VIDEOS, PollTerms(1.0)) <= 5.0


def test_a_task_far_beyond_all_experience_is_still_looked_at() -> None:
    learned = taught(around(10))

    assert gap(seen_at(1000, started=0.0), learned) == pytest.approx(math.sqrt(2 * 0.1 * 1000), rel=0.1)
    assert gap(seen_at(100_000, started=0.0), learned) == pytest.approx(math.sqrt(2 * 0.1 * 100_000), rel=0.1)


def test_there_is_a_chance_between_the_ends_that_are_known() -> None:
    learned = taught([*around(10, number=96), *around(5000, number=32)])
    waited = gap(seen_at(100, started=0.0), learned)

    assert waited < 90, "it would be 4800 s without the heavy tail"


def test_the_tail_is_heavier_while_little_is_learned() -> None:
    few, many = taught([*around(10, number=6), *around(5000, number=2)]), taught([*around(10, number=96)])

    assert forecast(Observed(), IMAGES).tail == pytest.approx(0.55)
    assert forecast(Observed(), few).tail == pytest.approx(0.05 + 0.5 / 9)
    assert forecast(Observed(), many).tail == pytest.approx(0.05 + 0.5 / 97)


def test_an_end_that_is_sooner_than_any_before_is_thought_possible() -> None:
    learned = taught([40.0, 50.0, 60.0] * 42)
    body = Forecast(learned.runs(), 0.0, 0.0, tail=0.0)

    assert body.unseen(39.9)[0] > 0.01, "the samples are smoothed"
    assert body.unseen(20.0)[0] == 0


def test_from_a_known_start_on_the_run_times_alone_count() -> None:
    learned = taught(around(20), queues=range(5, 300, 7))

    assert 7 < gap(seen_at(110, started=100.0), learned) < 11
    assert forecast(seen_at(110, started=100.0), learned).half(110) == pytest.approx(120, abs=0.5)


def test_a_start_between_two_near_looks_is_known_well_enough() -> None:
    learned, observed = taught(around(20), queues=range(5, 300, 7)), Observed()
    observed.note_poll(98, running=False)
    observed.note_poll(102, running=True)

    assert observed.start() == pytest.approx((100, 1.2))
    assert forecast(observed, learned).half(102) == pytest.approx(120, abs=0.5)


def test_a_start_between_two_distant_looks_is_not_believed() -> None:
    learned, observed = taught(around(20), queues=[1.0, 1.5]), Observed()
    observed.note_poll(1, running=False)
    observed.note_poll(15, running=True)

    assert forecast(observed, learned).origin == 0.0, "the times from the create are surer"


def test_while_it_is_queued_the_run_is_still_to_come() -> None:
    learned, observed = taught(around(60), queues=[5.0, 105.0]), Observed()
    observed.note_poll(50, running=False)

    assert eta(observed, learned, 50.0) == pytest.approx(115, abs=2), "105 in the queue and 60 at work"
    observed.note_poll(300, running=False)
    assert eta(observed, learned, 300.0) > 100, (
        "longer queued than any before it, and the run is still to come"
    )


HONEST = tuple((stage, 1.0 + 0.01 * number) for stage in range(4) for number in (-1, 0, 1))
WIDE = [20.0 + 3 * number for number in range(100)]


def test_progress_that_was_right_before_tells_the_end() -> None:
    learned = taught(WIDE, ratios=HONEST)

    assert eta(seen_at(60, progress=50.0, started=0.0), learned, 60.0) == pytest.approx(60, abs=1)
    assert eta(seen_at(60, started=0.0), learned, 60.0) > 100
    assert (
        sum(119 < look < 123 for look in looks_after(seen_at(60, progress=50.0, started=0.0), learned, 25))
        >= 4
    )


def looks_after(observed: Observed, learned: Durations, number: int) -> list[float]:
    """The ages of the next looks, which see nothing new."""
    seen = []
    for _ in range(number):
        seen.append(observed.seen + gap(observed, learned))
        observed.note_poll(seen[-1], running=True)
    return seen


def test_progress_that_always_promised_half_of_the_rest_is_put_right() -> None:
    learned = taught(WIDE, ratios=((2, 2.0),))

    assert eta(seen_at(60, progress=50.0, started=0.0), learned, 60.0) == pytest.approx(120, abs=1)


def test_what_a_bar_promises_is_compared_with_what_became_true() -> None:
    observed = seen_at(10, progress=10.0, started=0.0)  # promises 90 s more
    observed.note_poll(30, running=True, progress=50.0)  # and now 30 s

    assert sample_of(observed, 50, None, 40.0).ratios == ((0, 30 / 90), (2, 10 / 30))


def test_only_the_last_promises_are_kept() -> None:
    observed = Observed()
    for each in range(1, 99):
        observed.note_poll(float(each), running=True, progress=float(each), started=0.0)

    assert [hint.age for hint in observed.hints or []] == list(range(87, 99))


def test_a_bar_that_lies_goes_unheard() -> None:
    learned = Durations.from_documents(10, 30)
    for number, run in enumerate(around(100, 0.2)):
        learned.learn(Sample(1.0, run, 0.5, 0.5, ((2, (0.02, 0.3, 1.0, 5.0, 40.0)[number % 5]),)))

    assert gap(seen_at(60, progress=50.0, started=0.0), learned) == gap(seen_at(60, started=0.0), learned)


def test_progress_counts_from_the_eighth_promise_on() -> None:
    runs = [20.0 + 9 * i for i in range(20)]
    told = [taught(runs, ratios=()) for _ in range(2)]
    for learned, number in zip(told, (7, 8), strict=True):
        for _ in range(number):
            learned.learn(Sample(1.0, 100.0, 0.5, 0.5, ((2, 1.0),)))
    seven, eight = (forecast(seen_at(60, progress=50.0, started=0.0), learned).origin for learned in told)

    assert (seven, eight) == (0.0, 60.0)


def test_the_last_percent_has_a_memory_of_its_own() -> None:
    stuck = taught(WIDE, ratios=((4, 60.0), (3, 1.0)))

    assert eta(seen_at(99, progress=99.0, started=0.0), stuck, 99.0) == pytest.approx(60, abs=1), (
        "bars wait at 99 %"
    )
    assert eta(seen_at(98, progress=98.0, started=0.0), stuck, 98.0) == pytest.approx(2, abs=0.1)


def test_progress_that_does_not_change_or_says_nothing_is_no_hint() -> None:
    observed = seen_at(10, progress=0.0)
    observed.note_poll(12, running=True, progress=100.0)
    observed.note_poll(14, running=True, progress=-5.0)
    assert not observed.hints

    for age in (20, 30, 40):
        observed.note_poll(age, running=True, progress=30.0)
    [hint] = observed.hints or []
    assert hint.age == 20


def test_a_model_that_proves_late_lowers_the_price() -> None:
    prices = [
        price_of(Pace(), taught([20.0] * 200, late=late), PollTerms(1.0)) for late in (0.0, 1.4, 1.6, 2.0)
    ]
    known = 0.1 * 201 / 206

    assert prices[:2] == pytest.approx([known, known]), "up to 1.5 s is no fault"
    assert prices[2:] == pytest.approx([known * math.exp(-1.6), known * math.exp(-8)], rel=0.2)
    far = [price_of(Pace(), taught([20.0] * 200, late=late), PollTerms(3.0)) for late in (1.4, 1.6)]
    assert far == pytest.approx([known, known * math.exp(-4.8)], rel=0.2), "lateness counts in floors"
    dear = price_of(Pace(price=0.9), taught([20.0] * 200, late=4.0), PollTerms(1.0))
    assert dear == pytest.approx(9 * known), "three times as much is borne for nine times the price"


@pytest.mark.parametrize(
    ("lag", "waited", "floor", "blamed"),
    [(0.7, 0.0, 1.0, 0.7), (9.0, 8.0, 1.0, 1.0), (5.0, 8.0, 1.0, 0.0), (0.7, -4.0, 1.0, 0.7), (90.0, 0.0, 1.0, 4.5),
     (90.0, 0.0, 3.0, 4.5), (6.0, 0.0, 3.0, 2.0), (90.0, 0.0, 0.05, 4.5), (0.7, 0.2, 1.0, 0.7)],
)  # fmt: skip
def test_the_pace_is_not_blamed_for_the_budget_nor_much_for_one_late_end(
    lag: float, waited: float, floor: float, blamed: float
) -> None:
    assert lateness(Pace(), lag, waited, floor) == pytest.approx(blamed)


@pytest.mark.parametrize("pace", [Pace.fixed(15), Pace(cap=30.0)], ids=str)
def test_who_is_late_by_choice_blames_nobody(pace: Pace) -> None:
    assert lateness(pace, 9.0, 0.0, 1.0) is None


def test_the_cap_is_five_seconds_or_half_of_the_age() -> None:
    never = taught([1e6] * 128)

    assert gap(seen_at(4, started=0.0), never, pace=Pace()) == pytest.approx(5, rel=0.03)
    assert gap(seen_at(100, started=0.0), never, pace=Pace()) <= 50
    assert bounds(Pace(), 100.0, 1.0) == (1.0, 50.0)


def test_floors_and_caps_hold_for_what_ends_at_once_and_for_what_never_ends() -> None:
    at_once, never = taught([0.05] * 128, queues=[0.0]), taught([1e6] * 128)

    assert gap(Observed(), at_once, pace=Pace(), floor=1.0) == 1.0
    assert gap(Observed(), at_once, pace=Pace(floor=4.0), floor=1.0) == 4.0
    assert gap(Observed(), at_once, pace=Pace(floor=0.5), floor=1.0) == 1.0
    assert gap(Observed(), never, pace=Pace(cap=0.2), floor=0.05) <= 0.2
    assert gap(Observed(), never, pace=Pace(cap=0.2), floor=3.0) == 3.0, "a floor above the cap wins"


def test_an_end_that_is_not_told_lies_halfway_between_the_last_two_looks() -> None:
    lesson = sample_of(seen_at(10, started=4.0), 16)

    assert lesson[:3] == (4.0, 9.0, 3.0)


@pytest.mark.parametrize(
    ("ended", "end"),
    [(12.0, 12.0), (9.0, 10.0), (17.0, 16.0), (3.0, 13.0), (99.0, 13.0), (-1e9, 13.0), (None, 13.0)],
)
def test_a_told_end_is_believed_only_between_the_last_two_looks(ended: float | None, end: float) -> None:
    lesson = sample_of(seen_at(10, started=4.0), 16, None, ended)

    assert lesson.queue + lesson.run == end
    assert lesson.lag == 16 - end


def test_a_told_start_is_believed_only_where_the_looks_allow_it() -> None:
    queued = Observed()
    queued.note_poll(10, running=False)

    assert [sample_of(queued, 20, started, 18.0).queue for started in (9.0, 15.0, 19.0)] == [10, 15, 18]
    assert [sample_of(queued, 20, started, 18.0).queue for started in (2.0, 50.0, None)] == [14, 14, 14]


def test_requests_that_wait_divide_the_price_by_five_at_most() -> None:
    prices = [price_of(Pace(), IMAGES, PollTerms(1.0, waiting)) for waiting in (0, 1, 4, 100, -3)]

    assert prices == pytest.approx([each * 0.1 / 6 for each in (1, 1 / 2, 1 / 5, 1 / 5, 1)])


def test_of_two_overdue_looks_the_one_past_its_likely_end_is_worth_more() -> None:
    learned = taught(around(100, 0.1))

    assert unseen_seconds(seen_at(50, started=0.0), learned, 110.0) > 5
    assert unseen_seconds(seen_at(50, started=0.0), learned, 80.0) < 1
    assert unseen_seconds(seen_at(50, started=0.0), learned, 20.0) == 0, "it was seen unfinished after that"


def test_a_list_sums_what_is_expected_of_all_its_tasks() -> None:
    learned = taught(around(100, 0.3))
    ends = [(forecast(seen_at(80), learned), 80.0)] * 10
    one, ten = (next_list(some, 0.1, 0.01, 1e3) for some in (ends[:1], ends))

    assert unseen_together(ends, ten)[0] == pytest.approx(0.1, rel=1e-4)
    assert ten == pytest.approx(next_list(ends[:1], 0.01, 0.01, 1e3), rel=1e-4)
    assert ten < one / 2


def test_what_is_left_is_the_middle_of_the_times_that_are_still_possible() -> None:
    learned = taught(around(100, 0.1))
    left: Callable[[float], float] = lambda age: eta(seen_at(age, started=0.0), learned, age)  # noqa: E731 - short

    assert left(10) == pytest.approx(90, abs=1.5)
    assert 0 < left(104) < 5
    assert left(1000) > 100, "beyond all experience the tail tells"


def test_what_is_left_falls_between_the_looks() -> None:
    observed, learned = seen_at(10, started=0.0), taught(around(100, 0.1))

    assert eta(observed, learned, 30.0) == pytest.approx(70, abs=1.5)
    assert eta(observed, learned, 99.0) < 10
