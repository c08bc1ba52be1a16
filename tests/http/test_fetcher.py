"""Fetching from a stranger's address: what is sent, what is followed, what an answer or a fault looks like."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import respx

from bide._http.fetcher import (
    MAX_REDIRECTS,
    READ_TIMEOUT_SECONDS,
    CutError,
    Fetcher,
    FileReply,
    ForbiddenError,
)
from support.hostile_server import (
    CDN,
    PNG,
    PUBLIC,
    SECRET,
    Net,
    hostile_net,
    moved,
    public_net,
    public_server,
    reply,
    serving,
)

FAR = "https://api.example/api/v1"
FILE = f"https://{CDN}/a.png?Signature={SECRET}"
REST = {"range": "bytes=9-", "if-range": '"1"'}


@pytest.fixture
async def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    return hostile_net(monkeypatch)


@pytest.fixture
async def wide(monkeypatch: pytest.MonkeyPatch) -> Net:
    """A net in which `PUBLIC` counts as public."""
    return public_net(monkeypatch)


def fetcher_of(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> Fetcher:
    return Fetcher(FAR, transport=httpx.MockTransport(answer), **options)


async def got(fetcher: Fetcher, url: str = FILE, **headers: str) -> tuple[FileReply, bytes]:
    """The answer, and all of its body."""
    async with fetcher.open(url, headers) as answer:
        return answer, b"".join([chunk async for chunk in answer.chunks])


async def refused(fetcher: Fetcher, url: str = FILE) -> str:
    with pytest.raises(ForbiddenError) as caught:
        await got(fetcher, url)
    return excerpt(caught.value)


async def cut(fetcher: Fetcher, url: str = FILE) -> str:
    with pytest.raises(CutError) as caught:
        await got(fetcher, url)
    return excerpt(caught.value)


def excerpt(error: BaseException) -> str:
    """The words of an error, which hold no signature, and whose traceback has no error with one beside it."""
    assert SECRET not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return str(error)


# By a transport of the caller's -------------------------------------------------------------------------------


async def test_an_answer_tells_its_place_without_the_signature() -> None:
    headers = {"ETag": '"1"', "X-Odd": "a"}
    fetcher = fetcher_of(lambda _: httpx.Response(200, headers=headers, content=PNG))

    answer, body = await got(fetcher)

    assert (answer.place, answer.status, body) == (f"https://{CDN}/a.png?…", 200, PNG)
    assert {"etag": '"1"', "x-odd": "a", "content-length": str(len(PNG))}.items() <= dict(
        answer.headers
    ).items()


async def test_nothing_is_sent_but_what_is_told_and_our_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither what `~/.netrc` knows of the host, nor a cookie of the hop before, nor where it came from."""
    (tmp_path / ".netrc").write_text(f"machine {CDN} login me password {SECRET}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        headers = {"set-cookie": "a=b; Path=/", "www-authenticate": "Basic", "location": "/next"}
        return httpx.Response(302 if len(seen) < 3 else 200, headers=headers)

    await got(fetcher_of(answer), **REST)

    assert [each.method for each in seen] == ["GET"] * 3
    for each in seen:
        assert {*each.headers} == {"host", "user-agent", "accept", "accept-encoding", "range", "if-range"}
        assert each.headers["accept-encoding"] == "identity"
        assert (each.headers["range"], each.headers["if-range"]) == ("bytes=9-", '"1"')
        assert each.content == b""


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "to"),
    [
        ("/b", f"https://{CDN}/b"),
        ("b?x=1", f"https://{CDN}/dir/b?x=1"),
        ("../b", f"https://{CDN}/b"),
        ("?x", f"https://{CDN}/dir/a?x"),
        ("//other.example/b", "https://other.example/b"),
        ("https://other.example:444/b", "https://other.example:444/b"),
        ("https:b", f"https://{CDN}/dir/b"),
        ("https://other.example/%c3%a4?a=%2F", "https://other.example/%c3%a4?a=%2F"),
    ],
)
async def test_a_redirect_is_followed_as_it_is_written(status: int, location: str, to: str) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return (
            httpx.Response(status, headers={"location": location}) if len(asked) < 2 else httpx.Response(200)
        )

    found, _ = await got(fetcher_of(answer), f"https://{CDN}/dir/a")

    assert asked == [f"https://{CDN}/dir/a", to]
    assert found.place == to.partition("?")[0] + ("?…" if "?" in to else "")


