"""Stores that answer falsely, slowly or too often: no file is told as whole that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bide import DownloadError
from bide._http.fetcher import READ_TIMEOUT_SECONDS, CutError, Fetcher
from support.clients import NOWHERE, WEBM, near_client
from support.downloads import (
    Answer,
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
from support.hostile_server import SECRET, done

# Stores that lie, or do what they may ------------------------------------------------------------------------------


@pytest.mark.parametrize("total", ["", "*"])
async def test_a_short_part_after_a_cut_body_without_a_length_is_not_the_whole(
    total: str, tmp_path: Path
) -> None:
    """A store may answer a long range by a part of it (RFC 9110, 14.2), and need not tell how long the whole is."""

    def answer(asked: Asked) -> bytes | Cut:
        if asked.number == 1:
            return Cut(chunked(WEBM[:100_000], is_whole=False))
        if not asked.start:
            return ok(WEBM)
        return part_of(WEBM, asked.start, asked.start + 70_000, total=total)

    async with store(answer) as there, near_client() as client:
        (file,) = await client.save(done(f"{there.url}/a", kind="video"), tmp_path)

        assert Path(file.path).read_bytes() == WEBM
        assert there.starts[:2] == [0, 100_000]
        assert len(there.asked) <= 8


async def test_parts_whose_total_nobody_tells_are_never_told_as_whole(tmp_path: Path) -> None:
    def answer(asked: Asked) -> bytes | Cut:
        if not asked.start:
            return Cut(chunked(WEBM[:100_000], is_whole=False))
        return part_of(WEBM, asked.start, asked.start + 70_000, total="*")

    async with store(answer) as there, near_client() as client:
        with pytest.raises(DownloadError, match="could not be fetched") as caught:
            await client.save(done(f"{there.url}/a", kind="video"), tmp_path)

        assert caught.value.retryable
        assert not [name for name in names(tmp_path) if not name.startswith(".")]
        assert len(there.asked) <= 20


async def test_an_empty_answer_after_a_cut_is_not_the_rest(tmp_path: Path) -> None:
    def answer(asked: Asked) -> bytes | Cut:
        if asked.number == 1:
            return Cut(chunked(WEBM[:100_000], is_whole=False))
        return ok(b"", tag='"v2"')

    async with store(answer) as there, near_client() as client:
        with pytest.raises(DownloadError, match="no byte came") as caught:
            await client.save(done(f"{there.url}/a", kind="video"), tmp_path)

        assert caught.value.retryable
        assert not [name for name in names(tmp_path) if not name.startswith(".")]
        assert len(there.asked) <= 8


def more_than_told(asked: Asked) -> bytes | Cut:
    data = png(300_000)
    if asked.number == 1:
        return Cut(ok(data[:200_000], length=len(data)))
    if asked.number == 2:
        head = f'206 P\r\nETag: "v1"\r\nContent-Range: bytes {asked.start}-{len(data) - 1}/{len(data)}'
        body = data[asked.start :] + b"more" * 10
        frame = f"HTTP/1.1 {head}\r\nTransfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n"
        return frame.encode() + body + b"\r\n0\r\n\r\n"
    return failing()


def ever_two_more(asked: Asked) -> bytes | Cut:
    if not asked.start:
        return Cut(chunked(png(300_000)[:100_000], is_whole=False))
    return part_of(b"A" * (asked.start + 1), asked.start, total=f"{asked.start + 3}")


@pytest.mark.parametrize("answer", [more_than_told, ever_two_more])
async def test_a_store_that_brings_nothing_is_not_stormed(answer: Answer, tmp_path: Path) -> None:
    async with store(answer) as there, near_client() as client:
        began = now()

        with pytest.raises(DownloadError) as caught:
            await client.save(done(f"{there.url}/a"), tmp_path)

        assert caught.value.retryable
        assert len(there.asked) <= 10
        assert now() - began > 5


async def test_what_a_store_echoes_of_an_address_is_in_no_error(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Cut:
        return Cut(asked.line + b" is what you asked for\r\n\r\n")

    async with store(answer) as there, near_client() as client:
        with pytest.raises(DownloadError) as caught:
            await client.save(done(f"{there.url}/a?Signature={SECRET}"), tmp_path)

        assert SECRET not in repr([str(caught.value), caught.value.__cause__, *caught.value.args])


# A head that takes its time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"] * 20,
        [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 20],
    ],
)
async def test_an_endless_head_is_a_cut_after_half_a_minute(pieces: list[bytes]) -> None:
    async with store(lambda _: Drip(pieces, 7.0)) as there:
        fetcher, began = Fetcher(NOWHERE), now()
        with pytest.raises(CutError):
            async with fetcher.open(f"{there.url}/a", {}):
                pass

        assert READ_TIMEOUT_SECONDS <= now() - began <= READ_TIMEOUT_SECONDS + 1
        await fetcher.aclose()
