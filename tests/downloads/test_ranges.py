"""What an answer to a download means, whatever a server says: a part is gone on with only if all of it agrees."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bide._downloads.ranges import (
    AddressRefused,
    Complete,
    Meaning,
    Partial,
    Permanent,
    Rest,
    Restart,
    RetryLater,
    Whole,
    meaning_of,
    validator_of,
)

TAG, OTHER, WEAK = '"v1"', '"v2"', 'W/"v1"'
DATE, LATER = "Sat, 21 Nov 2026 10:00:00 GMT", "Sat, 21 Nov 2026 10:00:01 GMT"
NOTHING = Partial()
HALF = Partial(50, TAG, 100)
DATED = Partial(50, DATE, 100)
ENDLESS = Partial(50, TAG, None)
ALL = Partial(100, TAG, 100)
UNNAMED = Partial(50, None, 100)


def part(told: str = "bytes 50-99/100", **headers: str) -> dict[str, str]:
    return {"content-range": told, **{name.replace("_", "-"): value for name, value in headers.items()}}


def test_the_rest_is_asked_for_where_there_is_something_to_go_on_from() -> None:
    assert HALF.range_headers == {"range": "bytes=50-", "if-range": TAG}
    assert DATED.range_headers == {"range": "bytes=50-", "if-range": DATE}
    assert NOTHING.range_headers == UNNAMED.range_headers == Partial(0, TAG, 100).range_headers == {}


@pytest.mark.parametrize(
    ("headers", "meant"),
    [
        ({"content-length": "7", "etag": TAG}, Whole(TAG, 7, True)),
        ({"content-length": "7", "last-modified": DATE, "date": LATER}, Whole(DATE, 7, True)),
        ({"content-length": "7", "last-modified": DATE, "date": DATE}, Whole(None, 7, True)),
        ({"content-length": "7", "last-modified": DATE}, Whole(None, 7, True)),
        ({"content-length": "7", "etag": TAG, "last-modified": DATE}, Whole(TAG, 7, True)),
        ({"content-length": "7", "etag": WEAK, "last-modified": DATE, "date": LATER}, Whole(None, 7, True)),
        ({"content-length": "7", "etag": WEAK}, Whole(None, 7, True)),
        ({"content-length": " 0 "}, Whole(None, 0, True)),
        ({"transfer-encoding": "chunked"}, Whole(None, None, True)),
        ({}, Whole(None, None, False)),
        ({"content-length": "-7"}, Whole(None, None, False)),
        ({"content-length": "+7"}, Whole(None, None, False)),
        ({"content-length": "7, 7"}, Whole(None, None, False)),
        ({"content-length": "0x7"}, Whole(None, None, False)),
        ({"content-length": "٧"}, Whole(None, None, False)),
        ({"content-length": "7" * 400}, Whole(None, None, False)),
        (part(etag=TAG), Whole(TAG, None, False)),
    ],
)
@pytest.mark.parametrize("have", [NOTHING, HALF, DATED, ALL, UNNAMED])
def test_a_200_is_the_whole_file_whatever_is_there(
    headers: dict[str, str], meant: Whole, have: Partial
) -> None:
    assert meaning_of(200, headers, have) == meant


@pytest.mark.parametrize(
    ("have", "headers", "meant"),
    [
        (HALF, part(), Rest(50, 100)),
        (HALF, part(etag=TAG), Rest(50, 100)),
        (HALF, part(etag=TAG, last_modified=LATER), Rest(50, 100)),
        (DATED, part(last_modified=DATE), Rest(50, 100)),
        (DATED, part(last_modified=DATE, etag=OTHER), Rest(50, 100)),
        (HALF, part(" bytes 50-99/100 "), Rest(50, 100)),
        (HALF, part("bytes 50-59/100"), Rest(10, 100)),
        (HALF, part("bytes 50-50/100"), Rest(1, 100)),
        (HALF, part("bytes 50-99/*"), Rest(50, 100)),
        (ENDLESS, part("bytes 50-99/100"), Rest(50, 100)),
        (ENDLESS, part("bytes 50-99/*"), Rest(50, None)),
    ],
)
def test_a_part_that_agrees_is_gone_on_with(have: Partial, headers: dict[str, str], meant: Rest) -> None:
    assert meaning_of(206, headers, have) == meant


@pytest.mark.parametrize(
    ("have", "headers"),
    [
        (NOTHING, part("bytes 0-99/100")),  # nobody asked for a part
        (UNNAMED, part()),
        (HALF, {}),
        (HALF, part("")),
        (HALF, part("bytes 0-99/100")),
        (HALF, part("bytes 49-99/100")),
        (HALF, part("bytes 51-99/100")),
        (HALF, part("bytes 50-49/100")),
        (HALF, part("bytes 50-100/100")),
        (HALF, part("bytes 50-99/101")),
        (HALF, part("bytes 50-98/99")),
        (HALF, part("bytes */100")),
        (HALF, part("bytes 50-/100")),
        (HALF, part("bytes -50/100")),
        (HALF, part("bytes=50-99/100")),
        (HALF, part("items 50-99/100")),
        (HALF, part("bytes 50-99")),
        (HALF, part("bytes 50-99/100, bytes 0-1/100")),
        (HALF, part("bytes 50-99/100\nX: y")),
        (HALF, part(f"bytes 50-{'9' * 400}/{'9' * 401}")),
        (HALF, part("bytes 050-0x63/100")),
        (HALF, part("bytes 5_0-99/100")),
        (HALF, {"content-type": "multipart/byteranges; boundary=a", "content-length": "50"}),
        (HALF, part(etag=OTHER)),
        (HALF, part(etag=WEAK)),
        (HALF, part(etag="v1")),
        (HALF, part(etag=TAG.upper())),
        (HALF, part(etag=f"{TAG}, {OTHER}")),
        (DATED, part(last_modified=LATER)),
        (DATED, part(last_modified="2026-11-21T10:00:00Z")),
    ],
)
def test_a_part_that_does_not_agree_begins_again(have: Partial, headers: dict[str, str]) -> None:
    assert isinstance(meaning_of(206, headers, have), Restart)


# A length that is not told ("*") is the one that was told before.
@pytest.mark.parametrize("told", ["bytes 50-100/*", "bytes 50-999999999/*"])
def test_a_part_that_ends_beyond_the_file_begins_again(told: str) -> None:
    assert isinstance(meaning_of(206, part(told), HALF), Restart)


@pytest.mark.parametrize(
    ("have", "headers", "kind"),
    [
        (ALL, part("bytes */100", etag=TAG), Complete),
        (ALL, part("bytes */100"), Complete),
        (ALL, part("bytes */100", etag=OTHER), Restart),
        (ALL, part("bytes */99"), Restart),
        (ALL, part("bytes */101"), Restart),
        (ALL, part("bytes */*"), Restart),
        (ALL, part("bytes 0-99/100"), Restart),
        (ALL, {}, Restart),
        (HALF, part("bytes */50"), Restart),
        (HALF, part("bytes */100"), Restart),
        (ENDLESS, part("bytes */50"), Complete),
        (ENDLESS, part("bytes */51"), Restart),
        (NOTHING, part("bytes */0"), Permanent),
        (UNNAMED, part("bytes */50"), Permanent),
    ],
)
def test_a_416_is_the_end_only_where_all_is_there(have: Partial, headers: dict[str, str], kind: type) -> None:
    assert isinstance(meaning_of(416, headers, have), kind)


@pytest.mark.parametrize("have", [NOTHING, HALF])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, AddressRefused) for status in (401, 403, 404, 410)),
        *((status, RetryLater) for status in (408, 425, 429, 500, 502, 503, 504, 507, 599, 999)),
        *((status, Permanent) for status in (100, 199, 201, 202, 203, 204, 205, 207, 226)),
        *((status, Permanent) for status in (300, 301, 302, 304, 305, 307, 402, 405, 406, 411, 451)),
    ],
)
def test_each_other_status_has_one_meaning(status: int, kind: type, have: Partial) -> None:
    assert isinstance(meaning_of(status, {"content-length": "7", **part(etag=TAG)}, have), kind)


@pytest.mark.parametrize(("told", "after"), [("7", 7.0), ("0", 0.0), ("soon", None), ("", None)])
def test_the_wait_that_a_server_asks_for_is_told(told: str, after: float | None) -> None:
    meaning = meaning_of(503, {"retry-after": told}, NOTHING)

    assert meaning == RetryLater("HTTP 503", after)


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"etag": ' "a b" '}, '"a b"'),
        ({"etag": '""'}, '""'),
        ({"etag": '"'}, None),
        ({"etag": "v1"}, None),
        ({"etag": WEAK}, None),
        ({"etag": '"é"'}, None),
        ({"etag": '"a\r\nX: y"'}, None),
        ({"etag": '"\x1b[2J"'}, None),
        ({"etag": f'"{"x" * 5000}"'}, None),
        ({"etag": "v1", "last-modified": DATE, "date": LATER}, None),
        ({"etag": f'"{"x" * 5000}"', "last-modified": DATE, "date": LATER}, None),
        ({"etag": " ", "last-modified": f" {DATE} ", "date": LATER}, DATE),
        ({"last-modified": LATER, "date": DATE}, None),
        ({"last-modified": LATER, "date": LATER}, None),
        ({"last-modified": DATE, "date": "soon"}, None),
        ({"last-modified": "yesterday", "date": LATER}, None),
        ({"last-modified": "Sat, 99 Nov 99999 99:99:99 GMT", "date": LATER}, None),
        ({"last-modified": f"{DATE}\r\nX: y", "date": LATER}, None),
        ({"last-modified": f"{DATE}{' ' * 5000}.", "date": LATER}, None),
        ({"last-modified": ""}, None),
    ],
)
def test_only_what_can_be_sent_back_names_a_version(headers: dict[str, str], validator: str | None) -> None:
    assert validator_of(headers) == validator


# Whatever comes ----------------------------------------------------------------------------------------------

numbers = st.integers(0, 120) | st.integers(0, 2**70)
ranges = st.builds("bytes {}-{}/{}".format, numbers, numbers, numbers | st.just("*"))
validators = st.sampled_from([TAG, OTHER, WEAK, DATE, LATER, "", '"', "v1"])
values = ranges | numbers.map(str) | numbers.map("bytes */{}".format) | validators | st.text(max_size=30)
headers_of_any_kind = st.fixed_dictionaries(
    {},
    optional={
        "content-range": ranges | values,
        "content-length": numbers.map(str) | values,
        "etag": validators | values,
        "last-modified": validators | values,
        "date": st.sampled_from([DATE, LATER]) | values,
        "retry-after": values,
        "transfer-encoding": st.sampled_from(["chunked", "gzip"]),
    },
)
haves = st.builds(
    Partial,
    st.integers(0, 120),
    st.none() | st.sampled_from([TAG, DATE]),
    st.none() | st.integers(0, 120),
)


@settings(max_examples=400)
@given(st.integers(-1, 1000) | st.sampled_from([200, 206, 416]), headers_of_any_kind, haves)
@pytest.mark.no_cover
def test_no_answer_makes_it_raise(status: int, headers: dict[str, str], have: Partial) -> None:
    meaning = meaning_of(status, headers, have)

    assert isinstance(meaning, get_args(Meaning))
    why = getattr(meaning, "why", "")
    assert why.isprintable()
    assert len(why) < 150
    assert not isinstance(meaning, Whole) or status == 200
    assert not isinstance(meaning, Rest) or status == 206
    assert not isinstance(meaning, Complete) or (status == 416 and have.total in (None, have.size))


@settings(max_examples=600)
@given(
    st.builds("bytes {}-{}/{}".format, st.integers(49, 51), numbers, st.sampled_from([99, 100, 101, "*"])),
    st.fixed_dictionaries({}, optional={"etag": validators, "last-modified": validators}),
    st.builds(Partial, st.just(50), st.sampled_from([TAG, DATE, None]), st.sampled_from([None, 100])),
)
@example("bytes 50-99/100", {"etag": TAG}, HALF)
@pytest.mark.no_cover
def test_a_part_is_gone_on_with_only_if_begin_length_and_version_agree(
    told: str, headers: dict[str, str], have: Partial
) -> None:
    meaning = meaning_of(206, {"content-range": told, **headers}, have)

    if isinstance(meaning, Rest):
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", told)
        assert found is not None
        first, last = int(found[1]), int(found[2])
        assert first == have.size
        assert meaning.expected == last + 1 - first > 0
        if found[3] != "*":
            assert meaning.total == int(found[3]) > last
            assert have.total in (None, meaning.total)
        name = "etag" if have.validator == TAG else "last-modified"
        assert have.validator is not None
        assert headers.get(name) in (None, "", have.validator)
