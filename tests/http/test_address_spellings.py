"""How addresses are spelled: each form that a resolver or a reader of URLs takes for one is known, whatever it is."""

from __future__ import annotations

import ipaddress
import socket

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bide._http.addresses import is_loopback, is_public, literal_of, refusal_of
from support.addresses import NOT_PUBLIC

# Literals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("0x7f.0.0.1", "127.0.0.1"),
        ("0X7F000001", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0x", "0.0.0.0"),
        ("1.0x", "1.0.0.0"),
        ("4294967295", "255.255.255.255"),
        ("1.16777215", "1.255.255.255"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127.0.0.1 x", "127.0.0.1"),
        (" 127.0.0.1\n", "127.0.0.1"),
        ("１２７.0.0.1", "127.0.0.1"),
        ("127。0｡0．1", "127.0.0.1"),
        ("127.0.0.\u200b1", "127.0.0.1"),
        ("127.0.0.\ufe0f1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::1].", "::1"),
        ("::1", "::1"),
        ("0:0::0:1", "::1"),
        ("::FFFF:127.0.0.1", str(ipaddress.IPv6Address("::ffff:127.0.0.1"))),
        ("[fe80::1%25eth0]", "fe80::1%25eth0"),
        ("::1%lo", "::1%lo"),
        ("0" * 9999 + "1", "0.0.0.1"),
        ("", None),
        (".", None),
        ("[", None),
        ("localhost", None),
        ("1.2.3.4.5", None),
        ("1.2.3.256", None),
        ("256.1", None),
        ("1.16777216", None),
        ("4294967296", None),
        ("9" * 9999, None),
        ("08.1.1.1", None),
        ("1..2", None),
        ("-1", None),
        ("+1", None),
        ("1_0", None),
        ("0x7g", None),
        ("::ffff:127.1", None),
        ("١.1.1.1", None),
        ("127.0.0.1.example", None),
    ],
)
def test_a_literal_is_known_in_each_form(host: str, address: str | None) -> None:
    assert literal_of(host) == address


ODD = st.text("0123456789abcfx.:%[]oO７。 \t", max_size=24)
QUADS = st.ip_addresses(v=4)


def spellings(address: ipaddress.IPv4Address) -> list[str]:
    value = int(address)
    a, b, c, d = address.packed
    return [
        f"{a}.{b}.{c * 256 + d}",
        f"{a}.{value & 0xFFFFFF}",
        f"{value}",
        f"{value:#x}",
        f"{value:#X}",
        f"0{value:o}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a}.0{b:o}.{c:#x}.{d}",
        f"{address}.",
        str(address).translate({48 + i: 0xFF10 + i for i in range(10)}),
        str(address).replace(".", "\u3002"),
    ]


@given(QUADS)
def test_every_spelling_of_an_address_is_that_address(address: ipaddress.IPv4Address) -> None:
    for host in spellings(address):
        assert literal_of(host) == str(address)
        assert refusal_of(f"https://{host}/", loopback=True, hosts=None), (
            "even where the address itself may be fetched"
        )


@given(ODD)
@example("0x7f.1")
@example("::ffff:1.2.3.4")
def test_what_the_system_takes_for_an_address_is_one(host: str) -> None:
    try:
        answer = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return

    mine = literal_of(host)
    if host:
        assert mine is not None
        assert ipaddress.ip_address(mine.partition("%")[0]) == ipaddress.ip_address(answer[0][4][0])


# Properties ----------------------------------------------------------------------------------------------------

HOSTS = st.one_of(
    st.sampled_from([*NOT_PUBLIC, "localhost", "files.example.com"]),
    QUADS.map(str),
    ODD,
    st.text(max_size=20),
)
URLS = st.one_of(
    st.text(max_size=60),
    st.builds(
        lambda scheme, user, host, port, rest: f"{scheme}://{user}{host}{port}{rest}",
        st.sampled_from(["https", "http", "HTTPS", "file", ""]) | st.text(max_size=4),
        st.just("") | st.text(max_size=8).map(lambda text: f"{text}@"),
        HOSTS | HOSTS.map(lambda host: f"[{host}]"),
        st.just("") | st.text("0123456789:-", max_size=6).map(lambda text: f":{text}"),
        st.just("/") | st.text(max_size=12),
    ),
)


@given(URLS, st.booleans(), st.none() | st.lists(HOSTS, max_size=2))
def test_no_url_makes_it_raise_and_all_reasons_can_be_shown(
    url: str, loopback: bool, hosts: list[str] | None
) -> None:
    why = refusal_of(url, loopback=loopback, hosts=hosts)

    assert why is None or (why.isascii() and why.isprintable() and 0 < len(why) < 250)


@given(URLS)
def test_a_url_that_passes_goes_where_the_http_library_reads_it_to_go(url: str) -> None:
    if refusal_of(url, loopback=True, hosts=None) is not None:
        return
    read = httpx.URL(url)

    assert read.scheme in ("http", "https")
    assert read.userinfo == b""
    host = read.raw_host.decode()
    literal = literal_of(host)
    assert literal is None or is_public(literal) or is_loopback(literal)
    assert refusal_of(url, loopback=True, hosts=[host]) is None


@given(QUADS)
@example(ipaddress.IPv4Address("127.0.0.1"))
@example(ipaddress.IPv4Address("8.8.8.8"))
def test_a_mapped_address_and_one_of_nat64_are_judged_by_what_is_inside(
    address: ipaddress.IPv4Address,
) -> None:
    plain = is_public(str(address))
    mapped, behind = (
        ipaddress.IPv6Address(prefix << 32 | int(address)) for prefix in (0xFFFF, 0x64_FF9B << 64)
    )

    assert is_public(str(mapped)) is is_public(f"::ffff:{address}") is plain
    assert is_public(str(behind)) is is_public(f"64:ff9b::{address}") is plain
    assert is_loopback(str(mapped)) is is_loopback(str(address))
    assert not is_public(str(ipaddress.IPv6Address(0x2002 << 112 | int(address) << 80))), (
        "6to4 is refused outright"
    )


ADDRESSES = st.one_of(
    st.ip_addresses(),
    st.ip_addresses(v=6, network="2000::/3"),
    *(
        st.ip_addresses(network=network)
        for network in (
            "2001::/16",
            "2002::/16",
            "3fff::/16",
            "::/96",
            "192.0.0.0/8",
            "100.0.0.0/8",
            "fe00::/7",
        )
    ),
)


@given(ADDRESSES)
def test_what_python_calls_special_is_not_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if isinstance(address, ipaddress.IPv6Address) and int(address) >> 32 in (0xFFFF, 0x64_FF9B << 64):
        return  # judged by what is inside
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or getattr(address, "is_site_local", False)
    )

    assert not (special and is_public(str(address)))
