"""Which URLs may be fetched from: every way to name what is not public is refused, and nothing else is."""

from __future__ import annotations

import pytest

from bide._http.addresses import check_hosts, is_loopback, is_public, refusal_of
from support.addresses import NOT_PUBLIC, PUBLIC, url_of

# What each names, in words of its own. None of them may be fetched by a client whose API is not on loopback.
HOSTILE = [
    # plain literals
    "https://127.0.0.1/", "https://127.0.0.1:8443/a.png", "https://0.0.0.0/", "https://0/", "https://10.1.2.3/",
    "https://172.16.0.1/", "https://192.168.1.1/", "https://169.254.169.254/latest/meta-data/",
    "https://100.100.100.200/latest/meta-data/", "https://100.64.0.1/", "https://168.63.129.16/",
    "https://192.0.0.192/", "https://198.18.0.1/", "https://224.0.0.1/", "https://255.255.255.255/",
    "https://240.1.1.1/",
    # the forms of inet_aton
    "https://127.1/", "https://127.0.1/", "https://2130706433/", "https://017700000001/", "https://0x7f000001/",
    "https://0x7f.0.0.1/", "https://0X7F.1/", "https://0177.0.0.01/", "https://0x7f.0x0.0x0.0x1/",
    "https://127.0.0.1./", "https://2852039166/", "https://0xa9fea9fe/", "https://0251.0376.0251.0376/",
    "https://169.16689662/", "https://00000000000000177.1/", "https://0x0000000000000007f.1/",
    # numbers that resolvers and browsers take differently, and public ones in an odd form
    "https://08.1.1.1/", "https://1.1.1.08/", "https://256.1.1.1/", "https://4294967296/", "https://1.2.3.4.5/",
    "https://a.1/", "https://a.0x1/", "https://0x/", "https://134744072/", "https://8.8.2056/", "https://8.8.8.8./",
    # IPv6
    "https://[::1]/", "https://[::]/", "https://[0:0:0:0:0:0:0:1]/", "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/", "https://[::FFFF:a9fe:a9fe]/", "https://[::127.0.0.1]/", "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[2606:4700::1111%251]/", "https://[::1%lo]/",
    "https://[fd00:ec2::254]/latest/meta-data/", "https://[fc00::1]/", "https://[fec0::1]/", "https://[ff02::1]/",
    "https://[2002:7f00:1::]/", "https://[2002:a9fe:a9fe::1]/", "https://[64:ff9b::a00:1]/",
    "https://[64:ff9b:1::8.8.8.8]/", "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", "https://[2001:db8::1]/",
    "https://::1/", "https://[::1/", "https://::1]/", "https://[]/", "https://[127.0.0.1]/", "https://[v1.a]/",
    "https://[8.8.8.8]/", "https://[files.example.com]/", "https://[::1].example.com/", "https://a[::1]/",
    # what Unicode folds to ASCII
    "https://１２７.0.0.1/", "https://127。0。0。1/", "https://127．0．0．1/", "https://127｡0｡0｡1/", "https://①②⑦.0.0.1/",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "https://lo\u00adcalhost/", "https://127.0.0.\u200b1/", "https://127.0.0.\ufe0f1/",
    "https://bücher.example.com/", "https://example.com\uff0f.evil.com/", "https://\u212aube.example.com/",
    # names of this machine and of networks
    "https://localhost/", "https://LOCALHOST./", "https://a.localhost/", "https://a.localhost./",
    "https://metadata/", "https://intranet/", "https://metadata.google.internal/", "https://printer.local/",
    "https://router.home.arpa/", "https://1.0.0.127.in-addr.arpa/", "https://localhost.localdomain/",
    # two readers, two hosts
    "https://good.example.com@127.0.0.1/", "https://127.0.0.1#@good.example.com/", "https://a:b@good.example.com/",
    "https://good.example.com\\@127.0.0.1/", "https://127.0.0.1\\@good.example.com/", "https://@good.example.com/",
    "https://127.0.0.1?@good.example.com/", "https://127.0.0.1;@good.example.com/", "https://good.example.com:@a.com/",
    "https://127.0.0.1%2f@good.example.com/", "https://%31%32%37.0.0.1/", "https://127.0.0.1%00.example.com/",
    "https://good.example.com:443:80/", "https://good.example.com:80@evil.com:443/", "https://a b.example.com/",
    "https://good.example.com\t.evil.com/", "https://good.example.com\r\nHost: evil.com/", " https://a.example.com/",
    "https://a.example.com/\n", "https://a.example.com/\x00", "\x01https://a.example.com/", "https://a.example.com /",
    "https:\\\\a.example.com/", "https://a.example.com/\\..\\x", "https://a.example.com\\.evil.com/",
    "https:/127.0.0.1/", "https:127.0.0.1", "https:///127.0.0.1/", "//127.0.0.1/",
    "/etc/passwd", "", "https://", "https:", "https://?a.example.com", "https://#a.example.com", "https://:443/",
    # bad names and ports
    "https://a..example.com/", "https://.example.com/", "https://example.com../", "https://-a.example.com/",
    "https://a-.example.com/", "https://*.example.com/", "https://a,b.example.com/", "https://a'b.example.com/",
    "https://a$b.example.com/", "https://a%2eb.example.com/", f"https://{'a' * 64}.example.com/",
    f"https://{'a.' * 130}com/", "https://a.example.com:0/", "https://a.example.com:65536/", "https://a.example.com:/",
    "https://a.example.com:99999999/", "https://a.example.com:-1/", "https://a.example.com:+1/",
    "https://a.example.com:٣/", "https://a.example.com:http/", "https://a.example.com:4 43/",
    # other schemes
    "http://files.example.com/a.png", "HTTP://8.8.8.8/", "http://127.0.0.1/", "http://localhost/", "ftp://8.8.8.8/",
    "file:///etc/passwd", "file://localhost/etc/passwd", "data:image/png;base64,AAAA", "gopher://127.0.0.1:6379/_x",
    "javascript:alert(1)", "unix:///var/run/docker.sock", "ldap://a.example.com/", "oss://bucket/a.png",
    "httpſ://a.example.com/", "https+x://a.example.com/", "view-source:https://a.example.com/",
    # too long
    "https://a.example.com/" + "a" * 16_384,
]  # fmt: skip
HARMLESS = [
    "https://files.example.com/a.png",
    "https://dashscope-result-sh.oss-cn-shanghai.aliyuncs.com/1d/a b.png?Expires=1&Signature=x%2Fy".replace(
        " ", "%20"
    ),
    "HTTPS://Files.Example.COM:8443/a.png#part",
    "https://my_bucket.s3.amazonaws.com./a",
    "https://r3---sn-abc.example.com/?a@b",
    "https://example.com",
    "https://xn--bcher-kva.example.com/",
    "https://cdn.example.xn--p1ai/图.png",
    "https://8.8.8.8/a.png",
    "https://[2606:4700::1111]:443/a.png",
    "https://[64:ff9b::808:808]/",
    "https://127.0.0.1.example.com/",
    "https://localhost.example.com/",
    "https://1.example.com/[]{}|^",
]