async def test_a_path_in_any_script_is_asked_for_as_it_has_to_be_written() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        location = "/文.png?名=a%2Fb".encode()
        return httpx.Response(302 if len(asked) < 2 else 200, headers=[(b"location", location)])

    await got(fetcher_of(answer), f"https://{CDN}/é/%e6%96%87?a=ü")

    assert asked == ["/%C3%A9/%e6%96%87?a=%C3%BC", "/%E6%96%87.png?%E5%90%8D=a%2Fb"]


@pytest.mark.parametrize(
    "location",
    ["http://cdn.example/", "https://10.0.0.1/", "file:///etc/passwd", "https://[", "//[::1", "https://a:b/"],
)
async def test_a_redirect_is_judged_like_a_first_address(location: str) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"location": location})

    await refused(fetcher_of(answer))

    assert asked == [FILE]


@pytest.mark.parametrize("status", [300, 302, 304, 305])
async def test_what_leads_nowhere_is_an_answer(status: int) -> None:
    answer, _ = await got(fetcher_of(lambda _: httpx.Response(status, headers={"x": "y"})))

    assert answer.status == status


async def test_no_more_redirects_are_followed_than_the_rule_says() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(302, headers={"location": f"/{len(asked)}?Signature={SECRET}"})

    words = await refused(fetcher_of(answer))

    assert words == f"more than 5 redirects, the last one to https://{CDN}/6?…: ask the service"
    assert len(asked) == MAX_REDIRECTS + 1 == 6


@pytest.mark.parametrize("packing", ["gzip", "x-gzip", "deflate", "br", "zstd", "compress", "identity, GZIP"])
@pytest.mark.parametrize("status", [200, 206, 404, 500])
async def test_a_file_that_comes_packed_is_refused(packing: str, status: int) -> None:
    """It was asked for as it is. Of other answers nobody reads the body."""

    class Raw(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield PNG

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={"content-encoding": packing}, stream=Raw())

    if status < 300:
        assert "came packed with" in await refused(fetcher_of(answer))
    else:
        found, body = await got(fetcher_of(answer))
        assert (found.status, body) == (status, PNG)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (httpx.ConnectError("no"), CutError),
        (httpx.ConnectTimeout("no"), CutError),
        (httpx.ReadTimeout("no"), CutError),
        (httpx.PoolTimeout("no"), CutError),
        (httpx.RemoteProtocolError("no"), CutError),
        (httpx.ProxyError("no"), CutError),
        (httpcore.ReadError("no"), CutError),
        (OSError("no"), CutError),
        (ZeroDivisionError(FILE), CutError),
        (httpx.UnsupportedProtocol("no"), ForbiddenError),
        (httpx.InvalidURL("no"), ForbiddenError),
    ],
)
async def test_a_fault_is_told_as_what_trying_again_would_do(fault: Exception, kind: type) -> None:
    with respx.MockRouter(assert_all_called=False) as router:
        router.get(url__startswith=f"https://{CDN}").mock(side_effect=fault)
        fetcher = Fetcher(FAR, transport=httpx.MockTransport(router.async_handler))

        with pytest.raises(kind) as caught:
            await got(fetcher)

    if type(fault) is not ZeroDivisionError:
        assert excerpt(caught.value).startswith(f"https://{CDN}/a.png?…: ")


