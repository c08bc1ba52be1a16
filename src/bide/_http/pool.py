"""`ConnectionStack`: connections for many requests at once, with a constant cost for each request.

The pool of httpcore goes through all connections and all waiting requests whenever a request starts or ends. So each
request costs more with each other one in flight, and cancelled requests lose places in the pool. Here a connection
carries one request at a time. Idle ones lie on a stack, with the last used on top. Any exception closes its connection.
`benchmarks/flat.py` and `benchmarks/cancel.py` show the difference.

Without a proxy a connection is an `httpcore.AsyncHTTPConnection`, which is public and has no pool around it: a poll
needs an eighth less CPU. With a proxy it is an `httpx.AsyncHTTPTransport` with one connection, which supports all kinds
of proxies. (httpcore comes with httpx; their errors have the same names, and `transport` recognizes errors by name.)
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
"""Connections at most: the default of httpx and aiohttp. Polling mostly uses a few."""
KEEP_ALIVE_SECONDS = 120.0
"""Seconds that an idle connection is kept: longer than the longest time between two polls."""
CLOSE_TIMEOUT_SECONDS = 1.0
"""Seconds to wait for the end of a connection that is closed."""
MAX_IDLE_EXTENSION = "bide.max_idle"
"""A request with this extension uses a connection that was idle for at most the given seconds."""


class SetupError(httpx.ConnectError):
    """No connection is possible with these settings: the proxy, its library or the certificates are wrong."""


@cache
def tls_context() -> ssl.SSLContext:
    """The TLS context of the whole process: it takes 20 ms to make."""
    return httpx.create_ssl_context()


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for *url*; $NO_PROXY is respected."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if urllib.request.proxy_bypass(host if parts.port is None else f"{host}:{parts.port}"):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def check_proxy(url: str) -> None:
    """Raise ValueError if *url* cannot be a proxy's: now, and not at the first request."""
    try:
        httpx.Proxy(url)
    except httpx.InvalidURL as fault:
        raise ValueError(f"proxy is no URL: {fault}") from None


class ConnectionStack(httpx.AsyncBaseTransport):
    """An httpx transport with up to *size* connections, the one used last first.

    Args:
        size: connections at most, busy and idle; further requests wait, in order of arrival.
        keep_alive: seconds that an idle connection is kept.
        proxy: URL of a proxy for all connections.
        backend: makes the connections if there is no proxy; None is httpcore's own.

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
        self._promised = 0  # places of waiters that were woken and have not run yet
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.opened = 0

    def __repr__(self) -> str:
        return f"<ConnectionStack {len(self._busy)} busy, {len(self._idle)} idle, {self._size} at most>"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeouts = request.extensions.get("timeout", {})
        if len(self._busy) + self._promised >= self._size and not self._is_closed:
            await self._wait(timeouts.get("pool"))
        connection = self._take(request.extensions.get(MAX_IDLE_EXTENSION))
        try:
            response = await connection.handle_async_request(request)
            if self._is_closed:  # httpcore does not close a connection that is being made at that time
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
        """Close all connections. Requests under way fail, and so do requests that wait for a connection."""
        self._is_closed = True
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
        """Open connections that carry no request."""
        return len(self._idle)

    def _take(self, max_idle: float | None) -> httpx.AsyncBaseTransport:
        """The last used connection, or a new one if that was idle for too long. The caller has made sure of a place."""
        if self._is_closed:
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
            # A proxy that cannot be used, or certificates that cannot be read: no later request would succeed either.
            self._wake()  # we may have had the promise of this place
            raise SetupError(f"check the proxy and $SSL_CERT_FILE: {fault}") from None
        return connection

    def _count(self) -> None:
        self.opened += 1

    def give_back(self, connection: httpx.AsyncBaseTransport) -> None:
        """Keep *connection* for another request: its reply was read to the end."""
        if connection in self._busy:
            self._busy.discard(connection)
            self._idle.append((asyncio.get_running_loop().time(), connection))
            self._wake()

    def discard(self, connection: httpx.AsyncBaseTransport) -> None:
        """Close *connection*: its exchange broke off, and the rest of the reply may still come on it."""
        if connection in self._busy:
            self._busy.discard(connection)
            self._close(connection)
            self._wake()

    def _close(self, connection: httpx.AsyncBaseTransport) -> None:
        """Close *connection* in a separate task: a cancel of the caller does not interrupt it."""
        task = asyncio.create_task(_close(connection))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _wake(self) -> None:
        """Promise the free place to the request that has waited longest."""
        if self._waiting:
            self._promised += 1
            place = self._waiting.popleft()
            if not place.cancelled():
                place.set_result(None)


class Stream(httpcore.AsyncNetworkStream):
    """A connection that is closed when its TLS handshake is interrupted; httpcore would leave it open.

    Args:
        read: bytes that are read at once if they are there; httpcore reads 64 KiB.
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
            await close_stream(self._stream)
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


async def close_stream(stream: httpcore.AsyncNetworkStream) -> None:
    """Close *stream*, even when cancelled; ignore errors."""
    with anyio.CancelScope(shield=True), suppress(OSError, httpcore.NetworkError, anyio.BrokenResourceError):
        await stream.aclose()


class _Backend(httpcore.AnyIOBackend):
    """httpcore's own connections, as `Stream`."""

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
    """One connection without a proxy. A new one replaces it when the server has closed it, or for another origin."""

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
    """The body of a reply of httpcore."""

    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._answer.aiter_stream()

    async def aclose(self) -> None:
        await self._answer.aclose()


class _PooledBody(httpx.AsyncByteStream):
    """The body of a reply. At its end it gives its connection back to the stack."""

    def __init__(
        self, stack: ConnectionStack, connection: httpx.AsyncBaseTransport, response: httpx.Response
    ) -> None:
        self._stack = stack
        self._connection = connection
        self._response = response
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - both kinds of connection give one
        self._stream = response.stream
        self._is_whole = False
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk
        self._is_whole = True

    async def aclose(self) -> None:
        if self._is_closed:  # another request may use the connection by now
            return
        self._is_closed = True
        try:
            await self._response.aclose()
        except BaseException:
            self._stack.discard(self._connection)
            raise
        if self._is_whole:
            self._stack.give_back(self._connection)
        else:
            self._stack.discard(self._connection)


async def _close(connection: httpx.AsyncBaseTransport) -> None:
    """Close *connection*; ignore errors and stop after `CLOSE_TIMEOUT_SECONDS`."""
    with suppress(OSError, httpx.HTTPError, httpcore.NetworkError, httpcore.TimeoutException, RuntimeError):
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await connection.aclose()
