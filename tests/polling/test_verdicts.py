"""What counts as a verdict about a task: what the service itself says, repeated for some time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bide import (
    AuthenticationError,
    LedgerError,
    MemoryLedger,
    Task,
    TaskExpiredError,
    TaskStatus,
    WaitTimeoutError,
)
from bide.ledgers import Record
from support.emulated import client_at, emulator_with, image, now

PAGE = "<html><head><title>Access</title></head><body>Not here</body></html>"
PAGES: list[dict[str, Any]] = [
    {"status": 404, "body": PAGE},
    {"status": 404, "body": ""},
    {"status": 410, "body": ""},
    {"status": 401, "body": PAGE},
    {"status": 403, "body": PAGE},
    {"status": 403, "body": {"message": "Missing Authentication Token"}},
    {"status": 302, "headers": {"Location": "http://portal.example/login"}, "body": PAGE},
    {"status": 200, "body": PAGE},
]


@pytest.mark.parametrize("service", ["dashscope", "dieyuyun"])
@pytest.mark.parametrize("page", PAGES, ids=str)
async def test_the_pages_of_a_proxy_end_no_task_and_no_gather(service: str, page: dict[str, Any]) -> None:
    async with emulator_with(image_seconds=20) as emulator, client_at(emulator, service) as client:
        gathering = asyncio.create_task(client.gather(image("one"), image("two")))
        await asyncio.sleep(5)
        for on in ("query", "list", "cancel"):
            emulator.fault(on=on, times=100_000, **page)
        await asyncio.sleep(120)
        assert not gathering.done()
        emulator._faults.clear()

        tasks = await asyncio.wait_for(gathering, 15)

        assert {task.status for task in tasks} == {TaskStatus.SUCCEEDED}


async def test_a_wait_that_times_out_names_the_page() -> None:
    async with emulator_with(image_seconds=5) as emulator, client_at(emulator) as client:
        emulator.fault(on="query", times=100_000, status=403, body=PAGE)
        handle = await client.submit(image())

        with pytest.raises(WaitTimeoutError, match="Not here") as caught:
            await handle.result(timeout=100)

        assert caught.value.fault is not None


@pytest.mark.parametrize(
    ("status", "code", "error", "seconds"),
    [
        (404, "NotFound", TaskExpiredError, 60),
        (401, "InvalidApiKey", AuthenticationError, 30),
        (403, "AccessDenied", AuthenticationError, 30),
    ],
)
async def test_what_the_service_itself_repeats_is_a_verdict(
    status: int, code: str, error: type[Exception], seconds: float
) -> None:
    async with emulator_with(image_seconds=5) as emulator, client_at(emulator) as client:
        handle = await client.submit(image())
        await handle.accepted()
        emulator.fault(on="query", times=100_000, status=status, body={"code": code, "message": "no"})
        before = now()

        with pytest.raises(error):
            await handle.result()

        assert seconds <= now() - before <= seconds + 10


async def test_a_page_between_two_verdicts_does_not_count() -> None:
    async with emulator_with(image_seconds=100) as emulator, client_at(emulator) as client:
        handle = await client.submit(image())
        await handle.accepted()
        for _ in range(3):
            emulator.fault(on="query", status=404, body={"code": "NotFound"})
            emulator.fault(on="query", status=404, body=PAGE)

        assert (await handle.result()).status is TaskStatus.SUCCEEDED


async def test_a_page_that_answers_a_cancel_is_no_cancel() -> None:
    async with emulator_with(image_seconds=20, queue_seconds=100) as emulator, client_at(emulator) as client:
        handle = await client.submit(image())
        await handle.accepted()
        emulator.fault(on="cancel", times=2, status=200, body=PAGE, headers={"Content-Type": "text/html"})

        assert await handle.cancel()

        assert [each.status for each in emulator.tasks()] == ["CANCELED"]


async def test_a_locked_ledger_raises_in_no_gather() -> None:
    class Locked(MemoryLedger):
        is_locked = False

        async def update(self, ticket: str, task: Task, *, owner: str) -> Record:
            if self.is_locked:
                raise LedgerError("the file is locked")
            return await super().update(ticket, task, owner=owner)

        async def finish(self, ticket: str, task: Task, *, owner: str, hold: float = 0.0) -> Record:
            if self.is_locked:
                raise LedgerError("the file is locked")
            return await super().finish(ticket, task, owner=owner, hold=hold)

    ledger = Locked()
    async with emulator_with(image_seconds=5) as emulator, client_at(emulator, ledger=ledger) as client:
        gathering = asyncio.create_task(client.gather(image("one"), image("two")))
        await asyncio.sleep(2)
        ledger.is_locked = True
        await asyncio.sleep(60)
        ledger.is_locked = False

        assert len(await asyncio.wait_for(gathering, 10)) == 2
        await asyncio.sleep(10)
        assert (await client.statistics()).open == 0
