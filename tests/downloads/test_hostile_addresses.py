"""Result URLs are a stranger's words: through the whole client, none of them reaches what is not public."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bide import DownloadError, Downloads
from support.hostile_server import (
    CDN,
    PNG,
    PUBLIC,
    RESOLVED,
    SECRET,
    Net,
    done,
    far_client,
    hostile_net,
    moved,
    own_addresses,
    public_net,
    public_server,
    refused,
    refused_by,
    reply,
    serving,
    signed,
    target,
)

# What `{at}` in them stands for is a port of this machine that is open on all its addresses.
LITERALS = [
    # as they are
    "https://127.0.0.1:{at}/a.png", "https://127.1.2.3:{at}/", "https://0.0.0.0:{at}/", "https://10.0.0.1:{at}/",
    "https://172.16.0.1:{at}/", "https://192.168.0.1:{at}/", "https://100.64.0.1:{at}/", "https://198.18.0.1:{at}/",
    "https://169.254.169.254/latest/meta-data/", "https://100.100.100.200/latest/meta-data/",
    "https://224.0.0.1:{at}/", "https://255.255.255.255:{at}/",
    # as `inet_aton` reads them
    "https://127.1:{at}/", "https://0:{at}/", "https://2130706433:{at}/", "https://017700000001:{at}/",
    "https://0x7f000001:{at}/", "https://0x7f.0.0.1:{at}/", "https://0177.0.0.01:{at}/", "https://127.0.0.1.:{at}/",
    # IPv6, and IPv4 in it
    "https://[::1]:{at}/", "https://[::]:{at}/", "https://[0:0:0:0:0:0:0:1]:{at}/", "https://[::ffff:127.0.0.1]:{at}/",
    "https://[::ffff:7f00:1]:{at}/", "https://[::127.0.0.1]:{at}/", "https://[64:ff9b::7f00:1]:{at}/",
    "https://[2002:7f00:1::]:{at}/", "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]:{at}/", "https://[::1%lo]:{at}/",
    "https://[::1%25lo]:{at}/", "https://[fe80::1%25eth0]:{at}/", "https://[fd00:ec2::254]/latest/meta-data/",
    # as Unicode folds them
    "https://１２７.0.0.1:{at}/", "https://127。0。0。1:{at}/", "https://①②⑦.0.0.1:{at}/",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{at}/", "https://127.0.0.\u200b1:{at}/",
]  # fmt: skip
NAMES = [
    "https://localhost:{at}/", "https://LOCALHOST.:{at}/", "https://a.localhost:{at}/", "https://metadata/computeMetadata",
    "https://metadata.google.internal/", "https://printer.local:{at}/", "https://localhost.localdomain:{at}/",
]  # fmt: skip
CONFUSING = [
    "https://cdn.example@127.0.0.1:{at}/", "https://127.0.0.1:{at}#@cdn.example/", "https://a:b@cdn.example:{at}/",
    "https://127.0.0.1:{at}\\@cdn.example/", "https://cdn.example\\@127.0.0.1:{at}/", "https://127.0.0.1:{at}?@cdn.example/",
    "https://127.0.0.1:{at};@cdn.example/", "https://%31%32%37.0.0.1:{at}/", "https://127.0.0.1%00.example:{at}/",
    "https://127.0.0.1:{at}:443/", "https://127.0.0.1\t:{at}/", "https://127.0.0.1:{at}/\r\nHost: cdn.example",
    " https://127.0.0.1:{at}/", "https:\\\\127.0.0.1:{at}/", "https:/127.0.0.1:{at}/", "https:127.0.0.1:{at}",
    "https:///127.0.0.1:{at}/", "//127.0.0.1:{at}/", "https://:{at}/", "https://[::1:{at}/", "https://127.0.0.1:{at}0000/",
]  # fmt: skip
SCHEMES = [
    "http://127.0.0.1:{at}/", "http://cdn.example:{at}/", "file:///etc/passwd", "file://127.0.0.1:{at}/etc/passwd",
    "ftp://127.0.0.1:{at}/", "gopher://127.0.0.1:{at}/_GET", "ws://127.0.0.1:{at}/", "wss://127.0.0.1:{at}/",
    "unix:///run/docker.sock", "http+unix://%2Frun%2Fdocker.sock/x", "dict://127.0.0.1:{at}/", "jar:https://127.0.0.1:{at}/!/",
    "data:image/png;base64,AAAA", "javascript:alert(1)", "", "/etc/passwd", "\x00https://127.0.0.1:{at}/",
]  # fmt: skip
HOSTILE = [*LITERALS, *NAMES, *CONFUSING, *SCHEMES]


GROUPS = {"literals": LITERALS, "names": NAMES, "confusing": CONFUSING, "schemes": SCHEMES}


@pytest.fixture
async def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    return hostile_net(monkeypatch)


@pytest.fixture
async def wide(monkeypatch: pytest.MonkeyPatch) -> Net:
    """A net in which `PUBLIC` counts as public."""
    return public_net(monkeypatch)


def test_there_are_enough_of_them() -> None:
    assert sum(map(len, GROUPS.values())) >= 80
    assert len(RESOLVED) >= 20


@pytest.mark.parametrize("group", GROUPS)
async def test_no_hostile_url_reaches_anything(net: Net, group: str, tmp_path: Path) -> None:
    net.names[CDN] = [["127.0.0.1"]]
    with target() as here:
        async with far_client() as client:
            for number, url in enumerate(GROUPS[group]):
                await refused_by(client, signed(url.format(at=here.port)), tmp_path, f"t{number}")

        assert here.accepted() == 0
    assert net.dialled == []


@pytest.mark.parametrize("address", own_addresses())
async def test_no_address_of_this_machine_is_reached(net: Net, address: str, tmp_path: Path) -> None:
    with target() as here:
        error = await refused(f"https://{address}:{here.port}/a.png?Signature={SECRET}", tmp_path)

        assert here.accepted() == 0
    assert "is not a public address" in str(error)
    assert net.dialled == []


async def test_no_name_leads_to_what_is_not_public(net: Net, tmp_path: Path) -> None:
    with target() as here:
        async with far_client() as client:
            for number, address in enumerate(RESOLVED):
                net.names[CDN] = [["93.184.216.34", address]]
                url = f"https://{CDN}:{here.port}/a.png?Signature={SECRET}"
                error = await refused_by(client, url, tmp_path, f"t{number}")
                assert f"{CDN} resolves to {address}, which is not a public address" in str(error)

        assert here.accepted() == 0
    assert net.asked == [CDN] * len(RESOLVED)
    assert net.dialled == []


async def test_the_target_counts_who_comes(wide: Net, tmp_path: Path) -> None:
    """The same way, to where one may go: or the tests above would show nothing."""
    with target() as here:
        wide.names[CDN] = [[PUBLIC]]
        async with far_client() as client:
            with pytest.raises(DownloadError) as caught:
                await client.save(done(f"https://{CDN}:{here.port}/a.png"), tmp_path)

        assert caught.value.retryable
        assert here.accepted() > 0
    assert set(wide.dialled) == {PUBLIC}


# Redirects ---------------------------------------------------------------------------------------------------


def is_elsewhere(url: str) -> bool:
    """Whether *url* can stand in a header, and names another place there: with its scheme and two slashes, or none."""
    is_clean = url.isascii() and url.isprintable() and url == url.strip()
    scheme, colon, rest = url.partition(":")
    return (
        is_clean and bool(colon and scheme) and (scheme != "https" or re.match(r"//[^/]", rest) is not None)
    )


ELSEWHERE = {name: list(filter(is_elsewhere, urls)) for name, urls in GROUPS.items()}


@pytest.mark.parametrize("group", ELSEWHERE)
async def test_no_redirect_reaches_anything(wide: Net, group: str, tmp_path: Path) -> None:
    urls = ELSEWHERE[group]
    with target() as here:

        def hop(path: str, head: bytes) -> bytes:
            return moved(signed(urls[int(path[1:].partition("?")[0])].format(at=here.port)))

        async with public_server(hop) as cdn, far_client() as client:
            for number in range(len(urls)):
                url = f"https://{CDN}:{cdn.port}/{number}?Signature={SECRET}"
                await refused_by(client, url, tmp_path, f"t{number}")

        assert here.accepted() == 0
    assert len(cdn.requests) == len(urls)
    assert set(wide.dialled) == {PUBLIC}


def test_there_are_enough_redirects() -> None:
    assert sum(map(len, ELSEWHERE.values())) >= 50


async def test_no_relative_redirect_leaves_the_public_net(wide: Net, tmp_path: Path) -> None:
    """Some readers of URLs take these for a path, others for a host. Nobody is reached either way."""
    locations = [
        "//127.0.0.1:{at}/", "//cdn.example@127.0.0.1:{at}/", "https:127.0.0.1:{at}/", "https:/127.0.0.1:{at}/",
        "https:///127.0.0.1:{at}/", "///127.0.0.1:{at}/", "/\\127.0.0.1:{at}/", "\\\\127.0.0.1:{at}/", "//127.1:{at}",
        "//[::1]:{at}/", "//[::1", "/\t/127.0.0.1:{at}/", "..//127.0.0.1:{at}/", "@127.0.0.1:{at}/", "?@127.0.0.1:{at}",
    ]  # fmt: skip
    with target() as here:

        def hop(path: str, head: bytes) -> bytes:
            number = path[3:] if path.startswith("/to") else ""
            if not number.isdigit():
                return reply(b"", status=418)
            status = (301, 302, 303, 307, 308)[int(number) % 5]
            return moved(locations[int(number)].format(at=here.port), status)

        async with public_server(hop) as cdn, far_client() as client:
            for number in range(len(locations)):
                await refused_by(client, f"https://{CDN}:{cdn.port}/to{number}", tmp_path, f"t{number}")

        assert here.accepted() == 0
    assert set(wide.dialled) == {PUBLIC}


async def test_no_redirect_to_a_name_leads_to_what_is_not_public(wide: Net, tmp_path: Path) -> None:
    with target() as here:
        async with (
            public_server(moved(f"https://inside.example:{here.port}/?Signature={SECRET}")) as cdn,
            far_client() as client,
        ):
            for number, address in enumerate(RESOLVED):
                wide.names["inside.example"] = [[address]]
                url = f"https://{CDN}:{cdn.port}/a.png?Signature={SECRET}"
                error = await refused_by(client, url, tmp_path, f"t{number}")
                assert f"inside.example resolves to {address}" in str(error)

        assert here.accepted() == 0
    assert set(wide.dialled) == {PUBLIC}


async def test_a_name_that_turns_inward_between_two_hops_is_refused(wide: Net, tmp_path: Path) -> None:
    """Rebinding: each connection asks once, and dials what was looked at."""
    wide.names[CDN] = [[PUBLIC], ["127.0.0.1"]]
    with target() as here:
        async with public_server(moved(f"https://{CDN}:{here.port}/again")) as cdn:
            error = await refused(f"https://{CDN}:{cdn.port}/a.png", tmp_path)

        assert here.accepted() == 0
    assert f"{CDN} resolves to 127.0.0.1" in str(error)
    assert wide.asked == [CDN, CDN]
    assert wide.dialled == [PUBLIC]


async def test_a_name_that_turns_inward_after_a_look_is_not_looked_up_again(
    wide: Net, tmp_path: Path
) -> None:
    wide.names[CDN] = [[PUBLIC], ["127.0.0.1"]]
    async with public_server(reply()) as cdn, far_client() as client:
        (file,) = await client.save(done(f"https://{CDN}:{cdn.port}/a.png"), tmp_path)

    assert Path(file).read_bytes() == PNG
    assert wide.asked == [CDN]
    assert wide.dialled == [PUBLIC]


async def test_a_name_that_turns_inward_before_a_resume_is_refused(wide: Net, tmp_path: Path) -> None:
    """The part stays: a later save may find the name as it should be."""
    wide.names[CDN] = [[PUBLIC], ["127.0.0.1"]]
    half = reply(PNG[:20], length=len(PNG), headers='ETag: "1"\r\nConnection: close\r\n')
    with target() as here:
        async with public_server(half) as cdn, far_client() as client:
            with pytest.raises(DownloadError, match=r"resolves to 127\.0\.0\.1") as caught:
                await client.save(done(f"https://{CDN}:{cdn.port}/a.png?Signature={SECRET}"), tmp_path)

        assert here.accepted() == 0
    assert not caught.value.retryable
    assert not (tmp_path / "t1-0.png").exists()


async def test_five_redirects_are_followed_and_the_sixth_is_not(wide: Net, tmp_path: Path) -> None:
    def hop(path: str, head: bytes) -> bytes:
        left = int(path[1:].partition("?")[0])
        return moved(f"/{left - 1}?Signature={SECRET}") if left else reply()

    async with public_server(hop) as cdn, far_client() as client:
        (file,) = await client.save(done(f"https://{CDN}:{cdn.port}/5"), tmp_path / "five")
        assert Path(file).read_bytes() == PNG
        assert [path[1] for path in cdn.paths] == list("543210")

        (tmp_path / "six").mkdir()
        error = await refused(f"https://{CDN}:{cdn.port}/6", tmp_path / "six")
    assert "more than 5 redirects" in str(error)
    assert len(cdn.requests) == 12


@pytest.mark.parametrize("location", ["/a.png", "", "#", "?", "./a.png", "https://cdn.example:{at}/a.png"])
async def test_a_loop_of_redirects_ends(wide: Net, location: str, tmp_path: Path) -> None:
    answers: list[bytes] = []
    async with public_server(lambda path, head: answers[0]) as cdn:
        answers.append(moved(location.format(at=cdn.port)))
        await refused(f"https://{CDN}:{cdn.port}/a.png", tmp_path)

    assert len(cdn.requests) <= 6


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_a_redirect_to_another_public_place_is_followed_over_https_alone(
    wide: Net, scheme: str, tmp_path: Path
) -> None:
    wide.names["other.example"] = [[PUBLIC]]
    async with public_server(reply()) as other:
        async with public_server(moved(f"{scheme}://other.example:{other.port}/b")) as cdn:
            if scheme == "http":
                error = await refused(f"https://{CDN}:{cdn.port}/a", tmp_path)
                assert "only https is fetched, not plain http" in str(error)
            else:
                async with far_client() as client:
                    await client.save(done(f"https://{CDN}:{cdn.port}/a"), tmp_path)

    assert other.connections == (scheme == "https")


async def test_the_last_location_of_too_many_cannot_write_to_a_terminal(wide: Net, tmp_path: Path) -> None:
    """Nobody has judged that one: it stands in the error as it may be shown."""
    location = f"/\x1b]0;gotcha\x07{'x' * 9000}?Signature={SECRET}"
    hops = iter(range(5))

    def hop(path: str, head: bytes) -> bytes:
        return moved(f"/{number}" if (number := next(hops, None)) is not None else location)

    async with public_server(hop) as cdn:
        error = await refused(f"https://{CDN}:{cdn.port}/a", tmp_path)

    assert len(str(error)) < 1000


# An API on loopback ------------------------------------------------------------------------------------------

OUTWARD = [
    "http://10.0.0.1/", "https://192.168.1.1/", "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/",
    "https://169.254.169.254/latest/meta-data/", "https://100.100.100.200/latest/meta-data/", "http://0.0.0.0:{at}/",
    "http://[::]:{at}/", "http://2130706433:{at}/", "http://127.1:{at}/", "http://1.1.1.1/", "http://cdn.example/",
    "http://metadata.google.internal/", "file:///etc/passwd", "unix:///run/docker.sock", "http://a@127.0.0.1:{at}/",
]  # fmt: skip


@pytest.mark.parametrize("redirected", [False, True], ids=["direct", "redirected"])
async def test_an_api_on_loopback_opens_loopback_alone(net: Net, redirected: bool, tmp_path: Path) -> None:
    net.names[CDN] = [["127.0.0.1"]]
    with target() as here:
        places = [signed(url.format(at=here.port)) for url in OUTWARD]

        async with serving(lambda path, head: moved(places[int(path[1:])])) as server:
            origin = f"http://127.0.0.1:{server.port}"
            async with far_client(base_url=f"{origin}/api/v1") as client:
                for number, place in enumerate(places):
                    url = f"{origin}/{number}" if redirected else place
                    await refused_by(client, url, tmp_path, f"t{number}")

        assert here.accepted() == 0
    assert set(net.dialled) == ({"127.0.0.1"} if redirected else set())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
async def test_an_api_on_loopback_may_redirect_to_another_port_of_it(
    net: Net, host: str, tmp_path: Path
) -> None:
    net.names["localhost"] = [["127.0.0.1"]]
    async with serving(reply(), "127.0.0.2" if host == "127.0.0.2" else "127.0.0.1") as other:
        async with serving(moved(f"http://{host}:{other.port}/b")) as server:
            async with far_client(base_url=f"http://127.0.0.1:{server.port}/api/v1") as client:
                (file,) = await client.save(done(f"http://127.0.0.1:{server.port}/a"), tmp_path)

    assert Path(file).read_bytes() == PNG
    assert other.paths == ["/b"]


async def test_localhost_must_resolve_to_loopback(net: Net, tmp_path: Path) -> None:
    net.names["localhost"] = [["127.0.0.1", "192.0.2.2"]]
    with target() as here:
        url = f"http://localhost:{here.port}/a"
        error = await refused(url, tmp_path, base_url="http://127.0.0.1:9/api/v1")

        assert here.accepted() == 0
    assert "localhost resolves to 192.0.2.2" in str(error)


# A list of hosts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "allowed"),
    [
        (["cdn.example"], True),
        (["CDN.Example."], True),
        ([".example"], True),
        (["*.example"], True),
        (["other.example", "cdn.example"], True),
        (["other.example"], False),
        (["dn.example"], False),
        ([".cdn.example"], False),
        (["cdn.example.com"], False),
        (["1.1.1.1"], False),
    ],
)
async def test_only_hosts_of_the_list_are_fetched_from(
    wide: Net, hosts: list[str], allowed: bool, tmp_path: Path
) -> None:
    async with public_server(reply()) as cdn:
        url = f"https://{CDN}:{cdn.port}/a?Signature={SECRET}"
        if allowed:
            async with far_client(downloads=Downloads(hosts=hosts)) as client:
                await client.save(done(url), tmp_path)
        else:
            error = await refused(url, tmp_path, downloads=Downloads(hosts=hosts))
            assert f"{CDN} is not among the hosts" in str(error)
            assert wide.asked == []

    assert cdn.connections == allowed


@pytest.mark.parametrize("host", ["other.example", PUBLIC, "cdn.example.evil.example", "xcdn.example"])
async def test_a_redirect_does_not_leave_the_list_of_hosts(wide: Net, host: str, tmp_path: Path) -> None:
    wide.names[host] = [[PUBLIC]]
    async with public_server(reply()) as other:
        async with public_server(moved(f"https://{host}:{other.port}/b")) as cdn:
            url = f"https://{CDN}:{cdn.port}/a?Signature={SECRET}"
            error = await refused(url, tmp_path, downloads=Downloads(hosts=[CDN]))

    assert f"{host} is not among the hosts" in str(error)
    assert other.connections == 0
    assert wide.asked == [CDN]


async def test_the_list_of_hosts_opens_nothing_that_is_not_public(net: Net, tmp_path: Path) -> None:
    net.names[CDN] = [["127.0.0.1"]]
    hosts = Downloads(hosts=[CDN, "127.0.0.1", "localhost"])
    with target() as here:
        for host in (CDN, "127.0.0.1", "localhost"):
            await refused(f"https://{host}:{here.port}/", tmp_path, downloads=hosts)

        assert here.accepted() == 0
    assert net.dialled == []