def test_at_least_sixty_hostile_urls_stand_in_the_table() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) > 150


@pytest.mark.parametrize("url", HOSTILE, ids=lambda url: ascii(url)[1:50])
def test_a_hostile_url_is_refused(url: str) -> None:
    assert refusal_of(url, loopback=False, hosts=None)


@pytest.mark.parametrize("url", HARMLESS)
def test_a_url_of_a_public_host_is_not(url: str) -> None:
    assert refusal_of(url, loopback=False, hosts=None) is None
    assert refusal_of(url, loopback=True, hosts=None) is None


def test_what_is_not_public_stands_in_no_url() -> None:
    assert [each for each in NOT_PUBLIC if is_public(each)] == []
    assert [each for each in NOT_PUBLIC if refusal_of(url_of(each), loopback=False, hosts=None) is None] == []


def test_the_neighbours_of_what_is_not_public_are_public() -> None:
    assert [each for each in PUBLIC if not is_public(each)] == []
    assert [each for each in PUBLIC if refusal_of(url_of(each), loopback=False, hosts=None)] == []


@pytest.mark.parametrize(
    "text", ["", "files.example", "8.8.8", "8.8.8.08", "[::1]", "8.8.8.8%1", "2606:4700::1%1"]
)
def test_what_is_no_plain_address_is_neither_public_nor_loopback(text: str) -> None:
    assert not is_public(text)
    assert not is_loopback(text)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::1%lo", False),
        ("128.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("::2", False),
        ("::127.0.0.1", False),
        ("64:ff9b::127.0.0.1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_loopback_is_this_machine_and_no_other_form_of_it(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


# Where the API itself is on loopback ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/a.png",
        "http://localhost:8080/a.png",
        "http://LOCALHOST./a.png",
        "http://[::1]:8080/a.png",
        "http://[::ffff:127.0.0.1]/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://a.localhost/",
        "https://[::1]/",
    ],
)
def test_this_machine_is_fetched_from_when_the_api_is_on_it(url: str) -> None:
    assert refusal_of(url, loopback=True, hosts=None) is None
    assert refusal_of(url, loopback=False, hosts=None)


@pytest.mark.parametrize(
    "url",
    [
        "http://files.example.com/",
        "http://8.8.8.8/",
        "http://a.localhost/",
        "http://127.1/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://10.0.0.1/",
        "http://[2002:7f00:1::]/",
        "https://10.0.0.1/",
        "https://0.0.0.0/",
        "https://169.254.169.254/",
        "https://2130706433/",
        "https://[::1%25lo]/",
        "https://printer.local/",
        "http://user@127.0.0.1/",
        "ftp://127.0.0.1/",
    ],
)
def test_and_all_the_rest_is_refused_as_ever(url: str) -> None:
    assert refusal_of(url, loopback=True, hosts=None)


