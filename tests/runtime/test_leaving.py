"""Leaving says "not wanted", and what the error says of the purchase is true: `BideError.bought`."""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bide import (
    BideError,
    ClientClosedError,
    Deadlines,
    LedgerError,
    Limits,
    MemoryLedger,
    SQLiteLedger,
    SubmissionUnknownError,
    TaskCancelledError,
    TaskFailedError,
    TaskStatus,
    WaitTimeoutError,
)
from bide.ledgers import Record
from support.emulated import image
from support.toy import Toy, ToyService
from support.virtual_time import wait_for_ledgers

DONE = {"status": "succeeded"}
RUNNING = {"status": "running"}
FAILED = {"status": "failed"}


class Shaky(MemoryLedger):
    """A ledger whose steps fail on order, before or after they take effect."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, int] = {}
        self.after: dict[str, int] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name in ("before", "after", "durable", "now", "subscribe"):
            return found
        return self._shaky(name, found) if asyncio.iscoroutinefunction(found) else found

    def _shaky(self, name: str, step: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def take(*arguments: Any, **options: Any) -> Any:
            for faults, happens in ((self.before, False), (self.after, True)):
                if faults.get(name, 0) > 0:
                    faults[name] -= 1
                    if happens:
                        await step(*arguments, **options)
                    raise LedgerError("the disk does not work")
            return await step(*arguments, **options)

        return take


async def raised_by(call: Awaitable[Any]) -> BideError:
    with pytest.raises(BideError) as caught:
        await call
    return caught.value


# What the error says -----------------------------------------------------------------------------------------


async def test_a_refused_create_bought_nothing() -> None:
    async with ToyService(creates=[422]).client() as client:
        assert (await raised_by(client.run(image()))).bought is False


async def test_of_a_lost_create_it_cannot_be_said_what_was_bought() -> None:
    async with ToyService(creates=[httpx.ReadError("cut")]).client() as client:
        error = await raised_by(client.run(image()))

    assert (type(error), error.bought) == (SubmissionUnknownError, None)


async def test_a_task_that_failed_was_bought() -> None:
    async with ToyService(queries=[FAILED]).client() as client:
        error = await raised_by(client.run(image()))

    assert (type(error), error.bought, error.task_id) == (TaskFailedError, True, "toy-1")


async def test_a_wait_that_times_out_says_whether_the_task_can_still_be_made() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(limits=Limits(1)) as client:
        running = await raised_by(client.run(image(), timeout=5))
        waiting = await client.submit(image("later"))
        still = await raised_by(waiting.result(timeout=5))
        withdrawn = await raised_by(client.run(image("never"), timeout=5))

    assert (running.bought, running.task_id) == (True, "toy-1")
    assert (still.bought, still.ticket) == (True, waiting.ticket)
    assert withdrawn.bought is False


async def test_a_request_that_got_no_slot_before_its_deadline_bought_nothing() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(limits=Limits(1), deadlines=Deadlines(waiting=20)) as client:
        await client.submit(image())
        error = await raised_by(client.run(image("later")))

    assert (type(error), error.bought) == (WaitTimeoutError, False)


async def test_a_closed_client_says_that_nothing_was_bought_for_new_requests() -> None:
    client = ToyService().client()
    await client.aclose()

    for call in (client.run(image()), client.submit(image()), client.gather(image())):
        error = await raised_by(call)
        assert (type(error), error.bought) == (ClientClosedError, False)


async def test_a_closed_client_cannot_say_that_nothing_was_bought_for_a_ticket_of_the_caller() -> None:
    service = ToyService(queries=[RUNNING])
    client = service.client()
    await (await client.submit(image(), ticket="order-1")).accepted()
    await client.aclose()

    for call in (client.run(image(), ticket="order-1"), client.submit(image(), ticket="order-1")):
        error = await raised_by(call)
        assert (type(error), error.bought, error.ticket) == (ClientClosedError, True, "order-1")


async def test_a_client_that_cannot_open_its_ledger_cannot_say_it_either(tmp_path: Path) -> None:
    client = ToyService().client(ledger=SQLiteLedger(tmp_path / "missing" / "tasks.db"))

    for call, bought in (
        (client.run(image(), ticket="order-1"), True),
        (client.submit(image(), ticket="order-1"), True),
        (client.run(image()), False),
    ):
        error = await raised_by(call)
        assert (type(error), error.bought) == (LedgerError, bought)
    await client.aclose()


async def test_a_client_that_closes_says_which_of_its_tasks_go_on() -> None:
    service = ToyService(queries=[RUNNING])
    client = service.client(limits=Limits(1))
    sent = asyncio.create_task(client.run(image()))
    waits = asyncio.create_task(client.run(image("later")))
    await asyncio.sleep(5)
    await client.aclose()

    of_sent, of_waiting = await raised_by(sent), await raised_by(waits)
    assert (of_sent.bought, of_sent.task_id) == (True, "toy-1")
    assert of_waiting.bought is False


async def test_a_client_that_cannot_withdraw_when_it_closes_hands_its_records_over_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service, ledger = ToyService(queries=[RUNNING]), Shaky()
    service.delay["POST"] = 3
    client = service.client(limits=Limits(1), ledger=ledger)
    sent = await client.submit(image())
    waiting = await client.submit(image("later"))
    await asyncio.sleep(1)
    ledger.before["stop_wanting"] = 1

    await client.aclose(withdraw=True)

    records = [await ledger.get(handle.ticket) for handle in (sent, waiting)]
    assert [record and record.owner for record in records] == [None, None]
    assert records[0] is not None
    assert records[0].task.task_id == "toy-1"  # the answer of its create was awaited
    assert "requests could not be withdrawn, so another client may send them" in caplog.text


async def test_each_method_of_a_handle_names_its_task_once_the_client_is_closed() -> None:
    client = ToyService(queries=[RUNNING]).client()
    handle = await client.submit(image())
    await handle.accepted()
    await client.aclose()

    for call in (handle.cancel(), handle.refresh(), handle.result()):
        error = await raised_by(call)
        assert (error.bought, error.ticket, error.task_id) == (True, handle.ticket, "toy-1")


async def test_the_error_of_a_gather_names_what_may_have_been_bought() -> None:
    service = ToyService(creates=[{"status": "queued"}, 422, {"status": "queued"}], queries=[RUNNING])
    async with service.client(limits=Limits(2)) as client:
        error = await raised_by(client.gather(*(image(str(number)) for number in range(5))))
        handles = [await client.attach(ticket=ticket) for ticket in error.tickets]

        assert error.bought is True
        assert handles[0].request == image("0")
        assert service.count("POST") == len(handles) + 1  # one was refused
        await asyncio.sleep(60)
        assert service.count("POST") == len(handles) + 1


async def test_a_gather_of_which_nothing_was_bought_says_so() -> None:
    service = ToyService(creates=[422])
    async with service.client(limits=Limits(1)) as client:
        error = await raised_by(client.gather(image("one"), image("two")))

    assert (error.bought, error.tickets) == (False, ())


# Faults of the ledger ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_request_that_could_not_be_put_on_record_is_never_sent_and_says_so(how: str) -> None:
    service, ledger = ToyService(), Shaky()
    async with service.client(ledger=ledger) as client:
        getattr(ledger, how)["add"] = 1
        error = await raised_by(client.run(image()))
        await asyncio.sleep(60)

        assert (type(error), error.bought) == (LedgerError, False)
        assert service.count("POST") == 0
        assert (await client.statistics()).open == 0


async def test_what_the_ledger_does_not_confirm_is_never_told_as_not_bought() -> None:
    service, ledger = ToyService(queries=[RUNNING]), Shaky()
    async with service.client(ledger=ledger, limits=Limits(1)) as client:
        await client.submit(image())
        ledger.after["add"] = 1
        ledger.before |= {"stop_wanting": 8, "get": 8}
        error = await raised_by(client.run(image("later")))

        assert error.bought is True
        assert error.ticket is not None
        await asyncio.sleep(20)
        handle = await client.attach(ticket=error.ticket)
        assert (handle.task.status, service.count("POST")) == (TaskStatus.CANCELLED, 1)


async def test_a_ledger_that_cannot_be_locked_for_a_while_buys_nothing_twice() -> None:
    """The caller does what the error says: it runs the request again only if nothing was bought."""
    service, ledger = ToyService(queries=[DONE]), Shaky()
    async with service.client(ledger=ledger) as client:
        ledger.before |= {"admit": 2}
        task = await client.run(image())

    assert task.status is TaskStatus.SUCCEEDED
    assert service.count("POST") == 1


async def test_a_request_that_was_admitted_by_a_step_that_seemed_to_fail_is_sent_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bide.ledgers.sqlite import worker

    wait_for_ledgers(monkeypatch)
    take, faults = worker._take_one, iter([True])

    def take_and_fail(backend: Any, step: Any) -> None:
        take(backend, step)
        record = step.result
        if getattr(getattr(record, "task", None), "status", None) is TaskStatus.SUBMITTING and next(
            faults, False
        ):
            step.fault, step.changed = LedgerError("the disk does not work"), []

    monkeypatch.setattr(worker, "_take_one", take_and_fail)
    service = ToyService(queries=[DONE])
    async with service.client(ledger=SQLiteLedger(tmp_path / "tasks.db")) as client:
        assert (await client.run(image(), timeout=100)).status is TaskStatus.SUCCEEDED
        assert service.count("POST") == 1


# Leaving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "sqlite"])
async def test_what_a_closing_client_sends_and_the_service_refuses_for_now_is_not_sent_by_the_next(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_ledgers(monkeypatch)
    service = ToyService(creates=[429, {"status": "queued"}], queries=[DONE])
    service.delay["POST"] = 3
    ledger = SQLiteLedger(tmp_path / "tasks.db") if durable else MemoryLedger()
    client = service.client(ledger=ledger)
    run = asyncio.create_task(client.run(image()))
    await asyncio.sleep(1)
    await client.aclose(withdraw=durable)
    error = await raised_by(run)
    async with service.client(ledger=ledger):
        await asyncio.sleep(100)

    assert error.bought is False
    assert service.count("POST") == 1


async def test_a_request_that_was_never_sent_when_its_caller_left_is_not_sent_later() -> None:
    service = ToyService(creates=[httpx.ConnectTimeout("nothing answers"), {"status": "queued"}])
    service.delay["POST"] = 5
    async with service.client() as client:
        run = asyncio.create_task(client.run(image()))
        await asyncio.sleep(2)
        run.cancel()
        await asyncio.wait([run])
        await asyncio.sleep(100)

        assert service.count("POST") == 1
        assert (await client.statistics()).open == 0


async def test_a_create_that_is_accepted_after_its_caller_left_goes_on() -> None:
    service = ToyService(queries=[DONE])
    service.delay["POST"] = 5
    async with service.client() as client:
        error = await raised_by(client.run(image(), timeout=2))
        assert error.ticket is not None
        handle = await client.attach(ticket=error.ticket)

        assert (error.bought, (await handle.result()).status) == (True, TaskStatus.SUCCEEDED)


async def test_the_first_of_two_callers_with_one_ticket_may_leave() -> None:
    service = ToyService(queries=[RUNNING, DONE])
    async with service.client(limits=Limits(1)) as client:
        await client.submit(image("first"))
        leaves = asyncio.create_task(client.run(image(), ticket="one"))
        stays = asyncio.create_task(client.run(image(), ticket="one"))
        await asyncio.sleep(0.5)
        leaves.cancel()

        assert (await stays).status is TaskStatus.SUCCEEDED
        assert service.tickets[1:] == ["one"]


async def test_the_last_of_two_callers_with_one_ticket_withdraws_it() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(limits=Limits(1)) as client:
        await client.submit(image("first"))
        runs = [asyncio.create_task(client.run(image(), ticket="one")) for _ in range(2)]
        await asyncio.sleep(0.5)
        for run in runs:
            run.cancel()
        await asyncio.sleep(0.5)

        assert (await client.statistics()).waiting == 0


async def test_a_caller_of_another_client_keeps_a_request_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_ledgers(monkeypatch)
    service, path = ToyService(queries=[RUNNING, RUNNING, DONE]), tmp_path / "tasks.db"
    async with (
        service.client(ledger=SQLiteLedger(path), limits=Limits(1)) as one,
        service.client(ledger=SQLiteLedger(path), limits=Limits(1)) as other,
    ):
        await one.submit(image("first"))
        leaves = asyncio.create_task(one.run(image(), ticket="one"))
        await asyncio.sleep(0.5)
        stays = await other.submit(image(), ticket="one")
        leaves.cancel()

        assert (await stays.result()).status is TaskStatus.SUCCEEDED


async def test_a_caller_that_has_a_handle_keeps_a_request_in_the_queue() -> None:
    service = ToyService(queries=[RUNNING, DONE])
    async with service.client(limits=Limits(1)) as client:
        await client.submit(image("first"))
        leaves = asyncio.create_task(client.run(image(), ticket="one"))
        await asyncio.sleep(0.5)
        handle = await client.attach(ticket="one")
        leaves.cancel()

        assert (await handle.result()).status is TaskStatus.SUCCEEDED


async def test_a_cancelled_step_of_as_completed_that_no_other_follows_is_leaving() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(limits=Limits(1)) as client:
        completed = client.as_completed([image("first"), image("second")])
        for pause in (2, 2, 8):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10):
                    await anext(completed)
            await asyncio.sleep(pause)
            assert (await client.statistics()).waiting == (1 if pause < 5 else 0)

        withdrawn = await anext(completed)  # a caller that comes back all the same goes on
        assert (withdrawn.request, withdrawn.task.status) == (image("second"), TaskStatus.CANCELLED)


@pytest.mark.parametrize("closes", [False, True])
async def test_who_leaves_an_as_completed_loop_does_not_want_the_rest(closes: bool) -> None:
    service = ToyService(queries=[DONE])
    async with service.client(limits=Limits(1)) as client:
        completed = client.as_completed(image(str(number)) for number in range(9))
        await anext(completed)
        if closes:
            await completed.aclose()
        else:
            del completed
            gc.collect()
        await asyncio.sleep(60)

        assert service.count("POST") <= 2
        assert (await client.statistics()).open == 0


async def test_an_attach_that_is_cancelled_leaves_no_task_that_is_not_polled() -> None:
    service = ToyService(queries=[RUNNING, RUNNING, DONE])
    async with service.client(limits=Limits(1)) as client:
        for turns in range(6):
            attach = asyncio.create_task(client.attach(f"x{turns}", kind="image"))
            for _ in range(turns):
                await asyncio.sleep(0)
            attach.cancel()
            await asyncio.wait([attach])
        await asyncio.sleep(300)

        assert (await client.statistics()).open == 0


# The next attempt --------------------------------------------------------------------------------------------


async def test_a_batch_is_restarted_by_running_it_again_with_the_same_tickets() -> None:
    service = ToyService(creates=[422, {"status": "queued"}], queries=[DONE])
    async with service.client() as client:
        first = await raised_by(client.run(image(), ticket="one"))
        second = await client.run(image(), ticket="one")
        third = await client.run(image(), ticket="one")

    assert first.bought is False
    assert second.task_id == third.task_id
    assert service.tickets == ["one", "one.2"]


async def test_a_task_that_failed_is_bought_again_only_on_request() -> None:
    service = ToyService(queries=[FAILED, DONE])
    async with service.client() as client:
        first = await raised_by(client.run(image(), ticket="one"))
        second = await raised_by(client.run(image(), ticket="one"))
        third = await client.run(image(), ticket="one", again=True)

    assert first.bought is second.bought is True
    assert third.status is TaskStatus.SUCCEEDED
    assert service.tickets == ["one", "one.2"]


async def test_a_withdrawn_ticket_may_be_submitted_again_while_its_old_handle_is_held() -> None:
    service = ToyService(queries=[RUNNING, DONE])
    async with service.client(limits=Limits(1)) as client:
        await client.submit(image("first"))
        old = await client.submit(image(), ticket="one")
        await old.cancel()
        new = await client.submit(image(), ticket="one")

        assert (await new.result()).status is TaskStatus.SUCCEEDED
        error = await raised_by(old.result())
        assert (type(error), error.bought) == (TaskCancelledError, False)


async def test_an_error_with_what_was_bought_holds_no_key() -> None:
    async with ToyService(creates=[422]).client(Toy(), api_key="sk-canary-0123456789") as client:
        error = await raised_by(client.run(image(), ticket="one"))

    assert "canary" not in "".join(traceback.format_exception(error)) + repr(error.__dict__)


async def test_a_late_record_of_a_task_that_has_ended_is_not_watched_again() -> None:
    ledger, service = MemoryLedger(), ToyService(queries=[DONE])
    async with service.client(ledger=ledger) as client:
        records: list[Record] = []
        ledger.subscribe(lambda news: records.append(news) if isinstance(news, Record) else None)
        await client.run(image())
        late = next(each for each in records if each.task.status.is_accepted)
        polls = service.count("GET")
        ledger._notify(late)
        await asyncio.sleep(300)

        assert service.count("GET") == polls
        assert (await client.statistics()).open == 0


async def test_an_as_completed_that_is_dropped_in_another_thread_leaves_in_its_own_loop() -> None:
    asyncio.get_running_loop().set_debug(True)
    service = ToyService(queries=[RUNNING])
    async with service.client(limits=Limits(1)) as client:
        held = [client.as_completed([image(str(number)) for number in range(4)])]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await anext(held[0])
        gc.collect()
        await asyncio.to_thread(held.clear)
        await asyncio.sleep(1)

        assert (await client.statistics()).waiting == 0
