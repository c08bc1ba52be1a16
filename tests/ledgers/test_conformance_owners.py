"""What every ledger does with owners: fences, leaving, adopting, following, and what a user settles by hand."""

from __future__ import annotations

import pytest
from attrs import evolve

from bide.errors import LedgerError
from bide.ledgers import Held, Hint, Ledger, Record
from bide.models import ImageRequest, Limits, SavedFile, Task, TaskStatus
from support.ledger_worlds import (
    ORIGIN,
    World,
    admit,
    admitted,
    put_back,
    record,
    running,
    state,
    terms,
)

ONE = terms(limits=Limits(1))


def same(one: Record | None, other: Record | None) -> bool:
    """Whether two records tell the same; how often it was written is nobody's business."""
    return one is not None and other is not None and evolve(one, version=0) == evolve(other, version=0)


async def settled_steps(ledger: Ledger, got: Record, owner: str) -> list[Record]:
    """What each step that only an owner may take returns to *owner*."""
    ticket = got.ticket
    return [
        await ledger.accept(ticket, state(got, TaskStatus.QUEUED, task_id="x9"), owner=owner),
        await ledger.update(ticket, state(got, TaskStatus.RUNNING, progress=50), owner=owner),
        await ledger.finish(ticket, state(got, TaskStatus.FAILED), owner=owner),
        await put_back(ledger, ticket, owner=owner),
    ]


