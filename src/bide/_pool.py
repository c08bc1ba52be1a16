"""Connections for many requests at once: a stack of them, O(1) for each request.

The pool of httpcore looks at every open connection and every waiting request whenever a request starts or ends, so
that a request gets dearer with each other one in flight, and places are lost when requests are cancelled. Here each
connection is an `httpx.AsyncHTTPTransport` of its own that never has more than one request; they lie on a stack, the
one used last on top, and any exception throws its connection away. `benchmarks/pool.py` shows the difference.

A stack of bare `httpcore.AsyncHTTPConnection`s needs about a third less CPU still, but its own proxies and its own
table of errors: not worth it while a request costs a third of a millisecond and polling asks for few.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections import deque
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

SIZE = 50
KEEP_ALIVE = 120.0
"""Seconds that an idle connection is kept: longer than the longest time between two looks."""
CLOSE_TIMEOUT = 1.0
MAX_IDLE = "bide.max_idle"
"""A request with this extension goes out on a connection that was idle for at most so many seconds."""


@cache
def tls_context() -> ssl.SSLContext:
    """The one TLS context of the process: making it takes 20 ms."""
    return httpx.create_ssl_context()


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for *url*, with regard to $NO_PROXY."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if urllib.request.proxy_bypass(host if parts.port is None else f"{host}:{parts.port}"):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


class ConnectionStack(httpx.AsyncBaseTransport):
    """An httpx transport with up to *size* connections, the one used last first.

    Args:
        size: connections at most, busy and idle; further requests wait, in order of arrival.
        keep_alive: seconds that an idle connection is kept.
        proxy: URL of the proxy that all of them go through.

    Raises:
        httpx.PoolTimeout: no connection was free within the request's "pool" timeout; nothing was sent.
    """

    def __init__(self, *, size: int = SIZE, keep_alive: float = KEEP_ALIVE, proxy: str | None = None) -> None:
        self._size = size
        self._keep_alive = keep_alive
        self._proxy = proxy
        self._idle: deque[tuple[float, httpx.AsyncHTTPTransport]] = deque()
        self._busy: set[httpx.AsyncHTTPTransport] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._promised = 0  # places of waiters that were woken and have not gone on yet
        self.opened = 0

    def __repr__(self) -> str:
        return f"<ConnectionStack {len(self._busy)} busy, {len(self._idle)} idle, {self._size} at most>"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeouts = request.extensions.get("timeout", {})
        connection = await self._take(request.extensions.get(MAX_IDLE), timeouts.get("pool"))
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await self._throw_away(connection)
            raise
        body = _Body(self, connection, response)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=body, extensions=response.extensions
        )

    async def aclose(self) -> None:
        for connection in [*self._busy, *(connection for _, connection in self._idle)]:
            await _close(connection)
        self._busy.clear()
        self._idle.clear()

    async def _take(self, max_idle: float | None, timeout: float | None) -> httpx.AsyncHTTPTransport:
        if len(self._busy) + self._promised >= self._size:
            await self._wait(timeout)
        now = asyncio.get_running_loop().time()
        stale = []
        while self._idle and self._idle[0][0] < now - self._keep_alive:
            stale.append(self._idle.popleft()[1])
        connection: httpx.AsyncHTTPTransport | None = None
        if self._idle and (max_idle is None or self._idle[-1][0] >= now - max_idle):
            connection = self._idle.pop()[1]
        elif self._idle and len(self._busy) + len(self._idle) >= self._size:
            stale.append(self._idle.popleft()[1])
        if connection is None:
            connection = self._new()
        self._busy.add(connection)
        for old in stale:
            await _close(old)
        return connection

    async def _wait(self, timeout: float | None) -> None:
        """Wait for a place, in order of arrival."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(timeout):
                await place
            self._promised -= 1
        except BaseException as error:
            if place in self._waiting:
                self._waiting.remove(place)
            else:
                self._promised -= 1
                self._wake()
            if isinstance(error, TimeoutError):
                raise httpx.PoolTimeout(f"no connection was free within {timeout:g} s") from None
            raise

    def _new(self) -> httpx.AsyncHTTPTransport:
        self.opened += 1
        limits = httpx.Limits(
            max_connections=1, max_keepalive_connections=1, keepalive_expiry=self._keep_alive
        )
        return httpx.AsyncHTTPTransport(
            verify=tls_context(), limits=limits, proxy=self._proxy, trust_env=False
        )

    def give_back(self, connection: httpx.AsyncHTTPTransport) -> None:
        """The answer on *connection* was read to its end."""
        if connection in self._busy:
            self._busy.discard(connection)
            self._idle.append((asyncio.get_running_loop().time(), connection))
            self._wake()

    async def _throw_away(self, connection: httpx.AsyncHTTPTransport) -> None:
        if connection in self._busy:
            self._busy.discard(connection)
            self._wake()
        await _close(connection)

    def _wake(self) -> None:
        """Promise the place that is free now to who waits longest."""
        if self._waiting:
            self._promised += 1
            place = self._waiting.popleft()
            if not place.cancelled():
                place.set_result(None)


class _Body(httpx.AsyncByteStream):
    """An answer's body, which gives its connection back at its end."""

    def __init__(
        self, stack: ConnectionStack, connection: httpx.AsyncHTTPTransport, response: httpx.Response
    ) -> None:
        self._stack = stack
        self._connection = connection
        self._response = response
        self._whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_raw():
            yield chunk
        self._whole = True

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        except BaseException:
            self._whole = False
            raise
        finally:
            if self._whole:
                self._stack.give_back(self._connection)
            else:
                await self._stack._throw_away(self._connection)  # noqa: SLF001 - two halves of one thing


async def _close(connection: httpx.AsyncHTTPTransport) -> None:
    """Close *connection*, soon and without a word, even while we are being cancelled."""
    with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
        try:
            await connection.aclose()
        except (OSError, httpx.HTTPError, RuntimeError):
            return
