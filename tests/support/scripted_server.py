"""Small servers that misbehave on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    import ssl

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def reply(body: bytes = b"{}", *, status: int = 200, headers: str = "", length: int | None = None) -> bytes:
    """An HTTP answer, byte for byte."""
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {size}\r\nContent-Type: application/json\r\n{headers}\r\n"
    return head.encode() + body


@define
class Server:
    """What a server saw."""

    url: str
    connections: int = 0
    requests: list[bytes] = field(factory=list)
    open: int = 0

    @property
    def heads(self) -> list[str]:
        return [each.partition(b"\r\n\r\n")[0].decode().lower() for each in self.requests]


@asynccontextmanager
async def serving(
    answer: bytes | Answer | list[bytes | Answer], *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A server that gives each request the next answer, the last one for ever; a callable writes for itself."""
    answers = answer if isinstance(answer, list) else [answer]
    seen = Server("")

    async def read(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        return head + await reader.readexactly(length)

    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        seen.connections += 1
        seen.open += 1
        try:
            while True:
                seen.requests.append(await read(reader))
                now = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(now, bytes):
                    writer.write(now)
                else:
                    await now(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            seen.open -= 1
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    seen.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield seen
    finally:
        server.close()
        mine = [task for task in tasks if task is not None]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        await server.wait_closed()


def late(seconds: float, body: bytes = b"{}") -> Answer:
    """Answers after a while."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        writer.write(reply(body))

    return answer


def cut(begin: bytes = b"") -> Answer:
    """Writes the beginning of an answer and breaks off."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        await writer.drain()
        writer.transport.abort()
        raise ConnectionError

    return answer


def drip(pieces: int, seconds: float) -> Answer:
    """An answer of one byte after the other."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", length=pieces))
        for _ in range(pieces):
            await asyncio.sleep(seconds)
            writer.write(b"x")

    return answer
