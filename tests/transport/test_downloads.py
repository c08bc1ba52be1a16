"""Saving results: whole or not at all, without the key, inside the folder."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from wires import cut, late, reply, serving

from bide import DownloadError, ErrorDetail, Output, SavedFile, Task, TaskStatus
from bide._downloads import save
from bide._transport import Transport

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 100
MP4 = b"\x00\x00\x00\x18ftypisom" + b"v" * 100


def done(*outputs: Output, ticket: str = "t1") -> Task:
    return Task(ticket=ticket, task_id="x1", status=TaskStatus.SUCCEEDED, outputs=outputs)


def file(body: bytes = PNG, **options: Any) -> bytes:
    return reply(body, **options).replace(b"application/json", b"image/png")


def image(url: str) -> Output:
    return Output(url=url, kind="image")


async def saved(task: Task, folder: Path) -> list[SavedFile]:
    transport = Transport("https://api.example")
    try:
        return await save(transport, task, folder)
    finally:
        await transport.aclose()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("body", "name", "media_type"),
    [
        (PNG, "t1-0.png", "image/png"),
        (b"\xff\xd8\xff" + b"j" * 9, "t1-0.jpg", "image/jpeg"),
        (b"RIFF____WEBPVP8 ", "t1-0.webp", "image/webp"),
        (b"RIFF____WAVEfmt ", "t1-0.wav", "audio/wav"),
        (b"GIF89a....", "t1-0.gif", "image/gif"),
        (MP4, "t1-0.mp4", "video/mp4"),
        (b"\x1aE\xdf\xa3....", "t1-0.webm", "video/webm"),
        (b"ID3.......", "t1-0.mp3", "audio/mpeg"),
        (b"who knows what", "t1-0.bin", "application/x-odd"),
    ],
)
async def test_the_type_is_told_by_the_first_bytes(
    body: bytes, name: str, media_type: str, tmp_path: Path
) -> None:
    answer = reply(body).replace(b"application/json", b"application/x-odd")
    async with serving(answer) as server:
        (kept,) = await saved(done(image(f"{server.url}/evil/..%2f..%2fname.exe?sig=1")), tmp_path)

    assert kept == SavedFile(str(tmp_path / name), len(body), media_type)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == body
    assert os.fspath(kept) == str(tmp_path / name)


async def test_a_large_file_is_written_in_pieces(tmp_path: Path) -> None:
    body = PNG + os.urandom(5_000_000)
    async with serving(file(body)) as server:
        (kept,) = await saved(done(image(server.url)), tmp_path)

    assert (tmp_path / "t1-0.png").read_bytes() == body
    assert kept.size == len(body)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(b"denied", status=403), "HTTP 403: results are kept for a limited time"),
        (reply(b"", status=204), "HTTP 204"),
        (reply(b"<html>", headers="").replace(b"application/json", b"text/html"), "answered with text/html"),
        (reply(b'{"code": "x"}'), "answered with application/json"),
        (reply(b"").replace(b"application/json", b"image/png"), "no byte came"),
        (
            cut(reply(PNG, length=500).replace(b"application/json", b"image/png")),
            "without a whole answer|broke",
        ),
        (cut(), "without a whole answer|broke"),
        (late(100), "no answer in time"),
    ],
)
async def test_what_is_not_the_file_leaves_nothing_and_says_why(
    answer: Any, words: str, tmp_path: Path
) -> None:
    (tmp_path / "t1-0.png").write_bytes(b"an older one")
    async with serving(answer) as server:
        with pytest.raises(DownloadError, match=words) as caught:
            await saved(done(image(f"{server.url}/a.png?signature=secret")), tmp_path)

    assert (caught.value.ticket, caught.value.task_id) == ("t1", "x1")
    assert "secret" not in str(caught.value)
    assert names(tmp_path) == ["t1-0.png"]
    assert (tmp_path / "t1-0.png").read_bytes() == b"an older one"


async def test_redirects_are_followed_five_times_and_no_more(tmp_path: Path) -> None:
    async with serving(file()) as files:
        hop = reply(b"", status=302, headers="Location: /next\r\n")
        last = reply(b"", status=307, headers=f"Location: {files.url}/a.png\r\n")
        async with serving([hop, hop, hop, hop, last]) as server:
            (kept,) = await saved(done(image(server.url)), tmp_path)
            assert kept.size == len(PNG)
        async with serving(hop) as server:
            with pytest.raises(DownloadError, match="more than 5 redirects"):
                await saved(done(image(server.url)), tmp_path)
        away = reply(b"", status=302, headers="Location: file:///etc/passwd\r\n")
        async with serving(away) as server:
            with pytest.raises(DownloadError, match="not an address of a file"):
                await saved(done(image(server.url)), tmp_path)


async def test_inline_results_are_decoded(tmp_path: Path) -> None:
    plain = base64.b64encode(PNG * 3000).decode()
    wrapped = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))

    files = await saved(
        done(*(Output(data=text) for text in (plain, f"data:image/png;base64,{plain}", wrapped))), tmp_path
    )

    assert [Path(file).read_bytes() for file in files] == [PNG * 3000] * 3


@pytest.mark.parametrize(
    ("data", "words"), [("!!!!", "not base64"), ("QUJD" * 9 + "QQ", "cut off"), ("", "no byte came")]
)
async def test_inline_results_that_are_no_base64_leave_nothing(data: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=words):
        await saved(done(Output(data=data)), tmp_path)

    assert names(tmp_path) == []


async def test_parts_that_failed_are_left_out_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    async with serving(file()) as server:
        outputs = image(server.url), Output(error=ErrorDetail("InternalError")), image(server.url)
        await saved(done(*outputs), tmp_path)

    assert names(tmp_path) == ["t1-0.png", "t1-2.png"]
    with pytest.raises(DownloadError, match="neither a URL nor data"):
        await saved(done(Output()), tmp_path)


async def test_only_a_succeeded_task_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x1 is running, not succeeded"):
        await saved(Task(ticket="t1", task_id="x1", status=TaskStatus.RUNNING), tmp_path)


async def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    async with serving(file()) as server:
        with pytest.raises(DownloadError, match=r"cannot write to .*taken.*still at the service"):
            await saved(done(image(server.url)), tmp_path / "taken")


async def test_at_most_four_files_are_fetched_at_once_and_a_cancel_leaves_nothing(tmp_path: Path) -> None:
    async with serving(late(60)) as server:
        nine = done(*(image(server.url) for _ in range(9)))
        task = asyncio.create_task(saved(nine, tmp_path))
        await asyncio.sleep(10)
        assert len(server.requests) == 4
        task.cancel()
        await asyncio.wait([task])

    assert task.cancelled()
    assert names(tmp_path) == []


async def test_the_first_failure_ends_the_other_files_of_the_call(tmp_path: Path) -> None:
    async with serving([reply(b"", status=404), late(1000)]) as server:
        with pytest.raises(DownloadError, match="404"):
            await saved(done(image(server.url), image(server.url)), tmp_path)
        await asyncio.sleep(0.1)

    assert names(tmp_path) == []


async def test_a_signed_address_is_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=PNG)

    transport = Transport("https://api.example", transport=httpx.MockTransport(answer))
    with caplog.at_level(logging.DEBUG):
        await save(transport, done(image("https://files.example/a.png?Signature=hush")), tmp_path)
    await transport.aclose()

    assert "hush" not in caplog.text
    assert names(tmp_path) == ["t1-0.png"]
