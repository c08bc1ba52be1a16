"""What lost a file, a place or an end once: parts of other tasks, addresses that end, faults that nobody foresaw."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bide import DownloadError, Downloads, Event, EventName, Output, Task, TaskStatus
from bide._downloads import download as _download
from bide._downloads.download import DownloadJob
from bide._downloads.downloader import Downloader
from bide._downloads.part_file import PartFile
from bide._http.fetcher import Fetcher
from bide.ledgers import MemoryLedger
from support.clients import NOWHERE, WEBM, inline, near_client
from support.downloads import (
    Asked,
    Cut,
    Drip,
    asked_from,
    chunked,
    failing,
    fetched,
    names,
    ok,
    original,
    part_of,
    png,
    store,
    world,
)
from support.emulated import calls, now
from support.hostile_server import done

# Parts of other tasks ----------------------------------------------------------------------------------------------


async def saved_anew(folder: Path, url: str, task_id: str, **options: Any) -> bytes:
    """What a client of another process saves for a task with a ticket that was used before."""
    outputs = (Output(url=url, kind="image"),)
    task = Task(ticket="hero", task_id=task_id, status=TaskStatus.SUCCEEDED, outputs=outputs)
    async with near_client() as client:
        (file,) = await client.save(task, folder, **options)
    return Path(file.path).read_bytes()


def by_path(asked: Asked) -> bytes:
    """Each path has a file of its own, of one length and one tag."""
    data = png(300_000, asked.path[-1:].encode())
    return part_of(data, asked.start) if asked.start else ok(data)


async def test_a_part_of_another_task_with_the_same_ticket_is_not_published(tmp_path: Path) -> None:
    async with store(by_path) as there:
        assert await saved_anew(tmp_path, f"{there.url}/A", "one") == png(300_000, b"A")
        with pytest.raises(DownloadError, match="is another file than this result"):
            await saved_anew(tmp_path, f"{there.url}/B", "two")

        third = await saved_anew(tmp_path, f"{there.url}/C", "three", overwrite=True)

        assert third == png(300_000, b"C")


@pytest.mark.parametrize("came", [200_000, 300_000])
async def test_what_a_crash_has_left_of_another_task_with_the_same_ticket_is_not_published(
    came: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(asked: Asked) -> bytes | Cut:
        said = by_path(asked)
        return said if asked.path == "/C" else Cut(said[: came - 300_000 or None])

    async with store(answer) as there:
        with monkeypatch.context() as patch:
            patch.setattr(PartFile, "finish", _killed)
            patch.setattr(_download, "MAX_FRUITLESS_TRIES", 1)
            with pytest.raises(DownloadError):
                await saved_anew(tmp_path, f"{there.url}/A", "one")
        assert (tmp_path / ".hero-0.part").stat().st_size == came

        second = await saved_anew(tmp_path, f"{there.url}/C", "two")

        assert second == png(300_000, b"C")


def _killed(*_: Any, **__: Any) -> bool:
    raise OSError("the process has ended here")


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
    clock = SimpleNamespace(now=lambda zone: datetime.fromtimestamp(ahead + now(), zone))
    monkeypatch.setattr(_download, "datetime", clock)
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


# Two who want different things -------------------------------------------------------------------------------------


async def test_who_overwrites_waits_for_a_save_that_does_not_and_then_writes_anew(tmp_path: Path) -> None:
    async def answer(_: Asked) -> bytes:
        await asyncio.sleep(3)
        return ok(png())

    (tmp_path / "t1-0.png").write_bytes(b"older")
    async with store(answer) as there, near_client() as client:
        task = done(f"{there.url}/a")
        keeps = asyncio.create_task(client.save(task, tmp_path))
        await asyncio.sleep(1)
        (file,) = await client.save(task, tmp_path, overwrite=True)

        with pytest.raises(DownloadError, match="is there already"):
            await keeps
        assert Path(file.path).read_bytes() == png()


# Rules at their edges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
async def test_a_page_is_no_media_file_of_any_kind(kind: str, tmp_path: Path) -> None:
    page = ok(b"<html><body>We are busy, come back soon</body></html>")
    async with (
        store(lambda asked: page if asked.number == 1 else ok(png())) as there,
        near_client() as client,
    ):
        (file,) = await client.save(done(f"{there.url}/a", kind=kind), tmp_path)

        assert Path(file.path).read_bytes() == png()
        assert len(there.asked) == 2


async def test_json_is_saved_as_such_where_that_is_what_was_made(tmp_path: Path) -> None:
    """It has no mark of its own: here the server's word is taken."""
    body = b'{"words": []}'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
    async with store(lambda _: head.encode() + body) as there, near_client() as client:
        (file,) = await client.save(done(f"{there.url}/a", kind="file"), tmp_path)

        assert names(tmp_path) == ["t1-0.json"]
        assert (file.media_type, Path(file.path).read_bytes()) == ("application/json", body)


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


@pytest.mark.parametrize(("seconds", "waits"), [(60, True), (61, False)])
async def test_a_minute_is_the_longest_wait_that_a_store_gets(
    seconds: int, waits: bool, tmp_path: Path
) -> None:
    def answer(asked: Asked) -> bytes:
        return failing(503, f"Retry-After: {seconds}\r\n") if asked.number == 1 else ok(png())

    async with store(answer) as there, near_client() as client:
        began = now()
        if waits:
            await client.save(done(f"{there.url}/a"), tmp_path)
        else:
            with pytest.raises(DownloadError, match="after 61 s, as its server asks") as caught:
                await client.save(done(f"{there.url}/a"), tmp_path)
            assert caught.value.retry_after == seconds

        assert now() - began >= 60 if waits else now() - began < 1


