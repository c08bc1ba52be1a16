"""What a server asks to wait for, what is too large, files of no told length, and disks that do not take them."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from bide import DownloadError, Downloads
from support.downloads import OLDER, World, asked_from, fetched, names, original, sent, world
from support.emulated import now
from support.scripted_server import Answer, Server, cut, serving

ALWAYS = 1000


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path / "out") as there:
        yield there


@asynccontextmanager
async def elsewhere(at: World, *answers: bytes | Answer) -> AsyncIterator[Server]:
    """A server that all addresses of files lead to meanwhile."""
    async with serving(list(answers)) as server:
        at.emulator._faults.clear()
        at.emulator.fault(on="asset", redirect=f"{server.url}/a", times=ALWAYS)
        yield server


# Passing faults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
async def test_a_passing_fault_is_tried_again_after_a_pause(status: int, at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", status=status)

    await at.saved(task)

    first, second = fetched(at.emulator)
    assert (first.status, second.status) == (status, 200)
    assert 0.2 <= second.time - first.time <= 1.0


@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_after_is_obeyed(status: int, at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", status=status, headers={"Retry-After": "50"})

    await at.saved(task)

    first, second = fetched(at.emulator)
    assert 50 <= second.time - first.time <= 52


async def test_a_retry_after_in_mid_file_costs_nothing_that_has_come(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=200_000)
    at.emulator.fault(on="asset", status=429, headers={"Retry-After": "7"})

    file = await at.saved(task)

    assert asked_from(at.emulator) == [0, 200_000, 200_000]
    assert sent(at.emulator) <= file.size + 1000


async def test_a_retry_after_as_a_date_is_obeyed(at: World) -> None:
    task = await at.task()
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    at.emulator.fault(on="asset", status=503, headers={"Retry-After": date})

    await at.saved(task)

    first, second = fetched(at.emulator)
    assert 40 <= second.time - first.time <= 52


async def test_the_deadline_ends_a_wait_that_the_server_asks_for(tmp_path: Path) -> None:
    async with world(tmp_path, options={"downloads": Downloads(deadline=30)}) as at:
        task = await at.task()
        at.emulator.fault(on="asset", status=429, headers={"Retry-After": "50"})
        begun = now()

        error = await at.refused(task, "was not complete within 30 s")

        assert error.retryable
        assert 30 <= now() - begun <= 31
        await at.saved(task)


async def test_a_long_retry_after_is_for_the_caller_to_obey(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=200_000)
    at.emulator.fault(on="asset", status=429, headers={"Retry-After": "1000"})

    error = await at.refused(task, r"200000 of \d+ bytes came and are kept.*save again after 1000 s")

    assert (error.retryable, error.retry_after) == (True, 1000)
    await at.saved(task)
    assert asked_from(at.emulator) == [0, 200_000, 200_000]


async def test_an_absurd_retry_after_is_reported_as_an_hour(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=200_000)
    at.emulator.fault(on="asset", status=429, headers={"Retry-After": "31536000"})

    error = await at.refused(
        task, r"Retry-After: 31536000\), bide waits 3600 s at most.*save again after 3600 s"
    )

    assert error.retry_after == 3600


@pytest.mark.parametrize(("status", "older"), [(429, False), (500, True)])
async def test_a_fault_that_does_not_pass_is_given_up_after_six_tries(
    status: int, older: bool, at: World
) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", status=status, times=ALWAYS)
    if older:
        at.put_older(task)

    error = await at.refused(task, f"could not be fetched.*HTTP {status}", overwrite=older)

    assert error.retryable
    assert (names(at.folder), len(fetched(at.emulator))) == ([f"{task.ticket}-0.png"] * older, 6)


@pytest.mark.parametrize("status", [402, 405])
async def test_a_fault_that_cannot_pass_is_told_at_once(status: int, at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", status=status)

    error = await at.refused(task, f"HTTP {status}")

    assert not error.retryable
    assert (names(at.folder), len(fetched(at.emulator))) == ([], 1)


async def test_one_file_that_fails_keeps_none_of_the_others_away(at: World) -> None:
    task = await at.task(n=4)
    at.emulator.fault(on="asset", match="/2.png", status=404, times=2)

    with pytest.raises(DownloadError, match="404"):
        await at.client.save(task, at.folder)

    assert names(at.folder) == [f"{task.ticket}-{place}.png" for place in (0, 1, 3)]
    files = await at.client.save(task, at.folder)
    for place, file in enumerate(files):
        await at.assert_whole(task, file, place=place)
    assert len(fetched(at.emulator)) == 6


# Too large -----------------------------------------------------------------------------------------------------


def small(largest: int = 100_000) -> dict[str, Downloads]:
    return {"downloads": Downloads(largest_image=largest, largest_video=2 * largest)}


@pytest.mark.parametrize(("kind", "older"), [("image", False), ("video", True)])
async def test_a_file_that_says_that_it_is_too_large_is_not_fetched(
    kind: str, older: bool, tmp_path: Path
) -> None:
    async with world(tmp_path, options=small()) as at:
        task = await at.task(kind=kind, size=5_000_000)
        if older:
            at.put_older(task, "mp4")

        largest = {"image": 100_000, "video": 200_000}[kind]
        error = await at.refused(task, f"bytes or more, and {largest} are allowed", overwrite=older)

        assert not error.retryable
        assert len(fetched(at.emulator)) == 1
        assert names(tmp_path) == [f"{task.ticket}-0.mp4"] * older


async def test_a_file_of_just_the_largest_size_is_saved(tmp_path: Path) -> None:
    async with world(tmp_path / "a") as other:
        size = len(original(other.emulator, await other.task()))
    async with world(tmp_path / "b", options=small(size)) as at:
        await at.saved(await at.task())
    async with world(tmp_path / "c", options=small(size - 1)) as at:
        await at.refused(await at.task(), f"bytes or more, and {size - 1} are allowed")


# No length -----------------------------------------------------------------------------------------------------


def closed_at_the_end(body: bytes, pieces: int = 4) -> Answer:
    """Tells no length: the body ends with the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\nContent-Type: image/png\r\nConnection: close\r\n\r\n")
        size = len(body) // pieces + 1
        for start in range(0, len(body), size):
            writer.write(body[start : start + size])
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        raise ConnectionError

    return answer


