"""What every ledger does with a submission; owners and pauses have files of their own."""

from __future__ import annotations

import inspect
import math

import pytest

from bide.errors import LedgerError
from bide.ledgers import Held, Ledger, MemoryLedger, Record, SQLiteLedger
from bide.models import ImageRequest, Limits, Task, TaskStatus
from support.ledger_worlds import ORIGIN, World, admit, admitted, put_back, record, state, terms


async def test_a_ticket_is_put_on_record_once(ledger: Ledger) -> None:
    first = await ledger.add(record("t1"))
    second = await ledger.add(record("t1", request=ImageRequest("a dog", model="m")))

    assert second == first
    assert await ledger.get("t1") == first
    assert await ledger.get("other") is None


async def test_waiting_records_are_admitted_in_order_of_arrival(ledger: Ledger) -> None:
    for ticket in ("b", "a", "c"):
        await ledger.add(record(ticket))

    order = [(await admitted(ledger)).ticket for _ in range(3)]

    assert order == ["b", "a", "c"]


async def test_an_admitted_record_is_submitting_in_its_lane_and_says_when(ledger: Ledger) -> None:
    await ledger.add(record("t1"))

    got = await admitted(ledger)

    assert got.task.status is TaskStatus.SUBMITTING
    assert got.key == "k1"
    assert got.admitted is not None
    assert got.sent_at is not None
    assert got.slot_until == pytest.approx(got.admitted + 1000)


async def test_no_more_are_admitted_than_slots(ledger: Ledger) -> None:
    for number in range(5):
        await ledger.add(record(f"t{number}"))
    for _ in range(3):
        await admitted(ledger)

    held = await admit(ledger)

    assert isinstance(held, Held)


@pytest.mark.parametrize(
    "final", [TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.REJECTED, TaskStatus.EXPIRED]
)
async def test_a_final_state_frees_the_slot(ledger: Ledger, final: TaskStatus) -> None:
    lanes = terms(limits=Limits(1))
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    first = await admitted(ledger, lanes)
    assert isinstance(await admit(ledger, lanes), Held)

    kept = await ledger.finish("t1", state(first, final), owner="me")

    assert (await admitted(ledger, lanes)).ticket == "t2"
    assert kept.task.status is final


async def test_queued_and_running_tasks_keep_their_slot(ledger: Ledger) -> None:
    lanes = terms(limits=Limits(1))
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    first = await admitted(ledger, lanes)

    accepted = await ledger.accept("t1", state(first, TaskStatus.QUEUED, task_id="task-1"), owner="me")
    await ledger.update("t1", state(accepted, TaskStatus.RUNNING), owner="me")

    assert isinstance(await admit(ledger, lanes), Held)


async def test_a_slot_is_free_past_its_slot_until(world: World, ledger: Ledger) -> None:
    lanes = terms(limits=Limits(1), slot_for=50)
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    first = await admitted(ledger, lanes)
    await ledger.accept("t1", state(first, TaskStatus.RUNNING, task_id="task-1"), owner="me")

    held = await admit(ledger, lanes)
    assert isinstance(held, Held)
    assert held.until == pytest.approx(first.slot_until)
    await world.pass_time(held.until - ledger.now())

    assert (await admitted(ledger, lanes)).ticket == "t2"


async def test_an_unknown_outcome_holds_its_slot_for_a_while(world: World, ledger: Ledger) -> None:
    lanes = terms(limits=Limits(1))
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    first = await admitted(ledger, lanes)

    kept = await ledger.finish("t1", state(first, TaskStatus.UNKNOWN), hold=120, owner="me")

    held = await admit(ledger, lanes)
    assert isinstance(held, Held)
    assert held.until == pytest.approx(ledger.now() + 120)
    assert [each.ticket for each in await ledger.unsettled_records(ORIGIN, "k1")] == ["t1"]
    await world.pass_time(121)
    assert (await admitted(ledger, lanes)).ticket == "t2"
    assert [each.ticket for each in await ledger.unsettled_records(ORIGIN, "k1")] == ["t2"]
    assert kept.task.status is TaskStatus.UNKNOWN


async def test_a_record_that_is_put_back_is_first_in_the_queue_and_its_lane_pauses(
    world: World, ledger: Ledger
) -> None:
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    first = await admitted(ledger)

    back = await put_back(ledger, first.ticket, retry_after=30.0)

    assert back.task.status is TaskStatus.WAITING
    assert back.key is None
    held = await admit(ledger)
    assert isinstance(held, Held)
    assert 30 <= held.until - ledger.now() <= 31
    await world.pass_time(held.until - ledger.now())
    assert (await admitted(ledger)).ticket == "t1"
    assert isinstance(await admit(ledger), Held), "after a pause one create at a time"


