"""What ended tasks teach: what is kept of it, for how long, and how it is written down."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bide._polling.durations import (
    ENDS_KEPT,
    LONGEST_SECONDS,
    RATIOS_KEPT,
    STAGES,
    Distribution,
    Durations,
    Sample,
    duration_of,
    durations_from,
    plain_of,
    smooth,
    stage_of,
)

unhurried = settings(deadline=None, max_examples=60)
wild = st.floats(-10, 1e4) | st.floats(allow_nan=False, allow_infinity=False)
ratios = st.lists(st.tuples(st.integers(0, STAGES - 1), wild), max_size=3).map(tuple)
lessons = st.builds(Sample, queue=wild, run=wild, lag=wild, late=st.none() | wild, ratios=ratios)


@st.composite
def experiences(draw: st.DrawFn) -> Durations:
    learned = Durations.from_documents(draw(wild), draw(wild))
    for lesson in draw(st.lists(lessons, max_size=15)) * draw(st.sampled_from([1, 10])):
        learned.learn(lesson)
    return learned


def lesson(run: float, queue: float = 1.0, *, lag: float = 0.5, late: float | None = 0.5) -> Sample:
    return Sample(queue, run, lag, late)


def taught(*runs: float, prior: tuple[float, float] = (10, 30)) -> Durations:
    learned = Durations.from_documents(*prior)
    for run in runs:
        learned.learn(lesson(run))
    return learned


# Its plain form --------------------------------------------------------------------------------------------------


@unhurried
@given(experiences())
def test_what_was_written_is_read_back_to_a_thousandth(learned: Durations) -> None:
    text = plain_of(learned)
    back = durations_from(text)

    assert plain_of(back) == text
    assert back.seen == learned.seen
    assert (back.lag, back.late) == pytest.approx((learned.lag, learned.late), abs=1e-4)
    assert back.prior == pytest.approx(learned.prior, abs=1e-3)
    assert [tuple(end) for end in back.ends] == [pytest.approx(end, abs=1e-3) for end in learned.ends]
    for here, there in zip(back.rests, learned.rests, strict=True):
        assert list(here) == pytest.approx(list(there), abs=1e-3)


@unhurried
@given(experiences())
def test_what_is_kept_is_bounded_and_so_is_its_text(learned: Durations) -> None:
    assert len(learned.ends) <= ENDS_KEPT
    assert all(len(rests) <= RATIOS_KEPT for rests in learned.rests)
    assert len(learned.prior) == 8
    assert all(
        math.isfinite(x) and 0 <= x <= LONGEST_SECONDS
        for x in (learned.lag, learned.late, *sum(learned.ends, ()))
    )
    assert len(plain_of(learned)) < 10_000


def test_what_was_read_goes_on_learning_as_before() -> None:
    learned = taught(*map(float, range(10, 200)))
    back = durations_from(plain_of(learned))
    for each in (learned, back):
        each.learn(lesson(33.0))

    assert plain_of(back) == plain_of(learned)
    assert back.totals().xs == pytest.approx(learned.totals().xs)


GOOD = json.loads(plain_of(taught(12.0, 15.0, 20.0)))


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in GOOD for value in (None, "12", {}, -1, math.nan, math.inf, 1e300, [[[]]])),
        *({name: True} for name in GOOD if name != "form"),
        *({name: []} for name in ("form", "seen", "lag", "late", "prior", "rests")),
        *({"ends": [bad]} for bad in (1, [], [1], [1, 2, 3], [1, None], [-1, 2], [1, math.nan], "12", {"a": 1})),
        *({"rests": rests} for rests in ([[]] * 4, [[]] * 6, [[1], [1], [1], [1], [-1]], [["a"]] * 5, [None] * 5)),
        *({"prior": prior} for prior in ([], ["12"], [None], [-1.0], [math.inf], [[1]], 5)),
        {"form": 2}, {"form": "1"}, {"seen": 2}, {"seen": 2.9}, {"lag": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_text_with_a_wrong_part_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever of them it is
        durations_from(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize("name", GOOD)
def test_a_text_that_lacks_a_part_is_refused(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's or ours
        durations_from(json.dumps({key: value for key, value in GOOD.items() if key != name}))


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "null", "[]", "12", '"text"', "{}", '{"form": 1}', "[" * 100_000, '{"form": 1,' * 20_000,
     plain_of(taught(12.0))[:-2], "\x00", "\ud800", '{"form":1}' * 2, "9" * 5000],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_what_is_no_json_of_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's or ours
        durations_from(text)


@unhurried
@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(sorted(GOOD)), inner, max_size=6),
    max_leaves=12,
), st.sampled_from(["", *GOOD]))  # fmt: skip
def test_any_other_json_is_refused_or_read_and_never_anything_else(value: Any, name: str) -> None:
    text = json.dumps({**GOOD, name: value} if name else value)
    try:
        learned = durations_from(text)
    except ValueError:
        return

    assert plain_of(durations_from(plain_of(learned))) == plain_of(learned)
    assert learned.totals().xs


def test_too_long_lists_are_cut_to_what_is_remembered() -> None:
    long = {"seen": 5000, "ends": [[1, run] for run in range(5000)], "rests": [[1.0] * 5000] * STAGES}
    learned = durations_from(json.dumps({**GOOD, **long}))

    assert [len(learned.ends), *map(len, learned.rests)] == [ENDS_KEPT, *[RATIOS_KEPT] * STAGES]
    assert learned.ends[-1] == (1, 4999)


def test_a_prior_is_no_longer_than_ours() -> None:
    """A text of anybody's: what is kept and computed with must stay small."""
    text = json.dumps({**GOOD, "prior": [5.0] * 100_000})
    try:
        learned = durations_from(text)
    except ValueError:
        return

    assert len(learned.prior) <= 8
    assert len(plain_of(learned)) < 10_000


