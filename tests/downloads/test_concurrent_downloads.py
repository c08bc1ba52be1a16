"""Places for downloads: who waits gives his up, none is lost, and the most urgent one goes first."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bide import Client, DownloadError, Downloads
from bide._downloads.downloader import BUSY_RETRY_SECONDS, _PrioritySemaphore
from bide._downloads.part_file import PartFile
from bide._http.fetcher import CutError, Fetcher
from support.downloads import Asked, Store, failing, ok, part_of, png, settle, store
from support.emulated import now
from support.hostile_server import done, far_client, reply, serving

NOWHERE = "http://127.0.0.1:9/api/v1"


def near_client(**options: Any) -> Client:
    return far_client(base_url=NOWHERE, **options)


@pytest.fixture
async def there() -> AsyncIterator[Store]:
    """A store that has all files but for those called "busy"."""

    def answer(asked: Asked) -> bytes:
        return failing(503, "Retry-After: 50\r\n") if "busy" in asked.path else ok(png())

    async with store(answer) as opened:
        yield opened


async def ended(*saves: asyncio.Task[Any]) -> None:
    for each in saves:
        each.cancel()
    await asyncio.gather(*saves, return_exceptions=True)


# Who waits holds no place ------------------------------------------------------------------------------------------


async def test_a_pause_between_tries_holds_no_place(there: Store, tmp_path: Path) -> None:
    async with near_client(downloads=Downloads(at_once=2)) as client:
        busy = [
            asyncio.create_task(client.save(done(f"{there.url}/busy", ticket=f"busy{n}"), tmp_path))
            for n in range(2)
        ]
        await asyncio.sleep(1)
        began = now()

        await client.save(done(f"{there.url}/a", ticket="fine"), tmp_path)

        assert now() - began < 1
        assert not any(each.done() for each in busy)
        await ended(*busy)


async def test_a_part_that_is_busy_elsewhere_holds_no_place(there: Store, tmp_path: Path) -> None:
    held = [PartFile.open(tmp_path, f"busy{n}-0") for n in range(2)]
    async with near_client(downloads=Downloads(at_once=2)) as client:
        busy = [
            asyncio.create_task(client.save(done(f"{there.url}/a", ticket=f"busy{n}"), tmp_path))
            for n in range(2)
        ]
        await asyncio.sleep(1)
        began = now()

        await client.save(done(f"{there.url}/a", ticket="fine"), tmp_path)

        assert now() - began < 2 * BUSY_RETRY_SECONDS
        for part in held:
            part.close()
        await asyncio.gather(*busy)
        assert len(list(tmp_path.iterdir())) == 3


async def test_the_deadline_ends_the_wait_for_a_part_that_is_busy_elsewhere(
    there: Store, tmp_path: Path
) -> None:
    held = PartFile.open(tmp_path, "t1-0")
    async with near_client(downloads=Downloads(deadline=50)) as client:
        began = now()

        with pytest.raises(DownloadError, match=r"another process has been saving .* for 50 s") as caught:
            await client.save(done(f"{there.url}/a"), tmp_path)

        assert caught.value.retryable
        assert 50 <= now() - began <= 51
        assert there.asked == []
    held.close()


async def test_as_many_places_are_there_after_waits_and_cancels_as_before(
    there: Store, tmp_path: Path
) -> None:
    async with near_client(downloads=Downloads(at_once=2)) as client:
        for moment in (0.0, 0.3, 0.7, 50.0, 50.2):
            saves = [
                asyncio.create_task(client.save(done(f"{there.url}/busy", ticket=f"busy{n}"), tmp_path))
                for n in range(5)
            ]
            await asyncio.sleep(moment)
            await ended(*saves)
        semaphore = client._engine.saver._downloader._semaphore if client._engine else None

        assert semaphore is not None
        assert (semaphore._free, semaphore._waiting) == (2, [])


# The semaphore -----------------------------------------------------------------------------------------------


async def test_the_most_urgent_one_goes_first_and_of_two_alike_the_one_who_came_first() -> None:
    semaphore, order = _PrioritySemaphore(1), list[Any]()
    await semaphore.acquire(0)

    async def enter(urgency: float, name: str) -> None:
        await semaphore.acquire(urgency)
        order.append(name)
        semaphore.release()

    coming = [(math.inf, "a"), (5.0, "b"), (3.0, "c"), (5.0, "d"), (math.inf, "e")]
    waits = [asyncio.create_task(enter(*each)) for each in coming]
    await settle()

    semaphore.release()
    await asyncio.gather(*waits)

    assert order == ["c", "b", "d", "a", "e"]


async def test_a_turn_of_who_is_cancelled_in_that_moment_goes_on_to_the_next() -> None:
    semaphore = _PrioritySemaphore(1)
    await semaphore.acquire(0)
    first, second = (asyncio.create_task(semaphore.acquire(urgency)) for urgency in (1, 2))
    await settle()

    semaphore.release()
    first.cancel()
    await settle()

    assert first.cancelled()
    assert second.done()
    semaphore.release()
    assert semaphore._free == 1


async def test_who_is_cancelled_leaves_the_line_and_the_others_keep_their_order() -> None:
    semaphore, order = _PrioritySemaphore(1), list[float]()
    await semaphore.acquire(0)

    async def enter(urgency: float) -> None:
        await semaphore.acquire(urgency)
        order.append(urgency)
        semaphore.release()

    waits = [asyncio.create_task(enter(urgency)) for urgency in (1, 2, 4, 5, 3, 6)]
    await settle()

    await ended(waits[0])

    assert len(semaphore._waiting) == 5
    semaphore.release()
    await asyncio.gather(*waits[1:])
    assert order == [2, 3, 4, 5, 6]


async def test_a_place_that_nobody_waits_for_is_free_again() -> None:
    semaphore = _PrioritySemaphore(2)
    waits = [asyncio.create_task(semaphore.acquire(0)) for _ in range(3)]
    await settle()
    for each in waits:
        each.cancel()
    with suppress(asyncio.CancelledError):
        await waits[-1]

    semaphore.release()
    semaphore.release()

    assert semaphore._free == 2


# Connections -------------------------------------------------------------------------------------------------------


async def test_a_fetcher_that_was_closed_before_its_first_file_fetches_none() -> None:
    fetcher = Fetcher(NOWHERE)
    async with serving(reply()) as server:
        await fetcher.aclose()

        with pytest.raises(CutError, match="the client is closed"):
            async with fetcher.open(f"http://127.0.0.1:{server.port}/a", {}):
                pass

        assert server.connections == 0


async def test_who_is_cancelled_as_a_place_comes_free_hears_of_the_cancel() -> None:
    semaphore = _PrioritySemaphore(1)
    await semaphore.acquire(0)
    waiting = asyncio.create_task(semaphore.acquire(0))
    await asyncio.sleep(0)

    waiting.cancel()
    semaphore.release()  # in the same turn of the loop: it meets the one who is cancelled
    await asyncio.wait([waiting])

    assert waiting.cancelled()
    async with asyncio.timeout(1):
        await semaphore.acquire(0)


@pytest.mark.parametrize("failing_write", [1, 2, 3, 4])
async def test_what_comes_after_a_write_that_failed_is_not_put_in_its_place(
    failing_write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for one write: what is left is a beginning of the file, and the next save goes on from there."""
    data = png(5_000_000)
    write, writes = PartFile.write, 0

    def full_once(part: PartFile, piece: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes == failing_write:
            raise OSError(28, "No space left on device")
        write(part, piece)

    monkeypatch.setattr(PartFile, "write", full_once)

    def answer(asked: Asked) -> bytes:
        return part_of(data, asked.start) if asked.start else ok(data)

    async with store(answer) as there, near_client() as client:
        with pytest.raises(DownloadError, match="No space left"):
            await client.save(done(f"{there.url}/a"), tmp_path)
        kept = [path.read_bytes() for path in tmp_path.iterdir() if path.name.endswith(".part")]
        (file,) = await client.save(done(f"{there.url}/a"), tmp_path)

    assert all(data.startswith(each) for each in kept)
    assert Path(file.path).read_bytes() == data