# An error of the HTTP library may quote what a server wrote.
async def test_a_fault_that_quotes_an_address_is_told_without_its_signature() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadError(f"the connection to {FILE} broke")

    await cut(fetcher_of(answer))


async def test_a_transport_without_an_async_stream_is_told_as_such() -> None:
    class Sync(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, stream=httpx.SyncByteStream())

    assert "async stream" in await cut(Fetcher(FAR, transport=Sync()))


async def test_a_body_that_breaks_off_is_cut_and_one_that_cannot_be_closed_is_no_fault() -> None:
    class Breaks(httpx.AsyncByteStream):
        def __init__(self, fault: Exception | None) -> None:
            self.fault = fault

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield PNG
            if self.fault is not None:
                raise self.fault

        async def aclose(self) -> None:
            raise RuntimeError("no")

    words = await cut(fetcher_of(lambda _: httpx.Response(200, stream=Breaks(httpx.ReadError("gone")))))
    assert words.startswith(f"https://{CDN}/a.png?…: the connection broke")

    _, body = await got(fetcher_of(lambda _: httpx.Response(200, stream=Breaks(None))))
    assert body == PNG


@pytest.mark.parametrize("cancelled", [True, False])
async def test_what_the_reader_raises_comes_out_as_it_is(cancelled: bool) -> None:
    fault = asyncio.CancelledError() if cancelled else CutError("mine")

    with pytest.raises(type(fault)) as caught:
        async with fetcher_of(lambda _: httpx.Response(200, content=PNG)).open(FILE, {}):
            raise fault

    assert caught.value is fault


async def test_the_log_tells_each_hop_without_signatures_and_bears_a_broken_handler(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the disk of the log is full")

    def answer(request: httpx.Request) -> httpx.Response:
        there = f"https://other.example/b?Signature={SECRET}"
        return httpx.Response(200 if request.url.path == "/b" else 302, headers={"location": there})

    log = logging.getLogger("bide")
    caplog.set_level(logging.DEBUG, "bide")
    monkeypatch.setattr(log, "handlers", [*log.handlers, caplog.handler, Broken()])
    await got(fetcher_of(answer))

    lines = list(dict.fromkeys(record.getMessage() for record in caplog.records if record.name == "bide"))
    assert lines == [f"GET https://{CDN}/a.png?…: HTTP 302", "GET https://other.example/b?…: HTTP 200"]
    assert all(SECRET not in repr(record.__dict__) for record in caplog.records)


# Over sockets ------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again_and_none_that_was_left_in_the_middle(wide: Net) -> None:
    fetcher = Fetcher(FAR)
    async with public_server(reply(PNG * 100_000)) as server:
        url = f"https://{CDN}:{server.port}/a"
        await got(fetcher, url)
        await got(fetcher, url)
        assert server.connections == 1

        async with fetcher.open(url, {}) as answer, aclosing(answer.chunks) as chunks:  # type: ignore[type-var]  # it is a generator
            await anext(chunks)
        await got(fetcher, url)
        assert server.connections == 2
        await fetcher.aclose()


async def test_each_new_connection_looks_the_name_up_again(wide: Net) -> None:
    wide.names[CDN] = [[PUBLIC], ["10.0.0.1"]]
    fetcher = Fetcher(FAR)
    async with public_server(reply(headers="Connection: close\r\n")) as server:
        url = f"https://{CDN}:{server.port}/a"
        await got(fetcher, url)
        assert "resolves to 10.0.0.1" in await refused(fetcher, url)

    assert wide.asked == [CDN, CDN]
    await fetcher.aclose()


async def test_a_certificate_of_another_name_is_refused_and_no_request_is_sent(wide: Net) -> None:
    wide.names["elsewhere.example"] = [[PUBLIC]]
    fetcher = Fetcher(FAR)
    async with public_server(reply()) as server:
        words = await cut(fetcher, f"https://elsewhere.example:{server.port}/a?Signature={SECRET}")

    assert "certificate" in words
    assert server.requests == []
    await fetcher.aclose()


async def test_a_server_that_says_nothing_is_cut(wide: Net) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    fetcher = Fetcher(FAR)
    async with public_server(b"") as server:
        words = await cut(fetcher, f"https://{CDN}:{server.port}/a?Signature={SECRET}")

    assert "no reply in time" in words
    assert loop.time() - began == pytest.approx(READ_TIMEOUT_SECONDS, abs=1)
    await fetcher.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00" * 100 + b"\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\nabc",
    ],
    ids=range(10),
)
async def test_an_answer_that_is_no_http_is_cut(net: Net, answer: bytes) -> None:
    async with serving(answer) as server:
        fetcher = Fetcher(f"http://127.0.0.1:{server.port}")
        words = await cut(fetcher, f"http://127.0.0.1:{server.port}/a?Signature={SECRET}")
        assert len(words) < 500
        assert words.isprintable()
        await fetcher.aclose()


