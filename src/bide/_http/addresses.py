"""Which addresses a file may be fetched from.

The URLs of results come from a remote service. Each counts as hostile until it is checked: it may name this machine,
its network, or the address where a cloud gives keys to its machines. So only https is allowed, and only to public names
and addresses. Loopback is allowed only if the API itself is on loopback. `guard` checks the addresses of a name when it
connects.

No function here does I/O, and none raises on a hostile URL. A URL with a doubtful spelling is refused: two programs may
read two hosts in it.
"""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# Source: the IANA registries of special-purpose addresses (RFC 6890 and its successors), of multicast and of 240/4.
# `ipaddress` has such tables too, but they differ between patch releases of Python. Anycast services of the Internet
# itself (AS112, AMT, 6to4 relays) are globally reachable and serve no files: they are refused, too.
NOT_PUBLIC_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host, RFC 791
        "10.0.0.0/8",  # private, RFC 1918
        "100.64.0.0/10",  # behind a carrier's NAT, RFC 6598; the metadata of Alibaba Cloud
        "127.0.0.0/8",  # loopback, RFC 1122
        "168.63.129.16/32",  # the host below a virtual machine in Azure; the range itself is public
        "169.254.0.0/16",  # link-local, RFC 3927; the metadata of most clouds
        "172.16.0.0/12",  # private, RFC 1918
        "192.0.0.0/24",  # IETF protocol assignments, RFC 6890; the metadata of Oracle Cloud
        "192.0.2.0/24",  # documentation, RFC 5737
        "192.31.196.0/24",  # AS112, RFC 7535
        "192.52.193.0/24",  # AMT, RFC 7450
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "192.168.0.0/16",  # private, RFC 1918
        "192.175.48.0/24",  # AS112, RFC 7534
        "198.18.0.0/15",  # benchmarking, RFC 2544
        "198.51.100.0/24",  # documentation, RFC 5737
        "203.0.113.0/24",  # documentation, RFC 5737
        "224.0.0.0/4",  # multicast, RFC 5771
        "240.0.0.0/4",  # reserved, RFC 1112, and broadcast, RFC 8190
    )
)
GLOBAL_IPV6 = IPv6Network("2000::/3")
"""All assigned global unicast, RFC 4291. fc00::/7, fe80::/10, ff00::/8, 5f00::/16 and more are outside."""
NOT_PUBLIC_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID, AMT..., RFC 2928
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, RFC 3056: it may contain any IPv4 address
        "2620:4f:8000::/48",  # AS112, RFC 7534
        "3fff::/20",  # documentation, RFC 9637
    )
)
# In these networks the last 32 bits are an IPv4 address, and that one is checked. A network with DNS64 has only NAT64
# addresses for hosts of IPv4. 64:ff9b:1::/48 (RFC 8215) is refused: the position of its IPv4 address is not fixed.
MAPPED = IPv6Network("::ffff:0:0/96")
NAT64 = IPv6Network("64:ff9b::/96")

FAKE_IP_NETWORK = IPv4Network("198.18.0.0/15")
"""Local proxies with "fake IP" resolve every name to an address of this network."""

INTERNAL_LABELS = ("arpa", "corp", "home", "internal", "intranet", "lan", "local", "localdomain", "private")
"""Last labels that no public name has (RFC 6762 with its appendix G, RFC 8375, ICANN's .internal)."""
MAX_URL_CHARACTERS = 16_384
"""The longest URL that is fetched; a signed one has some hundreds of characters."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?.*", re.DOTALL)
_HOST_AND_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_LAST_LABEL = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"0x[0-9a-f]*|0[0-7]*|[1-9][0-9]*")


def is_public(address: str) -> bool:
    """Whether *address* (text of an IP address) is a public host's. An address with a "%zone" is not."""
    found = _parse(address)
    if isinstance(found, IPv6Address):
        inner = _embedded_ipv4(found, MAPPED) or _embedded_ipv4(found, NAT64)
        if inner is None:
            return found in GLOBAL_IPV6 and not any(found in network for network in NOT_PUBLIC_IPV6)
        found = inner
    return found is not None and not any(found in network for network in NOT_PUBLIC_IPV4)


