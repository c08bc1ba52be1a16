"""A success without any output is polled again for a while, and then it is what it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bide import Event, LedgerError, Limits, MemoryLedger, ModelStatistics, SQLiteLedger, Task, TaskStatus
from bide.ledgers import Ledger, Record
from support.emulated import image, now
from support.toy import ToyService
from support.virtual_time import wait_for_ledgers

DONE = {"status": "succeeded"}
EMPTY = {"status": "succeeded", "outputs": 0}
RUNNING = {"status": "running"}


async def test_an_output_that_comes_a_little_later_is_delivered() -> None:
    service = ToyService(queries=[RUNNING, EMPTY, EMPTY, EMPTY, DONE])
    async with service.client() as client:
        task = await client.run(image())

    assert (task.status, len(task.outputs), task.error) == (TaskStatus.SUCCEEDED, 1, None)
    assert service.count("GET") == 5


async def test_a_success_that_stays_empty_ends_after_a_minute_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = ToyService(queries=[RUNNING, EMPTY])
    async with service.client() as client:
        task = await client.run(image())

    first, last = service.times("GET")[1], service.times("GET")[-1]
    assert last - first == pytest.approx(60, abs=1)
    assert service.count("GET") < 20
    assert (task.status, task.outputs) == (TaskStatus.SUCCEEDED, ())
    assert task.error is not None
    assert task.error.code == "NoOutput"
    assert "no output" in caplog.text


async def test_its_slot_is_free_from_the_first_success_on() -> None:
    service = ToyService(queries=[EMPTY])
    async with service.client(limits=Limits(1)) as client:
        first, second = await client.submit(image("one")), await client.submit(image("two"))
        await second.accepted(timeout=15)

        assert first.task.status is TaskStatus.RUNNING
        assert first.task.awaits_outputs
        await first.result()

    created, seen = service.times("POST")[1], service.times("GET")[0]
    assert created - seen < 0.5


async def test_a_create_that_is_answered_as_done_without_output_uses_no_slot() -> None:
    service = ToyService(creates=[EMPTY], queries=[EMPTY])
    async with service.client(limits=Limits(1)) as client:
        before = now()
        tasks = await client.gather(image("one"), image("two"))

    first, second = service.times("POST")
    assert second - first < 0.5
    assert [task.outputs for task in tasks] == [(), ()]
    assert 60 <= service.times("GET")[-1] - before <= 70


async def test_an_empty_success_teaches_its_duration_once_and_without_the_minute() -> None:
    service, ledger = ToyService(queries=[RUNNING, EMPTY]), MemoryLedger()
    async with service.client(ledger=ledger) as client:
        await client.run(image())

    [learned] = await ModelStatistics.of(ledger)
    assert learned.tasks == 1
    assert learned.median is not None
    assert learned.median < 30


async def test_a_task_that_runs_again_after_an_empty_success_ends_with_its_output() -> None:
    service = ToyService(queries=[EMPTY, *[RUNNING] * 20, DONE])
    async with service.client(limits=Limits(1)) as client:
        assert len((await client.run(image())).outputs) == 1


def ledgers(path: Path) -> Ledger:
    return SQLiteLedger(path / "tasks.db")


async def test_the_minute_goes_on_in_the_next_client_and_so_does_the_free_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_ledgers(monkeypatch)
    service = ToyService(queries=[RUNNING, EMPTY])
    async with service.client(ledger=ledgers(tmp_path), limits=Limits(1)) as client:
        handle = await client.submit(image("one"), ticket="one")
        while not handle.task.awaits_outputs:
            await asyncio.sleep(0.1)
        since = now()
        await asyncio.sleep(20)
    async with service.client(ledger=ledgers(tmp_path), limits=Limits(1)) as client:
        adopted = await client.attach(ticket="one")
        second = await client.submit(image("two"), ticket="two")
        await second.accepted(timeout=5)

        task = await adopted.result()
        assert now() - since == pytest.approx(60, abs=1)

    assert (task.status, task.outputs) == (TaskStatus.SUCCEEDED, ())
    assert task.error is not None


async def test_a_ledger_that_fails_at_the_first_success_frees_the_slot_later() -> None:
    class Failing(MemoryLedger):
        times = 2

        async def update(self, ticket: str, task: Task, *, owner: str) -> Record:
            self.times -= 1
            if self.times >= 0:
                raise LedgerError("the file is locked")
            return await super().update(ticket, task, owner=owner)

    service, events = ToyService(queries=[EMPTY]), list[Event]()
    async with service.client(ledger=Failing(), limits=Limits(1), on_event=events.append) as client:
        first, second = await client.gather(image("one"), image("two"))

    assert (first.outputs, second.outputs) == ((), ())
    freed, seen = service.times("POST")[1], service.times("GET")
    assert seen[2] <= freed < seen[2] + 1
    assert [str(event.error) for event in events if event.error] == ["the file is locked"] * 2