def chunked(body: bytes, *, ends: bool = True) -> bytes:
    """Tells no length: the body comes in chunks, of which the last one is empty."""
    head = b"HTTP/1.1 200 X\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + f"{len(body):x}\r\n".encode() + body + b"\r\n" + b"0\r\n\r\n" * ends


async def test_a_file_without_a_length_is_saved_once_its_end_is_certain(at: World) -> None:
    task = await at.task()
    data = original(at.emulator, task)
    for answers in (
        [chunked(data)],
        [cut(chunked(data, ends=False)), chunked(data)],
        [cut(chunked(data[:200_000], ends=False)), chunked(data)],
        [closed_at_the_end(data)],
        [closed_at_the_end(data[:200_000]), closed_at_the_end(data)],
        [closed_at_the_end(data[:-1]), closed_at_the_end(data)],
    ):
        async with elsewhere(at, *answers) as server:
            await at.saved(task, overwrite=True)
            assert len(server.requests) == len(answers)


async def test_a_file_without_a_length_that_is_always_cut_leaves_nothing(at: World) -> None:
    task = await at.task()
    data = original(at.emulator, task)
    for answer in (closed_at_the_end(data[:-1]), cut(chunked(data[:-1], ends=False)), chunked(data[:-1])):
        async with elsewhere(at, answer):
            error = await at.refused(task, "could not be fetched")

        assert error.retryable
        assert names(at.folder) == []


async def test_a_file_without_a_length_is_cut_off_at_the_largest_size(tmp_path: Path) -> None:
    async with world(tmp_path, options=small(1_500_000)) as at:
        task = await at.task(size=5_000_000)
        data = original(at.emulator, task)
        for answer in (closed_at_the_end(data, pieces=100), chunked(data)):
            async with elsewhere(at, answer) as server:
                error = await at.refused(task, "bytes or more, and 1500000 are allowed")

                assert not error.retryable
                assert len(server.requests) == 1
                assert names(tmp_path) == []


