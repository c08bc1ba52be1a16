"""A look-up that could not be made has not shown that there is no task."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from bide import LedgerError, MemoryLedger, SubmissionUnknownError, TaskStatus
from support.emulated import calls, client_at, emulator_with, now, video

PAGE = "<html><h1>502 Bad Gateway</h1></html>"


@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"drop": "before"}, {"status": 404, "body": PAGE}], ids=str
)
async def test_a_search_goes_on_until_a_list_was_read(fault: dict[str, object]) -> None:
    async with emulator_with(video_seconds=100) as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="after")
        emulator.fault(on="list", times=100_000, **fault)  # type: ignore[arg-type]
        handle = await client.submit(video("one"))
        await asyncio.sleep(45)
        assert handle.task.status is TaskStatus.SUBMITTING
        lists = len(calls(emulator, "list"))
        emulator._faults.clear()

        task = await handle.accepted(timeout=5)

        assert [each.id for each in emulator.tasks()] == [task.task_id]
        assert lists <= 45 / 2 + 3


async def test_a_search_without_any_list_ends_after_ten_minutes() -> None:
    async with emulator_with() as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="after")
        emulator.fault(on="list", status=500, times=100_000)
        before = now()

        with pytest.raises(SubmissionUnknownError):
            await client.run(video())

        assert now() - before == pytest.approx(600, abs=15)
        assert len(calls(emulator, "list")) <= 60 / 2 + 540 / 10 + 5


async def test_a_service_that_denies_lists_ends_the_search_at_its_last_moment() -> None:
    async with emulator_with() as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="after")
        emulator.fault(on="list", status=403, body={"code": "AccessDenied"}, times=100_000)
        before = now()

        with pytest.raises(SubmissionUnknownError):
            await client.run(video())

        assert now() - before == pytest.approx(15, abs=2)


async def test_a_ledger_that_fails_at_a_look_up_makes_nothing_unknown() -> None:
    class Locked(MemoryLedger):
        times = 6

        async def known_task_ids(self, origin: str, task_ids: Collection[str]) -> frozenset[str]:
            self.times -= 1
            if self.times >= 0:
                raise LedgerError("the file is locked")
            return await super().known_task_ids(origin, task_ids)

    async with emulator_with(video_seconds=100) as emulator, client_at(emulator, ledger=Locked()) as client:
        emulator.fault(on="create", drop="after")

        task = await (await client.submit(video("one"))).accepted()

        assert [each.id for each in emulator.tasks()] == [task.task_id]


async def test_many_searches_while_nothing_answers_make_one_call_every_two_seconds() -> None:
    async with emulator_with(video_seconds=1000) as emulator:
        async with client_at(emulator) as client:
            emulator.fault(on="create", drop="after", times=3)
            emulator.fault(on="list", times=100_000, status=502)
            for name in ("one", "two", "three"):
                await client.submit(video(name))
            await asyncio.sleep(20)
            before = len(calls(emulator, "list"))
            await asyncio.sleep(30)

            assert len(calls(emulator, "list")) - before <= 30 / 2 + 2


async def test_a_page_of_a_proxy_that_answers_a_create_is_looked_up() -> None:
    async with emulator_with(video_seconds=20) as emulator, client_at(emulator) as client:
        emulator.fault(on="create", status=403, body="<html>Forbidden</html>")

        with pytest.raises(SubmissionUnknownError, match="Forbidden") as caught:
            await client.run(video("one"))

        assert caught.value.bought is None
        assert (len(calls(emulator, "create")), len(emulator.tasks())) == (1, 0)
