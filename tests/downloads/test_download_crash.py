"""Processes that die in mid-download, and processes that save one result at once: the file is whole all the same."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bide import Task
from bide.emulator import Emulator
from bide.ledgers import SQLiteLedger
from support import download_worker
from support.downloads import asked_from, fetched, names, original, sent, world
from support.emulated import KEY, video
from support.waits import A_MINUTE

pytestmark = pytest.mark.real_time

WORKER = Path(download_worker.__file__)
SIZE = 24_000_000
SLOW = {"on": "asset", "drip": 10_000_000}
ENOUGH = 6_000_000
"""Bytes in the part file at which a process dies."""


class Site:
    """An emulator with one result, which is on a ledger and not saved; and processes that save it."""

    def __init__(self, emulator: Emulator, task: Task, folder: Path, database: Path) -> None:
        self.emulator = emulator
        self.task = task
        self.folder = folder
        self.part = folder / f".{task.ticket}-0.part"
        self._arguments = [emulator.dashscope_url, KEY, str(database), str(folder), task.ticket]
        self.processes: list[Process] = []

    async def start(self, how: str = "asked") -> Process:
        command = [sys.executable, str(WORKER), *self._arguments, how]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        self.processes.append(process)
        return process

    async def has_come(self, size: int = ENOUGH) -> None:
        """Wait until so many bytes are in the part file."""
        async with asyncio.timeout(A_MINUTE):
            while not self.part.exists() or self.part.stat().st_size < size:
                await asyncio.sleep(0.005)

    async def assert_saves(self, process: Process) -> None:
        """It ends well, and what it has on record is the file, with the emulator's bytes, and nothing else is there."""
        async with asyncio.timeout(A_MINUTE):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        data = original(self.emulator, self.task)
        path = self.folder / f"{self.task.ticket}-0.mp4"
        assert json.loads(out) == [[str(path), len(data), hashlib.sha256(data).hexdigest()]]
        assert path.read_bytes() == data
        assert names(self.folder) == [path.name]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    database = tmp_path / "tasks.db"
    async with Emulator() as emulator:
        async with world(tmp_path / "out", ledger=SQLiteLedger(database), emulator=emulator) as at:
            handle = await at.client.submit(video(f"a kitten [bytes {SIZE}] [seconds 0]"))
            await handle.accepted()
            task = await handle.refresh()
        site = Site(emulator, task, tmp_path / "out", database)
        try:
            yield site
        finally:
            for process in site.processes:
                if process.returncode is None:
                    process.kill()
                await process.communicate()


async def test_a_process_that_is_killed_in_mid_download_is_followed_by_one_that_goes_on(site: Site) -> None:
    site.emulator.fault(**SLOW)
    process = await site.start("asked")
    await site.has_come()
    process.kill()
    await process.wait()
    assert names(site.folder) == [site.part.name, f"{site.part.name}.log"]

    await site.assert_saves(await site.start("by itself"))

    first, second = asked_from(site.emulator)
    assert first == 0
    assert second >= ENOUGH // 2**20 * 2**20
    assert SIZE <= sent(site.emulator) <= 1.1 * SIZE


async def test_two_processes_that_save_at_once_make_one_whole_file(site: Site) -> None:
    site.emulator.fault(on="asset", drip=SIZE)

    processes = [await site.start("asked"), await site.start("by itself")]

    for process in processes:
        await site.assert_saves(process)
    assert len(fetched(site.emulator)) == 1


async def test_a_process_that_waits_for_another_takes_its_part_when_it_dies(site: Site) -> None:
    site.emulator.fault(**SLOW)
    writer = await site.start()
    await site.has_come(1)
    waiter = await site.start()
    await site.has_come(2 * ENOUGH)

    writer.kill()

    await site.assert_saves(waiter)
    assert asked_from(site.emulator)[1] >= ENOUGH
    assert sent(site.emulator) <= 1.1 * SIZE
