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

WIDE = terms(limits=Limits(1000))


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
        await admitted(ledger, WIDE)
        await put_back(ledger, "t1", "rate", limits=Limits())
        pauses.append(await until(ledger, WIDE))
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
    await put_back(ledger, "t1", "rate", retry_after=1.0)

    assert 99 <= await until(ledger) <= 111


async def test_what_was_put_back_keeps_its_place_before_what_came_later(world: World, ledger: Ledger) -> None:
    for number in range(4):
        await ledger.add(record(f"t{number}"))
    for _ in range(3):
        await admitted(ledger, WIDE)
    for ticket in ("t2", "t0", "t1"):
        await put_back(ledger, ticket, "rate", limits=Limits(), retry_after=1.0)
    await world.pass_time(3)

    order = []
    for _ in range(4):
        got = await admitted(ledger, WIDE)
        order.append(got.ticket)
        done = state(got, TaskStatus.QUEUED, task_id=f"x{got.ticket}")
        await ledger.accept(got.ticket, done, owner="me")

    assert order == ["t0", "t1", "t2", "t3"]


async def test_after_a_pause_one_create_at_a_time_is_tried_until_one_is_accepted(
    world: World, ledger: Ledger
) -> None:
    for number in range(5):
        await ledger.add(record(f"t{number}"))
    await admitted(ledger, WIDE)
    await put_back(ledger, "t0", "rate", limits=Limits(), retry_after=1.0)
    await world.pass_time(3)

    first = await admitted(ledger, WIDE)
    assert isinstance(await admit(ledger, WIDE), Held)
    await ledger.finish(first.ticket, state(first, TaskStatus.REJECTED), owner="me")
    second = await admitted(ledger, WIDE)
    assert isinstance(await admit(ledger, WIDE), Held), "a refusal says nothing about slots"
    await ledger.accept(second.ticket, state(second, TaskStatus.QUEUED, task_id="x1"), owner="me")

    assert [(await admitted(ledger, WIDE)).ticket for _ in range(3)] == ["t2", "t3", "t4"]


async def test_a_create_that_ends_at_once_ends_the_probing_too(world: World, ledger: Ledger) -> None:
    for number in range(3):
        await ledger.add(record(f"t{number}"))
    await admitted(ledger, WIDE)
    await put_back(ledger, "t0", "rate", limits=Limits(), retry_after=1.0)
    await world.pass_time(3)

    first = await admitted(ledger, WIDE)
    await ledger.finish("t0", state(first, TaskStatus.SUCCEEDED, task_id="x0"), owner="me")

    assert [(await admitted(ledger, WIDE)).ticket for _ in range(2)] == ["t1", "t2"]
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
    assert 6 <= wait <= 9.8 - 3, "one more is tried about ten seconds after the refusal"
    await world.pass_time(wait + 0.1)
    got = await admitted(ledger, lanes)
    assert isinstance(await admit(ledger, lanes), Held), "no second one before the answer"
    await ledger.accept(got.ticket, state(got, TaskStatus.QUEUED, task_id="x1"), owner="me")

    assert isinstance(await admit(ledger, lanes), Record), "there may be room for the next one, too"
    assert isinstance(await admit(ledger, lanes), Held)


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


async def test_a_bare_429_teaches_a_cap_where_none_is_known(ledger: Ledger) -> None:
    lanes = terms(limits=Limits())
    await running(ledger, "t0", "x0")
    await ledger.add(record("t1"))
    await admitted(ledger, lanes)

    await put_back(ledger, "t1", limits=Limits())

    assert (await lane_of(ledger)).state.learned == 1
    assert 9 <= await until(ledger, lanes) <= 10


async def test_a_lane_of_unknown_cap_is_filled_step_by_step(ledger: Ledger) -> None:
    """So one round of refusals is small."""
    lanes = terms(limits=Limits())
    for number in range(10):
        await ledger.add(record(f"t{number}"))

    sizes = []
    for _ in range(3):
        together = []
        while isinstance(got := await admit(ledger, lanes), Record):
            together.append(got)
        for each in together:
            queued = state(each, TaskStatus.QUEUED, task_id=f"x{each.ticket}")
            await ledger.accept(each.ticket, queued, owner="me")
        sizes.append(len(together))

    assert sizes == [1, 2, 3]


async def test_a_service_that_frees_slots_late_teaches_a_delay_and_no_lower_cap(
    world: World, ledger: Ledger
) -> None:
    lanes, limits = terms(limits=Limits(2)), Limits(2)
    for number in range(6):
        await ledger.add(record(f"t{number}"))
    for number in range(2):
        got = await admitted(ledger, lanes)
        await ledger.accept(f"t{number}", state(got, TaskStatus.QUEUED, task_id=f"x{number}"), owner="me")
    await world.pass_time(30)
    done = state(got, TaskStatus.FAILED, ticket="t0", task_id="x0")
    await ledger.finish("t0", done, owner="me")
    await admitted(ledger, lanes)
    for _ in range(4):
        await put_back(ledger, "t2", limits=limits)
        wait = await until(ledger, lanes)
        assert 0 < wait <= 0.5
        await world.pass_time(wait + 0.01)
        got = await admitted(ledger, lanes)

    await ledger.accept("t2", state(got, TaskStatus.QUEUED, task_id="x2"), owner="me")
    await ledger.finish("t2", state(got, TaskStatus.FAILED, task_id="x2"), owner="me")

    learned = (await lane_of(ledger)).state
    assert learned.learned is None
    assert 0.5 < learned.release_delay < 2
    assert await until(ledger, lanes) == pytest.approx(learned.release_delay, abs=0.1)


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
