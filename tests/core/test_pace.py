"""When to look again, as plain functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bide._pace import LONGEST_BACKOFF, Pace
from bide.providers import Profile

IMAGE = Profile(floor=3.0, typical=(10, 30), longest=3600, unknown_hold=120)
chances = st.floats(0, 1)


def test_intervals_grow_by_a_fifth_up_to_ten_seconds_while_nothing_changes() -> None:
    pace, interval, seen = Pace(), 3.0, []
    for _ in range(9):
        interval = pace.next(IMAGE, interval, changed=False, chance=0.0)
        seen.append(round(interval, 2))

    assert seen == [3.6, 4.32, 5.18, 6.22, 7.46, 8.96, 10, 10, 10]


def test_a_change_brings_the_interval_back_to_the_floor() -> None:
    assert Pace().next(IMAGE, 9.0, changed=True, chance=0.0) == 3.0


@given(chance=chances, interval=st.floats(0, 1000), changed=st.booleans())
def test_no_look_comes_sooner_than_the_floor_or_much_later_than_the_cap(
    chance: float, interval: float, changed: bool
) -> None:
    pace = Pace()

    assert 3.0 <= pace.first(IMAGE, chance) <= 6.0
    assert 3.0 <= pace.next(IMAGE, interval, changed=changed, chance=chance) <= 10.5


def test_a_floor_above_the_cap_wins() -> None:
    slow = Profile(floor=15.0, typical=(60, 300), longest=3600, unknown_hold=120)

    assert Pace().next(slow, 15.0, changed=False, chance=0.0) == 15.0


@given(failures=st.integers(1, 10_000), retry_after=st.none() | st.floats(0, 86_400), chance=chances)
def test_failed_looks_back_off_within_bounds_and_obey_retry_after(
    failures: int, retry_after: float | None, chance: float
) -> None:
    wait = Pace().after_fault(IMAGE, failures, retry_after, chance)

    assert wait >= max(3.0, retry_after or 0)
    assert wait <= max(LONGEST_BACKOFF, retry_after or 0) * 1.05
