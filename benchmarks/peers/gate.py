"""What goes wrong between a client and a service: a gate in front of the service, at the level of its connections.

The service behind it stays whole and goes on with its tasks, as real services do. Its own rules are not changed: the
gate reads no more of the traffic than the method of a request and the status of its answer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any, Self

CHUNK = 2**16


@dataclass(frozen=True)
class Mishap:
    """What happens to a service; seconds count from the first request that reaches it.

    Attributes:
        cut: of which accepted create, counted from 1, the answer is cut. The task is made and paid for.
        outage: when the service goes away, and for how many seconds. Connections are reset, and then refused.
        held: how many slots another user of the key holds from the begin on, and for how many seconds.
    """

    cut: int | None = None
    outage: tuple[float, float] | None = None
    held: tuple[int, float] | None = None


class Gate:
    """A port of this machine that leads to the service at *origin*, until the mishap comes.

    *hold* makes the other user take slots, before the first request goes through.
    """

    def __init__(
        self, origin: str, mishap: Mishap, hold: Callable[[int, float], Awaitable[None]] | None = None
    ) -> None:
        self._to = urlsplit(origin)
        self._mishap = mishap
        self._hold = hold
        self._accepted = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun: asyncio.Task[None] | None = None
        self.origin = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        self.origin = f"http://127.0.0.1:{self._port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._begun is None:
            self._begun = self._start(self._begin())
        self._start(self._connect(reader, writer, self._begun))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, begun: asyncio.Task[None]
    ) -> None:
        await begun
        with suppress(OSError):
            there, back = await asyncio.open_connection(self._to.hostname, self._to.port)
            self._writers |= {writer, back}
            # The answer is cut on the way back, so each way has to know what the last request was.
            line = _Line(writer, back)
            await asyncio.gather(
                self._pump(reader, back, line.asked), self._pump(there, writer, self._answered(line))
            )

    async def _begin(self) -> None:
        """Let the other user in, and set the time of the outage."""
        if self._mishap.held is not None and self._hold is not None:
            await self._hold(*self._mishap.held)
        if self._mishap.outage is not None:
            self._start(self._go_away(*self._mishap.outage))

    async def _go_away(self, after: float, seconds: float) -> None:
        await asyncio.sleep(after)
        self._server.close()
        self._reset_all()
        await asyncio.sleep(seconds)
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)

    def _reset_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allows: Callable[[bytes], bool]
    ) -> None:
        """Carry bytes until one side closes, or *allows* does not let them pass."""
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if not allows(chunk):
                    break
                writer.write(chunk)
                await writer.drain()
        writer.close()
        self._writers.discard(writer)

    def _answered(self, line: _Line) -> Callable[[bytes], bool]:
        def allows(chunk: bytes) -> bool:
            if line.is_create and chunk.startswith(b"HTTP/1.1 2"):
                line.is_create = False
                self._accepted += 1
                if self._accepted == self._mishap.cut:
                    line.reset()
                    return False
            return True

        return allows


class _Line:
    """One connection of a client, and whether its last request was a create (each POST of these services is one)."""

    def __init__(self, *ends: asyncio.StreamWriter) -> None:
        self._ends = ends
        self.is_create = False

    def asked(self, chunk: bytes) -> bool:
        """A chunk of a request: the first one begins with its method."""
        if chunk.startswith((b"POST ", b"GET ")):
            self.is_create = chunk.startswith(b"POST ")
        return True

    def reset(self) -> None:
        """Break the connection off, on both sides."""
        for end in self._ends:
            end.transport.abort()
