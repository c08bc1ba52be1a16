"""What is told of results that nobody saves, who saves them in the end, and when that is given up."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import evolve, frozen

from bide import Client, DashScope, Event, EventName, Output, Request, Task, TaskStatus, _outside
from bide._wire import Reply
from bide.ledgers import MemoryLedger, memory
from bide.providers import Accepted, CreateOutcome, Profile
from support.downloads import World, fetched, names, world
from support.emulated import KEY, emulator_with, image, now
from support.toy import Toy, ToyService

HOUR = 3600.0
CHECK = 60.0
"""Seconds between two checks: so much later something may be noticed."""


class KeptLedger(MemoryLedger):
    """A ledger that counts as one that lasts, without a thread: what is unsaved in it is watched."""

    durable = True  # type: ignore[assignment]  # a property there


@pytest.fixture(autouse=True)
async def wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall's clock of the code under test goes with the loop's, as the emulator's does."""
    ahead = time.time() - now()
    monkeypatch.setattr(_outside, "wall_time", lambda: ahead + now())


def nobody_saved(at: World) -> list[Event]:
    return [event for event in at.told(EventName.UNSAVED) if "this result is not saved" in str(event.error)]


@asynccontextmanager
async def kept(folder: Path, keep: float = 24 * HOUR, **settings: Any) -> AsyncIterator[World]:
    """A client whose ledger lasts, at an emulator that keeps results for so many seconds."""
    emulator = settings.pop("emulator", None)
    ledger = settings.pop("ledger", None) or KeptLedger()
    options = {"options": settings}
    if emulator is not None:
        async with world(folder, ledger=ledger, emulator=emulator, **options) as at:
            yield at
        return
    async with emulator_with(keep=keep) as own, world(folder, ledger=ledger, emulator=own, **options) as at:
        yield at


# Warnings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "before"), [(10_000, HOUR), (1000, 500)])
async def test_an_unsaved_result_is_warned_of_an_hour_before_its_expiry_or_in_the_middle_of_a_short_life(
    keep: float, before: float, tmp_path: Path
) -> None:
    async with kept(tmp_path, keep) as at:
        task = await at.task()
        await asyncio.sleep(keep - before - 2 * CHECK)
        assert nobody_saved(at) == []

        await asyncio.sleep(3 * CHECK)

        (event,) = nobody_saved(at)
        assert event.ticket == task.ticket
        assert event.seconds is not None
        assert before - 1.5 * CHECK <= event.seconds <= before
        assert f"{event.seconds / 60:.0f} min" in str(event.error)
        assert "bide resume --save DIR" in str(event.error)


async def test_each_unsaved_result_is_warned_of_once(tmp_path: Path) -> None:
    async with kept(tmp_path, 1000) as at:
        first = await at.task()
        await asyncio.sleep(200)
        second = await at.task("a dog")

        await asyncio.sleep(2000)

        assert [event.ticket for event in nobody_saved(at)] == [first.ticket, second.ticket]


async def test_what_was_saved_or_is_being_saved_is_not_warned_of(tmp_path: Path) -> None:
    async with emulator_with(keep=1000) as emulator, kept(tmp_path / "a", emulator=emulator) as at:
        await at.saved(await at.task())
        async with kept(tmp_path / "b", emulator=emulator, save_to=tmp_path / "b") as other:
            emulator.fault(on="asset", status=503, times=1000, headers={"Retry-After": "300"})
            await other.task()

            await asyncio.sleep(900)

            assert other.told(EventName.UNSAVED)
            assert nobody_saved(at) + nobody_saved(other) == []


# What others leave -------------------------------------------------------------------------------------------------


async def test_a_result_that_a_live_client_leaves_unsaved_is_saved_by_another_after_five_minutes(
    tmp_path: Path,
) -> None:
    ledger = KeptLedger()
    async with (
        emulator_with() as emulator,
        kept(tmp_path, emulator=emulator, ledger=ledger) as leaves,
        kept(tmp_path, emulator=emulator, ledger=ledger, save_to=tmp_path) as saves,
    ):
        await asyncio.sleep(CHECK / 2)
        task = await leaves.task()
        await asyncio.sleep(295)
        assert fetched(emulator) == []

        await asyncio.sleep(CHECK + 10)

        assert names(tmp_path) == [f"{task.ticket}-0.png"]
        assert [event.ticket for event in saves.told(EventName.SAVED)] == [task.ticket]


async def test_a_client_begins_with_what_is_unsaved_however_young_it_is(tmp_path: Path) -> None:
    ledger = KeptLedger()
    async with emulator_with() as emulator, kept(tmp_path, emulator=emulator, ledger=ledger) as leaves:
        task = await leaves.task()
        async with kept(tmp_path, emulator=emulator, ledger=ledger, save_to=tmp_path) as saves:
            await saves.task("a dog")
            await asyncio.sleep(5)

            assert f"{task.ticket}-0.png" in names(tmp_path)


# Giving up ---------------------------------------------------------------------------------------------------------


