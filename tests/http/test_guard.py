"""The connection that checks: what a name resolves to is looked at, and nothing else is dialled."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpcore
import pytest
from attrs import define, field

from bide._http import guard as _guard
from bide._http.guard import STAGGER_SECONDS, ForbiddenAddressError, GuardedBackend, check_resolved
from support.scripted_server import reply, serving

PUBLIC = "93.184.216.34"
PUBLIC_6 = "2606:4700::1111"
FAKE = "198.18.0.1"
NOT_PUBLIC = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "169.254.169.254", "172.16.0.1",
    "192.168.1.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fd00:ec2::254",
    "fe80::1", "fec0::1", "ff02::1",
]  # fmt: skip

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@define
class Net:
    """The names of a test, and what was asked of the system."""

    names: dict[str, list[list[str]]] = field(factory=dict)
    """For each name its answers, one after the other, the last one for ever."""
    delay: float = 0.0
    asked: list[str] = field(factory=list)
    dialled: list[Address] = field(factory=list)
    turned: dict[Address, tuple[str, int]] = field(factory=dict)
    """Where a connection really goes, by the address that was dialled."""

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        if self.delay:
            await asyncio.sleep(self.delay)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.names[host]
        return [entry(each, port) for each in (answers.pop(0) if len(answers) > 1 else answers[0])]


def entry(address: str, port: int) -> Any:
    if ":" not in address:
        return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)
    plain, _, zone = address.partition("%")
    return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (plain, port, 0, int(zone or 0))


@pytest.fixture
async def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    """Names resolve as the test says; dials go over real sockets and are noted."""
    net, loop = Net(), asyncio.get_running_loop()
    sock_connect = loop.sock_connect

    async def dial(sock: socket.socket, address: Any) -> None:
        plain = ipaddress.ip_address(address[0])
        net.dialled.append(plain)
        place = net.turned.get(plain, address)
        if not ipaddress.ip_address(place[0]).is_loopback:
            raise OSError(101, "Network is unreachable")  # no test goes out
        await sock_connect(sock, place)

    monkeypatch.setattr(loop, "getaddrinfo", net.getaddrinfo)
    monkeypatch.setattr(loop, "sock_connect", dial)
    return net


@contextmanager
def listening(address: str = "127.0.0.1", port: int = 0, *, backlog: int = 50) -> Iterator[socket.socket]:
    """A socket to which connections can be made; `accepted` takes and counts them."""
    with socket.create_server((address, port), backlog=backlog) as server:
        server.setblocking(False)
        yield server


@contextmanager
def silent(address: str, port: int) -> Iterator[None]:
    """An address that never takes a connection and never refuses one: its queue is full."""
    with listening(address, port, backlog=0), socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect((address, port))
        yield


def accepted(server: socket.socket) -> int:
    count = 0
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def port_of(server: socket.socket) -> int:
    port = server.getsockname()[1]
    assert isinstance(port, int)
    return port


def peer(stream: httpcore.AsyncNetworkStream) -> str:
    return str(stream.get_extra_info("socket").getpeername()[0])


def addresses(*texts: str) -> list[Address]:
    return [ipaddress.ip_address(each) for each in texts]


def open_files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


GUARD = GuardedBackend(loopback=False)
AT_HOME = GuardedBackend(loopback=True)


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_name_of_an_address_that_is_not_public_reaches_nobody(net: Net, address: str) -> None:
    net.names["files.example"] = [[address]]

    with listening("0.0.0.0") as server:
        with pytest.raises(ForbiddenAddressError) as caught:
            await GUARD.connect_tcp("files.example", port_of(server), timeout=5)
        assert accepted(server) == 0

    words, _, advice = str(caught.value).partition("; ")
    assert words == f"files.example resolves to {address}, which is not a public address"
    assert ("proxy=" in advice) == (address == FAKE)
    assert net.dialled == []


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_one_such_address_among_public_ones_spoils_the_name(net: Net, address: str) -> None:
    net.names["files.example"] = [[PUBLIC, PUBLIC_6, address]]

    with pytest.raises(ForbiddenAddressError, match="which is not a public address"):
        await GUARD.connect_tcp("files.example", 443, timeout=5)

    assert net.dialled == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "::1",
        "[::1]",
        "::ffff:127.0.0.1",
        "１２７.0.0.1",
        "::1%lo",
    ],
)
async def test_a_literal_is_judged_without_asking_anyone(net: Net, host: str) -> None:
    with listening() as server:
        with pytest.raises(ForbiddenAddressError, match="is not a public address"):
            await GUARD.connect_tcp(host, port_of(server))
        assert accepted(server) == 0

    assert (net.asked, net.dialled) == ([], [])


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "0.0.0.0", "::", "169.254.169.254", "64:ff9b::7f00:1", "fe80::1%2"]
)
async def test_leave_for_loopback_is_leave_for_nothing_else(net: Net, address: str) -> None:
    net.names["files.example"] = [["127.0.0.1", address]]

    with pytest.raises(ForbiddenAddressError, match=f"files.example resolves to {address}, "):
        await AT_HOME.connect_tcp("files.example", 443)

    assert net.dialled == []


@pytest.mark.parametrize("address", ["fe80::1%2", f"{PUBLIC_6}%2", "::1%1"])
async def test_an_address_of_a_zone_is_refused(net: Net, address: str) -> None:
    net.names["files.example"] = [[address]]

    with pytest.raises(ForbiddenAddressError, match=f"resolves to {address}, which is not"):
        await AT_HOME.connect_tcp("files.example", 443)


async def test_a_name_is_asked_once_and_what_was_checked_is_dialled(net: Net) -> None:
    """A second lookup may answer otherwise: "rebinding"."""
    net.names["files.example"] = [["127.0.0.2"], ["127.0.0.1"]]

    with listening("127.0.0.2") as server, listening("127.0.0.1", port_of(server)) as inside:
        stream = await AT_HOME.connect_tcp("files.example", port_of(server), timeout=5)
        assert peer(stream) == "127.0.0.2"
        assert (accepted(server), accepted(inside)) == (1, 0)
        await stream.aclose()

    assert (net.asked, net.dialled) == (["files.example"], addresses("127.0.0.2"))


@pytest.mark.parametrize("address", [PUBLIC, PUBLIC_6, "::ffff:8.8.8.8", "64:ff9b::808:808"])
async def test_a_public_address_is_dialled_as_it_came(net: Net, address: str) -> None:
    net.names["files.example"] = [[address]]

    with pytest.raises(httpcore.ConnectError, match=r"files\.example: .*Network is unreachable"):
        await GUARD.connect_tcp("files.example", 443, timeout=5)

    assert net.dialled == addresses(address)


async def test_a_connection_that_was_turned_aside_is_closed_unused(net: Net) -> None:
    net.names["files.example"] = [[PUBLIC]]
    before = open_files()

    with listening() as server:
        net.turned[ipaddress.ip_address(PUBLIC)] = ("127.0.0.1", port_of(server))
        with pytest.raises(ForbiddenAddressError, match=r"127\.0\.0\.1, which is not a public address"):
            await GUARD.connect_tcp("files.example", 443, timeout=5)
        taken, _ = server.accept()
        with taken:
            await asyncio.sleep(0)
            assert taken.recv(10) == b"", "it is closed, and nothing was sent"

    assert open_files() == before


# Which address is taken ----------------------------------------------------------------------------------------


async def test_a_dead_address_is_followed_by_the_next_at_once(net: Net) -> None:
    net.names["files.example"] = [["127.0.0.2", "127.0.0.1", "127.0.0.3"]]
    began = asyncio.get_running_loop().time()

    with listening() as server:
        stream = await AT_HOME.connect_tcp("files.example", port_of(server), timeout=5)
        assert peer(stream) == "127.0.0.1"
        await stream.aclose()

    assert net.dialled == addresses("127.0.0.2", "127.0.0.1"), "and no more once one has taken it"
    assert asyncio.get_running_loop().time() - began < 0.01


async def test_a_silent_address_gets_company_after_a_moment_and_is_closed_when_it_loses(net: Net) -> None:
    net.names["files.example"] = [["127.0.0.2", "127.0.0.1"]]
    loop, before = asyncio.get_running_loop(), open_files()
    began = loop.time()

    with listening() as server, silent("127.0.0.2", port_of(server)):
        stream = await AT_HOME.connect_tcp("files.example", port_of(server), timeout=5)
        assert peer(stream) == "127.0.0.1"
        await stream.aclose()

    assert STAGGER_SECONDS <= loop.time() - began < STAGGER_SECONDS + 0.01
    assert open_files() == before


async def test_the_families_take_turns_in_the_order_of_the_answer(net: Net) -> None:
    net.names["files.example"] = [["::1", "::ffff:127.0.0.9", "::1", "127.0.0.2", "127.0.0.3", "127.0.0.4"]]

    with pytest.raises(httpcore.ConnectError):
        await AT_HOME.connect_tcp("files.example", 1, timeout=5)

    assert net.dialled == addresses("::1", "127.0.0.2", "::ffff:127.0.0.9", "127.0.0.3", "127.0.0.4")


async def test_a_name_of_a_hundred_addresses_is_checked_whole_and_dialled_in_part(net: Net) -> None:
    many = [f"127.0.0.{i}" for i in range(1, 101)]
    net.names["files.example"] = [many, [*many, "10.0.0.1"]]

    with pytest.raises(httpcore.ConnectError):
        await AT_HOME.connect_tcp("files.example", 1, timeout=5)
    with pytest.raises(ForbiddenAddressError):
        await AT_HOME.connect_tcp("files.example", 1, timeout=5)

    assert net.dialled == addresses(*many[:10])


async def test_two_that_connect_at_once_leave_one_connection(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.names["files.example"] = [["127.0.0.1", "127.0.0.2"]]
    both, real = asyncio.Event(), httpcore.AnyIOBackend.connect_tcp

    async def connect(backend: Any, host: str, *args: Any, **options: Any) -> Any:
        stream = await real(backend, host, *args, **options)
        if host == "127.0.0.2":
            both.set()
        with anyio.CancelScope(shield=True):
            await both.wait()
        return stream

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    before = open_files()

    with listening("0.0.0.0") as server:
        stream = await AT_HOME.connect_tcp("files.example", port_of(server), timeout=5)
        await asyncio.sleep(0)
        assert accepted(server) == 2
        assert open_files() == before + 2, "the server and one connection"
        await stream.aclose()


async def test_a_connection_that_comes_after_the_cancel_is_closed(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.names["files.example"] = [["127.0.0.1"]]
    real = httpcore.AnyIOBackend.connect_tcp

    async def connect_late(*args: Any, **options: Any) -> Any:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
        return await real(*args, **options)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_late)
    before = open_files()

    with listening() as server:
        task = asyncio.create_task(AT_HOME.connect_tcp("files.example", port_of(server), timeout=5))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert accepted(server) == 1

    assert open_files() == before


# Errors --------------------------------------------------------------------------------------------------------


async def test_an_unknown_name_is_no_connection(net: Net) -> None:
    with pytest.raises(httpcore.ConnectError, match=r"files\.example does not resolve: .*not known"):
        await GUARD.connect_tcp("files.example", 443, timeout=5)


async def test_a_name_without_an_address_is_no_connection(net: Net) -> None:
    net.names["files.example"] = [[]]

    with pytest.raises(httpcore.ConnectError, match="it has no address"):
        await GUARD.connect_tcp("files.example", 443, timeout=5)


@pytest.mark.real_time
async def test_a_name_that_cannot_be_one_is_no_connection() -> None:
    with pytest.raises(httpcore.ConnectError, match="does not resolve"):
        await GUARD.connect_tcp("a..example", 443, timeout=5)
    await check_resolved("a..example", 443, loopback=False)


async def test_a_lookup_that_hangs_ends_in_time(net: Net) -> None:
    net.names["files.example"], net.delay = [[PUBLIC]], 100
    began = asyncio.get_running_loop().time()

    with pytest.raises(httpcore.ConnectTimeout, match=r"no connection to files\.example within 3 s"):
        await GUARD.connect_tcp("files.example", 443, timeout=3)

    assert asyncio.get_running_loop().time() - began == pytest.approx(3)
    assert net.dialled == []


async def test_silent_addresses_end_in_time_and_leave_nothing_open(net: Net) -> None:
    net.names["files.example"] = [["127.0.0.1", "127.0.0.2"]]
    net.delay = 1.0
    before, began = open_files(), asyncio.get_running_loop().time()

    with (
        listening("127.0.0.3") as server,
        silent("127.0.0.1", port_of(server)),
        silent("127.0.0.2", port_of(server)),
    ):
        with pytest.raises(httpcore.ConnectTimeout):
            await AT_HOME.connect_tcp("files.example", port_of(server), timeout=2)

    assert asyncio.get_running_loop().time() - began == pytest.approx(2), "lookup and attempts share it"
    assert open_files() == before


async def test_the_systems_own_time_limit_is_no_connection(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    async def time_out(_sock: socket.socket, _address: Any) -> None:
        raise TimeoutError(110, "Connection timed out")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", time_out)
    net.names["files.example"] = [[PUBLIC]]

    with pytest.raises(httpcore.ConnectError, match=r"files\.example: .*timed out"):
        await GUARD.connect_tcp("files.example", 443)


async def test_a_connection_that_breaks_before_it_is_looked_at_is_none(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.names["files.example"] = [["127.0.0.1"]]

    def broken(*_: object) -> str:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(_guard, "_peer_of", broken)
    before = open_files()

    with listening() as server:
        with pytest.raises(httpcore.ConnectError, match=r"files\.example: the connection broke at once"):
            await AT_HOME.connect_tcp("files.example", port_of(server))

    assert open_files() == before


async def test_a_socket_of_this_machine_is_never_connected_to() -> None:
    with pytest.raises(ForbiddenAddressError, match=r"/run/docker\.sock"):
        await AT_HOME.connect_unix_socket("/run/docker.sock")


async def test_it_waits_by_the_loops_clock() -> None:
    began = asyncio.get_running_loop().time()

    await GUARD.sleep(2)

    assert asyncio.get_running_loop().time() - began == pytest.approx(2)


# Cancel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["task", "scope"])
async def test_a_cancel_at_any_moment_leaves_nothing_open(net: Net, way: str) -> None:
    net.names["files.example"] = [["127.0.0.2", "127.0.0.3", "127.0.0.1"]]
    net.delay = 0.1
    ended: list[tuple[float, int]] = []

    async def connect(port: int, scope: anyio.CancelScope, moment: tuple[float, int]) -> None:
        with scope:
            stream = await AT_HOME.connect_tcp("files.example", port, timeout=5)
            ended.append(moment)
            await stream.aclose()

    with listening() as server, silent("127.0.0.2", port_of(server)):
        before = open_files()
        # In the lookup; when it has ended and the first is dialled; when the second and third are; and the steps after.
        moments = [
            (seconds, steps) for seconds in (0, 0.1, 0.1 + STAGGER_SECONDS, 0.351) for steps in range(20)
        ]
        for moment in moments:
            scope = anyio.CancelScope()
            task = asyncio.create_task(connect(port_of(server), scope, moment))
            await asyncio.sleep(moment[0])
            for _ in range(moment[1]):
                await asyncio.sleep(0)
            if way == "task":
                task.cancel()
            else:
                scope.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for _ in range(3):
                await asyncio.sleep(0)
            accepted(server)
            assert len(list(Path("/proc/self/fd").iterdir())) == before, f"cancelled at {moment}"
        assert open_files() == before

    assert ended, "some came too late to stop it"
    assert len(ended) < len(moments) / 2


# Behind a proxy ------------------------------------------------------------------------------------------------


async def test_a_local_proxys_stand_in_for_an_address_says_nothing_of_where_the_proxy_connects(
    net: Net,
) -> None:
    net.names["files.example"] = [[FAKE]]

    await check_resolved("files.example", 443, loopback=False)


@pytest.mark.parametrize("address", [each for each in NOT_PUBLIC if each != FAKE])
async def test_what_a_proxy_would_connect_to_is_checked_here(net: Net, address: str) -> None:
    net.names["files.example"] = [[PUBLIC, address]]

    with pytest.raises(ForbiddenAddressError, match=f"files.example resolves to {address}, which is not"):
        await check_resolved("files.example", 443, loopback=False)


async def test_names_of_public_addresses_and_unknown_names_pass_to_a_proxy(net: Net) -> None:
    net.names["files.example"] = [[PUBLIC, PUBLIC_6]]
    net.names["localhost"] = [["::1", "127.0.0.1"]]

    await check_resolved("files.example", 443, loopback=False)
    await check_resolved("unknown.example", 443, loopback=False)
    await check_resolved("8.8.8.8", 443, loopback=False)
    await check_resolved("localhost", 443, loopback=True)
    with pytest.raises(ForbiddenAddressError, match=r"^127\.0\.0\.1 is not a public address$"):
        await check_resolved("127.0.0.1", 443, loopback=False)

    assert net.dialled == []


async def test_a_name_that_does_not_resolve_in_time_is_the_proxys_business(net: Net) -> None:
    net.names["files.example"], net.delay = [["10.0.0.1"]], 100
    began = asyncio.get_running_loop().time()

    await check_resolved("files.example", 443, loopback=False)

    assert asyncio.get_running_loop().time() - began == pytest.approx(5)


# With httpcore -------------------------------------------------------------------------------------------------


@pytest.mark.real_time
async def test_httpcore_fetches_through_it_by_real_names() -> None:
    async with serving(reply(b"whole")) as server:
        port = int(server.url.rpartition(":")[2])
        origin = httpcore.Origin(b"http", b"localhost", port)
        request = httpcore.Request("GET", f"http://localhost:{port}/a.png", headers={"host": "localhost"})

        async with httpcore.AsyncHTTPConnection(origin, network_backend=AT_HOME) as connection:
            answer = await connection.handle_async_request(request)
            assert await answer.aread() == b"whole"
            await answer.aclose()
        async with httpcore.AsyncHTTPConnection(origin, network_backend=GUARD) as connection:
            with pytest.raises(ForbiddenAddressError, match="localhost resolves to"):
                await connection.handle_async_request(request)

        assert server.connections == 1
