"""`Transport`: sends calls to the API, with the key, timeouts, limits on bodies, and our errors.

The API key is added here, to requests to the API's own origin only. Redirects are not followed, cookies are neither
kept nor sent. No error of the HTTP library leaves this module: such errors contain the request with the key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import ssl
import time
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from urllib.parse import urlencode, urlsplit

import httpx
from attrs import field, frozen

from bide._concurrency import lived_timeout
from bide._http.pool import (
    MAX_CONNECTIONS,
    MAX_IDLE_EXTENSION,
    ConnectionStack,
    check_proxy,
    proxy_for,
    tls_context,
)
from bide._text import excerpt, redact, redact_url
from bide._validators import path_fault
from bide._version import __version__
from bide._wire import Reply
from bide.errors import BideError, TransportError, UnexpectedReplyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from bide._wire import Call, Secret

    MayBeSent: TypeAlias = Callable[[], Awaitable[bool]]

MAX_BODY_BYTES = 64 * 2**20
"""Bytes of a reply that are read at most."""
CONNECT_TIMEOUT_SECONDS = 10.0
FRESH_SECONDS = 1.0
"""A create uses a new connection or one used within these seconds: on a dead idle one it would look like a cut."""
PACKINGS = {"gzip", "x-gzip", "deflate", "compress", "br", "zstd"}
MAX_REQUESTS_ON_CALLERS_CLIENT = 10
"""Requests under way at once on a caller's client: its pool gets slow with many."""
USER_AGENT = f"bide/{__version__}"

NOT_SENT = {
    "ConnectError": "no connection",
    "ConnectTimeout": "no connection in time",
    "ConnectionNotAvailable": "no connection",
    "PoolTimeout": "no free connection in time",
    "ProxyError": "the proxy gave no connection",
    "UnsupportedProtocol": "an address that cannot be called",
    "InvalidURL": "an address that cannot be called",
    "SetupError": "no connection can be made with these settings",
    "HeldBackError": "held back when its connection stood",
}
MAY_HAVE_ARRIVED = {
    "ReadTimeout": "no reply in time",
    "WriteTimeout": "the request could not be sent in time",
    "TimeoutException": "no reply in time",
    "TimeoutError": "no reply in time",
    "ReadError": "the connection broke before the reply was whole",
    "WriteError": "the connection broke while the request was sent",
    "CloseError": "the connection broke",
    "NetworkError": "the connection broke",
    "RemoteProtocolError": "the connection was closed without a whole reply",
    "LocalProtocolError": "the request could not be written",
    "ProtocolError": "the connection was not used as HTTP demands",
    "DecodingError": "the reply's encoding makes no sense",
    "TooManyRedirects": "too many redirects",
    "StreamError": "the reply could not be read",
    "CookieConflict": "the reply's cookies make no sense",
    "TransportError": "the exchange failed",
    "RequestError": "the exchange failed",
    "HTTPError": "the exchange failed",
    "OSError": "the connection broke",
}
"""The meaning of each error of the HTTP library, by the name of its class or of its nearest base class listed here."""
PERMANENT_ERRORS = {"UnsupportedProtocol", "InvalidURL", "SetupError"}

log = logging.getLogger("bide")


class HeldBackError(Exception):
    """The caller of `Transport.send` did not want the request to be sent any more when its connection stood."""


class HTTPClient(Protocol):
    """The part of a caller's HTTP client that we use. `httpx.AsyncClient` has it, and so has httpx2's."""

    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        content: bytes | None,
        timeout: tuple[float, float, float, float],
        follow_redirects: bool,
    ) -> AbstractAsyncContextManager[Any]:
        """Send one request; the timeouts are for connecting, reading, writing, and waiting for a connection."""
        ...


