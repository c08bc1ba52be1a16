"""The sockets: requests come in as `Call`, answers go out as ordered, faults included."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from bide.emulator._answers import Answer, Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bide.emulator._faults import Fault
    from bide.emulator._settings import Clock

LARGEST_BODY = 64 * 2**20
"""Bytes. Pictures may come inside a create as base64."""

_KEPT_ALIVE = 24 * 3600.0
"""Longer than any poll interval: the emulator never closes an idle connection."""

_BODILESS = (204, 304)
_DRIP_SECONDS = 0.1
"""Seconds between two pieces of a drip, unless a piece would be less than a byte."""


@dataclass
class Meter:
    """The number of bytes of one answer's body that went into the socket so far."""

    sent: int = 0


class Delivery:
    """What the network does with an answer.

    Args:
        meter: counts the bytes of the body, which is then sent piece by piece. Without a meter it is sent at once.
    """

    def __init__(
        self, answer: Answer | None, fault: Fault | None = None, *, meter: Meter | None = None
    ) -> None:
        self.answer = answer
        self.meter = meter
        self.delay = (answer.wait if answer else 0.0) + (fault.delay if fault else 0.0)
        self.cut = answer is None or (fault is not None and fault.drop is not None)
        self.truncate = fault.truncate if fault else None
        self.length = fault.length if fault else None
        self.drip = fault.drip if fault else None


Handler = Callable[[Call], Delivery]


class Listener:
    """One origin: a listening socket, and the function that decides how each request is answered."""

    def __init__(self, decide: Handler, clock: Clock) -> None:
        self._decide = decide
        self._clock = clock
        self._closing = asyncio.Event()
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self._respond)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=_KEPT_ALIVE,
            shutdown_timeout=0.5,
            # A client that disconnects ends the wait of its own request (a delay may be hours). The effect that the
            # request has had by then stays.
            handler_cancellation=True,
        )

    async def start(self, host: str, port: int) -> str:
        """Listen. Returns the origin."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        shown, bound = self._runner.addresses[0][:2]
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{bound}"

    async def aclose(self) -> None:
        """Stop listening, and cut open connections."""
        self._closing.set()
        await self._runner.cleanup()

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        delivery = self._decide(await _call(request))
        if delivery.delay:
            await self._sleep(delivery.delay)
        answer = delivery.answer
        if answer is None or delivery.cut or self._closing.is_set():
            return _cut(request)
        headers = {"Date": self._clock.date(), **answer.headers}
        if delivery.meter is None and (delivery.truncate is None or delivery.truncate >= answer.length):
            return web.Response(status=answer.status, headers=headers, body=answer.body)
        return await self._stream(request, delivery, answer, headers)

    async def _stream(
        self, request: web.Request, delivery: Delivery, answer: Answer, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Announce a length and send the body piece by piece. If it ends before that length, close the connection."""
        promised = answer.length if delivery.length is None else delivery.length
        most = min(promised, answer.length if delivery.truncate is None else delivery.truncate)
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = promised
        if request.transport is not None:  # pragma: no branch  # None only if the client has already left
            # A write returns when the socket has taken all its bytes, so the counted bytes were really sent.
            request.transport.set_write_buffer_limits(high=0)
        await response.prepare(request)
        if request.method == "HEAD" or answer.status in _BODILESS:
            return response
        meter, start = delivery.meter or Meter(), self._clock.now
        for seconds, drop in _drops(answer.pieces(most), delivery.drip):
            if delivery.drip is not None:
                await self._sleep(start + seconds - self._clock.now)
            if self._closing.is_set():
                break
            await response.write(drop)
            meter.sent += len(drop)
        if meter.sent < promised and request.transport is not None:
            request.transport.close()
        return response

    async def _sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until the listener is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass


async def _call(request: web.Request) -> Call:
    return Call(
        method=request.method,
        path=request.path,
        target=request.path_qs,
        query=dict(request.query),
        headers={name.lower(): value for name, value in request.headers.items()},
        body=await request.read(),
    )


def _cut(request: web.Request) -> web.Response:
    """Abort the connection with a reset, so that a client cannot read it as an empty answer."""
    if request.transport is not None:  # pragma: no branch  # None only if the client has already left
        raw = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


def _drops(pieces: Iterable[bytes], rate: float | None) -> Iterator[tuple[float, bytes]]:
    """The *pieces* unchanged, or smaller pieces at a *rate* in bytes a second; each with the second to send it at."""
    if rate is None:
        yield from ((0.0, piece) for piece in pieces)
        return
    size, passed = max(1, int(rate * _DRIP_SECONDS)), 0
    for piece in pieces:
        for place in range(0, len(piece), size):
            drop = piece[place : place + size]
            passed += len(drop)
            yield passed / rate, drop