async def test_a_redirect_with_an_endless_body_holds_nobody_up(net: Net) -> None:
    """Its body is nobody's business: the connection is thrown away."""

    def answer(path: str, head: bytes) -> bytes:
        return (
            reply(PNG)
            if path == "/b"
            else moved("/b").replace(b"Content-Length: 0", b"Content-Length: 999999999")
        )

    async with serving(answer) as server:
        fetcher = Fetcher(f"http://127.0.0.1:{server.port}")
        _, body = await got(fetcher, f"http://127.0.0.1:{server.port}/a")
        await fetcher.aclose()

    assert body == PNG
    assert server.connections == 2


async def test_no_more_connections_are_open_than_files_are_fetched_at_once(net: Net) -> None:
    async with serving(reply(PNG, length=len(PNG) + 1)) as server:
        url = f"http://127.0.0.1:{server.port}/a"
        fetcher = Fetcher(url, at_once=2)
        stopped = asyncio.Event()

        async def hold() -> None:
            async with fetcher.open(url, {}):
                await stopped.wait()

        holds = [asyncio.create_task(hold()) for _ in range(2 + 3)]
        await asyncio.sleep(1)
        assert server.connections == 2
        stopped.set()
        await asyncio.gather(*holds)
        await fetcher.aclose()


async def test_a_closed_fetcher_fetches_nothing(net: Net) -> None:
    async with serving(reply()) as server:
        url = f"http://127.0.0.1:{server.port}/a"
        fetcher = Fetcher(url)
        async with fetcher.open(url, {}):
            await fetcher.aclose()
        assert "closed" in await cut(fetcher, url)
        await fetcher.aclose()

    assert server.connections == 1


def sockets() -> int:
    """Connections of this process that are open."""
    gc.collect()
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists them
            count += str(path.readlink()).startswith("socket:")
    return count


# At the handshake httpcore forgets the connection.
@pytest.mark.parametrize("moment", ["lookup", "handshake", "answer", "body"])
async def test_a_cancelled_fetch_leaves_no_connection(
    wide: Net, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is cancelled. (A `ResourceWarning` would make this fail, too.)"""
    before = sockets()
    with socket.create_server((PUBLIC, 0)) as mute:
        async with public_server(b"" if moment == "answer" else reply(PNG, length=10**6)) as server:
            port = mute.getsockname()[1] if moment == "handshake" else server.port
            if moment == "lookup":
                monkeypatch.setattr(
                    asyncio.get_running_loop(), "getaddrinfo", lambda *_, **__: asyncio.sleep(9)
                )
            fetcher = Fetcher(FAR)
            fetching = asyncio.create_task(got(fetcher, f"https://{CDN}:{port}/a"))
            await asyncio.sleep(1)

            fetching.cancel()
            await asyncio.wait([fetching])
            await fetcher.aclose()

            assert fetching.cancelled()
    assert sockets() == before
