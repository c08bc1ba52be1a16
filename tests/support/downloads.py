"""A client at an emulator, a directory to save to, and what may be in it after a save, good or bad."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field, frozen

from bide import Client, DownloadError, Event, EventName, SavedFile, Task, TaskHandle
from bide._downloads.part_file import PartFile
from bide.emulator import Emulator, RequestRecord
from bide.ledgers import Ledger, MemoryLedger
from support.emulated import calls, client_at, emulator_with, image, truth, video
from support.waits import A_MINUTE

SIZE = 300_000
OLDER = b"an older file, which is nobody's business"


def original(emulator: Emulator, task: Task, place: int = 0, *, state: int = 0) -> bytes:
    """The bytes of a task's file as the emulator has them, after so many changes of it."""
    made = truth(emulator, task.task_id) if task.task_id else emulator.tasks()[-1]
    if not state:
        return emulator._assets.content(made, place)
    file = emulator._assets._file(made, f"{made.prompt}#{place}#{state}")
    return b"".join(file.pieces(0, len(file)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def fetched(emulator: Emulator) -> list[RequestRecord]:
    return calls(emulator, "asset")


def asked_from(emulator: Emulator) -> list[int]:
    """For each request for a file, the byte from which on it was asked for."""
    ranges = [each.headers.get("range", "bytes=0-") for each in fetched(emulator)]
    return [int(each.removeprefix("bytes=").removesuffix("-")) for each in ranges]


def sent(emulator: Emulator) -> int:
    """Bytes of files that went out."""
    return sum(each.sent or 0 for each in fetched(emulator))


class World:
    """What a test of downloads needs; the emulator and the client live as long as `world` is entered."""

    def __init__(self, emulator: Emulator, client: Client, ledger: Ledger, folder: Path) -> None:
        self.emulator = emulator
        self.client = client
        self.ledger = ledger
        self.folder = folder
        self.events: list[Event] = []
        self.handles: list[TaskHandle] = []  # what somebody holds stays on record in memory, too

    async def task(
        self, prompt: str = "a cat", *, size: int = SIZE, kind: str = "image", **fields: Any
    ) -> Task:
        """A task that has ended, with a file of so many bytes at least."""
        make = video if kind == "video" else image
        if kind == "image":
            fields.setdefault("size", "512*512")  # drawn in a moment
        self.handles.append(await self.client.submit(make(f"{prompt} [bytes {size}] [seconds 1]", **fields)))
        return await self.handles[-1].result()

    async def saved(self, task: Task, *, state: int = 0, **options: Any) -> SavedFile:
        """Save the only file of *task*, and see that all that should be is true of it."""
        files = await self.client.save(task, self.folder, **options)

        assert len(files) == 1
        await self.assert_whole(task, files[0], state=state)
        assert not [name for name in names(self.folder) if name.startswith(".")]
        return files[0]

    async def assert_whole(self, task: Task, file: SavedFile, *, place: int = 0, state: int = 0) -> None:
        """It has the emulator's bytes, and its figures are theirs, in the ledger as well."""
        data = original(self.emulator, task, place, state=state)
        path = Path(file.path)
        assert path.read_bytes() == data
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert path.name == f"{task.ticket}-{place}.{'mp4' if data[4:8] == b'ftyp' else 'png'}"
        record = await self.ledger.get(task.ticket)
        assert record is not None
        known = [each for each in record.files if each.path == str(path.absolute())]
        assert [(each.size, each.sha256) for each in known] == [(file.size, file.sha256)]

    async def refused(self, task: Task, words: str, **options: Any) -> DownloadError:
        """Save in vain, where nothing is and where an older file is: it is absent, or untouched."""
        with pytest.raises(DownloadError, match=words) as caught:
            await self.client.save(task, self.folder, **options)

        assert (caught.value.ticket, caught.value.task_id) == (task.ticket, task.task_id)
        assert "Signature" not in str(caught.value)
        self.assert_none_but_parts(task)
        record = await self.ledger.get(task.ticket)
        assert record is not None
        assert record.files == ()
        return caught.value

    def put_older(self, task: Task, extension: str = "png") -> Path:
        """Put a file of the same name there that has been there before."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{task.ticket}-0.{extension}"
        path.write_bytes(OLDER)
        return path

    def assert_none_but_parts(self, task: Task) -> None:
        part = f".{task.ticket}-0.part"
        for name in names(self.folder):
            if name in (part, f"{part}.log"):
                continue
            assert name.startswith(f"{task.ticket}-0.")
            assert (self.folder / name).read_bytes() == OLDER

    def told(self, name: EventName) -> list[Event]:
        return [event for event in self.events if event.name is name]


@asynccontextmanager
async def world(
    folder: Path,
    service: str = "dashscope",
    *,
    ledger: Ledger | None = None,
    options: dict[str, Any] | None = None,
    emulator: Emulator | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """A client with these *options* at an emulator with these *settings* (or at one that runs already)."""
    if emulator is None:
        async with emulator_with(**settings) as own:
            async with world(folder, service, ledger=ledger, options=options, emulator=own) as there:
                yield there
        return
    ledger = ledger or MemoryLedger()
    heard: list[Event] = []
    client = client_at(emulator, service, ledger=ledger, on_event=heard.append, **(options or {}))
    async with client:
        there = World(emulator, client, ledger, folder)
        there.events = heard
        yield there


# A store of our own ----------------------------------------------------------------------------------------------


@frozen
class Asked:
    """One request: the first byte that it asks for, and which request it is, from 1 on."""

    path: str
    start: int
    number: int
    line: bytes


@frozen
class Cut:
    """These bytes, and then the end of the connection."""

    data: bytes


@frozen
class Drip:
    """Piece by piece, with so many seconds after each."""

    pieces: list[bytes]
    seconds: float


Said = bytes | Cut | Drip
Answer = Callable[[Asked], Said | Awaitable[Said]]


@define
class Store:
    """Where files are kept, and what it was asked for."""

    url: str = ""
    asked: list[Asked] = field(factory=list)

    @property
    def starts(self) -> list[int]:
        return [each.start for each in self.asked]


@asynccontextmanager
async def store(answer: Answer) -> AsyncIterator[Store]:
    """A store that answers byte for byte as a test says."""
    seen, tasks = Store(), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = asyncio.current_task()
        assert mine is not None
        tasks.add(mine)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *fields = head.split(b"\r\n")
                ranges = [each[13:-1] for each in fields if each.lower().startswith(b"range: bytes=")]
                asked = Asked(line.split()[1].decode(), int(*ranges), len(seen.asked) + 1, line)
                seen.asked.append(asked)
                said = answer(asked)
                await send(await said if isinstance(said, Awaitable) else said, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def send(said: Said, writer: asyncio.StreamWriter) -> None:
        if isinstance(said, Drip):
            for piece in said.pieces:
                writer.write(piece)
                await asyncio.sleep(said.seconds)
            return
        writer.write(said.data if isinstance(said, Cut) else said)
        await writer.drain()
        if isinstance(said, Cut):
            writer.close()
            await writer.wait_closed()
            raise ConnectionResetError

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield seen
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def png(size: int = 100_000, fill: bytes = b"A") -> bytes:
    """A PNG of just so many bytes, as far as its structure goes."""
    text = fill * (size - 57)
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17)
    return head + len(text).to_bytes(4, "big") + b"tEXt" + text + bytes(8) + b"IEND\xaeB`\x82"


def ok(data: bytes, *, length: int | None = None, tag: str = '"v1"') -> bytes:
    """The answer 200 with *data*."""
    size = len(data) if length is None else length
    return f"HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {size}\r\n\r\n".encode() + data


def part_of(data: bytes, start: int, end: int | None = None, *, total: str = "", tag: str = '"v1"') -> bytes:
    """The answer 206 with the bytes of *data* from *start* to *end*."""
    piece = data[start:end]
    told = f"bytes {start}-{start + len(piece) - 1}/{total or len(data)}"
    head = f"HTTP/1.1 206 OK\r\nETag: {tag}\r\nContent-Range: {told}\r\nContent-Length: {len(piece)}\r\n\r\n"
    return head.encode() + piece


def chunked(data: bytes, *, is_whole: bool = True, tag: str = '"v1"') -> bytes:
    """The answer 200 with *data*, whose length nobody tells."""
    end = b"0\r\n\r\n" if is_whole else b""
    head = f"HTTP/1.1 200 OK\r\nETag: {tag}\r\nTransfer-Encoding: chunked\r\n\r\n{len(data):x}\r\n"
    return head.encode() + data + b"\r\n" + end


def failing(status: int = 503, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{headers}\r\n".encode()


class SlowDisk:
    """A disk whose write number *held* takes until `go`, however long that is.

    Virtual time stands still meanwhile, but for what a test advances by hand.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: int = 1) -> None:
        self.go = threading.Event()
        self.under_way = 0
        self.at_close: list[int] = []
        """Writes that were under way when a part was closed."""
        self._writing = threading.Event()
        self._writes = 0
        write, close = PartFile.write, PartFile.close

        def slow(part: PartFile, piece: Any) -> None:
            self.under_way += 1
            self._writes += 1
            try:
                if self._writes == held:
                    self._writing.set()
                    assert self.go.wait(A_MINUTE)
                write(part, piece)
            finally:
                self.under_way -= 1

        def closed(part: PartFile) -> None:
            self.at_close.append(self.under_way)
            close(part)

        monkeypatch.setattr(PartFile, "write", slow)
        monkeypatch.setattr(PartFile, "close", closed)

    async def writing(self) -> None:
        """Wait until that write is under way, and all that can go on meanwhile has."""
        while not self._writing.is_set():
            await asyncio.sleep(0)
        await settle()


async def settle() -> None:
    """Let all go on that needs no time."""
    for _ in range(100):
        await asyncio.sleep(0)