# Words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://10.0.0.1/", "10.0.0.1 is not a public address"),
        ("https://0x7f.1/", "0x7f.1 spells 127.0.0.1, which is not a public address"),
        ("https://134744072/", "134744072 is an odd way to write 8.8.8.8"),
        ("https://localhost/", "localhost is this machine"),
        ("https://printer.local/", "printer.local is a name inside a network"),
        ("https://a_b!/", "a_b! is no host name"),
        ("https://bücher.example/", "b\\xfccher.example is no host name"),
        ("https://a.example:0/", "0 is no port"),
        ("ftp://a.example/", "only https is fetched, not ftp"),
        ("no address", "the address has a character that is not allowed in addresses"),
        ("noaddress", "it is no address"),
        ("https:a.example", "the address has no host"),
        ("http://a.example/", "only https is fetched, not plain http"),
    ],
)
def test_the_reason_names_what_is_wrong(url: str, words: str) -> None:
    assert refusal_of(url, loopback=False, hosts=None) == words


def test_plain_http_to_elsewhere_has_words_of_its_own_where_it_is_allowed_here() -> None:
    why = refusal_of("http://a.example/", loopback=True, hosts=None)

    assert why == "only https is fetched, plain http from this machine alone"


def test_the_reason_can_be_shown_to_anyone() -> None:
    for url in HOSTILE:
        why = refusal_of(
            url.replace("good.example.com@", "hunter2@") + "?Signature=hunter2", loopback=False, hosts=None
        )

        assert why
        assert "hunter2" not in why
        assert why.isascii()
        assert why.isprintable()
        assert len(why) < 250


# Allow-list ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        (["files.example.com"], "https://files.example.com/a", True),
        (["Files.Example.com."], "https://FILES.example.COM/a", True),
        (["files.example.com"], "https://files.example.com./a", True),
        (["files.example.com"], "https://a.files.example.com/a", False),
        (["files.example.com"], "https://example.com/a", False),
        (["files.example.com"], "https://files.example.com.evil.com/a", False),
        ([".example.com"], "https://files.example.com/a", True),
        (["*.example.com"], "https://a.b.example.com./a", True),
        (["*.example.com"], "https://example.com/a", False),
        ([".example.com"], "https://evilexample.com/a", False),
        ([".example.com"], "https://evil.com/.example.com", False),
        (["a.com", "b.com"], "https://b.com/", True),
        (["8.8.8.8"], "https://8.8.8.8/", True),
        (["8.8.8.8"], "https://8.8.4.4/", False),
        (["2606:4700:0::1111"], "https://[2606:4700::1111]/", True),
        (["[2606:4700::1111]"], "https://[2606:4700:0::1111]/", True),
        (["127.0.0.1"], "https://127.0.0.1/", False),
        (["localhost"], "https://localhost/", False),
    ],
)
def test_a_list_of_hosts_lets_through_what_it_names(hosts: list[str], url: str, allowed: bool) -> None:
    assert (refusal_of(url, loopback=False, hosts=check_hosts(hosts)) is None) is allowed


def test_a_list_lets_nothing_through_that_would_be_refused_without_it() -> None:
    named = [url.split("/")[2] for url in HOSTILE if url.count("/") > 2]

    assert [
        url for url in HOSTILE if refusal_of(url, loopback=False, hosts=[*named, "localhost", "."]) is None
    ] == []


def test_an_empty_list_and_one_of_stars_and_dots_let_nothing_through() -> None:
    for hosts in [(), ("",), (".",), ("*",), ("*.",), ("com",), (".8",)]:
        assert refusal_of("https://files.example.com/", loopback=False, hosts=hosts) == (
            "files.example.com is not among the hosts that files may be fetched from"
        )
        assert refusal_of("https://8.8.8.8/", loopback=False, hosts=hosts)


def test_a_list_of_hosts_is_put_in_order() -> None:
    hosts = check_hosts(
        {"Files.Example.com.": 1, " *.oss.example ": 2, ".b.com": 3, "[::1]": 4, "127.0.0.1": 5}
    )

    assert hosts == ("files.example.com", ".oss.example", ".b.com", "::1", "127.0.0.1")
    assert check_hosts(hosts) == hosts
    assert check_hosts(["localhost"]) == ("localhost",)


@pytest.mark.parametrize(
    "host",
    [
        "", ".", "*", "*.", "..a.com", "*.*.com", "a.*.com", "https://a.com", "a.com/x", "a.com:443", "u@a.com",
        "a b.com", "\u212aube.com", ".\u212aube.com",
        "10.0.0.1", "127.1", "[::1", "::1%lo", ".8.8", ".8.8.8.8", "*.2606:4700::1111", "intranet", "a.local",
        "bücher.de", "a..com", "-a.com", "a.com..",
    ],
)  # fmt: skip
def test_a_malformed_entry_is_told_at_once(host: str) -> None:
    with pytest.raises(ValueError, match=r"give names like 'files\.example\.com'"):
        check_hosts(["good.example.com", host])


def test_a_list_that_is_empty_or_none_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="leave it out"):
        check_hosts([])
    with pytest.raises(TypeError, match=r"not one text: \['a\.com'\]"):
        check_hosts("a.com")
    with pytest.raises(TypeError, match="a host is text, not int"):
        check_hosts([1])  # type: ignore[list-item]  # wrong on purpose
