"""A save that ends while bytes are written: by a cancel, its deadline, or the end of the client."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from bide import ClientClosedError, DownloadError, Downloads
from bide._downloads.part_file import PartFile
from support.clients import advance, inline, near_client
from support.downloads import (
    Answer,
    Asked,
    Cut,
    SlowDisk,
    names,
    ok,
    part_of,
    png,
    settle,
    store,
)
from support.hostile_server import done

# Writes that nobody waits for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "deadline"])
@pytest.mark.parametrize(("size", "held"), [(100_000, 1), (1_500_000, 1), (1_500_000, 2)])
async def test_an_end_in_the_last_write_leaves_none_under_way(
    how: str, size: int, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch, held)
    data = png(size)
    async with store(lambda _: ok(data)) as there, near_client(downloads=Downloads(deadline=50)) as client:
        saving = asyncio.create_task(client.save(done(f"{there.url}/a"), tmp_path))
        await disk.writing()

        if how == "cancel":
            saving.cancel()
        else:
            advance(60)
        await settle()
        is_held = not saving.done()
        disk.go.set()
        (ending,) = await asyncio.gather(saving, return_exceptions=True)

        assert is_held
        assert isinstance(ending, asyncio.CancelledError if how == "cancel" else DownloadError)
        assert disk.at_close == [0]
        assert names(tmp_path) == [".t1-0.part", ".t1-0.part.log"]
        (file,) = await client.save(done(f"{there.url}/a"), tmp_path)
        assert Path(file.path).read_bytes() == data
        assert len(there.asked) == 1  # all of it was kept


@pytest.mark.parametrize("how", ["cancel", "rubbish"])
async def test_an_inline_result_that_ends_early_leaves_no_write_under_way(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    data = base64.b64encode(png(3_000_000)).decode()
    async with near_client() as client:
        task = inline(f"{data[:1_500_000]}!!!!" if how == "rubbish" else data)
        saving = asyncio.create_task(client.save(task, tmp_path))
        await disk.writing()

        if how == "cancel":
            saving.cancel()
        await settle()
        is_held = not saving.done()
        disk.go.set()
        (ending,) = await asyncio.gather(saving, return_exceptions=True)

        assert is_held
        assert isinstance(ending, asyncio.CancelledError if how == "cancel" else DownloadError)
        assert disk.at_close == [0]
        assert names(tmp_path) == []


# A cancel while what came before a cut is written ----------------------------------------------------------------


def in_parts(data: bytes, step: int) -> Answer:
    """Brings so many bytes, and cuts, each time."""

    def answer(asked: Asked) -> Cut:
        head = part_of(data, asked.start) if asked.start else ok(data)
        end = head.index(b"\r\n\r\n") + 4
        return Cut(head[: end + step])

    return answer


async def test_a_cancel_while_what_came_is_written_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    async with store(in_parts(png(300_000), 100_000)) as there, near_client() as client:
        saving = asyncio.create_task(client.save(done(f"{there.url}/a"), tmp_path))
        await disk.writing()

        saving.cancel()
        await settle()
        disk.go.set()

        with pytest.raises(asyncio.CancelledError):
            await saving
        assert there.starts == [0]
        PartFile.open(tmp_path, "t1-0").close()  # nobody holds it


async def test_the_deadline_fires_while_what_came_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    async with (
        store(in_parts(png(300_000), 100_000)) as there,
        near_client(downloads=Downloads(deadline=50)) as client,
    ):
        saving = asyncio.create_task(client.save(done(f"{there.url}/a"), tmp_path))
        await disk.writing()

        advance(60)
        await settle()
        disk.go.set()

        with pytest.raises(DownloadError, match=r"not complete within 50 s: 100000 of 300000 bytes came"):
            await saving
        assert there.starts == [0]


async def test_closing_ends_a_save_that_writes_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    async with store(in_parts(png(300_000), 100_000)) as there:
        client = near_client()
        saving = asyncio.create_task(client.save(done(f"{there.url}/a"), tmp_path))
        await disk.writing()

        closing = asyncio.create_task(client.aclose(grace=0))
        await settle()
        disk.go.set()
        await closing

        with pytest.raises(ClientClosedError):
            await saving
        assert there.starts == [0]


async def test_closing_while_a_save_waits_for_a_cancelled_one_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    async with store(in_parts(png(300_000), 100_000)) as there:
        client = near_client()
        task = done(f"{there.url}/a")
        leaver = asyncio.create_task(client.save(task, tmp_path))
        await disk.writing()
        leaver.cancel()
        await settle()
        waiter = asyncio.create_task(client.save(task, tmp_path))
        await settle()

        closing = asyncio.create_task(client.aclose(grace=0))
        await settle()
        disk.go.set()
        await closing

        with pytest.raises(ClientClosedError):
            await waiter
        with pytest.raises(asyncio.CancelledError):
            await leaver
