"""Addresses of results that end: when a fresh one is asked for, and how often."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bide import Downloads, EventName, _outside
from support.downloads import (
    asked_from,
    fetched,
    names,
    original,
    world,
)
from support.emulated import calls, now

# Addresses that end ------------------------------------------------------------------------------------------------


async def test_an_address_that_ends_again_and_again_while_bytes_come_is_asked_for_again(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, fresh_urls=True) as at:
        task = await at.task()
        for _ in range(3):
            at.emulator.fault(on="asset", truncate=90_000, delay=1)
            at.emulator.fault(on="asset", status=403)
            at.emulator.fault(on="query", delay=0.1)  # a look that takes no time is shared by all who come
        before = len(calls(at.emulator, "query"))

        await at.saved(task)

        assert len(calls(at.emulator, "query")) == before + 3
        assert sorted(set(asked_from(at.emulator))) == [0, 90_000, 180_000, 270_000]


async def test_the_second_of_two_results_gets_a_look_of_its_own(tmp_path: Path) -> None:
    """The fresh address that both got may have ended by the time that the second one has a place."""
    options = {"downloads": Downloads(at_once=1)}
    async with world(tmp_path, fresh_urls=True, url_seconds=20, options=options) as at:
        task = await at.task(n=2)
        await asyncio.sleep(30)
        at.emulator.fault(on="asset", status=403)
        at.emulator.fault(on="asset", delay=25)
        before = len(calls(at.emulator, "query"))

        files = await at.client.save(task, tmp_path)

        for place, file in enumerate(files):
            await at.assert_whole(task, file, place=place)
        assert len(calls(at.emulator, "query")) == before + 2


async def test_a_fresh_address_that_ends_while_its_store_is_busy_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = datetime.now(UTC).timestamp() - now()
    monkeypatch.setattr(_outside, "wall_time", lambda: ahead + now())
    async with world(tmp_path, fresh_urls=True, url_seconds=20) as at:
        task = await at.task()
        await asyncio.sleep(30)
        at.emulator.fault(on="asset", status=503, headers={"Retry-After": "30"})
        at.emulator.fault(on="query", delay=0.1, times=2)
        before = len(calls(at.emulator, "query"))

        await at.saved(task)

        assert [each.status for each in fetched(at.emulator)] == [503, 403, 200]
        assert len(calls(at.emulator, "query")) == before + 2


async def test_a_store_that_is_behind_its_service_costs_no_result(tmp_path: Path) -> None:
    async with world(tmp_path, options={"save_to": tmp_path}) as at:
        at.emulator.fault(on="asset", status=404, times=2)
        task = await at.task()
        await asyncio.sleep(20)

        (unsaved,) = at.told(EventName.UNSAVED)
        assert unsaved.error is not None
        assert (tmp_path / f"{task.ticket}-0.png").read_bytes() == original(at.emulator, task)


async def test_two_refusals_after_a_cut_cost_nothing_that_has_come(tmp_path: Path) -> None:
    async with world(tmp_path) as at:
        task = await at.task()
        at.emulator.fault(on="asset", truncate=290_000)
        at.emulator.fault(on="asset", status=403, times=2)
        await at.refused(task, "the fresh address of the service failed too")

        await at.saved(task)

        assert asked_from(at.emulator) == [0, 290_000, 290_000, 290_000]


async def test_a_day_that_a_store_asks_to_wait_does_not_outlast_a_result(tmp_path: Path) -> None:
    async with world(tmp_path, options={"save_to": tmp_path}, keep=1000) as at:
        at.emulator.fault(on="asset", status=503, headers={"Retry-After": "86400"})
        task = await at.task()
        await asyncio.sleep(900)

        first, second = fetched(at.emulator)
        assert 400 <= second.time - first.time <= 520
        assert names(tmp_path) == [f"{task.ticket}-0.png"]


async def test_no_more_than_twenty_fresh_addresses_are_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path, fresh_urls=True) as at:
        task = await at.task(size=2_000_000)
        for _ in range(25):
            at.emulator.fault(on="asset", truncate=70_000, delay=1)
            at.emulator.fault(on="asset", status=403)
            at.emulator.fault(on="query", delay=0.1)
        before = len(calls(at.emulator, "query"))

        error = await at.refused(task, "the fresh address of the service failed too")

        assert error.retryable
        assert len(calls(at.emulator, "query")) == before + 20
