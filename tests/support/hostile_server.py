"""A hostile world for downloads: names that resolve as a test says, targets that count who comes, bad servers."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from bide import Client, DashScope, DownloadError, Output, Task, TaskStatus
from bide._http import addresses as _addresses
from bide._http import guard as _guard
from bide._http import pool as _pool

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17) + b"\0\0\0\0IEND\xaeB`\x82"
SECRET = "Zs3cr3tS1gnatur3"
CDN = "cdn.example"
"""A name of the public net, as far as the library can tell: it resolves to `PUBLIC`."""
PUBLIC = "127.0.0.2"
"""Stands for a public address in `public_net`: no other test could take a connection on one."""
Answer = Callable[[str, bytes], bytes]
RESOLVED = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.31.255.254", "192.168.1.1", "100.64.0.1", "100.100.100.200",
    "169.254.169.254", "168.63.129.16", "198.18.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "::ffff:127.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "fd00:ec2::254",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fe80::1", "fec0::1", "ff02::1",
]  # fmt: skip
"""Addresses that nothing is fetched from, whatever name leads to them."""


def done(*urls: str, ticket: str = "t1", kind: str = "image", **more: Any) -> Task:
    """A task with a result at each of *urls*."""
    outputs = tuple(Output(url=url, kind=kind, **more) for url in urls)
    return Task(ticket=ticket, task_id="x1", status=TaskStatus.SUCCEEDED, outputs=outputs)


def far_client(*, base_url: str = "https://api.example/api/v1", **options: Any) -> Client:
    """A client of an API that is not on this machine. Nothing is ever sent to it."""
    options.setdefault("api_key", "sk-canary")
    return Client(DashScope(base_url=base_url), **options)


async def refused_by(client: Client, url: str, folder: Path, ticket: str = "t1") -> DownloadError:
    """The error that saving a result at *url* ends with; nothing is left of it."""
    folder.mkdir(exist_ok=True)
    with pytest.raises(DownloadError) as caught:
        await client.save(done(url, ticket=ticket), folder)

    error = caught.value
    assert not error.retryable, url
    assert (error.ticket, error.task_id) == (ticket, "x1")
    assert SECRET not in str(error), url
    assert str(error).isprintable(), url
    assert not list(folder.iterdir()), url
    return error


async def refused(url: str, folder: Path, **options: Any) -> DownloadError:
    """The same, by a client of its own."""
    async with far_client(**options) as client:
        return await refused_by(client, url, folder)


def signed(url: str) -> str:
    """*url* with a signature."""
    place, mark, rest = url.partition("#")
    return f"{place}{'&' if '?' in place else '?'}Signature={SECRET}{mark}{rest}"


# Names -------------------------------------------------------------------------------------------------------


@define
class Net:
    """The names of a test, and what was asked of the system."""

    names: dict[str, list[list[str]]] = field(factory=dict)
    """For each name its answers, one after the other, the last one for ever."""
    asked: list[str] = field(factory=list)
    dialled: list[str] = field(factory=list)
    """Addresses to which a connection was begun."""

    async def getaddrinfo(self, host: Any, port: int, **_: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        for family in (socket.AF_INET, socket.AF_INET6):  # an address is its own name, as for the system
            with suppress(OSError):
                socket.inet_pton(family, name)
                return [_entry(name, port)]
        self.asked.append(name)
        if name not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.names[name]
        return [_entry(each, port) for each in (answers.pop(0) if len(answers) > 1 else answers[0])]


def _entry(address: str, port: int) -> Any:
    if ":" not in address:
        return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)
    return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)


def hostile_net(monkeypatch: pytest.MonkeyPatch) -> Net:
    """Names resolve as the test says, and to nothing without; what is dialled is noted. For the running loop."""
    net, loop = Net(), asyncio.get_running_loop()
    sock_connect = loop.sock_connect

    async def dial(sock: socket.socket, address: Any) -> None:
        net.dialled.append(address[0])
        await sock_connect(sock, address)

    monkeypatch.setattr(loop, "getaddrinfo", net.getaddrinfo)
    monkeypatch.setattr(loop, "sock_connect", dial)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return net


def public_net(monkeypatch: pytest.MonkeyPatch) -> Net:
    """The same, and `PUBLIC` counts as a public address, where certificates for `*.example` are good."""
    net = hostile_net(monkeypatch)
    net.names[CDN] = [[PUBLIC]]
    is_public = _addresses.is_public
    for module in (_addresses, _guard):
        monkeypatch.setattr(module, "is_public", lambda address: address == PUBLIC or is_public(address))
    monkeypatch.setattr(_pool, "tls_context", _client_tls)
    return net


# Targets -----------------------------------------------------------------------------------------------------


@define
class Target:
    """What must not be reached: a port on every address of this machine."""

    port: int
    _servers: list[socket.socket] = field(factory=list)

    def accepted(self) -> int:
        """How many connections have come since it was asked last."""
        count = 0
        for server in self._servers:
            with suppress(BlockingIOError):
                while True:
                    server.accept()[0].close()
                    count += 1
        return count


@contextmanager
def target() -> Iterator[Target]:
    """A `Target` on all addresses of IPv4, and of IPv6 where there is any."""
    with socket.create_server(("0.0.0.0", 0), backlog=50) as four:
        port = four.getsockname()[1]
        servers = [four]
        if socket.has_ipv6:
            with suppress(OSError):
                servers.append(socket.create_server(("::", port), family=socket.AF_INET6, backlog=50))
        for each in servers:
            each.setblocking(False)
        try:
            yield Target(port, servers)
        finally:
            for each in servers:
                each.close()


def own_addresses() -> list[str]:
    """Addresses of this machine: of loopback, and the one that it is known by outside, if there is one."""
    found = ["127.0.0.1", "[::1]"]
    with suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.77", 9))  # sends nothing: it only chooses a route
        found.append(probe.getsockname()[0])
    return found


# Servers -----------------------------------------------------------------------------------------------------


def reply(body: bytes = PNG, *, status: int = 200, headers: str = "", length: int | None = None) -> bytes:
    """An HTTP answer, byte for byte; *headers* are whole lines."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status} X\r\nContent-Length: {size}\r\n{headers}\r\n".encode("latin-1") + body


