"""Saving results: whole or not at all, without the key, inside the folder."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import resource
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from bide import (
    Client,
    ClientClosedError,
    DashScope,
    DownloadError,
    ErrorDetail,
    Output,
    SavedFile,
    Task,
    TaskStatus,
)
from bide._downloads.part_file import PartFile
from support.scripted_server import cut, late, reply, serving
from support.waits import A_MINUTE

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 100
MP4 = b"\x00\x00\x00\x18ftypisom" + b"v" * 100


def done(*outputs: Output, ticket: str = "t1") -> Task:
    return Task(ticket=ticket, task_id="x1", status=TaskStatus.SUCCEEDED, outputs=outputs)


def file(body: bytes = PNG, **options: Any) -> bytes:
    return reply(body, **options).replace(b"application/json", b"image/png")


def image(url: str) -> Output:
    return Output(url=url, kind="image")


def client_here(**options: Any) -> Client:
    """A client whose API is on loopback, so that files may be; nobody listens there."""
    return Client(DashScope(base_url="http://127.0.0.1:9/api/v1"), api_key="sk-canary-0123456789", **options)


async def saved(task: Task, folder: Path, **options: Any) -> list[SavedFile]:
    async with client_here() as client:
        return await client.save(task, folder, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("body", "name", "media_type"),
    [
        (PNG, "t1-0.png", "image/png"),
        (b"\xff\xd8\xff" + b"j" * 9, "t1-0.jpg", "image/jpeg"),
        (b"RIFF\x08\0\0\0WEBPVP8 ", "t1-0.webp", "image/webp"),
        (b"RIFF____WAVEfmt ", "t1-0.wav", "audio/wav"),
        (b"GIF89a....", "t1-0.gif", "image/gif"),
        (MP4, "t1-0.mp4", "video/mp4"),
        (b"\0\0\0\x10ftypavif....", "t1-0.avif", "image/avif"),
        (b"\x1aE\xdf\xa3....", "t1-0.webm", "video/webm"),
        (b"ID3.......", "t1-0.mp3", "audio/mpeg"),
        (b"who\0knows what", "t1-0.bin", "application/x-odd"),
    ],
)
async def test_the_type_is_told_by_the_first_bytes(
    body: bytes, name: str, media_type: str, tmp_path: Path
) -> None:
    answer = reply(body).replace(b"application/json", b"application/x-odd")
    async with serving(answer) as server:
        (kept,) = await saved(done(image(f"{server.url}/evil/..%2f..%2fname.exe?sig=1")), tmp_path)

    digest = hashlib.sha256(body).hexdigest()
    assert kept == SavedFile(str(tmp_path / name), len(body), digest, media_type)
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
        (reply(b"denied", status=403), "address of the result no longer works"),
        (reply(b"", status=204), "HTTP 204, which is no file"),
        (reply(b"teapot", status=418), "HTTP 418, which is no file"),
        (file(b"<html>busy</html>"), "with text and not with the image.*<html>busy"),
        (reply(b'{"code": "x"}'), "with text and not with the image .application/json.*code"),
        (reply(b"").replace(b"application/json", b"image/png"), "no byte came"),
        (
            cut(reply(PNG, length=500).replace(b"application/json", b"image/png")),
            "without a whole reply|broke",
        ),
        (cut(), "without a whole reply|broke"),
        (late(100), "no reply in time"),
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


async def test_a_file_that_is_shorter_than_told_leaves_nothing(tmp_path: Path) -> None:
    """A transport of the caller's may not look at the length itself."""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=PNG, headers={"content-length": "5000"})

    async with client_here(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(DownloadError, match=f"broke off: {len(PNG)} of 5000 bytes") as caught:
            await client.save(done(image("https://files.example/a")), tmp_path)

    assert caught.value.retryable
    assert names(tmp_path) == []


@pytest.mark.parametrize("packing", ["gzip", "br", "identity, GZIP"])
async def test_a_file_that_came_packed_is_not_saved_as_it_is(packing: str, tmp_path: Path) -> None:
    async with serving(file(headers=f"Content-Encoding: {packing}\r\n")) as server:
        with pytest.raises(DownloadError, match="came packed with"):
            await saved(done(image(server.url)), tmp_path)
    async with serving(file(headers="Content-Encoding: aws-chunked\r\n")) as server:
        await saved(done(image(server.url)), tmp_path)

    assert names(tmp_path) == ["t1-0.png"]


@pytest.mark.parametrize(
    "url",
    ["http://[bad/x", "https://", "ftp://files.example/x", "file:///etc/passwd", "/x", "http://h:port/"],
)
async def test_an_address_that_is_none_is_told_as_such(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"^.* is not fetched: "):
        await saved(done(image(url)), tmp_path)

    assert names(tmp_path) == []


async def test_an_odd_fault_of_a_callers_transport_is_a_failed_download(tmp_path: Path) -> None:
    class Sync(httpx.SyncByteStream):
        pass

    class Odd(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield PNG
            raise KeyError("odd")

    for stream, words in ((Sync(), "must answer with an async stream"), (Odd(), "an error.*KeyError")):

        def answer(_: httpx.Request, stream: Any = stream) -> httpx.Response:
            return httpx.Response(200, stream=stream)

        async with client_here(transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(DownloadError, match=words):
                await client.save(done(image("https://files.example/a")), tmp_path)

    assert names(tmp_path) == []


async def test_after_the_end_nothing_is_fetched(tmp_path: Path) -> None:
    async with serving(file()) as server:
        client = client_here()
        await client.aclose()
        with pytest.raises(ClientClosedError):
            await client.save(done(image(server.url)), tmp_path)

        assert server.requests == []


async def test_redirects_are_followed_five_times_and_no_more(tmp_path: Path) -> None:
    async with serving(file()) as files:
        hop = reply(b"", status=302, headers="Location: /next\r\n")
        last = reply(b"", status=307, headers=f"Location: {files.url}/a.png\r\n")
        async with serving([hop, hop, hop, hop, last]) as server:
            (kept,) = await saved(done(image(server.url)), tmp_path)
            assert kept.size == len(PNG)
        assert not [head for head in files.heads + server.heads if "authorization" in head]
        async with serving(hop) as server:
            with pytest.raises(DownloadError, match="more than 5 redirects"):
                await saved(done(image(server.url)), tmp_path)
    for away in ("file:///etc/passwd", "//[bad", "ftp://files.example/a"):
        async with serving(reply(b"", status=302, headers=f"Location: {away}\r\n")) as server:
            with pytest.raises(DownloadError, match=r"address|scheme|fetched"):
                await saved(done(image(server.url)), tmp_path)


async def test_inline_results_are_decoded(tmp_path: Path) -> None:
    plain = base64.b64encode(PNG * 3000).decode()
    wrapped = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))

    files = await saved(
        done(*(Output(data=text) for text in (plain, f"data:image/png;base64,{plain}", wrapped))), tmp_path
    )

    assert [Path(file).read_bytes() for file in files] == [PNG * 3000] * 3


async def test_a_large_inline_result_lets_the_loop_go_on(tmp_path: Path) -> None:
    body = PNG + bytes(10_000_000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    (kept,) = await saved(done(Output(data=base64.b64encode(body).decode())), tmp_path)
    counter.cancel()

    assert Path(kept).read_bytes() == body
    assert turns > 150, "one turn for each slice at least"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("!!!!", "not base64"),
        ("猫猫猫猫", "not base64"),
        ("QUJD" * 9 + "QQ", "its end is missing"),
        ("", "no byte came"),
    ],
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
    with pytest.raises(DownloadError, match="address of the result"):
        await saved(done(Output()), tmp_path)


async def test_only_a_succeeded_task_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x1 is running, not succeeded"):
        await saved(Task(ticket="t1", task_id="x1", status=TaskStatus.RUNNING), tmp_path)


async def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    async with serving(file()) as server:
        with pytest.raises(DownloadError, match=r"cannot write to .*taken.*still at the service"):
            await saved(done(image(server.url)), tmp_path / "taken")


@pytest.mark.parametrize("ticket", ["", "../up", "/../up", "a/b", "nul\0"])
async def test_a_ticket_that_leads_out_of_the_folder_writes_nothing(ticket: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(ValueError, match="cannot name a file"):
        await saved(done(Output(data=base64.b64encode(PNG).decode()), ticket=ticket), folder)

    assert names(tmp_path) == []


async def test_a_full_disk_leaves_nothing_and_says_that_the_result_is_not_lost(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with serving(file(PNG + bytes(3_000_000))) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
        try:
            with pytest.raises(DownloadError, match=r"cannot write to .*too large.*still at the service"):
                await saved(done(image(server.url)), tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["mkdir", "open", "write", "finish", "close"])
@pytest.mark.parametrize("scope", [False, True])
async def test_a_cancel_while_a_thread_works_waits_for_it_and_leaves_nothing_open(
    place: str, scope: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread would write, or hold the file, behind our back; anyio cancels again and again meanwhile."""
    folder, begun, go_on = tmp_path / "out", threading.Event(), threading.Event()
    owner = Path if place == "mkdir" else PartFile
    work = getattr(owner, place)

    def slowly(*args: Any, **options: Any) -> Any:
        begun.set()
        go_on.wait(A_MINUTE)
        return work(*args, **options)

    monkeypatch.setattr(owner, place, slowly)
    data = base64.b64encode(PNG).decode()
    client = client_here()
    await client.statistics()
    before = descriptors()

    async def one() -> None:
        with anyio.CancelScope() as cancel:
            scopes.append(cancel)
            await client.save(done(Output(data=data)), folder)

    scopes: list[anyio.CancelScope] = []
    task = asyncio.create_task(one())
    while not begun.is_set():
        await asyncio.sleep(0)
    if scope:
        scopes[0].cancel()
    else:
        task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([task])

    assert task.cancelled()
    assert descriptors() == before
    await client.aclose()
    if folder.exists():
        assert names(folder) in ([], ["t1-0.png"]), "a whole file or none"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_many_failed_downloads_leak_no_descriptor(tmp_path: Path) -> None:
    broken = cut(file(PNG, length=500))
    async with serving(broken) as server, client_here() as client:
        before = descriptors()
        for _ in range(10):
            with pytest.raises(DownloadError):
                await client.save(done(*[image(server.url)] * 3), tmp_path)
        await asyncio.sleep(0.1)

        assert server.connections >= 30
        assert descriptors() <= before
    assert names(tmp_path) == []


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


async def test_one_file_that_fails_does_not_keep_the_others_from_being_saved(tmp_path: Path) -> None:
    async with serving([reply(b"", status=418), file()]) as server:
        with pytest.raises(DownloadError, match="418") as caught:
            await saved(done(*[image(server.url)] * 3), tmp_path)

    saved_all_the_same = names(tmp_path)
    assert len(saved_all_the_same) == 2
    assert all(name in " ".join(caught.value.__notes__) for name in saved_all_the_same)


async def test_a_single_output_can_be_saved(tmp_path: Path) -> None:
    async with serving(file()) as server:
        (kept,) = await saved(done(*[image(server.url)] * 3), tmp_path, output=1)
        for wrong, words in ((3, "from 0 to 2"), (-1, "whole number"), (True, "whole"), ("1", "whole")):
            with pytest.raises(ValueError, match=f"output must be .*{words}"):
                await saved(done(*[image(server.url)] * 3), tmp_path, output=wrong)

        assert len(server.requests) == 1
    assert kept.path == str(tmp_path / "t1-1.png")
    assert names(tmp_path) == ["t1-1.png"]


@pytest.mark.parametrize("directory", [b"out", 3, None, "", "nul\0"])
async def test_a_directory_that_is_none_is_told_before_anything_is_fetched(directory: Any) -> None:
    async with serving(file()) as server:
        with pytest.raises((TypeError, ValueError), match="directory must"):
            await saved(done(image(server.url)), directory)

        assert server.requests == []


async def test_a_signed_address_is_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=PNG)

    async with client_here(transport=httpx.MockTransport(answer)) as client:
        with caplog.at_level(logging.DEBUG):
            await client.save(done(image("https://files.example/a.png?Signature=hush")), tmp_path)

    assert "hush" not in caplog.text
    assert names(tmp_path) == ["t1-0.png"]