@frozen
class _Exchange:
    """One call, ready to be sent: see `Transport.send`."""

    call: Call
    url: str
    body: bytes | None = field(repr=False)
    key: Secret = field(repr=False)
    timeout: float
    fresh: bool
    limit: int
    may_be_sent: MayBeSent | None

    async def check(self) -> None:
        """Raise unless the call may still be sent."""
        if self.may_be_sent is not None and not await self.may_be_sent():
            raise HeldBackError

    async def trace(self, event: str, _: Mapping[str, Any]) -> None:
        """httpcore calls this with each step of an exchange. The connection stands when it starts to send headers."""
        if event.endswith(".send_request_headers.started"):
            await self.check()


@frozen
class Connections:
    """The number of connections to the API; all 0 if they are not ours."""

    busy: int = 0
    idle: int = 0
    opened: int = 0


class Transport:
    """Sends calls to one service.

    Args:
        base_url: origin and path prefix of the API.
        http_client: an `httpx.AsyncClient` of the caller's, or one with the same methods. It is not closed.
        transport: an httpx transport.
        proxy: URL of a proxy; None takes the environment's.

    Attributes:
        origin: the only scheme, host and port to which the key is sent.
        connected: whether a connection was ever made.
        places: requests that can be under way at once.
    """

    def __init__(
        self,
        base_url: str,
        *,
        http_client: HTTPClient | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        proxy: str | None = None,
    ) -> None:
        if http_client is not None and (transport is not None or proxy is not None):
            raise ValueError("http_client= excludes transport= and proxy=: set them on your client")
        if transport is not None and proxy is not None:
            raise ValueError("transport= excludes proxy=: set it on your transport")
        is_blocking = hasattr(http_client, "__enter__") and not hasattr(http_client, "__aenter__")
        if http_client is not None and (is_blocking or not hasattr(http_client, "stream")):
            raise TypeError(f"http_client must be an httpx.AsyncClient, not {type(http_client).__name__}")
        if proxy is not None:
            check_proxy(proxy)
        parts = urlsplit(base_url)
        self._base_url = base_url.rstrip("/")
        self.origin: str = f"{parts.scheme}://{parts.netloc}"
        self.connected: bool = False
        self.places = MAX_CONNECTIONS if http_client is None else MAX_REQUESTS_ON_CALLERS_CLIENT
        self._proxy = proxy
        self._given = transport
        self._client = http_client
        self._gate = asyncio.Semaphore(MAX_REQUESTS_ON_CALLERS_CLIENT)
        self._api = transport or ConnectionStack(proxy=proxy or proxy_for(base_url))

    def __repr__(self) -> str:
        return f"<Transport to {self.origin}>"

    @property
    def connections(self) -> Connections:
        """The connections to the API now."""
        api = self._api
        if self._client is not None or not isinstance(api, ConnectionStack):
            return Connections()
        return Connections(api.busy, api.idle, api.opened)

    async def warm(self) -> None:
        """Make the TLS context, which takes 20 ms: so the first request need not wait for it."""
        if self.origin.startswith("https:") and self._given is None and self._client is None:
            with suppress(OSError):  # the first request raises it, with advice
                await asyncio.to_thread(tls_context)

    async def aclose(self) -> None:
        """Close all connections that are ours."""
        if self._api is not self._given:
            await self._api.aclose()

    # Calls -------------------------------------------------------------------------------------------------

    def check(self, call: Call) -> None:
        """Raise ValueError if *call* can never be sent: its path leads out of the API, or its body is no JSON."""
        self._url(call)
        if call.body is not None:
            _json(call.body)

    async def send(
        self,
        call: Call,
        *,
        key: Secret,
        timeout: float,
        fresh: bool = False,
        limit: int = MAX_BODY_BYTES,
        may_be_sent: MayBeSent | None = None,
    ) -> Reply:
        """Send *call* once and return the reply, whatever its status.

        Args:
            timeout: seconds for the whole exchange.
            fresh: use no connection that has been idle for more than a second (a caller's client decides on its own).
            limit: bytes of the body that are read at most.
            may_be_sent: called when the connection stands, before the first byte is sent (on a caller's client or
                transport: before its connection is made). If it returns False or raises, nothing is sent.

        Raises:
            TransportError: no usable reply; `may_have_arrived` says whether the service can have read the call.
            UnexpectedReplyError: the body is longer than *limit*.
            ValueError: the call's path leads out of the API, or its body is no JSON. Nothing was sent.
        """
        url = self._url(call)
        body = None if call.body is None else _json(call.body)
        began = time.monotonic()
        fault: BideError
        try:
            async with lived_timeout(timeout):
                exchange = _Exchange(call, url, body, key, timeout, fresh, limit, may_be_sent)
                if self._client is not None:
                    reply = await self._send_over_client(self._client, exchange)
                else:
                    reply = await self._send_over_stack(exchange)
            _log_call(call, url, f"HTTP {reply.status}", began)
            return reply
        except UnexpectedReplyError as error:
            # Without its traceback: the local variables there contain the key.
            fault = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 - all of them are translated here, and nowhere else
            fault = fault_of(error, self.origin, key)
            self.connected = self.connected or fault.may_have_arrived
        _log_call(call, url, str(fault), began)
        # Raised outside the `except` block: the library's error contains the key and must not become the context.
        raise fault

    async def _send_over_stack(self, exchange: _Exchange) -> Reply:
        extensions: dict[str, Any] = {
            # `send` times the whole exchange
            "timeout": {**timeouts(exchange.timeout), "read": None, "write": None},
        }
        if exchange.fresh:
            extensions[MAX_IDLE_EXTENSION] = FRESH_SECONDS
        if self._given is not None:
            await exchange.check()
        elif exchange.may_be_sent is not None:
            extensions["trace"] = exchange.trace
        request = httpx.Request(
            exchange.call.method,
            exchange.url,
            headers=_headers(exchange.call, exchange.key),
            content=exchange.body,
            extensions=extensions,
        )
        response = await self._api.handle_async_request(request)
        self.connected = True
        return await self._reply(response, exchange.limit, exchange.key)

    async def _send_over_client(self, client: HTTPClient, exchange: _Exchange) -> Reply:
        """Send over a caller's *client*, with plain values: so any client with the same methods works."""
        times = timeouts(exchange.timeout)
        try:
            async with asyncio.timeout(times["pool"]):
                await self._gate.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout(
                f"{MAX_REQUESTS_ON_CALLERS_CLIENT} requests are under way on the client"
            ) from None
        try:
            await exchange.check()
            async with client.stream(
                exchange.call.method,
                exchange.url,
                headers=_headers(exchange.call, exchange.key),
                content=exchange.body,
                timeout=(times["connect"], times["read"], times["write"], times["pool"] / 2),
                follow_redirects=False,
            ) as response:
                self.connected = True
                return await self._reply(response, exchange.limit, exchange.key)
        finally:
            self._gate.release()

    async def _reply(self, response: httpx.Response, limit: int, key: Secret) -> Reply:
        """Read *response* to its end, up to *limit* bytes, and remove the key from it if the service echoes it."""
        packing = packing_of(response.headers)
        content = bytearray()
        why = ""
        try:
            # We asked for none. One gzip expands a chunk of 64 KiB to 64 MiB at most; two, or brotli, to far more.
            if packing not in ([], ["gzip"], ["deflate"]):
                why = f"is packed with {' and '.join(packing)}, which was not asked for"
            else:
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > limit:
                        why = f"is longer than {limit} bytes"
                        break
        finally:
            await response.aclose()
        if why:
            start = excerpt(key.remove_from(bytes(content[:4000])))
            raise UnexpectedReplyError(
                f"the reply of {self.origin} (HTTP {response.status_code}) {why}; it begins: {start}"
            )
        headers = {
            name.lower(): key.remove_from(value.encode()).decode() for name, value in response.headers.items()
        }
        return Reply(response.status_code, headers, key.remove_from(bytes(content)))

    def _url(self, call: Call) -> str:
        fault = path_fault(call.path)
        if fault is not None:
            raise ValueError(f"a call's path {fault}, not {excerpt(call.path, 80)!r}")
        query = f"?{urlencode(call.query)}" if call.query else ""
        return f"{self._base_url}{call.path}{query}"

    def as_curl(self, call: Call, *, key_variable: str) -> str:
        """*call* as a shell command, with the key's variable in place of the key."""
        lines = [f"curl -g -sS -X {call.method} {shlex.quote(self._url(call))}"]
        lines.append(f'-H "Authorization: Bearer ${key_variable}"')
        lines += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in call.headers.items()]
        if call.body is not None:
            lines.append("-H 'Content-Type: application/json'")
            body = json.dumps(_without_secrets(call.body), ensure_ascii=False)
            # Control characters are escaped: users paste these commands into terminals.
            body = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in body)
            lines.append(f"-d {shlex.quote(body)}")
        return " \\\n  ".join(lines)


