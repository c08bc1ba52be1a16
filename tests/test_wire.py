"""One exchange as plain data: what may stand in headers, bodies, ids and messages."""

from __future__ import annotations

import copy
import json
import math
import pickle
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bide import _outside
from bide._text import MAX_EXCERPT_CHARACTERS, excerpt
from bide._validators import MAX_DEPTH
from bide._wire import MAX_RETRY_AFTER_SECONDS, Reply, Secret, is_task_id, quote_id
from bide.errors import UnexpectedReplyError

NOW = "Wed, 21 Oct 2026 07:28:00 GMT"


# Retry-After -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 5 ", 5.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("1e9", MAX_RETRY_AFTER_SECONDS),
        ("999999999999999999999", MAX_RETRY_AFTER_SECONDS),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2026 09:28:30 +0200", 30.0),
        ("Wed, 21 Oct 2026 07:28:30 -0000", 30.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", MAX_RETRY_AFTER_SECONDS),
        ("", None),
        ("   ", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e999", MAX_RETRY_AFTER_SECONDS),
        ("9" * 5000, MAX_RETRY_AFTER_SECONDS),
        ("Wed, 99 Oct 2026 07:28:30 GMT", None),
        ("7s", 7.0),
        ("7 seconds", 7.0),
        ("500ms", 0.5),
        ("2 min", 120.0),
        ("1h", 3600.0),
        ("7 parsecs", None),
        ("7, 7", 7.0),
        ("7,12", 12.0),
        ("soon, 7", 7.0),
        (",", None),
        ("Wed, 21 Oct 2026 07:28:30 GMT, Wed, 21 Oct 2026 07:28:40 GMT", 40.0),
        ("Wednesday, 21-Oct-26 07:28:30 GMT", 30.0),
        ("Wed Oct 21 07:28:30 2026", 30.0),
    ],
)
def test_retry_after_is_seconds_from_the_answers_own_date(value: str, seconds: float | None) -> None:
    assert Reply(429, {"retry-after": value, "date": NOW}).retry_after == seconds


@pytest.mark.parametrize("date", [{}, {"date": "yesterday"}])
def test_without_a_date_of_the_answer_a_date_counts_from_our_own_clock(
    date: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_outside, "wall_time", lambda: 1792567680.0)  # NOW

    assert Reply(429, {"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", **date}).retry_after == 30.0


def test_without_the_header_there_is_no_retry_after() -> None:
    assert Reply(429).retry_after is None


_WAITS = (
    st.text(max_size=40)
    | st.text("0123456789+-.eE, smh", max_size=12)
    | st.floats().map(str)
    | st.integers().map(str)
    | st.datetimes().map(lambda moment: f"{moment:%a, %d %b} {moment.year:04} {moment:%H:%M:%S} GMT")
)


@given(
    value=_WAITS | st.lists(_WAITS, max_size=3).map(", ".join),
    date=st.text(max_size=40) | st.just(NOW) | st.just(""),
)
def test_retry_after_is_bounded_or_none_for_any_headers(value: str, date: str) -> None:
    seconds = Reply(429, {"retry-after": value, "date": date}).retry_after

    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_SECONDS == 3600


@given(seconds=st.floats(0, 3600), times=st.integers(1, 3), unit=st.sampled_from(["", "s", " s", " seconds"]))
def test_a_unit_and_a_repeated_header_change_nothing(seconds: float, times: int, unit: str) -> None:
    value = ", ".join([f" {seconds!r}{unit} "] * times)

    assert Reply(429, {"retry-after": value}).retry_after == seconds


def test_a_wait_that_is_cut_is_noted_and_another_is_not() -> None:
    cut, kept = Reply(429, {"retry-after": "86400"}), Reply(429, {"retry-after": "3600"})

    assert (
        cut.retry_after_note == "; it asks for a longer wait (Retry-After: 86400), bide waits 3600 s at most"
    )
    assert kept.retry_after_note == Reply(429).retry_after_note == ""


@given(now=st.integers(0, 2**32), wait=st.integers(0, 3600))
def test_a_date_and_the_seconds_to_it_say_the_same(now: int, wait: int) -> None:
    headers = {"date": formatdate(now, usegmt=True), "retry-after": formatdate(now + wait, usegmt=True)}

    assert Reply(429, headers).retry_after == wait
    assert Reply(429, headers).date == now


# Bodies ----------------------------------------------------------------------------------------------------


def test_a_json_object_is_read() -> None:
    assert Reply(200, content=b'{"a": [1, 2.5, "\\u00e9", null, true]}').object() == {
        "a": [1, 2.5, "é", None, True]
    }
    assert Reply(200, content=b"[1]").json() == [1]


def test_what_is_no_number_in_json_is_none() -> None:
    assert Reply(200, content=b"[NaN, Infinity, -Infinity, 1e999, -1e999, 1e3]").json() == [
        *[None] * 5,
        1000.0,
    ]