def is_loopback(address: str) -> bool:
    """Whether *address* (text of an IP address) is a loopback address, in the plain or the mapped form."""
    found = _parse(address)
    if isinstance(found, IPv6Address):
        found = _embedded_ipv4(found, MAPPED) or found
    return found is not None and found.is_loopback


def is_fake_ip(address: str) -> bool:
    """Whether *address* is in the network to which local proxies with "fake IP" resolve names: 198.18.0.0/15."""
    found = _parse(address)
    return isinstance(found, IPv4Address) and found in FAKE_IP_NETWORK


def literal_of(host: str) -> str | None:
    """The IP address that *host* spells, in any form that some resolver or URL parser accepts; None for a name.

    There are more than the plain forms: "127.1", "0x7f.0.0.1", "017700000001", "2130706433", "[::1]", a dot at the end,
    and digits or dots that Unicode folds to ASCII. A "%zone" is kept.
    """
    # Parsers of international names drop or fold these characters first.
    kept = "".join(c for c in host if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    words = unicodedata.normalize("NFKC", kept).replace("\u3002", ".").lower().split(maxsplit=1)
    text = words[0].rstrip(".") if words else ""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].rstrip(".")
    text, mark, zone = text.partition("%")
    found = _inet_aton(text) or _parse(text)
    return None if found is None else f"{found}{mark}{zone}"


def refusal_of(url: str, *, loopback: bool, hosts: Collection[str] | None) -> str | None:
    """Why *url* may not be fetched, as text without its query and user name; None if it may be fetched.

    Args:
        url: any text.
        loopback: whether this machine may be fetched from, and over plain http.
        hosts: the only allowed hosts, as `check_hosts` returns them; None allows any.
    """
    if len(url) > MAX_URL_CHARACTERS:
        return f"the address is longer than {MAX_URL_CHARACTERS} characters"
    if not url.isprintable() or " " in url or "\\" in url:
        return "the address has a character that is not allowed in addresses"
    parts = _URL.fullmatch(url)
    scheme = parts[1].lower() if parts else ""
    if parts is None or scheme not in ("http", "https"):
        return f"only https is fetched, not {_quote(scheme)}" if scheme else "it is no address"
    authority = parts[2] or ""
    if "@" in authority:
        return "the address has a user name or password in it"
    place = _HOST_AND_PORT.fullmatch(authority)
    if place is None:
        return "the part before the path is no host, or no host with a port"
    if place[3] and not 0 < int(place[3]) < 65_536:
        return f"{place[3]} is no port"
    host = place[1] or place[2] or ""
    why = _host_refusal(host, place[1] is not None, loopback)
    host = host.lower()
    if why is None and scheme == "http":
        why = _http_refusal(host, loopback)
    if why is None and hosts is not None and not _is_listed(host, hosts):
        why = f"{host} is not among the hosts that files may be fetched from"
    return why


def check_hosts(hosts: Iterable[str]) -> tuple[str, ...]:
    """The allow-list *hosts* in the form for `refusal_of`: names, addresses, and ".example.com" for all names below.

    Raises:
        TypeError: it is no collection of texts.
        ValueError: it is empty, or an entry is no host from which files could be fetched.
    """
    if isinstance(hosts, str):
        raise TypeError(f"the hosts are a list of names, not one text: [{hosts!r}]")
    checked = tuple(_check_host(host) for host in hosts)
    if not checked:
        raise ValueError(
            "the list of hosts is empty: nothing could be fetched; leave it out to allow any public host"
        )
    return checked


def _check_host(host: str) -> str:
    if not isinstance(host, str):
        raise TypeError(f"a host is text, not {type(host).__name__}")
    name = host.strip()
    if name.startswith(("*.", ".")):
        name = name.removeprefix("*")
        why = None if _is_name(name[1:].removesuffix(".")) else "it is no name"
    else:
        name = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        why = _host_refusal(name, ":" in name, loopback=True)
    if why is not None:
        raise ValueError(
            f"nothing can be fetched from host {host!r} ({why}): "
            "give names like 'files.example.com', or '.example.com' for all below it, without scheme, port and path"
        )
    return str(_parse(name) or name.lower().removesuffix("."))