async def test_an_id_that_is_answered_late_is_recorded_though_the_outcome_was_called_unknown(
    ledger: Ledger,
) -> None:
    """It was bought: whoever holds the key watches it from now on."""
    await ledger.add(record("t1"))
    got = await admitted(ledger)
    assert got.admitted is not None
    kept = await ledger.finish("t1", state(got, TaskStatus.UNKNOWN), hold=120, owner="me")
    late = state(got, TaskStatus.QUEUED, task_id="x1")

    earlier = await ledger.accept("t1", late, owner="me", admitted=got.admitted - 1)
    accepted = await ledger.accept("t1", late, owner="gone", admitted=got.admitted)

    assert earlier == kept
    assert (accepted.task.status, accepted.task.task_id) == (TaskStatus.QUEUED, "x1")
    assert accepted.owner is None
    assert await ledger.find(ORIGIN, "x1") == accepted
    assert isinstance(await admit(ledger, terms(limits=Limits(1))), Held)
    adopted = await ledger.adopt(ORIGIN, {"k1"}, "other")
    assert [each.ticket for each in adopted] == ["t1"]


async def test_a_cancel_that_was_asked_for_meanwhile_ends_a_record_that_is_put_back(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    await admitted(ledger)

    marked = await ledger.request_cancel("t1")
    back = await put_back(ledger, "t1", "rate")

    assert marked.cancelling
    assert back.task.status is TaskStatus.CANCELLED
    assert isinstance(await admit(ledger), Held)


async def test_a_waiting_record_can_be_withdrawn_and_no_other(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    sent = await admitted(ledger)

    still = await ledger.withdraw("t1", state(sent, TaskStatus.CANCELLED))
    gone = await ledger.withdraw("t2", Task(ticket="t2", status=TaskStatus.CANCELLED))

    assert still.task.status is TaskStatus.SUBMITTING
    assert gone.task.status is TaskStatus.CANCELLED
    assert isinstance(await admit(ledger), Held)


async def test_a_final_state_is_recorded_once(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    first = await admitted(ledger)

    kept = await ledger.finish("t1", state(first, TaskStatus.SUCCEEDED, task_id="x"), owner="me")
    later = [
        await ledger.finish("t1", state(first, TaskStatus.FAILED), owner="me"),
        await ledger.update("t1", state(first, TaskStatus.RUNNING), owner="me"),
        await ledger.accept("t1", state(first, TaskStatus.QUEUED), owner="me"),
        await put_back(ledger, "t1", "rate"),
        await ledger.withdraw("t1", state(first, TaskStatus.CANCELLED)),
        await ledger.request_cancel("t1"),
    ]

    assert all(each == kept for each in later)


async def test_with_several_keys_the_head_goes_to_the_first_lane_that_is_free(ledger: Ledger) -> None:
    lanes = terms("k1", "k2", limits=Limits(1))
    for number in range(3):
        await ledger.add(record(f"t{number}", keys=frozenset({"k1", "k2"})))

    got = [await admitted(ledger, lanes), await admitted(ledger, lanes)]

    assert [(each.ticket, each.key) for each in got] == [("t0", "k1"), ("t1", "k2")]
    assert isinstance(await admit(ledger, lanes), Held)


async def test_an_older_record_of_another_owner_goes_first_where_it_can_use_the_lane(ledger: Ledger) -> None:
    lanes = terms(limits=Limits(1))
    await ledger.add(record("theirs", owner="them"))
    mine = await ledger.add(record("mine"))

    assert isinstance(await admit(ledger, lanes), Held)

    first = await admitted(ledger, lanes, owner="them")
    await ledger.finish("theirs", state(first, TaskStatus.FAILED), owner="them")
    assert (await admitted(ledger, lanes)).ticket == mine.ticket


async def test_a_record_of_an_owner_with_other_keys_is_in_nobodys_way(ledger: Ledger) -> None:
    await ledger.add(record("theirs", owner="them", keys=frozenset({"k9"})))
    await ledger.add(record("mine"))

    assert (await admitted(ledger)).ticket == "mine"


async def test_lanes_of_kinds_and_origins_are_apart(ledger: Ledger) -> None:
    lanes = terms(limits=Limits(1))
    for number, changes in enumerate(({}, {"kind": "video"}, {"origin": "https://other.example"})):
        await ledger.add(record(f"t{number}", **changes))

    first = await ledger.admit(ORIGIN, "image", "me", lanes)
    second = await ledger.admit(ORIGIN, "video", "me", lanes)
    third = await ledger.admit("https://other.example", "image", "me", lanes)

    assert [each.ticket for each in (first, second, third) if isinstance(each, Record)] == ["t0", "t1", "t2"]


async def test_the_create_rate_holds_from_the_answers_on(world: World, ledger: Ledger) -> None:
    lanes = terms(limits=Limits(9, creates_per_minute=2))
    for number in range(3):
        await ledger.add(record(f"t{number}"))
    first, second = await admitted(ledger, lanes), await admitted(ledger, lanes)
    assert isinstance(await admit(ledger, lanes), Held)

    await world.pass_time(5)
    await ledger.accept(first.ticket, state(first, TaskStatus.QUEUED, task_id="x1"), owner="me")
    await ledger.finish(second.ticket, state(second, TaskStatus.REJECTED), owner="me")

    held = await admit(ledger, lanes)
    assert isinstance(held, Held)
    assert held.until == pytest.approx(ledger.now() + 60)
    await world.pass_time(60)
    assert (await admitted(ledger, lanes)).ticket == "t2"


async def test_an_attached_task_uses_a_slot_of_its_lane(ledger: Ledger) -> None:
    task = Task(ticket="a1", task_id="x1", status=TaskStatus.RUNNING)
    await ledger.add(record("a1", request=None, task=task, key="k1", slot_until=math.inf))
    await ledger.add(record("t1"))

    assert isinstance(await admit(ledger, terms(limits=Limits(1))), Held)
    assert (await admitted(ledger, terms(limits=Limits(2)))).ticket == "t1"


async def test_an_open_record_is_found_by_the_services_id_and_ended_ones_are_still_known(
    ledger: Ledger,
) -> None:
    await ledger.add(record("t1"))
    first = await admitted(ledger)
    await ledger.accept("t1", state(first, TaskStatus.QUEUED, task_id="x1"), owner="me")

    found = await ledger.find(ORIGIN, "x1")

    assert found is not None
    assert found.ticket == "t1"
    assert await ledger.find("https://other.example", "x1") is None
    await ledger.finish("t1", state(found, TaskStatus.SUCCEEDED), owner="me")
    assert await ledger.find(ORIGIN, "x1") is None
    assert await ledger.known_task_ids(ORIGIN, ["x1", "x2"]) == {"x1"}


async def test_released_records_are_adopted_by_who_holds_the_key(ledger: Ledger) -> None:
    await ledger.add(record("sent"))
    await ledger.add(record("waiting"))
    await admitted(ledger)

    released = await ledger.leave("me")

    assert {each.ticket for each in released} == {"sent", "waiting"}
    assert {each.owner for each in released} == {None}
    assert await ledger.adopt(ORIGIN, {"k7"}, "other") == []
    adopted = await ledger.adopt(ORIGIN, {"k1"}, "other")
    assert {(each.ticket, each.owner) for each in adopted} == {("sent", "other"), ("waiting", "other")}
    assert await ledger.adopt(ORIGIN, {"k1"}, "third") == []


async def test_every_change_is_heard_until_the_subscription_ends(ledger: Ledger) -> None:
    heard: list[TaskStatus] = []
    end = ledger.subscribe(lambda each: heard.append(each.task.status))
    await ledger.add(record("t1"))
    first = await admitted(ledger)
    await ledger.accept("t1", state(first, TaskStatus.QUEUED, task_id="x1"), owner="me")

    end()
    end()
    await ledger.finish("t1", state(first, TaskStatus.FAILED), owner="me")

    assert heard == [TaskStatus.WAITING, TaskStatus.SUBMITTING, TaskStatus.QUEUED]


async def test_the_salt_of_a_ledger_stays_the_same(ledger: Ledger) -> None:
    salt, again = await ledger.salt(), await ledger.salt()

    assert salt == again
    assert len(salt) == 16


async def test_the_lanes_in_use_can_be_seen(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    await admitted(ledger)

    (lane,) = await ledger.lanes(ORIGIN, {"k1"})

    assert (lane.key, lane.kind, lane.slots) == ("k1", "image", 1)
    assert await ledger.lanes(ORIGIN, {"k2"}) == []


async def test_a_step_on_a_ticket_that_is_on_no_record_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no record of ticket 't9'"):
        await ledger.finish("t9", Task(ticket="t9", status=TaskStatus.FAILED), owner="me")


@pytest.mark.parametrize("made", [MemoryLedger, SQLiteLedger])
def test_help_on_a_step_of_a_ledger_tells_what_the_protocol_says_of_it(made: type[Ledger]) -> None:
    steps = [name for name in vars(Ledger) if not name.startswith("_")]

    told = {name: inspect.getdoc(getattr(made, name)) for name in steps}

    assert len(steps) > 20
    assert told == {name: inspect.getdoc(getattr(Ledger, name)) for name in steps}
    assert None not in told.values()