def moved(url: str, status: int = 302) -> bytes:
    return reply(b"", status=status, headers=f"Location: {url}\r\n")


@define
class Server:
    """What a server saw."""

    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(factory=list)
    """Each as it came, head and all."""

    @property
    def paths(self) -> list[str]:
        return [each.split(b" ")[1].decode() for each in self.requests]


@asynccontextmanager
async def serving(
    answer: bytes | Answer, address: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A server that gives each request the same bytes, or what *answer* makes of its path and its head."""
    seen, tasks = Server(), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = asyncio.current_task()
        assert mine is not None
        tasks.add(mine)
        seen.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                seen.requests.append(head)
                path = head.split(b" ")[1].decode()
                writer.write(answer if isinstance(answer, bytes) else answer(path, head))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, address, 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def public_server(answer: bytes | Answer) -> Any:
    """`serving` over TLS at `PUBLIC`, with a certificate for all names below "example"."""
    return serving(answer, PUBLIC, tls=_server_tls())


@cache
def _certificate() -> tuple[bytes, bytes]:
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "example")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName(CDN), x509.DNSName("other.example"), x509.IPAddress(ipaddress.ip_address(PUBLIC))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, private


@cache
def _server_tls() -> ssl.SSLContext:
    import tempfile

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(b"".join(_certificate()))
        file.flush()
        context.load_cert_chain(file.name)
    return context


@cache
def _client_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=_certificate()[0].decode())
    context.set_alpn_protocols(["http/1.1"])
    return context
