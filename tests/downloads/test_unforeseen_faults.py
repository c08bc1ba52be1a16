"""Faults that no rule foresees: none ends the saving of other results."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bide import EventName
from bide._downloads.part_file import PartFile
from bide.ledgers import MemoryLedger
from support.downloads import (
    fetched,
    names,
    original,
    world,
)

# What nobody foresaw -----------------------------------------------------------------------------------------------


async def test_a_fault_that_is_none_of_ours_ends_no_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, opened = PartFile.open, 0

    def fails_once(*arguments: Any) -> PartFile:
        nonlocal opened
        opened += 1
        if opened == 1:
            raise RuntimeError("can't start new thread")
        return opening(*arguments)

    monkeypatch.setattr(PartFile, "open", fails_once)
    async with world(tmp_path, options={"save_to": tmp_path}) as at:
        task = await at.task()
        await asyncio.sleep(20)

        (unsaved,) = at.told(EventName.UNSAVED)
        assert "RuntimeError: can't start new thread" in str(unsaved.error)
        assert names(tmp_path) == [f"{task.ticket}-0.png"]


class AwayLedger(MemoryLedger):
    """Somebody's own ledger, whose database is away."""

    durable = True  # type: ignore[assignment]  # a property there
    looks = 0

    async def record_files(self, ticket: str, files: Any) -> Any:
        raise ConnectionError("the database is away")

    async def unsaved_records(self, origin: str, keys: Any) -> Any:
        self.looks += 1
        raise ConnectionError("the database is away")


async def test_a_ledger_that_raises_what_it_likes_keeps_nobody_from_saving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = AwayLedger()
    async with world(tmp_path, ledger=ledger, options={"save_to": tmp_path}) as at:
        task = await at.task()
        await asyncio.sleep(200)

        (file,) = await at.client.save(task, tmp_path)

        assert Path(file.path).read_bytes() == original(at.emulator, task)
        assert (len(at.told(EventName.SAVED)), len(at.told(EventName.UNSAVED))) == (1, 0)
        assert len(fetched(at.emulator)) == 1
        assert ledger.looks >= 3
        assert "the saved file could not be recorded: the database is away" in caplog.text
        assert "the unsaved results cannot be read: the database is away" in caplog.text
