"""The transport: the key, the bounds, and every fault of the HTTP library in our words."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import ipaddress
import logging
import pickle
import ssl
import traceback
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpcore
import httpx
import pytest

from bide._http.pool import tls_context
from bide._http.transport import MAY_HAVE_ARRIVED, NOT_SENT, Transport
from bide._text import redact_url
from bide._wire import Call, Secret
from bide.errors import TransportError, UnexpectedReplyError
from support.scripted_server import cut, drip, late, reply, serving
from support.waits import A_MINUTE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

KEY = Secret("sk-canary-777")
LOOK = Call("GET", "/v1/tasks/t1")


def raising(error: Exception) -> Transport:
    async def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return Transport("https://api.example/v1", transport=httpx.MockTransport(answer))


def all_errors() -> list[type[Exception]]:
    found: list[type[Exception]] = []
    queue: list[type[Exception]] = [
        httpx.HTTPError,
        httpx.InvalidURL,
        httpx.StreamError,
        httpx.CookieConflict,
        httpcore.ConnectionNotAvailable,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
        httpcore.ProtocolError,
        httpcore.TimeoutException,
        httpcore.NetworkError,
    ]
    while queue:
        found.append(queue.pop())
        queue.extend(found[-1].__subclasses__())
    return found


def in_a_ring() -> Exception:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    return first


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
async def test_no_error_of_the_http_library_is_forgotten_and_none_leaves(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    error.args = (f"something with {KEY.reveal()} in it",)
    transport = raising(error)

    with pytest.raises(TransportError) as caught:
        await transport.send(LOOK, key=KEY, timeout=5)

    names = {base.__name__ for base in kind.__mro__}
    assert names & (set(NOT_SENT) | set(MAY_HAVE_ARRIVED)), "it has a word of its own, or of its base"
    assert caught.value.may_have_arrived is not bool(names & set(NOT_SENT))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert KEY.reveal() not in str(caught.value) + repr(pickle.dumps(caught.value))
    assert str(caught.value).startswith("https://api.example: ")


@pytest.mark.parametrize(
    "error", [OSError("pipe"), ssl.SSLError("handshake"), RuntimeError("odd"), KeyError("k"), in_a_ring()]
)
async def test_any_other_error_of_the_exchange_may_have_come_after_the_sending(error: Exception) -> None:
    with pytest.raises(TransportError) as caught:
        await raising(error).send(LOOK, key=KEY, timeout=5)

    assert caught.value.may_have_arrived
    assert not caught.value.permanent


async def test_an_address_that_cannot_be_called_is_permanent() -> None:
    with pytest.raises(TransportError) as caught:
        await raising(httpx.UnsupportedProtocol("ftp")).send(LOOK, key=KEY, timeout=5)

    assert caught.value.permanent
    assert not caught.value.may_have_arrived


async def test_a_port_where_nobody_listens_is_certainly_not_sent() -> None:
    async with serving(reply()) as server:
        url = server.url
    transport = Transport(url)

    with pytest.raises(TransportError, match=r"no connection \(ConnectError") as caught:
        await transport.send(LOOK, key=KEY, timeout=5)

    assert not caught.value.may_have_arrived
    assert not transport.connected
    await transport.aclose()


@pytest.mark.real_time
async def test_a_name_that_nobody_knows_is_certainly_not_sent() -> None:
    transport = Transport("https://api.invalid")

    with pytest.raises(TransportError, match=r"no connection \(ConnectError") as caught:
        await transport.send(LOOK, key=KEY, timeout=A_MINUTE)

    assert not caught.value.may_have_arrived
    await transport.aclose()


async def test_after_the_end_nothing_is_sent() -> None:
    async with serving(reply()) as server:
        transport = Transport(server.url)
        await transport.send(LOOK, key=KEY, timeout=5)
        await transport.aclose()

        with pytest.raises(TransportError, match="closed") as caught:
            await transport.send(LOOK, key=KEY, timeout=5)

        assert not caught.value.may_have_arrived
        assert len(server.requests) == 1


async def test_who_gets_no_connection_in_half_the_time_was_not_sent() -> None:
    """So that a create that only waited is not taken for one that may have arrived."""
    async with serving(late(100)) as server:
        transport = Transport(server.url)
        busy = [asyncio.create_task(transport.send(LOOK, key=KEY, timeout=200)) for _ in range(100)]
        await asyncio.sleep(1)

        with pytest.raises(TransportError, match="no free connection in time") as caught:
            await transport.send(LOOK, key=KEY, timeout=20)

        assert not caught.value.may_have_arrived
        await asyncio.gather(*busy)
        await transport.aclose()


async def test_a_cancel_passes_through_and_costs_the_connection() -> None:
    async with serving(late(100)) as server:
        transport = Transport(server.url)
        call = asyncio.create_task(transport.send(LOOK, key=KEY, timeout=200))
        await asyncio.sleep(1)
        call.cancel()

        await asyncio.wait([call])

        assert call.cancelled()
        await transport.aclose()
        await asyncio.sleep(200)
        assert server.open == 0


@pytest.mark.parametrize(
    "answer",
    [
        cut(),
        cut(b"HTTP/1.1 200 OK\r\n"),
        cut(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"),
        b"rubbish\r\n\r\n",
        reply(b"no gzip", headers="Content-Encoding: gzip\r\n"),
        late(60),
    ],
    ids=["at once", "in the head", "in the body", "no http", "no gzip", "hang"],
)
async def test_a_fault_after_the_sending_may_have_arrived(answer: Any) -> None:
    async with serving(answer) as server:
        transport = Transport(server.url)
        before = asyncio.get_running_loop().time()

        with pytest.raises(TransportError) as caught:
            await transport.send(Call("POST", "/v1/x", body={}), key=KEY, timeout=20)

        assert caught.value.may_have_arrived
        assert transport.connected
        assert asyncio.get_running_loop().time() - before <= 20.01
        assert len(server.requests) == 1
        await transport.aclose()


async def test_an_answer_that_drips_ends_by_the_time_out_of_the_whole() -> None:
    async with serving(drip(1000, 1)) as server:
        transport = Transport(server.url)
        before = asyncio.get_running_loop().time()

        with pytest.raises(TransportError, match="no reply in time"):
            await transport.send(LOOK, key=KEY, timeout=20)

        assert asyncio.get_running_loop().time() - before == pytest.approx(20, abs=0.1)
        await transport.aclose()


def self_signed(folder: Path) -> ssl.SSLContext:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


@pytest.mark.real_time
async def test_a_certificate_that_does_not_verify_is_permanent_and_nothing_was_sent(tmp_path: Path) -> None:
    async with serving(reply(), tls=self_signed(tmp_path)) as server:
        transport = Transport(server.url)
        await transport.warm()

        with pytest.raises(TransportError, match=r"certificate.*nothing was sent.*\$SSL_CERT_FILE") as caught:
            await transport.send(LOOK, key=KEY, timeout=A_MINUTE)

        assert caught.value.permanent
        assert not caught.value.may_have_arrived
        assert server.requests == []
        await transport.aclose()


@pytest.fixture
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SSL_CERT_FILE", "/there/is/no/such/file.pem")
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


@pytest.mark.usefixtures("no_certificates")
async def test_certificates_that_cannot_be_read_are_permanent_and_nothing_was_sent() -> None:
    transport = Transport("https://127.0.0.1:9")
    await transport.warm()

    with pytest.raises(TransportError, match=r"these settings.*\$SSL_CERT_FILE.*No such file") as caught:
        await transport.send(LOOK, key=KEY, timeout=5)

    assert caught.value.permanent
    assert not caught.value.may_have_arrived
    await transport.aclose()


# Proxies -----------------------------------------------------------------------------------------------------


async def test_the_environments_proxy_carries_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(reply(b"[1]")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "direct.example")
        transport = Transport("http://api.example/v1")

        got = await transport.send(LOOK, key=KEY, timeout=5)

        assert got.json() == [1]
        assert proxy.heads[0].startswith("get http://api.example/v1/v1/tasks/t1 ")
        await transport.aclose()


async def test_a_proxy_that_is_given_goes_before_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with serving(reply()) as proxy:
        transport = Transport("http://api.example", proxy=proxy.url)

        assert (await transport.send(LOOK, key=KEY, timeout=5)).status == 200
        await transport.aclose()


async def test_a_proxy_that_refuses_the_tunnel_never_sees_the_key() -> None:
    refusal = reply(b"no", status=407).replace(b"X\r\n", b"Proxy Authentication Required\r\n", 1)
    async with serving(refusal) as proxy:
        transport = Transport("https://api.example", proxy=proxy.url)

        with pytest.raises(TransportError, match=r"the proxy gave no connection.*407") as caught:
            await transport.send(LOOK, key=KEY, timeout=5)

        assert not caught.value.may_have_arrived
        assert len(proxy.heads) == 1
        assert proxy.heads[0].startswith("connect api.example:443 ")
        assert KEY.reveal() not in proxy.heads[0]
        await transport.aclose()


# The call and the answer -------------------------------------------------------------------------------------


async def test_the_call_goes_out_as_it_is_with_the_key_and_no_more() -> None:
    async with serving(reply(b'{"ok": true}', headers="X-Trace: 7\r\n")) as server:
        transport = Transport(server.url + "/api/v1/")
        call = Call(
            "POST", "/tasks", query={"a b": "ä"}, headers={"X-Async": "enable"}, body={"prompt": "猫"}
        )

        got = await transport.send(call, key=KEY, timeout=5)

        assert (got.status, got.json(), got.headers["x-trace"]) == (200, {"ok": True}, "7")
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        assert lines[0] == "post /api/v1/tasks?a+b=%c3%a4 http/1.1"
        assert "authorization: bearer sk-canary-777" in lines
        assert "content-type: application/json" in lines
        assert "accept-encoding: identity" in lines
        assert "x-async: enable" in lines
        assert body == '{"prompt":"猫"}'.encode()
        await transport.aclose()


async def test_a_redirect_is_an_answer_like_any_other_and_is_not_followed() -> None:
    async with serving(reply()) as other:
        async with serving(reply(status=302, headers=f"Location: {other.url}/steal\r\n")) as server:
            transport = Transport(server.url)

            got = await transport.send(LOOK, key=KEY, timeout=5)

            assert got.status == 302
            assert other.requests == []
            await transport.aclose()


async def test_cookies_are_neither_kept_nor_sent() -> None:
    async with serving(reply(headers="Set-Cookie: session=1; Path=/\r\n")) as server:
        transport = Transport(server.url)
        for _ in range(2):
            await transport.send(LOOK, key=KEY, timeout=5)

        assert "cookie" not in server.heads[1]
        await transport.aclose()


async def test_a_key_that_the_service_echoes_is_taken_out() -> None:
    body = b'{"message": "Incorrect API key provided: sk-canary-777."}'
    async with serving(reply(body, status=401, headers="X-Key: sk-canary-777\r\n")) as server:
        transport = Transport(server.url)

        got = await transport.send(LOOK, key=KEY, timeout=5)

        assert got.json() == {"message": "Incorrect API key provided: ***."}
        assert got.headers["x-key"] == "***"
        await transport.aclose()


@pytest.mark.parametrize("packed", [False, True])
async def test_a_body_beyond_the_bound_is_an_error_that_shows_its_begin(packed: bool) -> None:
    body, extra = b"x" * 3_000_000, ""
    if packed:
        body, extra = gzip.compress(b"x" * 300_000_000, 1), "Content-Encoding: gzip\r\n"
    async with serving(reply(body, headers=extra)) as server:
        transport = Transport(server.url)

        with pytest.raises(UnexpectedReplyError, match="longer than 1000000 bytes; it begins: xxx") as caught:
            await transport.send(LOOK, key=KEY, timeout=5, limit=1_000_000)

        assert len(str(caught.value)) < 600
        assert len(server.requests) == 1
        await transport.aclose()


async def test_a_bomb_takes_bounded_memory() -> None:
    bomb = reply(gzip.compress(bytes(300_000_000), 6), headers="Content-Encoding: gzip\r\n")
    async with serving(bomb) as server:
        transport = Transport(server.url)
        tracemalloc.start()
        try:
            with pytest.raises(UnexpectedReplyError, match="longer than"):
                await transport.send(LOOK, key=KEY, timeout=5, limit=1_000_000)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert peak < 200 * 2**20
        await transport.aclose()


@pytest.mark.parametrize("packing", ["gzip, gzip", "br", "zstd", "deflate,gzip,br"])
async def test_an_answer_in_a_packing_without_bound_is_not_unpacked(packing: str) -> None:
    body = gzip.compress(gzip.compress(bytes(1000)))
    async with serving(reply(body, headers=f"Content-Encoding: {packing}\r\n")) as server:
        transport = Transport(server.url)

        with pytest.raises(UnexpectedReplyError, match="was not asked for"):
            await transport.send(LOOK, key=KEY, timeout=5)

        await transport.aclose()


@pytest.mark.parametrize("packing", ["gzip", "GZIP", "identity", "utf-8", ""])
async def test_an_answer_in_a_known_or_in_no_packing_is_read(packing: str) -> None:
    body = gzip.compress(b'{"a": 1}') if packing.lower() == "gzip" else b'{"a": 1}'
    async with serving(reply(body, headers=f"Content-Encoding: {packing}\r\n")) as server:
        transport = Transport(server.url)

        assert (await transport.send(LOOK, key=KEY, timeout=5)).json() == {"a": 1}
        await transport.aclose()


async def test_the_begin_that_an_error_shows_holds_no_part_of_the_key() -> None:
    body = b"x" * 395 + KEY.reveal().encode() * 2 + b"y" * 5000
    async with serving(reply(body)) as server:
        transport = Transport(server.url)

        with pytest.raises(UnexpectedReplyError) as caught:
            await transport.send(LOOK, key=KEY, timeout=5, limit=1000)

        assert "xxx***" in str(caught.value)
        assert KEY.reveal()[:4] not in str(caught.value)
        assert KEY.reveal() not in shown_locals(caught.value)
        await transport.aclose()


@pytest.mark.parametrize(
    ("body", "words"), [({"n": float("nan")}, "JSON"), ({"text": "\ud800"}, "surrogates")]
)
async def test_a_body_that_is_no_json_is_not_sent(body: dict[str, Any], words: str) -> None:
    transport = raising(AssertionError("sent"))

    with pytest.raises(ValueError, match=words):
        await transport.send(Call("POST", "/x", body=body), key=KEY, timeout=5)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "v1",
            "//evil.example/x",
            "@evil.example",
            "/..//evil.example",
            "/a/../b",
            "/a/%2E%2e/b",
            "/..",
        ),
        *("/a\\b", "/a b", "/a?b", "/a#b", "/a\r\nX: y", "https://evil.example/x"),
    ],
)
async def test_a_path_that_leads_out_of_the_api_is_not_sent(path: str) -> None:
    transport = raising(AssertionError("sent"))

    with pytest.raises(ValueError, match="a call's path"):
        await transport.send(Call("GET", path), key=KEY, timeout=5)


def shown_locals(error: BaseException) -> str:
    """What a crash reporter would send: the local values of all frames of ours."""
    frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
    ours = [frame for frame in frames if "/bide/" in frame.filename]
    assert ours
    return "".join(str(frame.locals) for frame in ours)


async def test_the_key_is_in_no_repr_log_or_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with serving([reply(), cut()]) as server:
        transport = Transport(server.url)
        with caplog.at_level(logging.DEBUG):
            await transport.send(Call("POST", "/v1/x", body={}), key=KEY, timeout=5)
            with pytest.raises(TransportError) as caught:
                await transport.send(Call("POST", "/v1/x", body={}), key=KEY, timeout=5)

        assert "send_request_headers" in caplog.text, "the HTTP library logs"
        shown = shown_locals(caught.value)
        assert KEY.reveal() not in shown + caplog.text + repr(transport) + repr(vars(transport)) + repr(KEY)
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(KEY)
        await transport.aclose()


# A client of the caller's ------------------------------------------------------------------------------------


async def test_a_client_of_the_callers_carries_the_calls_and_is_not_closed() -> None:
    seen = []

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers["authorization"], request.content))
        return httpx.Response(302, headers={"location": "https://evil.example"}, json={"a": 1})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), follow_redirects=True) as mine:
        transport = Transport("https://api.example/v1", http_client=mine)
        got = await transport.send(Call("POST", "/x", body={"n": 1}), key=KEY, timeout=5)
        await transport.warm()
        await transport.aclose()

        assert (got.status, got.json()) == (302, {"a": 1})
        assert seen == [("https://api.example/v1/x", "Bearer sk-canary-777", b'{"n":1}')]
        assert not mine.is_closed


async def test_at_most_ten_requests_are_under_way_on_a_callers_client() -> None:
    under_way = most = 0

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(1)
        under_way -= 1
        return httpx.Response(200, json={})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as mine:
        transport = Transport("https://api.example", http_client=mine)
        await asyncio.gather(*(transport.send(LOOK, key=KEY, timeout=100) for _ in range(35)))

    assert most == 10


async def test_who_waits_for_a_callers_client_too_long_was_not_sent() -> None:
    async def answer(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(100)
        return httpx.Response(200, json={})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as mine:
        transport = Transport("https://api.example", http_client=mine)
        busy = [asyncio.create_task(transport.send(LOOK, key=KEY, timeout=200)) for _ in range(10)]
        await asyncio.sleep(1)

        with pytest.raises(TransportError, match="no free connection in time") as caught:
            await transport.send(LOOK, key=KEY, timeout=20)

        assert not caught.value.may_have_arrived
        await asyncio.gather(*busy)


async def test_a_callers_client_is_told_when_to_give_up() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=request.extensions["timeout"])

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as mine:
        transport = Transport("https://api.example", http_client=mine)
        got = (await transport.send(LOOK, key=KEY, timeout=60)).json()

    assert got == {"connect": 10, "read": 60, "write": 60, "pool": 15}


@pytest.mark.parametrize(
    ("name", "arrived"), [("ConnectError", False), ("ReadTimeout", True), ("Whatever", True)]
)
async def test_errors_of_another_client_are_told_by_their_names(name: str, arrived: bool) -> None:
    class Client:
        @asynccontextmanager
        async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            raise type(name, (Exception,), {})("oops")
            yield

    transport = Transport("https://api.example", http_client=Client())  # type: ignore[arg-type]

    with pytest.raises(TransportError, match=name) as caught:
        await transport.send(LOOK, key=KEY, timeout=5)

    assert caught.value.may_have_arrived is arrived


@pytest.mark.parametrize(
    "others", [{"transport": httpx.MockTransport(lambda _: httpx.Response(200))}, {"proxy": "http://p"}]
)
def test_arguments_that_exclude_each_other_are_refused(others: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="http_client= excludes"):
        Transport("https://api.example", http_client=httpx.AsyncClient(), **others)
    if "transport" in others:
        with pytest.raises(ValueError, match="transport= excludes proxy="):
            Transport("https://api.example", proxy="http://p", **others)


@pytest.mark.parametrize("proxy", ["gopher://proxy", "http://proxy:port", "proxy"])
def test_a_proxy_that_is_none_is_refused_at_once(proxy: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)proxy"):
        Transport("https://api.example", proxy=proxy)


@pytest.mark.parametrize("client", [object(), httpx.Client()])
def test_a_client_that_is_not_for_async_use_is_refused(client: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an httpx\.AsyncClient, not"):
        Transport("https://api.example", http_client=client)


async def test_a_transport_that_is_given_is_the_callers_to_close() -> None:
    class Mine(httpx.MockTransport):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    mine = Mine(lambda _: httpx.Response(200, json={}))
    transport = Transport("https://api.example", transport=mine)
    await transport.send(LOOK, key=KEY, timeout=5)
    await transport.aclose()

    assert mine.closed == 0


def test_an_address_is_shown_without_its_signature_and_its_password() -> None:
    assert redact_url("https://me:pw@files.example/a/b.png?sig=1#x") == "https://files.example/a/b.png?…"