async def test_who_does_not_own_a_record_changes_nothing_of_it(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    got = await admitted(ledger)

    answers = await settled_steps(ledger, got, "another")

    assert answers == [got] * 4
    assert await ledger.get("t1") == got
    assert await ledger.find(ORIGIN, "x9") is None
    assert isinstance(await admit(ledger, ONE), Held)


async def guessed(ledger: Ledger, ticket: str, task_id: str) -> Record:
    """The record of a lost create, whose task was found by model and time alone."""
    await ledger.add(record(ticket))
    got = await admitted(ledger)
    task = state(got, TaskStatus.RUNNING, task_id=task_id)
    return await ledger.accept(ticket, task, owner="me", admitted=got.admitted, guessed=True)


async def test_a_match_that_is_undone_keeps_its_slot_and_frees_the_id(world: World) -> None:
    ledger = world.ledger
    got = await guessed(ledger, "t1", "x1")
    assert got.guessed
    assert await ledger.known_task_ids(ORIGIN, ["x1", "x2"]) == {"x1"}
    unknown = Task(ticket="t1", status=TaskStatus.UNKNOWN, model="m")

    undone = await ledger.undo_match("t1", unknown, owner="me", hold=50)

    assert (undone.task, undone.guessed, undone.bought) == (unknown, False, None)
    assert undone.slot_until == pytest.approx(ledger.now() + 50, abs=5)
    assert await ledger.ticket_of_task(ORIGIN, "x1") is None
    assert await ledger.find(ORIGIN, "x1") is None
    assert [each.ticket for each in await ledger.unsettled_records(ORIGIN, "k1")] == ["t1"]
    assert isinstance(await admit_one_more(ledger), Held)
    settled = await ledger.settle("t1", "x2")
    assert (settled.task.task_id, settled.guessed) == ("x2", False)


async def admit_one_more(ledger: Ledger) -> Record | Held:
    await ledger.add(record("more"))
    return await admit(ledger, ONE)


async def test_only_its_owner_undoes_a_match_and_only_a_guess(ledger: Ledger) -> None:
    guess, certain = await guessed(ledger, "t1", "x1"), await running(ledger, "t2", "x2")
    unknown = Task(status=TaskStatus.UNKNOWN)

    assert await ledger.undo_match("t1", evolve(unknown, ticket="t1"), owner="another", hold=50) == guess
    assert await ledger.undo_match("t2", evolve(unknown, ticket="t2"), owner="me", hold=50) == certain


async def test_the_answer_to_the_create_replaces_a_guess(ledger: Ledger) -> None:
    guess = await guessed(ledger, "t1", "x1")
    answer = state(guess, TaskStatus.QUEUED, task_id="x2")

    earlier = await ledger.accept("t1", answer, owner="gone", admitted=(guess.admitted or 0) - 1)
    again = await ledger.accept("t1", answer, owner="gone", admitted=guess.admitted, guessed=True)
    answered = await ledger.accept("t1", answer, owner="gone", admitted=guess.admitted)

    assert earlier == again == guess
    assert (answered.task, answered.guessed, answered.owner) == (answer, False, None)
    assert await ledger.known_task_ids(ORIGIN, ["x1", "x2"]) == {"x2"}
    assert await ledger.ticket_of_task(ORIGIN, "x2") == "t1"


async def test_an_answer_that_comes_after_the_end_changes_nothing(ledger: Ledger) -> None:
    guess = await guessed(ledger, "t1", "x1")
    ended = await ledger.finish("t1", state(guess, TaskStatus.SUCCEEDED), owner="me")

    late = await ledger.accept(
        "t1", state(guess, TaskStatus.QUEUED, task_id="x2"), owner="gone", admitted=guess.admitted
    )

    assert late == ended


async def test_an_owner_that_has_left_changes_nothing_of_what_another_has_adopted(ledger: Ledger) -> None:
    got = await running(ledger, "t1", "x1")
    await ledger.leave("me")
    (adopted,) = await ledger.adopt(ORIGIN, {"k1"}, "other")

    answers = await settled_steps(ledger, got, "me")

    assert answers == [adopted] * 4
    assert await ledger.get("t1") == adopted


async def test_what_nobody_owns_is_changed_by_nobody(ledger: Ledger) -> None:
    got = await running(ledger, "t1", "x1")
    (left,) = await ledger.leave("me")

    answers = await settled_steps(ledger, got, "me")

    assert answers == [left] * 4


async def test_an_answer_of_an_earlier_owner_does_not_pause_the_lane(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    await admitted(ledger)
    await ledger.leave("me")
    await ledger.adopt(ORIGIN, {"k1"}, "other")
    await ledger.add(record("t2"))

    await put_back(ledger, "t1", retry_after=100.0)

    assert (await admitted(ledger)).ticket == "t2"


async def test_a_submitting_record_is_adopted_with_all_that_is_known_of_its_create(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    got = await admitted(ledger)
    marked = await ledger.request_cancel("t1")

    (left,) = await ledger.leave("me")
    (adopted,) = await ledger.adopt(ORIGIN, {"k1"}, "other")

    assert same(left, evolve(marked, owner=None))
    assert same(adopted, evolve(marked, owner="other"))
    assert (adopted.admitted, adopted.key, adopted.slot_until) == (got.admitted, "k1", got.slot_until)
    assert adopted.cancelling
    assert [each.ticket for each in await ledger.unsettled_records(ORIGIN, "k1")] == ["t1"]


async def test_a_sent_record_is_adopted_by_who_holds_the_key_it_was_sent_with(ledger: Ledger) -> None:
    keys = frozenset({"k1", "k2"})
    await ledger.add(record("sent", keys=keys))
    await ledger.add(record("waiting", keys=keys))
    await admitted(ledger, terms("k1"))
    await ledger.leave("me")

    adopted = await ledger.adopt(ORIGIN, {"k2"}, "other")

    assert [each.ticket for each in adopted] == ["waiting"]
    assert [each.ticket for each in await ledger.adopt(ORIGIN, {"k1"}, "third")] == ["sent"]


async def test_records_of_another_service_are_not_adopted(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    await ledger.leave("me")

    assert await ledger.adopt("https://other.example", {"k1"}, "other") == []


async def test_a_slot_stays_in_use_while_nobody_drives_its_record(ledger: Ledger) -> None:
    await running(ledger, "t1", "x1")
    await ledger.leave("me")
    await ledger.add(record("t2", owner="other"))

    assert isinstance(await admit(ledger, ONE, "other"), Held)

    (adopted,) = await ledger.adopt(ORIGIN, {"k1"}, "other")
    await ledger.finish("t1", state(adopted, TaskStatus.SUCCEEDED), owner="other")
    assert (await admitted(ledger, ONE, "other")).ticket == "t2"


async def test_what_waits_and_nobody_owns_is_in_nobodys_way(ledger: Ledger) -> None:
    await ledger.add(record("old", owner="gone"))
    await ledger.add(record("new"))
    await ledger.leave("gone")

    assert (await admitted(ledger)).ticket == "new"
    assert isinstance(await admit(ledger), Held)
    assert isinstance(await admit(ledger, owner="gone"), Held)


async def test_what_is_adopted_waits_where_it_stood_in_the_queue(ledger: Ledger) -> None:
    await ledger.add(record("first", owner="gone"))
    second = await ledger.add(record("second"))
    await ledger.add(record("third", owner="gone"))
    await ledger.leave("gone")

    adopted = await ledger.adopt(ORIGIN, {"k1"}, "me")

    assert [each.ticket for each in sorted(adopted, key=lambda each: each.sequence)] == ["first", "third"]
    assert adopted[0].sequence < second.sequence < adopted[1].sequence
    order = [(await admitted(ledger)).ticket for _ in range(3)]
    assert order == ["first", "second", "third"]


async def test_what_waits_without_its_request_ends_when_its_owner_leaves(ledger: Ledger) -> None:
    await ledger.add(record("t1", request=None))
    heard: list[Record | Hint] = []
    ledger.subscribe(heard.append)

    left = await ledger.leave("me")

    assert left == []
    ended = [each for each in heard if isinstance(each, Record)]
    assert [(each.ticket, each.task.status) for each in ended] == [("t1", TaskStatus.CANCELLED)]
    assert "submit it again" in (ended[0].task.error.message if ended[0].task.error else "")
    assert await ledger.adopt(ORIGIN, {"k1"}, "other") == []


async def test_what_was_sent_goes_on_without_its_request(ledger: Ledger) -> None:
    await running(ledger, "t1", "x1", request=None)

    (left,) = await ledger.leave("me")

    assert left.task.status is TaskStatus.RUNNING


async def test_ended_records_stay_with_who_ended_them(ledger: Ledger) -> None:
    got = await running(ledger, "t1", "x1")
    kept = await ledger.finish("t1", state(got, TaskStatus.SUCCEEDED), owner="me")

    assert await ledger.leave("me") == []
    assert await ledger.adopt(ORIGIN, {"k1"}, "other") == []
    assert await ledger.get("t1") == kept


async def test_the_create_rate_goes_on_when_another_owner_does(world: World, ledger: Ledger) -> None:
    lanes = terms(limits=Limits(creates_per_minute=2))
    for number in range(4):
        await ledger.add(record(f"t{number}"))
    first = await admitted(ledger, lanes)
    await ledger.accept("t0", state(first, TaskStatus.QUEUED, task_id="x0"), owner="me")
    second = await admitted(ledger, lanes)
    await ledger.leave("me")
    await ledger.adopt(ORIGIN, {"k1"}, "other")

    assert isinstance(await admit(ledger, lanes, "other"), Held)
    await ledger.accept("t1", state(second, TaskStatus.QUEUED, task_id="x1"), owner="other")

    await world.pass_time(58)
    assert isinstance(await admit(ledger, lanes, "other"), Held)
    await world.pass_time(3)
    assert (await admitted(ledger, lanes, "other")).ticket == "t2"


async def test_a_task_id_that_another_open_record_has_is_not_accepted_again(ledger: Ledger) -> None:
    await running(ledger, "t1", "x1")
    await ledger.add(record("t2"))
    second = await admitted(ledger)

    as_going_on = await ledger.accept("t2", state(second, TaskStatus.QUEUED, task_id="x1"), owner="me")
    as_ended = await ledger.finish("t2", state(second, TaskStatus.SUCCEEDED, task_id="x1"), owner="me")

    assert as_going_on == as_ended == second
    assert [each.ticket for each in await ledger.unsettled_records(ORIGIN, "k1")] == ["t2"]
    found = await ledger.find(ORIGIN, "x1")
    assert found is not None
    assert found.ticket == "t1"


async def test_two_services_may_name_their_tasks_alike(ledger: Ledger) -> None:
    await running(ledger, "t1", "x1")
    await ledger.add(record("t2", origin="https://other.example"))
    got = await ledger.admit("https://other.example", "image", "me", terms())
    assert isinstance(got, Record)

    kept = await ledger.accept("t2", state(got, TaskStatus.QUEUED, task_id="x1"), owner="me")

    assert kept.task.task_id == "x1"


async def test_each_step_may_be_taken_twice(ledger: Ledger) -> None:
    """Whoever did not hear the answer asks again."""
    limits = Limits(9, creates_per_minute=3)
    for ticket in ("t1", "t2", "t3", "t4"):
        await ledger.add(record(ticket))
    first = await admitted(ledger, terms(limits=limits))
    second = await admitted(ledger, terms(limits=limits))
    queued = state(first, TaskStatus.QUEUED, task_id="x1")
    moving = state(first, TaskStatus.RUNNING, task_id="x1", progress=30)
    done = state(first, TaskStatus.SUCCEEDED, task_id="x1")
    gone = Task(ticket="t3", status=TaskStatus.CANCELLED)
    files = [SavedFile(path="a.png", size=3, media_type="image/png")]
    kept = []

    for step in (
        lambda: ledger.accept("t1", queued, owner="me"),
        lambda: ledger.follow("t1", client="me"),
        lambda: ledger.update("t1", moving, owner="me"),
        lambda: ledger.finish("t1", done, owner="me"),
        lambda: ledger.record_files("t1", files),
        lambda: put_back(ledger, "t2", "rate", limits=limits, retry_after=1.0),
        lambda: ledger.take_back("t2", owner="me", admitted=second.admitted),
        lambda: ledger.withdraw("t3", gone),
    ):
        once, again = await step(), await step()
        kept.append(once)
        assert same(once, again)

    assert second.ticket == "t2"
    left = [await ledger.leave("me"), await ledger.leave("me")]
    assert [len(each) for each in left] == [2, 0]
    adopted = [await ledger.adopt(ORIGIN, {"k1"}, "me"), await ledger.adopt(ORIGIN, {"k1"}, "me")]
    assert [len(each) for each in adopted] == [2, 0]


async def test_an_answer_that_is_recorded_twice_counts_once_for_the_create_rate(ledger: Ledger) -> None:
    lanes = terms(limits=Limits(creates_per_minute=2))
    for number in range(3):
        await ledger.add(record(f"t{number}"))
    first = await admitted(ledger, lanes)

    for _ in range(2):
        await ledger.accept("t0", state(first, TaskStatus.QUEUED, task_id="x0"), owner="me")

    assert (await admitted(ledger, lanes)).ticket == "t1"
    assert isinstance(await admit(ledger, lanes), Held)


async def test_each_change_of_a_record_has_a_higher_version(ledger: Ledger) -> None:
    versions: list[int] = []
    end = ledger.subscribe(lambda each: versions.append(each.version) if isinstance(each, Record) else None)

    await ledger.add(record("t1"))
    await admitted(ledger)
    await put_back(ledger, "t1", "rate")
    await ledger.leave("me")
    await ledger.adopt(ORIGIN, {"k1"}, "me")
    await ledger.follow("t1", client="me")
    await ledger.withdraw("t1", Task(ticket="t1", status=TaskStatus.CANCELLED))
    end()

    assert len(versions) == 7
    assert versions == sorted(set(versions))


async def test_following_marks_a_record_and_notes_who_wants_it(ledger: Ledger) -> None:
    first = await ledger.add(record("t1"))

    followed = await ledger.follow("t1", client="other")

    assert followed is not None
    assert followed.followed
    assert followed.wanted_by == ("me", "other")
    assert same(evolve(followed, followed=False, wanted_by=first.wanted_by), first)
    assert await ledger.follow("t9", client="me") is None


# Who wants it ------------------------------------------------------------------------------------------------


GONE = Task(ticket="t1", status=TaskStatus.CANCELLED)


async def test_the_last_client_that_leaves_withdraws_what_waits(ledger: Ledger) -> None:
    await ledger.add(record("t1", owner="me"))
    await ledger.add(record("t1", owner="other"))

    first = await ledger.stop_wanting("t1", GONE, client="me")
    again = await ledger.stop_wanting("t1", GONE, client="me")
    last = await ledger.stop_wanting("t1", GONE, client="other")

    assert first is not None
    assert again is not None
    assert last is not None
    assert (first.task.status, first.wanted_by) == (TaskStatus.WAITING, ("other",))
    assert again.version == first.version
    assert (last.task.status, last.bought) == (TaskStatus.CANCELLED, False)
    assert await ledger.stop_wanting("t9", GONE, client="me") is None


async def test_what_is_wanted_by_no_client_does_not_wait_again_after_a_refusal(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    await admitted(ledger)
    await ledger.stop_wanting("t1", GONE, client="me")

    refused = await put_back(ledger, "t1", "rate")

    assert (refused.task.status, refused.bought) == (TaskStatus.CANCELLED, False)


async def test_a_task_that_was_accepted_goes_on_though_no_client_wants_it(ledger: Ledger) -> None:
    await running(ledger, "t1", "x1")

    left = await ledger.stop_wanting("t1", GONE, client="me")

    assert left is not None
    assert left.task.status is TaskStatus.RUNNING


async def test_a_ticket_for_which_nothing_was_bought_is_submitted_again_at_the_end_of_the_queue(
    ledger: Ledger,
) -> None:
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    kept = await ledger.withdraw("t1", GONE)

    again = await ledger.add(record("t1", owner="other"))

    assert kept.bought is False
    assert (again.task.status, again.attempt, again.owner) == (TaskStatus.WAITING, 2, "other")
    assert again.idempotency_key == "t1.2"
    assert again.version > kept.version
    first = await admitted(ledger)
    assert first.ticket == "t2"


async def test_a_ticket_whose_task_has_failed_is_submitted_again_only_on_request(ledger: Ledger) -> None:
    got = await running(ledger, "t1", "x1")
    failed = await ledger.finish("t1", state(got, TaskStatus.FAILED), owner="me")

    assert same(await ledger.add(record("t1")), failed)
    again = await ledger.add(record("t1"), again=True)

    assert (again.task.status, again.task.task_id, again.attempt) == (TaskStatus.WAITING, None, 2)
    assert await ledger.known_task_ids(ORIGIN, ["x1"]) == {"x1"}


@pytest.mark.parametrize("end", [TaskStatus.SUCCEEDED, TaskStatus.UNKNOWN])
async def test_a_ticket_that_may_have_been_bought_is_never_submitted_again(
    ledger: Ledger, end: TaskStatus
) -> None:
    await ledger.add(record("t1"))
    got = await admitted(ledger)
    kept = await ledger.finish("t1", state(got, end), owner="me")

    assert same(await ledger.add(record("t1"), again=True), kept)


async def test_what_was_saved_is_noted_on_an_ended_record(ledger: Ledger) -> None:
    got = await running(ledger, "t1", "x1")
    ended = await ledger.finish("t1", state(got, TaskStatus.SUCCEEDED), owner="me")
    files = [SavedFile(path="out/a.png", size=3, media_type="image/png")]

    noted = await ledger.record_files("t1", files)

    assert same(noted, evolve(ended, files=tuple(files)))
    assert await ledger.get("t1") == noted
    assert await ledger.record_files("t9", files) is None


async def test_open_records_of_a_key_are_told_in_the_order_of_their_arrival(ledger: Ledger) -> None:
    await ledger.add(record("b", owner="them"))
    await ledger.add(record("a"))
    await ledger.add(record("elsewhere", origin="https://other.example"))
    await ledger.add(record("two", keys=frozenset({"k2"})))
    await ledger.add(record("both", keys=frozenset({"k1", "k2"})))
    ended = await ledger.withdraw("a", Task(ticket="a", status=TaskStatus.CANCELLED))
    await ledger.leave("them")

    told = await ledger.open_records(ORIGIN, {"k1"})

    assert [(each.ticket, each.owner) for each in told] == [("b", None), ("both", "me")]
    assert [each.ticket for each in await ledger.open_records(ORIGIN, {"k2", "k9"})] == ["two", "both"]
    assert ended.task.status.is_final


async def test_several_listeners_hear_the_same(ledger: Ledger) -> None:
    one: list[object] = []
    other: list[object] = []
    ends = [ledger.subscribe(one.append), ledger.subscribe(other.append)]

    await ledger.add(record("t1"))
    ends[0]()
    await ledger.follow("t1", client="me")
    ends[1]()

    assert len(one) == 1
    assert len(other) == 2


async def test_a_listener_that_ends_others_harms_nobody(ledger: Ledger) -> None:
    heard: list[str] = []
    ends = [ledger.subscribe(lambda _: [end() for end in ends] and None)]
    ends.append(ledger.subscribe(lambda _: heard.append("last")))

    await ledger.add(record("t1"))
    await ledger.add(record("t2"))

    assert heard == ["last"]


async def test_an_unknown_submission_that_is_settled_is_open_for_anybody(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    first = await admitted(ledger)
    unknown = await ledger.finish("t1", state(first, TaskStatus.UNKNOWN), hold=120, owner="me")

    settled = await ledger.settle("t1", "x1")

    assert (settled.task.status, settled.task.task_id, settled.owner) == (TaskStatus.QUEUED, "x1", None)
    assert settled.task.error is None
    assert settled.slot_until == pytest.approx(ledger.now() + 1000, abs=5)
    assert same(await ledger.settle("t1", "x1"), settled)
    assert isinstance(await admit(ledger, ONE), Held)
    assert await ledger.unsettled_records(ORIGIN, "k1") == []
    assert [each.ticket for each in await ledger.adopt(ORIGIN, {"k1"}, "other")] == ["t1"]
    assert unknown.version < settled.version


async def test_only_an_unknown_submission_can_be_settled_and_only_to_a_task_of_nobody(ledger: Ledger) -> None:
    await running(ledger, "t1", "x1")
    await ledger.add(record("t2"))
    second = await admitted(ledger)
    unknown = await ledger.finish("t2", state(second, TaskStatus.UNKNOWN), hold=120, owner="me")

    with pytest.raises(ValueError, match="t1 is running: only one whose create is unknown"):
        await ledger.settle("t1", "x2")
    with pytest.raises(ValueError, match="task x1 belongs to ticket t1"):
        await ledger.settle("t2", "x1")
    with pytest.raises(LookupError, match="t9"):
        await ledger.settle("t9", "x9")

    assert await ledger.get("t2") == unknown


async def test_forgetting_an_unknown_submission_frees_its_slot_at_once(ledger: Ledger) -> None:
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    first = await admitted(ledger, ONE)
    unknown = await ledger.finish("t1", state(first, TaskStatus.UNKNOWN), hold=120, owner="me")

    forgotten = await ledger.forget("t1")

    assert forgotten == unknown
    assert await ledger.get("t1") is None
    assert await ledger.unsettled_records(ORIGIN, "k1") == []
    assert (await admitted(ledger, ONE)).ticket == "t2"
    with pytest.raises(LookupError, match="t1"):
        await ledger.forget("t1")


async def test_forgetting_what_waits_withdraws_it(ledger: Ledger) -> None:
    before = await ledger.add(record("t1"))
    heard: list[Record | Hint] = []
    ledger.subscribe(heard.append)

    assert await ledger.forget("t1") == before

    assert [each.task.status for each in heard if isinstance(each, Record)] == [TaskStatus.CANCELLED]
    assert isinstance(await admit(ledger), Held)


async def test_what_goes_on_at_the_service_is_not_forgotten_until_it_is_overdue(
    world: World, ledger: Ledger
) -> None:
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    got = await admitted(ledger, terms(slot_for=50))
    with pytest.raises(ValueError, match="t1 is submitting"):
        await ledger.forget("t1")
    await ledger.accept("t1", state(got, TaskStatus.RUNNING, task_id="x1"), owner="me")
    with pytest.raises(ValueError, match="t1 is running: x1 goes on at the service"):
        await ledger.forget("t1")

    await world.pass_time(51)
    assert (await ledger.forget("t1")).ticket == "t1"

    assert await ledger.get("t1") is None
    assert [each.ticket for each in await ledger.open_records(ORIGIN, {"k1"})] == ["t2"]


async def test_an_overdue_create_that_is_forgotten_leaves_nothing_behind(
    world: World, ledger: Ledger
) -> None:
    """Neither the create rate nor the list of unsettled creates counts it any more."""
    lanes = terms(limits=Limits(creates_per_minute=1), slot_for=50)
    await ledger.add(record("t1"))
    await ledger.add(record("t2"))
    await admitted(ledger, lanes)
    await world.pass_time(51)

    await ledger.forget("t1")

    assert await ledger.unsettled_records(ORIGIN, "k1") == []
    assert (await admitted(ledger, lanes)).ticket == "t2"


async def test_the_task_of_a_forgotten_record_is_known_of_late(ledger: Ledger) -> None:
    """Otherwise a lost create of the same minute would take it for its own."""
    got = await running(ledger, "t1", "x1")
    kept = await ledger.finish("t1", state(got, TaskStatus.SUCCEEDED), owner="me")

    await ledger.forget("t1")

    assert await ledger.known_task_ids(ORIGIN, ["x1", "x2"]) == {"x1"}
    assert kept.task.status.is_final


async def test_a_ticket_that_was_forgotten_can_be_used_again(ledger: Ledger) -> None:
    got = await running(ledger, "t1", "x1")
    ended = await ledger.finish("t1", state(got, TaskStatus.SUCCEEDED), owner="me")
    assert await ledger.forget("t1") == ended

    again = await ledger.add(record("t1", request=ImageRequest("a dog", model="m")))

    assert again.task.status is TaskStatus.WAITING
    assert (await admitted(ledger)).ticket == "t1"


async def test_a_client_has_a_name_of_its_own_and_shares_the_query_rate(ledger: Ledger) -> None:
    one, other = [await ledger.enter(ORIGIN, {"k1"}) for _ in range(2)]

    assert one != other
    assert await ledger.share(one, 20.0) == await ledger.share(other, 20.0) == 20.0


async def test_an_update_of_a_forgotten_ticket_says_that_it_is_on_no_record(ledger: Ledger) -> None:
    got = await running(ledger, "t1", "x1")
    ended = await ledger.finish("t1", state(got, TaskStatus.SUCCEEDED), owner="me")
    assert await ledger.forget("t1") == ended

    with pytest.raises(LedgerError, match="no record of ticket 't1'"):
        await ledger.update("t1", state(got, TaskStatus.RUNNING), owner="me")
