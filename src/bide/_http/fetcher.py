"""`Fetcher`: fetches files from the addresses that a service names. It is a separate HTTP client without any key.

It sends the caller's headers and a few of its own: no cookies, no authorization. From the environment it takes only
proxies. Each URL is checked before it is called, each redirect too, and each address to which a name resolves when the
connection is made. Result URLs come from a remote service: they must reach no more than the service itself can reach.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import httpx
from attrs import frozen

from bide._http.addresses import is_loopback, refusal_of
from bide._http.guard import ForbiddenAddressError, GuardedBackend, check_resolved
from bide._http.pool import ConnectionStack, proxy_for
from bide._http.transport import USER_AGENT, certificate_fault, fault_of, packing_of, timeouts
from bide._text import excerpt, redact_url

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping

MAX_REDIRECTS = 5
READ_TIMEOUT_SECONDS = 30.0
"""Seconds without a byte after which a download counts as cut."""

log = logging.getLogger("bide")


class CutError(Exception):
    """No connection, or a broken one: another try may help."""


class ForbiddenError(Exception):
    """The file may not be fetched, or cannot be read: another try cannot help. A forbidden address received nothing."""


@frozen
class FileReply:
    """Status and headers of a reply, and its body as it comes.

    Attributes:
        place: the address without its query, which may be a signature: for errors and the log.
        headers: names in lower case.
    """

    place: str
    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Fetcher:
    """Opens files at untrusted addresses.

    Args:
        origin: the API's. If that is on loopback (an emulator), files may be there too, and without TLS.
        hosts: the only allowed hosts; None allows any with a public address.
        at_once: files that are fetched at the same time.
        transport: an httpx transport of the caller's. It resolves names; their addresses are not checked here then.
        proxy: URL of a proxy; None takes the environment's. The proxy resolves names and makes the connections.
    """

    def __init__(
        self,
        origin: str,
        *,
        hosts: Collection[str] | None = None,
        at_once: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
        proxy: str | None = None,
    ) -> None:
        host = urlsplit(origin).hostname or ""
        self._loopback = host == "localhost" or is_loopback(host)
        self._hosts = hosts
        self._callers_transport = transport
        self._proxy = proxy
        self._at_once = at_once
        self._stacks: dict[str | None, ConnectionStack] = {}
        self._is_closed = False

    async def aclose(self) -> None:
        """Close all connections that are ours; downloads under way on them fail."""
        self._is_closed = True
        for stack in self._stacks.values():
            await stack.aclose()

    @asynccontextmanager
    async def open(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[FileReply]:
        """Request *url* with *headers* and our own; follow at most five redirects, and check each one.

        Raises:
            CutError: no connection, or a broken one. It may also come while the body is read.
            ForbiddenError: an address that may not be fetched from, too many redirects, or a packed body.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._request(url, headers)
            try:
                place = redact_url(url)
                if not response.has_redirect_location:
                    lower_headers = {name.lower(): value for name, value in response.headers.items()}
                    packing = packing_of(lower_headers)
                    if packing and response.status_code in (200, 206):
                        raise ForbiddenError(
                            f"{place} came packed with {packing[0]}, which was not asked for"
                        )
                    async with aclosing(_chunks(response, place)) as chunks:
                        yield FileReply(place, response.status_code, lower_headers, chunks)
                    return
                url = _redirect_target(url, response.headers["location"])
            finally:
                await _close(response)
        last = excerpt(redact_url(url), 200)
        raise ForbiddenError(f"more than {MAX_REDIRECTS} redirects, the last one to {last}: ask the service")

    async def _request(self, url: str, headers: Mapping[str, str]) -> httpx.Response:
        """Send one request. Returns the reply with its body unread."""
        place = excerpt(redact_url(url), 200)
        why = refusal_of(url, loopback=self._loopback, hosts=self._hosts)
        if why is not None:
            raise ForbiddenError(f"{place} is not fetched: {why}")
        try:
            stack = await self._stack_for(url)
            request = httpx.Request(
                "GET",
                url,
                headers={"user-agent": USER_AGENT, "accept": "*/*", "accept-encoding": "identity", **headers},
                extensions={"timeout": timeouts(READ_TIMEOUT_SECONDS)},
            )
            async with asyncio.timeout(
                READ_TIMEOUT_SECONDS
            ):  # a slow server could send each byte of the head in time
                response = await stack.handle_async_request(request)
            with suppress(
                Exception
            ):  # a log handler may raise: that must not look like a fault of the download
                log.debug("GET %s: HTTP %d", place, response.status_code)
            if not isinstance(response.stream, httpx.AsyncByteStream):
                raise RuntimeError("a transport for async use must answer with an async stream")
            return response
        except ForbiddenAddressError as refused:
            fault: Exception = ForbiddenError(f"{place} is not fetched: {refused}")
        except Exception as error:  # noqa: BLE001 - all of them are translated here
            found = fault_of(error, place)
            # A certificate may be replaced before the result expires.
            is_lasting = found.permanent and certificate_fault(error) is None
            fault = (ForbiddenError if is_lasting else CutError)(str(found))
        raise fault

    async def _stack_for(self, url: str) -> httpx.AsyncBaseTransport:
        if self._callers_transport is not None:
            return self._callers_transport
        if self._is_closed:
            raise httpx.ConnectError("the client is closed")
        proxy = self._proxy or proxy_for(url)
        if proxy is not None:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            await check_resolved(parts.hostname or "", port, loopback=self._loopback)
        if proxy not in self._stacks:
            backend = GuardedBackend(loopback=self._loopback) if proxy is None else None
            self._stacks[proxy] = ConnectionStack(size=self._at_once, proxy=proxy, backend=backend)
        return self._stacks[proxy]


async def _chunks(response: httpx.Response, place: str) -> AsyncGenerator[bytes]:
    """The body as it comes. httpx's decoders are left out: they cost time and have nothing to decode."""
    assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - checked in `_request`
    try:
        async for chunk in response.stream:
            yield chunk
        return
    except Exception as error:  # noqa: BLE001 - all of them are translated here
        fault = CutError(str(fault_of(error, place)))
    raise fault


async def _close(response: httpx.Response) -> None:
    """Close *response*; an error of a caller's transport is ignored: it is no fault of the download."""
    with suppress(Exception):
        await response.aclose()


def _redirect_target(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ForbiddenError(f"{redact_url(url)} redirects to text that is no address") from None