def fault_of(error: Exception, place: str, key: Secret | None = None) -> TransportError:
    """Our error for *error* of the HTTP library: its text, without its objects."""
    names = [base.__name__ for base in type(error).__mro__]
    not_sent = next((NOT_SENT[name] for name in names if name in NOT_SENT), None)
    what = not_sent or next(
        (MAY_HAVE_ARRIVED[name] for name in names if name in MAY_HAVE_ARRIVED), "an error"
    )
    certificate = certificate_fault(error)
    detail = certificate or str(error)
    if key is not None:
        detail = detail.replace(key.reveal(), "***")
    elif any("ProtocolError" in name for name in names):
        detail = ""  # it quotes the other side's bytes, which may be a signature
    text = f"{place}: {what} ({names[0]}{': ' + excerpt(redact(detail), 200) if detail else ''})"
    if certificate:
        text += "; nothing was sent. Check the address, the system's certificates and $SSL_CERT_FILE"
    return TransportError(
        text,
        may_have_arrived=not_sent is None,
        permanent=certificate is not None or any(name in PERMANENT_ERRORS for name in names),
    )


def _without_secrets(value: Any) -> Any:
    """*value* (JSON) for showing: without signatures in addresses and without inline files."""
    if isinstance(value, dict):
        return {name: _without_secrets(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(each) for each in value]
    if isinstance(value, str) and value.lstrip()[:5].lower() == "data:":
        return f"{value.partition(',')[0][:100]},… ({len(value)} characters)"
    return redact(value) if isinstance(value, str) else value


def packing_of(headers: Mapping[str, str]) -> list[str]:
    """The packings in a reply's headers, mostly none. Words that are no packing ("aws-chunked") are left out."""
    names = (name.strip().lower() for name in headers.get("content-encoding", "").split(","))
    return [name for name in names if name in PACKINGS][:3]


def _log_call(call: Call, url: str, end: str, began: float) -> None:
    if log.isEnabledFor(logging.DEBUG):
        took = time.monotonic() - began
        with suppress(Exception):  # a log handler may raise: that must not look like a fault of the call
            log.debug("%s %s: %s after %.3f s", call.method, redact_url(url), redact(end), took)


def _headers(call: Call, key: Secret) -> dict[str, str]:
    headers = {
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": USER_AGENT,
        **{name.lower(): value for name, value in call.headers.items()},
        "authorization": f"Bearer {key.reveal()}",
    }
    if call.body is not None:
        headers["content-type"] = "application/json"
    return headers


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def timeouts(timeout: float) -> dict[str, float]:
    """Waiting for a place and connecting end well before *timeout*: only a sent request can reach *timeout* itself."""
    connect = min(CONNECT_TIMEOUT_SECONDS, timeout / 6)  # once for TCP and once for TLS
    return {"pool": timeout / 2, "connect": connect, "read": timeout, "write": timeout}


def certificate_fault(error: BaseException | None) -> str | None:
    """Why a certificate does not verify, if that is the cause of *error*; else None."""
    for _ in range(10):
        if error is None:
            return None
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message or str(error)
        error = error.__cause__ or error.__context__
    return None