# What is learned -------------------------------------------------------------------------------------------------


def share(points: Distribution, part: float) -> float:
    return points.xs[int(len(points.xs) * part)]


def test_nothing_learned_is_what_is_documented() -> None:
    times = Durations.from_documents(60, 300).totals()

    assert share(times, 0.1) == pytest.approx(60, rel=0.2)
    assert share(times, 0.5) == pytest.approx(math.sqrt(60 * 300), rel=0.1)
    assert share(times, 0.9) == pytest.approx(300, rel=0.2)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (-5, 10), (30, 10), (1e300, 1e308), (20, 20)])
def test_odd_documents_are_no_error(low: float, high: float) -> None:
    assert all(0 < x < math.inf for x in Durations.from_documents(low, high).totals().xs)


def test_each_task_takes_the_place_of_one_documented_time() -> None:
    learned, left = Durations.from_documents(10, 30), []
    for _ in range(10):
        left.append(sum(x < 1000 for x in learned.totals().xs) // 5)
        learned.learn(lesson(1e5))

    assert left == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize("number", range(4))
def test_the_documented_range_stays_wide_while_its_times_leave(number: int) -> None:
    times = taught(*[16.0] * number).totals().xs

    assert times[0] < 11
    assert times[-1] > 25


def test_old_tasks_are_forgotten() -> None:
    learned = taught(*[10.0] * 500, *[100.0] * 128)

    assert min(learned.totals().xs) > 90
    assert learned.seen == 628
    assert duration_of(learned, 0.5) == 101


def test_samples_are_smoothed_less_the_more_there_are() -> None:
    few, many = (smooth([10.0, 20.0, 40.0] * number) for number in (1, 40))

    assert len(few.xs) == 15
    assert few.xs[0] < 6
    assert few.xs[-1] > 60
    assert few.xs[0] < many.xs[0] < 10
    assert few.middle == pytest.approx(20)
    assert smooth([7.0]).xs == pytest.approx([7.0] * 5)


def test_points_know_their_sums_and_how_wide_they_lie() -> None:
    points = Distribution([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])

    assert points.xs == [1, 2, 3, 4, 5, 6]
    assert points.sums == [0, 1, 3, 6, 10, 15, 21]
    assert points.spread(0.0) == 2.0
    assert points.spread(2.0) == math.inf, "too few lie beyond"
    assert points.times(2.0).xs == [2, 4, 6, 8, 10, 12]


def test_a_lesson_that_cannot_tell_whose_fault_it_was_leaves_the_lateness() -> None:
    learned = taught(*[12.0] * 50)
    before = learned.late
    learned.learn(lesson(12.0, lag=900.0, late=None))

    assert learned.late == before > 0.4
    assert learned.lag > before


def test_lateness_is_a_slow_average() -> None:
    learned = Durations.from_documents(10, 30)
    learned.learn(lesson(12.0, late=4.0))
    assert learned.late == pytest.approx(2.0), "the first counts as much as having learned nothing"

    for _ in range(400):
        learned.learn(lesson(12.0, late=1.0))
    assert learned.late == pytest.approx(1.0, abs=0.01)
    learned.learn(lesson(12.0, late=101.0))
    assert learned.late == pytest.approx(4.0, abs=0.1)


def test_times_out_of_all_reason_are_brought_to_the_next_that_is() -> None:
    learned = taught()
    for run, queue in ((-5.0, -7.0), (1e300, 1e300), (0.0, 0.0)):
        learned.learn(lesson(run, queue, lag=-3.0, late=1e300))

    assert list(learned.ends) == [(0, 0.05), (LONGEST_SECONDS, LONGEST_SECONDS), (0, 0.05)]
    assert 0 <= learned.lag <= learned.late <= LONGEST_SECONDS


def test_a_variant_counts_once_it_has_been_seen_often_and_is_clearly_narrower() -> None:
    parent = taught(*[10.0 + i for i in range(64)])
    variant, verdicts = Durations(parent.prior), []
    for number in range(20):
        verdicts.append(variant.is_clearer_than(parent))
        variant.learn(lesson(20.0 + number / 10))

    assert verdicts[:16] == [False] * 16, "too few"
    assert verdicts[16:] == [True] * 4


def test_a_few_tasks_of_a_variant_that_lie_near_each_other_by_chance_do_not_count() -> None:
    parent = taught(*[10.0 * 1.1 ** (number % 8) for number in range(64)])
    variant = Durations(parent.prior)
    for number in range(16):
        variant.learn(lesson(12.0 * 1.1 ** (number % 5)))
    soon = variant.is_clearer_than(parent)
    for number in range(112):
        variant.learn(lesson(12.0 * 1.1 ** (number % 5)))

    assert (soon, variant.is_clearer_than(parent)) == (False, True)


def test_a_variant_as_wide_as_all_never_counts() -> None:
    parent = taught(*[10.0 + i for i in range(64)])
    variant = Durations(parent.prior)
    for number in range(64):
        variant.learn(lesson(10.0 + number))

    assert not variant.is_clearer_than(parent)


@pytest.mark.parametrize(
    ("progress", "stage"), [(1, 0), (24.9, 0), (25, 1), (50, 2), (75, 3), (98.9, 3), (99, 4)]
)
def test_progress_has_four_stages_and_the_last_percent(progress: float, stage: int) -> None:
    assert stage_of(progress) == stage


def test_promises_count_from_the_eighth_on() -> None:
    learned = Durations.from_documents(10, 30)
    known = []
    for _ in range(9):
        known.append(learned.ratios(2) is not None)
        learned.learn(Sample(1, 12, 0.5, 0.5, ((2, 1.5),)))

    assert known == [False] * 8 + [True]
    assert learned.ratios(1) is None


def test_the_points_are_made_again_after_some_more_tasks_have_ended() -> None:
    learned = taught(*[10.0] * 128)
    before = learned.totals()
    learned.learn(lesson(500.0))
    same = learned.totals()
    for _ in range(16):
        learned.learn(lesson(500.0))

    assert same is before, "nothing is computed anew for each end"
    assert max(learned.totals().xs) > 400


def test_a_duration_is_told_of_what_is_remembered_alone() -> None:
    assert duration_of(Durations.from_documents(10, 30), 0.5) is None
    assert [duration_of(taught(9.0, 19.0, 29.0), part) for part in (0.0, 0.5, 0.9, 1.0)] == [10, 20, 30, 30]
