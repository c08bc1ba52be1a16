"""Downloads through a proxy, which connects and resolves by itself: what can be judged here is judged here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from bide import DownloadError, Downloads
from bide._http.addresses import is_fake_ip
from support.hostile_server import (
    CDN,
    PNG,
    PUBLIC,
    RESOLVED,
    SECRET,
    Net,
    done,
    far_client,
    moved,
    public_net,
    public_server,
    refused,
    refused_by,
    reply,
    signed,
)

BY_THEIR_LOOKS = [
    "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/", "https://2130706433/", "https://0x7f.1/",
    "https://169.254.169.254/latest/meta-data/", "https://[::ffff:7f00:1]/", "https://localhost/", "https://metadata/",
    "https://metadata.google.internal/", "http://cdn.example/", "https://cdn.example@127.0.0.1/", "file:///etc/passwd",
]  # fmt: skip


@pytest.fixture
async def wide(monkeypatch: pytest.MonkeyPatch) -> Net:
    """A net in which `PUBLIC` counts as public."""
    return public_net(monkeypatch)


@define
class Proxy:
    """A proxy that tells what it was asked for, and tunnels to where the test says."""

    port: int = 0
    asked: list[str] = field(factory=list)
    leads_to: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def proxying() -> AsyncIterator[Proxy]:
    proxy, tasks = Proxy(), set()

    async def pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while piece := await source.read(65536):
                sink.write(piece)
        except ConnectionError:
            pass
        finally:
            sink.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            proxy.asked.append(b" ".join(head.split(b" ")[:2]).decode())
            if proxy.leads_to is None:
                writer.write(reply(b"", status=403))
                await writer.drain()
                return
            source, sink = await asyncio.open_connection(PUBLIC, proxy.leads_to)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(pour(reader, sink), pour(source, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@pytest.fixture(params=["argument", "https_proxy", "HTTPS_PROXY", "all_proxy"])
def proxied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Options of a client whose downloads go through a proxy, one way or the other."""

    def options(proxy: Proxy) -> dict[str, str]:
        if request.param == "argument":
            return {"proxy": proxy.url}
        monkeypatch.setenv(request.param, proxy.url)
        return {}

    return options


async def test_a_proxy_is_not_asked_for_a_name_that_leads_inward_here(
    wide: Net, proxied: Any, tmp_path: Path
) -> None:
    async with proxying() as proxy, far_client(**proxied(proxy)) as client:
        for number, address in enumerate(each for each in RESOLVED if not is_fake_ip(each)):
            wide.names["inside.example"] = [["93.184.216.34", address]]
            url = f"https://inside.example/a?Signature={SECRET}"
            error = await refused_by(client, url, tmp_path, f"t{number}")
            assert f"inside.example resolves to {address}" in str(error)

    assert proxy.asked == []


async def test_a_proxy_is_not_asked_for_what_is_refused_by_its_looks(
    wide: Net, proxied: Any, tmp_path: Path
) -> None:
    async with proxying() as proxy, far_client(**proxied(proxy)) as client:
        for number, url in enumerate(BY_THEIR_LOOKS):
            await refused_by(client, signed(url), tmp_path, f"t{number}")

    assert proxy.asked == []


async def test_a_proxy_carries_what_is_public_and_is_asked_anew_for_no_redirect_inward(
    wide: Net, proxied: Any, tmp_path: Path
) -> None:
    wide.names["inside.example"] = [["10.0.0.1"]]
    (tmp_path / "b").mkdir()
    async with (
        proxying() as proxy,
        public_server(
            lambda path, head: reply() if path == "/a" else moved("https://inside.example/")
        ) as cdn,
    ):
        proxy.leads_to = cdn.port
        options = proxied(proxy)
        async with far_client(**options) as client:
            (file,) = await client.save(done(f"https://{CDN}/a"), tmp_path / "a")
        error = await refused(f"https://{CDN}/b", tmp_path / "b", **options)

    assert Path(file).read_bytes() == PNG
    assert "inside.example resolves to 10.0.0.1" in str(error)
    assert proxy.asked == [f"CONNECT {CDN}:443"] * 2
    assert all(b"canary" not in each for each in cdn.requests)


@pytest.mark.parametrize("exempt", [CDN, ".example", "example", "*", f"{CDN}:{{port}}"])
async def test_no_proxy_is_obeyed_and_the_address_is_checked_then(
    wide: Net, exempt: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wide.names["other.example"] = [["10.0.0.1"]]
    (tmp_path / "b").mkdir()
    async with proxying() as proxy, public_server(reply()) as cdn:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", exempt.format(port=cdn.port))
        async with far_client() as client:
            await client.save(done(f"https://{CDN}:{cdn.port}/a"), tmp_path / "a")
        await refused(f"https://other.example:{cdn.port}/a", tmp_path / "b")

    assert proxy.asked == []
    assert cdn.connections == 1


async def test_a_name_that_only_the_proxy_knows_is_its_business(wide: Net, tmp_path: Path) -> None:
    async with proxying() as proxy, far_client(proxy=proxy.url, downloads=Downloads(deadline=1)) as client:
        with pytest.raises(DownloadError) as caught:
            await client.save(done(f"https://unheard.example/a?Signature={SECRET}"), tmp_path)

    assert set(proxy.asked) == {"CONNECT unheard.example:443"}
    assert SECRET not in str(caught.value)
