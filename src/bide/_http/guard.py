"""`GuardedBackend`: makes connections to public addresses only.

A name is resolved once, each of its addresses is checked, and exactly these addresses are dialled. So a name that
resolves to another address a moment later ("DNS rebinding") gains nothing. TLS starts afterwards, with the name.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import anyio
import httpcore

from bide._http.addresses import is_fake_ip, is_loopback, is_public, literal_of
from bide._http.pool import CLOSE_TIMEOUT_SECONDS, Stream, close_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from httpcore import SOCKET_OPTION

STAGGER_SECONDS = 0.25
"""Seconds after which the next address is dialled in parallel (RFC 8305)."""
READ_BYTES = 256 * 1024
"""Bytes that are read at once: each read is a turn of the event loop, and files are large. asyncio returns no more than
this, and with TLS one record of 16 KiB."""
MAX_DIALLED_ADDRESSES = 10
"""Addresses of one host that are dialled at most. All of them are checked."""
LOOKUP_TIMEOUT_SECONDS = 5.0
"""Seconds for a lookup whose only purpose is the check."""


class ForbiddenAddressError(Exception):
    """The host has an address that is not allowed. Nothing was sent."""


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Makes httpcore's connections, to public addresses only.

    A host with one forbidden address is refused as a whole: a DNS answer with both kinds is an attack.

    Args:
        loopback: whether addresses of this machine are allowed too.

    Raises:
        ForbiddenAddressError: an address of the host is not allowed.
        httpcore.ConnectError: the name does not resolve, or no address accepted the connection.
        httpcore.ConnectTimeout: no connection in time.
    """

    def __init__(self, *, loopback: bool) -> None:
        self._loopback = loopback
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to *host*; *timeout* is the seconds for the lookup and all attempts together."""
        options = list(socket_options or ())
        try:
            async with asyncio.timeout(timeout):
                addresses = await _addresses_of(host, port)
                _check_addresses(host, addresses, loopback=self._loopback)
                stream = await self._connect_first(host, addresses, port, local_address, options)
        except TimeoutError as fault:
            raise httpcore.ConnectTimeout(f"no connection to {host} within {timeout} s") from fault
        except (OSError, UnicodeError) as fault:
            raise httpcore.ConnectError(f"{host} does not resolve: {fault}") from fault
        try:
            # Check the peer, too: something between here and the Internet may have redirected the connection.
            _check_addresses(host, [_peer_of(stream)], loopback=self._loopback)
        except OSError as fault:
            await close_stream(stream)
            raise httpcore.ConnectError(f"{host}: the connection broke at once") from fault
        except ForbiddenAddressError:
            await close_stream(stream)
            raise
        return Stream(stream, read=READ_BYTES)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ARG002 - the signature is httpcore's
        socket_options: Iterable[SOCKET_OPTION] | None = None,  # noqa: ARG002 - the same
    ) -> httpcore.AsyncNetworkStream:
        """Refuse."""
        raise ForbiddenAddressError(f"{path} is a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        """Wait between attempts; httpcore calls this."""
        await asyncio.sleep(seconds)

    async def _connect_first(
        self, host: str, addresses: list[str], port: int, local: str | None, options: list[SOCKET_OPTION]
    ) -> httpcore.AsyncNetworkStream:
        """The first connection that one of *addresses* accepts. The other connections are closed."""

        async def dial(address: str) -> httpcore.AsyncNetworkStream:
            return await self._backend.connect_tcp(address, port, local_address=local, socket_options=options)

        race: asyncio.Future[httpcore.AsyncNetworkStream] = asyncio.get_running_loop().create_future()
        attempts: list[asyncio.Task[Exception | None]] = []
        try:
            for address in _interleaved(addresses)[:MAX_DIALLED_ADDRESSES]:
                attempts.append(asyncio.create_task(_try_address(race, dial, address)))
                await _wait_for_change(race, attempts[-1:], timeout=STAGGER_SECONDS)
                if race.done():
                    break
            while not race.done() and (under_way := [each for each in attempts if not each.done()]):
                await _wait_for_change(race, under_way)
            await _cancel_all(attempts)
        except BaseException:
            if not race.cancel():  # from now on each attempt closes its own connection
                await close_stream(race.result())
            await _cancel_all(attempts)
            raise
        if race.done():
            return race.result()
        faults = [fault for each in attempts if (fault := each.result()) is not None]
        raise httpcore.ConnectError(f"{host}: {_root_cause(faults[0])}") from faults[0]


async def _try_address(
    race: asyncio.Future[httpcore.AsyncNetworkStream],
    dial: Callable[[str], Awaitable[httpcore.AsyncNetworkStream]],
    address: str,
) -> Exception | None:
    """Set the connection to *address* as the result of *race*, or close it if another was first. Returns the fault."""
    try:
        stream = await dial(address)
    except Exception as fault:  # noqa: BLE001 - the caller raises it if no address accepts
        return fault
    if race.done():
        await close_stream(stream)
    else:
        race.set_result(stream)
    return None


async def _wait_for_change(
    race: asyncio.Future[Any], attempts: list[asyncio.Task[Any]], timeout: float | None = None
) -> None:
    """Wait until *race* is won or one of *attempts* has ended, *timeout* seconds at most.

    `asyncio.wait` cancels nothing on its timeout: so it cannot mistake a cancel from outside for its own.
    """
    await asyncio.wait({race, *attempts}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


async def _cancel_all(attempts: list[asyncio.Task[Exception | None]]) -> None:
    """Cancel *attempts*, and wait at most `CLOSE_TIMEOUT_SECONDS` for their end."""
    for each in attempts:
        each.cancel()
    with anyio.CancelScope(shield=True):
        await asyncio.wait(attempts, timeout=CLOSE_TIMEOUT_SECONDS)


async def check_resolved(
    host: str, port: int, *, loopback: bool, timeout: float | None = LOOKUP_TIMEOUT_SECONDS
) -> None:
    """Check what *host* resolves to on this machine, for a connection that a proxy makes.

    A name that does not resolve here in time passes: the proxy resolves it. So a proxy may be led to an address that
    only it can reach; its own rules must prevent that. A "fake IP" address of a local proxy is ignored: it does not
    show where the connection goes.

    Raises:
        ForbiddenAddressError: an address of the host is not allowed.
    """
    addresses: list[str] = []
    with suppress(OSError, UnicodeError):  # and TimeoutError, which is an OSError
        async with asyncio.timeout(timeout):
            addresses = await _addresses_of(host, port)
    _check_addresses(host, [each for each in addresses if not is_fake_ip(each)], loopback=loopback)


async def _addresses_of(host: str, port: int) -> list[str]:
    """All addresses of *host*, the preferred ones first; those with a zone have their "%zone"."""
    literal = literal_of(host)
    if literal is not None:
        return [literal]
    answer = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [
        f"{place[0]}%{place[3]}" if len(place) > 3 and place[3] else str(place[0]) for *_, place in answer
    ]
    if not addresses:
        raise OSError("it has no address")
    return list(dict.fromkeys(addresses))


def _check_addresses(host: str, addresses: Iterable[str], *, loopback: bool) -> None:
    for address in addresses:
        if not (is_public(address) or (loopback and is_loopback(address))):
            place = address if address == host else f"{host} resolves to {address}, which"
            advice = (
                ""
                if not is_fake_ip(address)
                else ("; if a local proxy answers for names here, name it in proxy= or $HTTPS_PROXY")
            )
            raise ForbiddenAddressError(f"{place} is not a public address{advice}")


def _peer_of(stream: httpcore.AsyncNetworkStream) -> str:
    """The address at the other end of *stream*."""
    return str(stream.get_extra_info("socket").getpeername()[0])


def _interleaved(addresses: list[str]) -> list[str]:
    """*addresses* in their order, but IPv4 and IPv6 in turns: if one kind is broken, the other is dialled soon."""
    first = ":" in addresses[0]
    same = [each for each in addresses if (":" in each) is first]
    other = [each for each in addresses if (":" in each) is not first]
    return [each for each in chain.from_iterable(zip_longest(same, other)) if each is not None]


def _root_cause(fault: BaseException) -> BaseException:
    """The first cause of *fault*: libraries wrap the system's error in one with a poorer text."""
    for _ in range(10):
        fault = fault.__cause__ or fault
    return fault