async def test_a_part_that_is_shorter_than_it_says_is_gone_on_with(tmp_path: Path) -> None:
    """Its end is well framed, and nobody tells the length of the whole: the range alone shows it."""

    def answer(asked: Asked) -> bytes | Cut:
        if asked.number == 1:
            return Cut(chunked(WEBM[:100_000], is_whole=False))
        if asked.number == 2:
            told = f'206 P\r\nETag: "v1"\r\nContent-Range: bytes {asked.start}-{asked.start + 99_999}/*\r\n'
            piece = WEBM[asked.start : asked.start + 70_000]
            frame = f"HTTP/1.1 {told}Transfer-Encoding: chunked\r\n\r\n{len(piece):x}\r\n"
            return frame.encode() + piece + b"\r\n0\r\n\r\n"
        return part_of(WEBM, asked.start)

    async with store(answer) as there, near_client() as client:
        (file,) = await client.save(done(f"{there.url}/a", kind="video"), tmp_path)

        assert Path(file.path).read_bytes() == WEBM
        assert there.starts == [0, 100_000, 170_000]


async def test_a_part_that_brings_more_than_it_says_and_breaks_off_spoils_nothing(tmp_path: Path) -> None:
    data = png(300_000)

    def answer(asked: Asked) -> bytes | Cut:
        if asked.number == 1:
            return Cut(ok(data[:200_000], length=len(data)))
        if asked.number == 2:
            told = (
                f'206 P\r\nETag: "v1"\r\nContent-Range: bytes {asked.start}-{len(data) - 1}/{len(data)}\r\n'
            )
            return Cut(
                f"HTTP/1.1 {told}Transfer-Encoding: chunked\r\n\r\n30000\r\n".encode() + bytes(150_000)
            )
        return failing(416, f"Content-Range: bytes */{len(data)}\r\n") if asked.start else ok(data)

    async with store(answer) as there, near_client() as client:
        (file,) = await client.save(done(f"{there.url}/a"), tmp_path)

        assert Path(file.path).read_bytes() == data


async def test_a_result_that_comes_inline_after_a_cut_is_written_from_its_begin(tmp_path: Path) -> None:
    async def fresh(_: float) -> Output:
        return Output(data=base64.b64encode(png()).decode(), kind="image")

    async def nowhere() -> None:
        return None

    def answer(asked: Asked) -> bytes | Cut:
        return Cut(ok(png()[:60_000], length=100_000)) if asked.number == 1 else failing(403)

    async with store(answer) as there:
        fetcher = Fetcher(NOWHERE)
        downloader = Downloader(fetcher, Downloads())
        file, is_new = await downloader.save(
            DownloadJob(
                output=Output(url=f"{there.url}/a", kind="image"),
                folder=tmp_path,
                stem="t1-0",
                identity="x1",
                overwrite=False,
                refresh=fresh,
                on_progress=lambda *_: None,
                find_saved=nowhere,
            )
        )

        assert is_new
        assert Path(file.path).read_bytes() == png()
        await downloader.aclose()
        await fetcher.aclose()


async def test_a_file_that_says_that_it_is_too_long_is_refused_before_it_comes(tmp_path: Path) -> None:
    """Nothing of its body is sent here: who waited for that would wait for ever."""
    head = ok(b"", length=101)
    limited = near_client(downloads=Downloads(largest_image=100))
    async with store(lambda _: Drip([head], 1000)) as there, limited as client:
        began = now()

        with pytest.raises(DownloadError, match="has 101 bytes or more, and 100 are allowed"):
            await client.save(done(f"{there.url}/a"), tmp_path)

        assert now() - began < 1


@pytest.mark.parametrize("how", ["told", "chunked", "inline"])
async def test_the_last_that_is_told_of_a_file_is_all_of_it(how: str, tmp_path: Path) -> None:
    heard: list[Event] = []
    said = chunked(png()) if how == "chunked" else ok(png())
    async with store(lambda _: said) as there, near_client(on_event=heard.append) as client:
        task = inline(base64.b64encode(png()).decode()) if how == "inline" else done(f"{there.url}/a")

        (file,) = await client.save(task, tmp_path)

        last = [event for event in heard if event.name is EventName.SAVING][-1]
        assert (last.output, last.bytes, last.total) == (0, file.size, file.size)


@pytest.mark.parametrize("total", ["300000", "*"])
async def test_bytes_beyond_the_range_that_a_part_tells_are_not_taken(total: str, tmp_path: Path) -> None:
    """A part that brings more than its range says, and breaks off then: what came beyond it is nobody knows what."""
    data = png(300_000)

    def answer(asked: Asked) -> Any:
        if asked.number == 1:
            return Cut(ok(data[:100_000], length=len(data)))
        if asked.number == 2:  # 50 000 bytes by its range, then 10 000 of something else, then a cut
            told = f'206 P\r\nETag: "v1"\r\nContent-Range: bytes 100000-149999/{total}\r\n'
            body = data[100_000:150_000] + b"?" * 10_000
            return Cut(f"HTTP/1.1 {told}Transfer-Encoding: chunked\r\n\r\n30000\r\n".encode() + body)
        return part_of(data, asked.start) if asked.start else ok(data)

    async with store(answer) as there, near_client() as client:
        (file,) = await client.save(done(f"{there.url}/a"), tmp_path)
        assert Path(file.path).read_bytes() == data