async def test_what_fails_for_a_day_is_given_up(tmp_path: Path) -> None:
    async with world(tmp_path, keep=100 * HOUR, options={"save_to": tmp_path}) as at:
        at.emulator.fault(on="asset", status=503, times=1000, headers={"Retry-After": "9000"})
        await at.task()
        began = now()

        await asyncio.sleep(30 * HOUR)

        last = fetched(at.emulator)[-1].time - began
        assert 24 * HOUR <= last <= 24 * HOUR + 9100


async def test_what_no_try_can_save_is_not_tried_again_while_it_is_unsaved(tmp_path: Path) -> None:
    async with kept(tmp_path, save_to=tmp_path) as at:
        at.emulator.fault(on="asset", status=451, times=1000)
        await at.task()

        await asyncio.sleep(1000)

        assert len(fetched(at.emulator)) == 1
        assert len(at.told(EventName.UNSAVED)) == 1


async def test_the_same_fault_is_told_once_and_another_one_anew(tmp_path: Path) -> None:
    async with world(tmp_path, options={"save_to": tmp_path}) as at:
        at.emulator.fault(on="asset", status=503, times=5, headers={"Retry-After": "100"})
        at.emulator.fault(on="asset", status=502, times=5, headers={"Retry-After": "100"})
        await at.task()

        await asyncio.sleep(2000)

        assert len(fetched(at.emulator)) == 11
        told = [str(event.error) for event in at.told(EventName.UNSAVED)]
        assert [text[text.index("HTTP ") :][:8] for text in told] == ["HTTP 503", "HTTP 502"]


# Leaving -----------------------------------------------------------------------------------------------------------


async def test_closing_names_nothing_that_was_saved_by_hand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path / "hand", options={"save_to": tmp_path / "out"}) as at:
        at.emulator.fault(on="asset", status=503, times=2, headers={"Retry-After": "1000"})
        by_hand, left = await at.task(), await at.task("a dog")
        await asyncio.sleep(5)
        await at.saved(by_hand)

        await at.client.aclose(grace=1)

        (line,) = [line for line in caplog.messages if line.startswith("closed with")]
        assert line.startswith(f"closed with 1 results not saved yet, by ticket: {left.ticket};")


async def test_leaving_says_what_it_waits_for_if_that_takes_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bide")
    async with emulator_with() as emulator:
        for drip in (1_000_000, 100_000):
            async with world(tmp_path, emulator=emulator, options={"save_to": tmp_path}) as at:
                emulator.fault(on="asset", drip=drip)
                task = await at.task()

        waits = [line for line in caplog.messages if line.startswith("waiting for")]
        assert waits == [f"waiting for 1 results to be saved, by ticket: {task.ticket}"]


# What is known without a record ------------------------------------------------------------------------------------


async def test_saving_twice_sends_once_where_the_ledger_keeps_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST_ENDED_RECORDS", 0)
    async with world(tmp_path) as at:
        task = await at.client.run(image("a cat [seconds 1]"))
        gc.collect()
        assert await at.ledger.get(task.ticket) is None
        first = await at.client.save(task, tmp_path)

        assert await at.client.save(task, tmp_path) == first
        assert len(fetched(at.emulator)) == 1


async def test_a_relative_directory_stays_where_it_was_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    async with world(tmp_path / "a" / "out", options={"save_to": "out"}) as at:
        monkeypatch.chdir(tmp_path / "b")
        task = await at.task()
        await asyncio.sleep(5)

        assert names(tmp_path / "a" / "out") == [f"{task.ticket}-0.png"]
        assert names(tmp_path / "b") == []


async def test_a_result_without_an_end_expires_a_day_after_it_was_seen() -> None:
    output = {"task_id": "x1", "task_status": "SUCCEEDED", "results": [{"url": "https://cdn.example/a.png"}]}

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"request_id": "r", "output": output})

    transport = httpx.MockTransport(answer)
    async with Client(DashScope(), api_key=KEY, transport=transport) as client:
        handle = await client.attach("x1")
        seen = _outside.wall_time()

        task = await handle.result()

        (file,) = task.outputs
        assert file.expires_at is not None
        assert -0.001 <= file.expires_at.timestamp() - seen - 24 * HOUR <= 60


@frozen
class Quick(Toy):
    """A service that has the result ready when it answers the create, and keeps it for an hour."""

    def profile(self, kind: str) -> Profile:
        return evolve(super().profile(kind), lifetime=HOUR)

    def read_created(self, reply: Reply, request: Request) -> CreateOutcome:
        outputs = (Output(url="https://cdn.example/a.png", kind="image"),)
        return Accepted(Task(task_id="x1", status=TaskStatus.SUCCEEDED, outputs=outputs))


async def test_a_result_that_comes_with_the_create_expires_so_long_after_it(tmp_path: Path) -> None:
    async with ToyService().client(Quick()) as client:
        begun = _outside.wall_time()

        task = await client.run(image())

        (file,) = task.outputs
        assert file.expires_at is not None
        assert -0.001 <= file.expires_at.timestamp() - begun - HOUR <= 60
