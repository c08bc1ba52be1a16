"""Two saves of one result that want different things, and rules of downloads at their edges."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from bide import DownloadError, Downloads, Event, EventName, Output
from bide._downloads.download import DownloadJob
from bide._downloads.downloader import Downloader
from bide._http.fetcher import Fetcher
from support.clients import NOWHERE, WEBM, inline, near_client
from support.downloads import (
    Asked,
    Cut,
    Drip,
    chunked,
    failing,
    names,
    ok,
    part_of,
    png,
    store,
)
from support.emulated import now
from support.hostile_server import done

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
