"""What every ledger does with lanes: pauses, probing, learned caps, create rates, and slots that are held."""

from __future__ import annotations

import pytest

from bide.ledgers import Held, Ledger, Record
from bide.models import Limits, TaskStatus
from support.ledger_worlds import (
    ORIGIN,
    World,
    admit,
    admitted,
    lane_of,
    put_back,
    record,
    running,
    state,
    terms,
)

NONE = terms(limits=Limits())


async def until(ledger: Ledger, lanes: object = None) -> float:
    """Seconds until it is worth asking again."""
    held = await admit(ledger, lanes)  # type: ignore[arg-type]
    assert isinstance(held, Held)
    return held.until - ledger.now()


async def test_a_pause_is_never_shorter_than_asked_and_a_little_longer_at_most(ledger: Ledger) -> None:
    for number in range(2):
        await ledger.add(record(f"t{number}"))
    await admitted(ledger)

    await put_back(ledger, "t0", "rate", retry_after=20.0)

    assert 19.9 <= await until(ledger) <= 21.1


async def test_refusals_without_advice_pause_longer_each_time(world: World, ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    pauses = []
    for _ in range(3):
        await admitted(ledger, NONE)
        await put_back(ledger, "t1", "rate", limits=Limits())
        pauses.append(await until(ledger, NONE))
        await world.pass_time(pauses[-1] + 0.1)

    assert [round(each / 5.0, 0) for each in pauses] == [1, 2, 4]


async def test_a_pause_is_of_one_lane(ledger: Ledger) -> None:
    keys = frozenset({"k1", "k2"})
    for number in range(2):
        await ledger.add(record(f"t{number}", keys=keys))
    await ledger.add(record("film", kind="video"))
    lanes = terms("k1", "k2")
    await admitted(ledger, lanes)

    await put_back(ledger, "t0", "rate", retry_after=50.0)

    again = await admitted(ledger, lanes)
    assert (again.ticket, again.key) == ("t0", "k2")
    film = await ledger.admit(ORIGIN, "video", "me", lanes)
    assert isinstance(film, Record)
    assert film.key == "k1"


async def test_a_later_refusal_does_not_shorten_a_pause(ledger: Ledger) -> None:
    for number in range(3):
        await ledger.add(record(f"t{number}"))
    await admitted(ledger)
    await admitted(ledger)

    await put_back(ledger, "t0", "rate", retry_after=100.0)
    await put_back(ledger, "t1", "unreachable")

    assert 99 <= await until(ledger) <= 111


async def test_what_was_put_back_keeps_its_place_before_what_came_later(world: World, ledger: Ledger) -> None:
    for number in range(4):
        await ledger.add(record(f"t{number}"))
    for _ in range(3):
        await admitted(ledger, NONE)
    for ticket in ("t2", "t0", "t1"):
        await put_back(ledger, ticket, "rate", limits=Limits(), retry_after=1.0)
    await world.pass_time(3)

    order = []
    for _ in range(4):
        got = await admitted(ledger, NONE)
        order.append(got.ticket)
        done = state(got, TaskStatus.QUEUED, task_id=f"x{got.ticket}")
        await ledger.accept(got.ticket, done, owner="me")

    assert order == ["t0", "t1", "t2", "t3"]


async def test_after_a_pause_one_create_at_a_time_is_tried_until_one_is_accepted(
    world: World, ledger: Ledger
) -> None:
    for number in range(5):
        await ledger.add(record(f"t{number}"))
    await admitted(ledger, NONE)
    await put_back(ledger, "t0", "rate", limits=Limits(), retry_after=1.0)
    await world.pass_time(3)

    first = await admitted(ledger, NONE)
    assert isinstance(await admit(ledger, NONE), Held)
    await ledger.finish(first.ticket, state(first, TaskStatus.REJECTED), owner="me")
    second = await admitted(ledger, NONE)
    assert isinstance(await admit(ledger, NONE), Held), "a refusal says nothing about slots"
    await ledger.accept(second.ticket, state(second, TaskStatus.QUEUED, task_id="x1"), owner="me")

    assert [(await admitted(ledger, NONE)).ticket for _ in range(3)] == ["t2", "t3", "t4"]


async def test_a_create_that_ends_at_once_ends_the_probing_too(world: World, ledger: Ledger) -> None:
    for number in range(3):
        await ledger.add(record(f"t{number}"))
    await admitted(ledger, NONE)
    await put_back(ledger, "t0", "rate", limits=Limits(), retry_after=1.0)
    await world.pass_time(3)

    first = await admitted(ledger, NONE)
    await ledger.finish("t0", state(first, TaskStatus.SUCCEEDED, task_id="x0"), owner="me")

    assert [(await admitted(ledger, NONE)).ticket for _ in range(2)] == ["t1", "t2"]
    assert not (await lane_of(ledger)).state.probing


async def test_a_lane_that_was_refused_learns_what_is_in_flight_and_grows_again(
    world: World, ledger: Ledger
) -> None:
    lanes = terms(limits=Limits(4))
    await running(ledger, "t0", "x0")
    for number in range(1, 6):
        await ledger.add(record(f"t{number}"))
    await admitted(ledger, lanes)
    await put_back(ledger, "t1", limits=Limits(4), retry_after=1.0)
    assert (await lane_of(ledger)).state.learned == 1
    await world.pass_time(3)

    wait = await until(ledger, lanes)
    assert 15 <= wait <= 20, "one more each 20 s from the end of the pause on"
    await world.pass_time(wait + 0.1)
    got = await admitted(ledger, lanes)
    await ledger.accept(got.ticket, state(got, TaskStatus.QUEUED, task_id="x1"), owner="me")

    assert isinstance(await admit(ledger, lanes), Held)
    await world.pass_time(1000)
    assert isinstance(await admit(ledger, lanes), Record)
    assert isinstance(await admit(ledger, lanes), Record)


async def test_a_learned_cap_never_exceeds_the_documented_one(world: World, ledger: Ledger) -> None:
    lanes = terms(limits=Limits(2), slot_for=100_000.0)
    for number in range(4):
        await ledger.add(record(f"t{number}"))
    await admitted(ledger, lanes)
    await put_back(ledger, "t0", limits=Limits(2), retry_after=1.0)
    await world.pass_time(10_000)

    for number in range(2):
        got = await admitted(ledger, lanes)
        queued = state(got, TaskStatus.QUEUED, task_id=f"x{number}")
        await ledger.accept(got.ticket, queued, owner="me")

    assert isinstance(await admit(ledger, lanes), Held)


async def test_a_bare_429_teaches_nothing_where_no_cap_is_known(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    await admitted(ledger, NONE)

    await put_back(ledger, "t1", limits=Limits(), certain=False)

    assert (await lane_of(ledger)).state.learned is None


async def test_a_create_that_was_put_back_counts_for_the_create_rate(world: World, ledger: Ledger) -> None:
    """The service has seen it, and counts it."""
    limits = Limits(creates_per_minute=1)
    await ledger.add(record("t1"))
    await admitted(ledger, terms(limits=limits))

    await put_back(ledger, "t1", "rate", limits=limits, retry_after=1.0)

    assert 59 <= await until(ledger, terms(limits=limits)) <= 60.1
    await world.pass_time(61)
    assert (await admitted(ledger, terms(limits=limits))).ticket == "t1"


async def test_an_unknown_create_counts_for_the_create_rate(world: World, ledger: Ledger) -> None:
    lanes = terms(limits=Limits(creates_per_minute=1))
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    first = await admitted(ledger, lanes)

    kept = await ledger.finish("t1", state(first, TaskStatus.UNKNOWN), hold=5, owner="me")

    assert 59 <= await until(ledger, lanes) <= 60.1
    await world.pass_time(61)
    assert (await admitted(ledger, lanes)).ticket == "t2"
    assert kept.task.status is TaskStatus.UNKNOWN


async def test_a_rate_below_one_a_minute_is_one_in_a_longer_time(world: World, ledger: Ledger) -> None:
    lanes = terms(limits=Limits(creates_per_minute=0.5))
    for number in range(2):
        await ledger.add(record(f"t{number}"))
    first = await admitted(ledger, lanes)
    await ledger.accept("t0", state(first, TaskStatus.QUEUED, task_id="x0"), owner="me")

    await world.pass_time(115)
    assert isinstance(await admit(ledger, lanes), Held)
    await world.pass_time(6)
    assert (await admitted(ledger, lanes)).ticket == "t1"


async def test_a_hold_is_of_its_lane_and_of_its_time(world: World, ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    first = await admitted(ledger)
    held = await ledger.finish("t1", state(first, TaskStatus.UNKNOWN), hold=30, owner="me")

    assert (await lane_of(ledger)).slots == 1
    assert await ledger.unsettled_records(ORIGIN, "k2") == []
    assert await ledger.unsettled_records("https://other.example", "k1") == []
    await world.pass_time(31)

    assert (await lane_of(ledger)).slots == 0
    assert await ledger.unsettled_records(ORIGIN, "k1") == []
    assert await ledger.get("t1") == held


async def test_an_overdue_record_is_still_open_and_ends_as_any_other(world: World, ledger: Ledger) -> None:
    lanes = terms(limits=Limits(1), slot_for=50)
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    await ledger.add(record("t3"))
    first = await admitted(ledger, lanes)
    accepted = await ledger.accept("t1", state(first, TaskStatus.RUNNING, task_id="x1"), owner="me")
    await world.pass_time(51)
    await admitted(ledger, lanes)

    ended = await ledger.finish("t1", state(accepted, TaskStatus.SUCCEEDED), owner="me")

    assert ended.task.status is TaskStatus.SUCCEEDED
    assert (await lane_of(ledger)).slots == 1, "what ended had no slot any more to give back"
    assert isinstance(await admit(ledger, lanes), Held)


@pytest.mark.parametrize("keys", [("k1", "k2"), ("k2", "k1")])
async def test_the_lane_that_is_named_first_is_taken_first(ledger: Ledger, keys: tuple[str, str]) -> None:
    await ledger.add(record("t1", keys=frozenset(keys)))

    assert (await admitted(ledger, terms(*keys))).key == keys[0]


async def test_a_head_that_can_use_one_lane_alone_leaves_the_others_to_those_behind_it(
    ledger: Ledger,
) -> None:
    lanes = terms("k1", "k2", limits=Limits(1))
    for ticket, keys in (("a", {"k1"}), ("b", {"k1"}), ("c", {"k2"})):
        await ledger.add(record(ticket, keys=frozenset(keys)))

    order = [(await admitted(ledger, lanes)).ticket for _ in range(2)]

    assert order == ["a", "c"]
    assert isinstance(await admit(ledger, lanes), Held)
