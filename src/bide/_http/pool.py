"""Connections for many requests at once: a stack of them, O(1) for each request.

The pool of httpcore looks at every open connection and every waiting request whenever a request starts or ends, so
that a request gets dearer with each other one in flight, and places are lost when requests are cancelled. Here each
connection never has more than one request; they lie on a stack, the one used last on top, and any exception throws
its connection away. `benchmarks/flat.py` and `benchmarks/cancel.py` show the difference.

Without a proxy a connection is `httpcore.AsyncHTTPConnection`, which is public and has no pool round it: an eighth less
CPU for each look. With a proxy it is an `httpx.AsyncHTTPTransport` of one connection, which knows all kinds of them.
(httpcore comes with httpx; their errors have the same names, and `_transport` tells errors by name.)
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections import deque
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import httpcore
import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable

    from httpcore import SOCKET_OPTION

MAX_CONNECTIONS = 100
"""Connections at most, as httpx and aiohttp have them by default. Polling mostly uses a handful."""
KEEP_ALIVE_SECONDS = 120.0
"""Seconds that an idle connection is kept: longer than the longest time between two looks."""
CLOSE_TIMEOUT_SECONDS = 1.0
MAX_IDLE_EXTENSION = "bide.max_idle"
"""A request with this extension goes out on a connection that was idle for at most so many seconds."""


class SetupError(httpx.ConnectError):
    """No connection can be made before the settings change: the proxy, its library or the certificates are wrong."""


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
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def check_proxy(url: str) -> None:
    """Raise ValueError if *url* cannot be a proxy's: now, and not with the first request."""
    try:
        httpx.Proxy(url)
    except httpx.InvalidURL as fault:
        raise ValueError(f"proxy is no URL: {fault}") from None