# Disks ---------------------------------------------------------------------------------------------------------


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file grows beyond *size* here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("older", [False, True])
async def test_a_full_disk_is_told_and_a_later_save_goes_on(older: bool, at: World) -> None:
    task = await at.task(size=4_000_000)
    if older:
        at.put_older(task)

    with disk_of(2_500_000):
        error = await at.refused(
            task, r"cannot write to .*the result is still at the service", overwrite=older
        )

    assert error.retryable
    file = await at.saved(task, overwrite=older)
    assert asked_from(at.emulator)[1] >= 2_000_000
    assert sent(at.emulator) <= 1.5 * file.size


async def test_a_disk_without_room_for_a_byte_is_told(at: World) -> None:
    task = await at.task()
    at.put_older(task)

    with disk_of(0):
        error = await at.refused(task, "cannot write to .*still at the service", overwrite=True)

    assert error.retryable
    assert names(at.folder) == [f"{task.ticket}-0.png"]
    await at.saved(task, overwrite=True)


async def test_an_inline_result_meets_a_full_disk(tmp_path: Path) -> None:
    async with world(tmp_path, "dieyuyun") as at:
        task = await at.task(extra={"response_format": "b64_json"}, size=4_000_000)

        with disk_of(2_500_000):
            await at.refused(task, "cannot write to .*still at the service")

        assert names(tmp_path) == []
        await at.saved(task)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/bide-out", "/dev/null", "/dev/null/x"])
async def test_a_directory_that_cannot_be_one_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLDER)
    async with world(tmp_path / place) as at:
        task = await at.task()

        error = await at.refused(task, "cannot write to .*still at the service")

        assert error.retryable
        assert fetched(at.emulator) == []
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == OLDER


async def test_a_directory_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("the superuser may write everywhere")
    async with world(folder) as at:
        task = await at.task()

        error = await at.refused(task, "cannot write to .*still at the service")

        assert error.retryable
        assert (names(folder), fetched(at.emulator)) == ([], [])


async def test_a_directory_where_the_file_belongs_is_told_and_left_alone(at: World) -> None:
    task = await at.task()
    path = at.folder / f"{task.ticket}-0.png"
    (path / "precious").mkdir(parents=True)

    for overwrite in (False, True):
        with pytest.raises(DownloadError, match=r"is there already|cannot write to"):
            await at.client.save(task, at.folder, overwrite=overwrite)

    assert (path / "precious").is_dir()
    assert [name for name in names(at.folder) if not name.startswith(".")] == [path.name]
    shutil.rmtree(path)
    await at.saved(task)
    assert len(fetched(at.emulator)) == 1, "all of it was in the part"


async def test_another_file_of_that_name_is_told_and_left_alone(at: World) -> None:
    task = await at.task()
    path = at.put_older(task)

    error = await at.refused(task, "is there already, and is another file.*set overwrite")

    assert not error.retryable
    assert path.read_bytes() == OLDER
    file = await at.saved(task, overwrite=True)
    assert sent(at.emulator) <= 2 * file.size


async def test_the_same_file_of_that_name_is_taken_for_it(at: World) -> None:
    task = await at.task()
    at.put_older(task).write_bytes(original(at.emulator, task))

    await at.saved(task)
    await at.saved(task)

    assert len(fetched(at.emulator)) == 1


async def test_a_directory_that_vanishes_in_mid_download_is_told(at: World) -> None:
    task = await at.task(size=3_000_000)
    at.emulator.fault(on="asset", drip=500_000)

    saving = asyncio.create_task(at.client.save(task, at.folder))
    await asyncio.sleep(3)
    shutil.rmtree(at.folder)
    with pytest.raises(DownloadError, match="cannot write to") as caught:
        await saving

    assert caught.value.retryable
    assert names(at.folder) == []
    await at.saved(task)


async def test_a_part_that_somebody_has_changed_meanwhile_is_not_passed_off_as_the_file(at: World) -> None:
    task = await at.task(size=3_000_000)
    at.emulator.fault(on="asset", drip=500_000)

    saving = asyncio.create_task(at.client.save(task, at.folder))
    await asyncio.sleep(4)
    part = at.folder / f".{task.ticket}-0.part"
    os.truncate(part, 1000)
    # The next write would make it as long as it was, with a hole.
    with pytest.raises(DownloadError, match="another process has c") as caught:
        await saving

    assert caught.value.retryable
    at.assert_none_but_parts(task)
    await at.saved(task)