@pytest.mark.parametrize("content", [b"", b"<html>", b"{", b'{"a":', b"\xff\xfe", b"9" * 5_000, b"nul"])
def test_the_error_for_a_body_that_is_no_json_shows_it(content: bytes) -> None:
    reply = Reply(502, {"content-type": "text/html\x1b"}, content)

    with pytest.raises(UnexpectedReplyError) as caught:
        reply.json()

    text = str(caught.value)
    assert text.startswith(
        f"the service's answer makes no sense: not JSON (HTTP 502, text/html\\x1b, {len(content)} bytes): "
    )
    assert text.isprintable()


@pytest.mark.parametrize("content", [b"[]", b"7", b'"text"', b"null"])
def test_another_value_is_no_object(content: bytes) -> None:
    with pytest.raises(UnexpectedReplyError, match="not a JSON object"):
        Reply(200, content=content).object()


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_body_may_be_so_deep_and_no_deeper(opening: bytes, closing: bytes) -> None:
    def nested(depth: int) -> Reply:
        return Reply(200, content=opening * depth + b"1" + closing * depth)

    assert json.dumps(nested(MAX_DEPTH).json())
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(UnexpectedReplyError, match="nested too deeply"):
            nested(depth).json()


def test_a_wide_body_is_not_a_deep_one() -> None:
    rows = [{"id": n, "tags": []} for n in range(1_000)]

    assert Reply(200, content=json.dumps(rows).encode()).json() == rows


# Ids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["a", "task_abc123xyz", "0385dc79-5ff8-4d82-bcb6", "a.b:c=d~e@f+g", "x" * 256]
)
def test_ids_of_services_are_ids(value: str) -> None:
    assert is_task_id(value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        "../admin",
        "a/b",
        "a b",
        "a\n",
        "a?b",
        "a#b",
        "a%2e",
        "é",
        "-a",
        "x" * 257,
        None,
        7,
        ["a"],
    ],
)
def test_what_could_lead_elsewhere_is_no_id(value: object) -> None:
    assert not is_task_id(value)


@given(value=st.text(max_size=300))
def test_an_id_is_one_harmless_segment_of_a_path_or_refused(value: str) -> None:
    if not is_task_id(value):
        with pytest.raises(ValueError, match="not a task id") as caught:
            quote_id(value)
        assert str(caught.value).isprintable()
        return

    segment = quote_id(value)

    assert segment.isascii()
    assert not set(segment) & set("/?#\\ \r\n")
    assert segment not in (".", "..")


# Text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain 文字", "plain 文字"),
        ("a\nb\tc\x1b[31m", "a\\nb\\tc\\x1b[31m"),
        ("\ud800", "\\ud800"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (b"bytes \xff", "bytes \ufffd"),
        ("x" * (MAX_EXCERPT_CHARACTERS + 1), "x" * MAX_EXCERPT_CHARACTERS + "…"),
        ("x" * MAX_EXCERPT_CHARACTERS, "x" * MAX_EXCERPT_CHARACTERS),
        (("é" * (MAX_EXCERPT_CHARACTERS + 1)).encode(), "é" * MAX_EXCERPT_CHARACTERS + "…"),
        (("𝄞" * (MAX_EXCERPT_CHARACTERS + 1)).encode(), "𝄞" * MAX_EXCERPT_CHARACTERS + "…"),
    ],
)
def test_an_excerpt_is_cut_and_escaped(text: str | bytes, safe: str) -> None:
    assert excerpt(text) == safe


@given(text=st.text() | st.binary(max_size=300), limit=st.integers(0, 50))
def test_an_excerpt_cannot_control_a_terminal(text: str | bytes, limit: int) -> None:
    safe = excerpt(text, limit)

    assert safe.isprintable()
    assert len(safe) <= 10 * limit + 1


# Keys ------------------------------------------------------------------------------------------------------


def test_a_secret_is_never_shown() -> None:
    secret = Secret("sk-123")

    assert secret.reveal() == "sk-123"
    assert "sk-123" not in f"{secret} {secret!r} {[secret]}"
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied"):
            take(secret)


def test_a_reply_does_not_show_its_body() -> None:
    assert "private" not in repr(Reply(200, {}, b"private"))
    assert math.isclose(Reply(200, {"date": NOW}).date or 0, 1792567680)


def test_a_fingerprint_names_a_key_and_does_not_reveal_it() -> None:
    salt = b"0123456789abcdef"
    one, same, other = [Secret(key).fingerprint(salt) for key in ("sk-canary", "sk-canary", "sk-else")]

    assert one == same != other
    assert "canary" not in one
    assert Secret("sk-canary").fingerprint(b"fedcba9876543210") != one