class ConnectionStack(httpx.AsyncBaseTransport):
    """An httpx transport with up to *size* connections, the one used last first.

    Args:
        size: connections at most, busy and idle; further requests wait, in order of arrival.
        keep_alive: seconds that an idle connection is kept.
        proxy: URL of the proxy that all of them go through.
        backend: what connects, where no proxy does; None is httpcore's own.

    Raises, besides what httpcore raises:
        httpx.PoolTimeout: no connection was free within the request's "pool" timeout; nothing was sent.
        httpx.ConnectError: the stack is closed, or a connection cannot be set up; nothing was sent.
    """

    def __init__(
        self,
        *,
        size: int = MAX_CONNECTIONS,
        keep_alive: float = KEEP_ALIVE_SECONDS,
        proxy: str | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._size = size
        self._backend = _Backend() if backend is None else backend
        self._keep_alive = keep_alive
        self._proxy = proxy
        self._idle: deque[tuple[float, httpx.AsyncBaseTransport]] = deque()
        self._busy: set[httpx.AsyncBaseTransport] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._promised = 0  # places of waiters that were woken and have not gone on yet
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self.opened = 0

    def __repr__(self) -> str:
        return f"<ConnectionStack {len(self._busy)} busy, {len(self._idle)} idle, {self._size} at most>"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeouts = request.extensions.get("timeout", {})
        if len(self._busy) + self._promised >= self._size and not self._closed:
            await self._wait(timeouts.get("pool"))
        connection = self._take(request.extensions.get(MAX_IDLE_EXTENSION))
        try:
            response = await connection.handle_async_request(request)
            if self._closed:  # httpcore forgets a connection that is being made while its pool is closed
                await response.aclose()
                raise httpx.ReadError("the connections were closed meanwhile")
        except BaseException:
            self.discard(connection)
            raise
        body = _PooledBody(self, connection, response)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=body, extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close all connections; what is under way on them fails, and so does whoever waits for one."""
        self._closed = True
        for connection in [*self._busy, *(connection for _, connection in self._idle)]:
            self._close(connection)
        self._busy.clear()
        self._idle.clear()
        while self._waiting:
            self._wake()
        while self._closing:
            await asyncio.wait(self._closing)

    @property
    def busy(self) -> int:
        """Connections that carry a request."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        """Connections that are open and carry none."""
        return len(self._idle)

    def _take(self, max_idle: float | None) -> httpx.AsyncBaseTransport:
        """The connection used last, or a new one where it was idle for too long. There is a place for it."""
        if self._closed:
            raise httpx.ConnectError("the connections are closed")
        now = asyncio.get_running_loop().time()
        while self._idle and self._idle[0][0] < now - self._keep_alive:
            self._close(self._idle.popleft()[1])
        if self._idle and (max_idle is None or self._idle[-1][0] >= now - max_idle):
            connection = self._idle.pop()[1]
        else:
            if self._idle and len(self._busy) + len(self._idle) >= self._size:
                self._close(self._idle.popleft()[1])
            connection = self._new()
        self._busy.add(connection)
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

    def _new(self) -> httpx.AsyncBaseTransport:
        try:
            connection: httpx.AsyncBaseTransport
            if self._proxy is None:
                connection = _DirectConnection(self._keep_alive, self._count, self._backend)
            else:
                limits = httpx.Limits(max_connections=1, keepalive_expiry=self._keep_alive)
                connection = httpx.AsyncHTTPTransport(
                    verify=tls_context(), limits=limits, proxy=self._proxy, trust_env=False
                )
                self._count()
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as fault:
            # A proxy that cannot be used, or certificates that cannot be read: nothing will ever be sent like this.
            self._wake()  # the place may have been promised to us
            raise SetupError(f"check the proxy and $SSL_CERT_FILE: {fault}") from None
        return connection

    def _count(self) -> None:
        self.opened += 1

    def give_back(self, connection: httpx.AsyncBaseTransport) -> None:
        """The answer on *connection* was read to its end."""
        if connection in self._busy:
            self._busy.discard(connection)
            self._idle.append((asyncio.get_running_loop().time(), connection))
            self._wake()

    def discard(self, connection: httpx.AsyncBaseTransport) -> None:
        """The exchange on *connection* broke off: nobody knows what comes next on it."""
        if connection in self._busy:
            self._busy.discard(connection)
            self._close(connection)
            self._wake()

    def _close(self, connection: httpx.AsyncBaseTransport) -> None:
        """Close *connection* in a task of its own, which no cancel of a caller cuts short."""
        task = asyncio.create_task(_close(connection))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _wake(self) -> None:
        """Promise the place that is free now to who waits longest."""
        if self._waiting:
            self._promised += 1
            place = self._waiting.popleft()
            if not place.cancelled():
                place.set_result(None)


class Stream(httpcore.AsyncNetworkStream):
    """A connection that is closed when TLS on it is cut short: httpcore forgets it then.

    Args:
        read: bytes that are read at once, if so many are there, in the place of httpcore's 64 KiB.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, *, read: int = 0) -> None:
        self._stream = stream
        self._read = read

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max(max_bytes, self._read), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with (
                anyio.CancelScope(shield=True),
                suppress(OSError, httpcore.NetworkError, anyio.BrokenResourceError),
            ):
                await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.AnyIOBackend):
    """httpcore's own way to connect, but for TLS that is cut short."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, see `httpcore.AsyncNetworkBackend`."""
        return Stream(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class _DirectConnection(httpx.AsyncBaseTransport):
    """One connection without a proxy. It is made anew when the server has closed it, or for another origin."""

    def __init__(
        self, keep_alive: float, on_open: Callable[[], None], backend: httpcore.AsyncNetworkBackend | None
    ) -> None:
        self._backend = _Backend() if backend is None else backend
        self._keep_alive = keep_alive
        self._on_open = on_open
        self._tls = tls_context()
        self._connection: httpcore.AsyncHTTPConnection | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"expected http or https, not {url.scheme!r}")
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        connection = self._connection
        if connection is None or not _serves(connection, target.origin):
            await self.aclose()
            self._on_open()
            connection = self._connection = httpcore.AsyncHTTPConnection(
                target.origin,
                ssl_context=self._tls,
                keepalive_expiry=self._keep_alive,
                network_backend=self._backend,
            )
        answer = await connection.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=target,
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_HttpcoreBody(answer), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.aclose()


def _serves(connection: httpcore.AsyncHTTPConnection, origin: httpcore.Origin) -> bool:
    """Whether *connection* can carry another request, to *origin*."""
    return connection.can_handle_request(origin) and not (connection.is_closed() or connection.has_expired())


class _HttpcoreBody(httpx.AsyncByteStream):
    """The body of an answer of httpcore's."""

    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._answer.aiter_stream()

    async def aclose(self) -> None:
        await self._answer.aclose()


class _PooledBody(httpx.AsyncByteStream):
    """An answer's body, which gives its connection back at its end."""

    def __init__(
        self, stack: ConnectionStack, connection: httpx.AsyncBaseTransport, response: httpx.Response
    ) -> None:
        self._stack = stack
        self._connection = connection
        self._response = response
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - both kinds of connection give one
        self._stream = response.stream
        self._whole = False
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk
        self._whole = True

    async def aclose(self) -> None:
        if self._closed:  # the connection may be another request's by now
            return
        self._closed = True
        try:
            await self._response.aclose()
        except BaseException:
            self._stack.discard(self._connection)
            raise
        if self._whole:
            self._stack.give_back(self._connection)
        else:
            self._stack.discard(self._connection)


async def _close(connection: httpx.AsyncBaseTransport) -> None:
    """Close *connection* soon and without a word."""
    with suppress(OSError, httpx.HTTPError, httpcore.NetworkError, httpcore.TimeoutException, RuntimeError):
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await connection.aclose()