def _host_refusal(host: str, is_bracketed: bool, loopback: bool) -> str | None:
    """Why nothing may be fetched from *host* with any scheme; None if it may."""
    if not host:
        return "the address has no host"
    literal = literal_of(host)
    if literal is not None:
        if not (is_public(literal) or (loopback and is_loopback(literal))):
            spelled = _quote(host) if host == literal else f"{_quote(host)} spells {_quote(literal)}, which"
            return f"{spelled} is not a public address"
        is_clean = isinstance(_parse(host), IPv6Address if is_bracketed else IPv4Address)
        return None if is_clean else f"{_quote(host)} is an odd way to write {literal}"
    name = host.removesuffix(".")
    if is_bracketed or not _is_name(name):
        return f"{_quote(host)} is no host name"
    name = name.lower()
    if name == "localhost" or name.endswith(".localhost"):
        return None if loopback else f"{_quote(host)} is this machine"
    if "." not in name or name.rpartition(".")[2] in INTERNAL_LABELS:
        return f"{_quote(host)} is a name inside a network"
    return None


def _http_refusal(host: str, loopback: bool) -> str | None:
    """Why nothing may be fetched from *host*, an allowed one, over plain http; None if it may."""
    if not loopback:
        return "only https is fetched, not plain http"
    if host.removesuffix(".") == "localhost" or is_loopback(host):
        return None
    return "only https is fetched, plain http from this machine alone"


def _is_name(name: str) -> bool:
    """Whether *name* (without a dot at its end) is a host's name: ASCII, and not one that ends in a number."""
    # Checked before `lower`, which turns some other letters into ASCII.
    if not name.isascii() or len(name) > 253:
        return False
    *labels, last = name.lower().split(".")
    return _LAST_LABEL.fullmatch(last) is not None and all(_LABEL.fullmatch(label) for label in labels)


def _is_listed(host: str, hosts: Collection[str]) -> bool:
    """Whether the checked *host* is in the list: itself, or below a name with a leading dot."""
    name = host.removesuffix(".")
    literal = _parse(name)
    for each in hosts:
        entry = each.lower().removesuffix(".").removeprefix("*")
        if name == entry or (literal is not None and literal == _parse(entry)):
            return True
        if literal is None and entry.startswith(".") and name.endswith(entry):
            return True
    return False


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    """The address that *address* spells in the plain form; None for other text, and for an address with a zone."""
    if "%" in address:
        return None
    try:
        return IPv6Address(address) if ":" in address else IPv4Address(address)
    except ValueError:
        return None


def _embedded_ipv4(address: IPv6Address, network: IPv6Network) -> IPv4Address | None:
    """The IPv4 address in the last 32 bits of *address*, if *network* contains it."""
    return IPv4Address(int(address) & 0xFFFF_FFFF) if address in network else None


def _inet_aton(text: str) -> IPv4Address | None:
    """The address that the C function of that name reads in *text*: 1 to 4 numbers, also octal and hexadecimal."""
    parts = text.split(".", 4)
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    numbers = []
    for part in parts:
        base = 16 if part.startswith("0x") else 8 if part.startswith("0") else 10
        digits = part.removeprefix("0x").lstrip("0")
        if len(digits) > 11:  # too large for an address; `int` raises on very long ones
            return None
        numbers.append(int(digits or "0", base))
    *front, last = numbers
    if any(number > 255 for number in front) or last >= 256 ** (4 - len(front)):
        return None
    return IPv4Address(sum(number << (24 - 8 * i) for i, number in enumerate(front)) + last)


def _quote(text: str) -> str:
    """Untrusted *text* for an error message: short, and in ASCII without control characters."""
    safe = ascii(text)[1:-1]
    return safe if len(safe) <= 80 else f"{safe[:80]}..."
