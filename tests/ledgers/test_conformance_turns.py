"""What every ledger does where the owner of the first waiting record does not take the slot that it is offered."""

from __future__ import annotations

from typing import Any

import pytest

from bide.ledgers import Held, Ledger, Record
from bide.models import Limits, TaskStatus
from support.ledger_worlds import World, put_back, record, running, state, terms

ONE, TWO = terms(limits=Limits(1)), terms(limits=Limits(2))


async def admit(ledger: Ledger, owner: str, lanes: list = ONE) -> Record | Held:  # type: ignore[type-arg]
    return await ledger.admit("https://api.example", "image", owner, lanes)


def ticket_of(answer: Record | Held) -> str | None:
    return answer.ticket if isinstance(answer, Record) else None


async def take_back(ledger: Ledger, got: Record | Held, **changes: Any) -> Record:
    assert isinstance(got, Record)
    given = {"owner": got.owner, "admitted": got.admitted, **changes}
    return await ledger.take_back(got.ticket, **given)


@pytest.fixture
async def queue(ledger: Ledger) -> Ledger:
    """Two requests of a first owner, then two of a second one."""
    for ticket, owner in (("a1", "A"), ("a2", "A"), ("b1", "B"), ("b2", "B")):
        await ledger.add(record(ticket, owner=owner))
    return ledger


async def test_an_owner_that_asks_is_served_in_the_order_of_arrival(queue: Ledger) -> None:
    assert isinstance(await admit(queue, "B", TWO), Held)

    assert [ticket_of(await admit(queue, each, TWO)) for each in "ABA"] == ["a1", None, "a2"]


async def test_an_owner_that_does_not_take_a_slot_is_passed_over_after_two_seconds(
    world: World, queue: Ledger
) -> None:
    held = await admit(queue, "B")
    assert isinstance(held, Held)
    assert held.until == pytest.approx(queue.now() + 2, abs=0.5), "when to ask again"
    await world.pass_time(1)
    assert isinstance(await admit(queue, "B"), Held)

    await world.pass_time(1.1)

    assert ticket_of(await admit(queue, "B")) == "b1"


async def test_it_is_passed_over_with_all_that_it_has_until_it_asks_again(
    world: World, queue: Ledger
) -> None:
    await admit(queue, "B", TWO)
    await world.pass_time(2.1)
    assert ticket_of(await admit(queue, "B", TWO)) == "b1"
    assert ticket_of(await admit(queue, "B", terms(limits=Limits(3)))) == "b2", "without another wait"

    again = await admit(queue, "A", terms(limits=Limits(3)))

    assert ticket_of(again) == "a1", "it has kept its places"


async def test_an_owner_that_comes_back_is_first_again(world: World, queue: Ledger) -> None:
    await admit(queue, "B")
    await world.pass_time(2.1)
    got = await admit(queue, "B")
    assert isinstance(await admit(queue, "A"), Held), "it asks, and the slot is taken"
    assert isinstance(got, Record)
    await queue.finish("b1", state(got, TaskStatus.REJECTED), owner="B")

    assert isinstance(await admit(queue, "B"), Held)
    assert ticket_of(await admit(queue, "A")) == "a1"


async def test_an_owner_whose_own_limits_leave_no_slot_does_not_hold_back_another_one(
    world: World, ledger: Ledger
) -> None:
    await running(ledger, "a0", "x0", owner="A")
    await ledger.add(record("a1", owner="A"))
    await ledger.add(record("b1", owner="B"))

    await admit(ledger, "B", TWO)
    assert isinstance(await admit(ledger, "A", ONE), Held)
    await world.pass_time(2.1)

    assert ticket_of(await admit(ledger, "B", TWO)) == "b1"


async def test_an_owner_without_a_connection_is_passed_over_at_once(queue: Ledger) -> None:
    got = await admit(queue, "A")
    assert ticket_of(got) == "a1"

    after = await take_back(queue, got, pass_over=True)

    assert after.task.status is TaskStatus.WAITING
    assert (after.key, after.admitted) == (None, None)
    assert ticket_of(await admit(queue, "B")) == "b1", "its lane does not pause"


async def test_a_create_that_was_never_sent_does_not_count_for_the_create_rate(ledger: Ledger) -> None:
    lanes = terms(limits=Limits(9, creates_per_minute=1))
    await ledger.add(record("t1"))
    got = await admit(ledger, "me", lanes)

    await take_back(ledger, got)

    assert ticket_of(await admit(ledger, "me", lanes)) == "t1"


async def test_only_the_owner_of_a_create_under_way_takes_it_back(queue: Ledger) -> None:
    got = await admit(queue, "A")

    assert (await take_back(queue, got, owner="B")).task.status is TaskStatus.SUBMITTING
    assert (await take_back(queue, got, admitted=1.0)).task.status is TaskStatus.SUBMITTING
    assert isinstance(await admit(queue, "B"), Held), "nothing was taken back"


async def test_a_create_that_was_taken_back_ends_if_no_client_wants_it(queue: Ledger) -> None:
    got = await admit(queue, "A")
    assert isinstance(got, Record)
    await queue.stop_wanting("a1", state(got, TaskStatus.CANCELLED), client="A")

    assert (await take_back(queue, got)).task.status is TaskStatus.CANCELLED


async def test_a_create_that_waits_for_its_connection_may_be_sent_while_nothing_has_changed(
    queue: Ledger,
) -> None:
    got = await admit(queue, "A")
    assert isinstance(got, Record)

    assert await queue.confirm("a1", owner="A", admitted=got.admitted)
    assert not await queue.confirm("a1", owner="B", admitted=got.admitted)
    assert not await queue.confirm("a1", owner="A", admitted=(got.admitted or 0.0) - 1)
    assert (await queue.get("a1")) == got


async def test_it_is_not_sent_if_its_lane_has_paused_meanwhile(world: World, queue: Ledger) -> None:
    first, second = await admit(queue, "A", TWO), await admit(queue, "A", TWO)
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    await put_back(queue, "a1", "rate", owner="A", limits=Limits(2), retry_after=30.0)

    assert not await queue.confirm("a2", owner="A", admitted=second.admitted)

    assert (await take_back(queue, second)).task.status is TaskStatus.WAITING
    await world.pass_time(40)
    assert ticket_of(await admit(queue, "A", TWO)) == "a1"


async def test_it_is_not_sent_if_no_client_wants_it_any_more(queue: Ledger) -> None:
    got = await admit(queue, "A")
    assert isinstance(got, Record)
    await queue.stop_wanting("a1", state(got, TaskStatus.CANCELLED), client="A")

    assert not await queue.confirm("a1", owner="A", admitted=got.admitted)

    assert (await take_back(queue, got)).task.status is TaskStatus.CANCELLED


async def test_an_owner_that_leaves_is_offered_nothing_any_more(world: World, queue: Ledger) -> None:
    await admit(queue, "B")
    await queue.leave("A")

    assert ticket_of(await admit(queue, "B")) == "b1"
    adopted = await queue.adopt("https://api.example", {"k1"}, "A")
    assert {each.ticket for each in adopted} == {"a1", "a2"}
    await world.pass_time(10)
    assert isinstance(await admit(queue, "B"), Held)
    assert ticket_of(await admit(queue, "A", TWO)) == "a1"
