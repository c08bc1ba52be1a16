"""The stack of connections, on real sockets."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import httpcore
import httpx
import pytest

from bide._http import pool as _pool
from bide._http.pool import MAX_IDLE_EXTENSION, ConnectionStack, SetupError, proxy_for
from support.scripted_server import Server, cut, late, reply, serving

BROKEN = (httpx.NetworkError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ConnectionNotAvailable)


async def get(
    stack: ConnectionStack, server: Server, *, pool: float = 1000, max_idle: float | None = None
) -> bytes:
    extensions: dict[str, object] = {"timeout": {"pool": pool, "connect": 10, "read": 1000, "write": 10}}
    if max_idle is not None:
        extensions[MAX_IDLE_EXTENSION] = max_idle
    response = await stack.handle_async_request(httpx.Request("GET", server.url, extensions=extensions))
    try:
        return b"".join([chunk async for chunk in response.aiter_raw()])
    finally:
        await response.aclose()


async def test_one_connection_serves_one_request_after_the_other() -> None:
    async with serving(reply(b"hello")) as server:
        stack = ConnectionStack()
        assert [await get(stack, server) for _ in range(20)] == [b"hello"] * 20

        assert (server.connections, stack.opened) == (1, 1)
        assert repr(stack) == "<ConnectionStack 0 busy, 1 idle, 100 at most>"
        await stack.aclose()
        await asyncio.sleep(0.1)
        assert server.open == 0


async def test_no_more_connections_than_its_size_and_waiters_go_in_order_of_arrival() -> None:
    async with serving(late(1)) as server:
        stack, ended = ConnectionStack(size=3), []

        async def one(number: int) -> None:
            await get(stack, server)
            ended.append(number)

        await asyncio.gather(*(one(number) for number in range(12)))

        assert server.connections == 3
        assert [number // 3 for number in ended] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        await stack.aclose()


async def test_a_request_that_gets_no_place_in_time_was_not_sent() -> None:
    async with serving(late(100)) as server:
        stack = ConnectionStack(size=1)
        busy = asyncio.create_task(get(stack, server))
        await asyncio.sleep(1)

        with pytest.raises(httpx.PoolTimeout, match="within 5 s"):
            await get(stack, server, pool=5)

        assert len(server.requests) == 1
        await busy
        assert await get(stack, server) == b"{}"
        await stack.aclose()


async def test_an_idle_connection_outlasts_the_longest_time_between_two_looks() -> None:
    async with serving(reply()) as server:
        stack = ConnectionStack()
        await get(stack, server)
        await asyncio.sleep(63)
        await get(stack, server)
        assert server.connections == 1

        await asyncio.sleep(200)
        await get(stack, server)
        assert server.connections == 2
        assert server.open == 1
        await stack.aclose()


async def test_a_fresh_connection_is_new_or_was_used_a_moment_ago() -> None:
    async with serving(reply()) as server:
        stack = ConnectionStack(size=2)
        await get(stack, server)
        await asyncio.sleep(0.5)
        await get(stack, server, max_idle=1.0)
        assert server.connections == 1

        await asyncio.sleep(2)
        await get(stack, server, max_idle=1.0)
        assert server.connections == 2
        await asyncio.sleep(2)
        await get(stack, server, max_idle=1.0)
        assert server.connections == 3
        assert server.open == 2, "the oldest made room"
        await stack.aclose()


async def test_the_connection_used_last_goes_first_so_that_the_others_age() -> None:
    async with serving(late(1)) as server:
        stack = ConnectionStack(size=4)
        await asyncio.gather(*(get(stack, server) for _ in range(4)))
        for _ in range(4):
            await asyncio.sleep(60)
            await get(stack, server)

        assert (server.connections, server.open) == (4, 1)
        await stack.aclose()


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced_unnoticed() -> None:
    async def last(writer: asyncio.StreamWriter) -> None:
        writer.write(reply())
        await writer.drain()
        writer.close()
        await asyncio.sleep(1000)

    async with serving([last, reply()]) as server:
        stack = ConnectionStack(size=1)
        await get(stack, server)
        await asyncio.sleep(5)

        assert await get(stack, server) == b"{}"
        assert server.connections == 2
        await stack.aclose()


@pytest.mark.parametrize(
    "broken", [cut(), cut(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf"), b"no http\r\n\r\n"]
)
async def test_a_connection_that_fails_is_thrown_away(broken: object) -> None:
    async with serving([broken, reply()]) as server:  # type: ignore[list-item]
        stack = ConnectionStack(size=1)
        with pytest.raises(BROKEN):
            await get(stack, server)

        assert await get(stack, server) == b"{}"
        assert server.connections == 2
        await stack.aclose()


async def test_one_stack_serves_several_origins_with_a_connection_for_each() -> None:
    async with serving(reply(b"one")) as first, serving(reply(b"two")) as second:
        stack = ConnectionStack(size=2)

        got = [await get(stack, server) for server in (first, second, first, second)]

        assert got == [b"one", b"two", b"one", b"two"]
        assert repr(stack).startswith("<ConnectionStack 0 busy")
        await stack.aclose()


async def test_what_is_no_http_is_refused_before_anything_is_sent() -> None:
    stack = ConnectionStack()

    with pytest.raises(httpx.UnsupportedProtocol, match="http or https, not 'ftp'"):
        await stack.handle_async_request(httpx.Request("GET", "ftp://files.example/x"))
    assert repr(stack).startswith("<ConnectionStack 0 busy, 0 idle")
    await stack.aclose()


async def test_an_answer_that_is_not_read_to_its_end_costs_its_connection() -> None:
    async with serving(reply(b"x" * 100_000)) as server:
        stack = ConnectionStack(size=1)
        response = await stack.handle_async_request(httpx.Request("GET", server.url))
        await response.aclose()

        assert repr(stack) == "<ConnectionStack 0 busy, 0 idle, 1 at most>"
        await get(stack, server)
        await stack.aclose()


async def test_a_body_that_is_closed_twice_gives_its_connection_back_once() -> None:
    async with serving([reply(), late(10)]) as server:
        stack = ConnectionStack(size=1)
        first = await stack.handle_async_request(httpx.Request("GET", server.url))
        await first.aread()
        second = asyncio.create_task(get(stack, server))
        await asyncio.sleep(1)

        await first.stream.aclose()  # type: ignore[union-attr]

        assert repr(stack) == "<ConnectionStack 1 busy, 0 idle, 1 at most>"
        assert await second == b"{}"
        await stack.aclose()


@pytest.mark.no_cover
async def test_random_cancels_lose_no_place() -> None:
    """A pool of httpcore is dead for good after three seconds of this."""
    chance = random.Random(7)
    async with serving(late(0.05)) as server:
        stack = ConnectionStack(size=10)

        async def caller() -> None:
            until = asyncio.get_running_loop().time() + 3
            while asyncio.get_running_loop().time() < until:
                call = asyncio.create_task(get(stack, server))
                await asyncio.sleep(chance.uniform(0, 0.1))
                call.cancel()
                await asyncio.wait([call])

        await asyncio.gather(*(caller() for _ in range(20)))
        before = asyncio.get_running_loop().time()
        await asyncio.gather(*(get(stack, server, pool=1) for _ in range(10)))

        assert asyncio.get_running_loop().time() - before < 0.06, "all ten places at once"
        assert repr(stack) == "<ConnectionStack 0 busy, 10 idle, 10 at most>"
        await stack.aclose()


async def test_a_waiter_that_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    async with serving([reply(), late(1)]) as server:
        stack = ConnectionStack(size=1)
        first = await stack.handle_async_request(httpx.Request("GET", server.url))
        second, third = asyncio.create_task(get(stack, server)), asyncio.create_task(get(stack, server))
        await asyncio.sleep(0.5)
        await first.aread()
        second.cancel()
        await asyncio.wait([second, third], timeout=10)

        assert second.cancelled()
        assert third.result() == b"{}"
        await stack.aclose()


async def test_closing_as_a_waiter_is_cancelled_disturbs_nobody() -> None:
    async with serving(late(1000)) as server:
        stack = ConnectionStack(size=1)
        first, second, third = (asyncio.create_task(get(stack, server)) for _ in range(3))
        await asyncio.sleep(1)

        second.cancel()
        await stack.aclose()

        await asyncio.wait([first, second, third], timeout=1)
        assert second.cancelled()
        assert isinstance(first.exception(), BROKEN)
        assert isinstance(third.exception(), httpx.ConnectError)


async def test_an_answer_that_is_read_after_the_closing_gives_nothing_back() -> None:
    async with serving(reply(b"small")) as server:
        stack = ConnectionStack()
        response = await stack.handle_async_request(httpx.Request("GET", server.url))
        await stack.aclose()

        with suppress(*BROKEN):
            assert await response.aread() == b"small"
        await response.aclose()

        assert repr(stack) == "<ConnectionStack 0 busy, 0 idle, 100 at most>"


@pytest.mark.parametrize("read", [False, True])
async def test_a_connection_whose_answer_cannot_be_closed_is_not_used_again(
    read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"whole"

        async def aclose(self) -> None:
            raise httpx.CloseError("stuck")

    async def answer(*_: object) -> httpx.Response:
        return httpx.Response(200, stream=Stuck())

    monkeypatch.setattr(_pool._DirectConnection, "handle_async_request", answer)
    stack = ConnectionStack(size=1)
    response = await stack.handle_async_request(httpx.Request("GET", "http://api.example"))

    with pytest.raises(httpx.CloseError):
        await (response.aread() if read else response.aclose())
    await response.aclose()

    assert repr(stack) == "<ConnectionStack 0 busy, 0 idle, 1 at most>"
    await stack.aclose()


@pytest.mark.parametrize("steps", range(40))
async def test_a_cancel_at_any_moment_loses_no_place(steps: int) -> None:
    """Also while connections that are too old are closed on the way."""
    async with serving(reply()) as server:
        stack = ConnectionStack(size=2)
        await asyncio.gather(get(stack, server), get(stack, server))
        await asyncio.sleep(500)

        call = asyncio.create_task(get(stack, server))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])

        assert "0 busy" in repr(stack)
        await asyncio.gather(*(get(stack, server, pool=1) for _ in range(6)))
        assert server.open == 2
        await stack.aclose()


@pytest.mark.parametrize("steps", range(12))
async def test_closing_ends_what_is_under_way_and_leaves_no_connection(steps: int) -> None:
    async with serving(late(50)) as server:
        stack = ConnectionStack(size=3)
        calls = [asyncio.create_task(get(stack, server)) for _ in range(8)]
        for _ in range(steps):
            await asyncio.sleep(0)

        await stack.aclose()

        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
        assert [result for result in results if not isinstance(result, BROKEN)] == []
        with pytest.raises(httpx.ConnectError, match="closed"):
            await get(stack, server)
        await stack.aclose()
        await asyncio.sleep(60)
        assert server.open == 0
        assert repr(stack) == "<ConnectionStack 0 busy, 0 idle, 3 at most>"


async def test_a_cancel_while_tls_is_agreed_on_leaves_no_connection_open() -> None:
    """httpcore forgets the connection then; it stayed open until it was found as garbage."""
    stack = ConnectionStack()
    begun = asyncio.Event()
    ends: list[bytes] = []

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)  # the client's greeting
        begun.set()
        while await reader.read(10_000):
            pass
        ends.append(b"")
        writer.close()

    gc.disable()
    try:
        async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            task = asyncio.create_task(stack.handle_async_request(httpx.Request("GET", url)))
            await begun.wait()
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0.1)

            assert ends == [b""]
            await stack.aclose()
    finally:
        gc.enable()


@pytest.mark.parametrize("proxy", ["gopher://proxy:70", "socks5://proxy:1080", "http://proxy:port"])
async def test_a_proxy_that_cannot_be_used_says_so_to_each_request(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    stack = ConnectionStack(size=1, proxy=proxy)
    calls = [stack.handle_async_request(httpx.Request("GET", "http://api.example")) for _ in range(3)]

    results = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(result) for result in results] == [SetupError] * 3
    assert "check the proxy" in str(results[0])
    await stack.aclose()


async def test_who_waits_for_a_place_is_told_as_well_that_no_connection_can_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(late(5)) as server:
        stack = ConnectionStack(size=1)
        calls = [asyncio.create_task(get(stack, server)) for _ in range(4)]
        await asyncio.sleep(1)
        stack._proxy = "gopher://proxy"
        calls[0].cancel()

        results = await asyncio.gather(*calls, return_exceptions=True)

        assert [type(result) for result in results[1:]] == [SetupError] * 3
        await stack.aclose()


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://api.example/v1", "http://proxy:3128"),
        ("http://api.example/v1", "http://plain:80"),
        ("https://inside.example", None),
        ("https://inside.example:8443/x", None),
        ("http://127.0.0.1:8000", None),
        ("ftp://files.example", "http://rest:81"),
    ],
)
def test_the_proxy_is_the_environments(url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("http_proxy", "http://plain:80")
    monkeypatch.setenv("all_proxy", "rest:81")
    monkeypatch.setenv("no_proxy", "inside.example,127.0.0.1")

    assert proxy_for(url) == proxy


async def test_requests_go_through_the_proxy() -> None:
    async with serving(reply(b"by proxy")) as proxy, serving(reply(b"direct")) as server:
        stack = ConnectionStack(proxy=proxy.url)

        assert await get(stack, server) == b"by proxy"
        assert proxy.heads[0].startswith(f"get {server.url}")
        assert server.requests == []
        await stack.aclose()
