"""One HTTP exchange as plain data: adapters make calls and read replies, and the transport carries them.

This module also has what every adapter needs: `Retry-After` in seconds, JSON of limited depth, and task ids that are
safe in a path. `Secret` holds an API key.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from attrs import field, frozen

from bide import _outside
from bide._text import excerpt
from bide._validators import MAX_DEPTH, is_deep
from bide.errors import UnexpectedReplyError

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_SECRET_CHARACTERS = 8
"""A shorter key is no secret ("any" or "test" for an emulator), and replies may hold it as a normal word."""

MAX_RETRY_AFTER_SECONDS = 3600.0
"""A longer `Retry-After` is cut to this, and reported: a lane must not stand still for a day because of one header."""

MAX_RETRY_AFTER_CHARACTERS = 1000
"""So much of a `Retry-After` is read."""


@frozen
class Call:
    """An HTTP request to a service, without the origin and the key.

    Attributes:
        method: such as "GET".
        path: the path below the provider's base URL, starting with "/". Ids in it are quoted already.
        query: the fields of the query string.
        headers: headers in addition to those that every request has.
        body: the JSON object to send; None sends no body.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    body: Mapping[str, Any] | None = None


@frozen
class Reply:
    """A service's HTTP reply.

    Attributes:
        status: the HTTP status code.
        headers: the headers, their names in lower case.
        content: the body; the transport limits its length.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict)
    content: bytes = field(default=b"", repr=False)

    def json(self) -> Any:
        """The body as JSON.

        `NaN`, infinities and numbers too large for a float become None: they are not JSON, and few databases
        store them.

        Raises:
            UnexpectedReplyError: the body is not JSON, or it is nested deeper than `MAX_DEPTH`.
        """
        try:
            data = json.loads(self.content, parse_constant=_none_for_constant, parse_float=_float_if_finite)
        except (ValueError, RecursionError) as fault:
            why = "nested too deeply" if isinstance(fault, RecursionError) else "not JSON"
            raise self.unexpected(why) from None
        brackets = self.content.count(b"[") + self.content.count(b"{")
        if brackets > MAX_DEPTH and is_deep(data):
            raise self.unexpected("nested too deeply")
        return data

    def object(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            UnexpectedReplyError: the body is anything else.
        """
        data = self.json()
        if not isinstance(data, dict):
            raise self.unexpected("not a JSON object")
        return data

    def unexpected(self, why: str) -> UnexpectedReplyError:
        """The error for a body that makes no sense: *why*, and the body, cut and escaped."""
        kind = self.headers.get("content-type", "no content type")
        return UnexpectedReplyError(
            f"the service's answer makes no sense: {why} (HTTP {self.status}, {excerpt(kind, 60)}, "
            f"{len(self.content)} bytes): {excerpt(self.content)}"
        )

    @property
    def date(self) -> float | None:
        """When the service answered, by its own clock, in seconds since the epoch; or None."""
        return parse_http_date(self.headers.get("date"))

    @property
    def retry_after(self) -> float | None:
        """How many seconds to wait as the service asks, `MAX_RETRY_AFTER_SECONDS` at most; None if it asks for nothing
        that can be read.

        A `Retry-After` with a date counts from the reply's own `Date`, since our clock may be wrong; without a `Date`,
        from our clock.
        """
        requested = self._requested_wait
        return None if requested is None else min(requested, MAX_RETRY_AFTER_SECONDS)

    @property
    def retry_after_note(self) -> str:
        """What to add to a message if the service asks to wait longer than bide does; else empty."""
        requested = self._requested_wait
        if requested is None or requested <= MAX_RETRY_AFTER_SECONDS:
            return ""
        value = excerpt(self.headers.get("retry-after", ""), 60)
        return f"; it asks for a longer wait (Retry-After: {value}), bide waits {MAX_RETRY_AFTER_SECONDS:g} s at most"

    @property
    def _requested_wait(self) -> float | None:
        now = _outside.wall_time() if self.date is None else self.date
        return _read_retry_after(self.headers.get("retry-after", "")[:MAX_RETRY_AFTER_CHARACTERS], now)


def _none_for_constant(_: str) -> None:
    return None


def _float_if_finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


_UNIT_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0}
_UNIT_SECONDS |= {"ms": 0.001, "h": 3600.0, "hour": 3600.0}
_DURATION = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)
_NEXT_DATE = re.compile(r",(?=\s*[A-Za-z]+,)")


def _read_retry_after(value: str, now: float) -> float | None:
    """The seconds from *now* that a `Retry-After` asks to wait, not negative; None if it cannot be read.

    The standard knows seconds and dates. Services and proxies also write a unit ("7s"), and send the header twice,
    which reads "7, 7". Of several values the longest counts.
    """
    found = [_read_duration(part) for part in value.split(",")]
    if all(each is None for each in found):
        found = [_read_moment(part.strip(), now) for part in _NEXT_DATE.split(value)]
    return max((max(0.0, each) for each in found if each is not None), default=None)


def _read_duration(text: str) -> float | None:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        return None
    unit = match[2].lower()
    seconds = _UNIT_SECONDS.get(unit, _UNIT_SECONDS.get(unit.removesuffix("s")))
    return None if seconds is None else float(match[1]) * seconds


def _read_moment(text: str, now: float) -> float | None:
    then = parse_http_date(text)
    return None if then is None else then - now


def parse_http_date(value: str | None) -> float | None:
    """The date in a header, in seconds since the epoch; None if *value* is not a date."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
        # With the zone "-0000" the time has no zone, and Python would use the zone of this machine.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


_TASK_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:=~@+-]{0,255}")


def is_task_id(value: object) -> bool:
    """Whether *value* can be a task id: 1 to 256 characters that are safe in a path, a log and a file name."""
    return isinstance(value, str) and _TASK_ID.fullmatch(value) is not None


def quote_id(task_id: str) -> str:
    """*task_id*, percent-encoded as one segment of a path.

    Raises:
        ValueError: *task_id* cannot be a task id.
    """
    if not is_task_id(task_id):
        raise ValueError(
            f"not a task id: {excerpt(repr(task_id), 80)}; expected 1 to 256 letters, digits or _.:=~@+-, "
            f"as in the service's reply"
        )
    return quote(task_id, safe="")


class Secret:
    """An API key that is never shown: not in a repr, a traceback with locals, a copy or a pickle."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    @property
    def is_sendable(self) -> bool:
        """Whether it can be sent in a header."""
        key = self.__value
        return isinstance(key, str) and bool(key) and key.isascii() and key.isprintable() and " " not in key

    @property
    def description(self) -> str:
        """Its type and length, for a message."""
        length = len(self.__value) if isinstance(self.__value, str) else "?"
        return f"a {type(self.__value).__name__} of length {length}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.__value == other.__value

    def __hash__(self) -> int:
        return hash(self.__value)

    def reveal(self) -> str:
        """The key itself, to be used in the header only."""
        return self.__value

    def remove_from(self, text: bytes) -> bytes:
        """*text* with "***" in the place of the key, in case a service echoes it."""
        if len(self.__value) < MIN_SECRET_CHARACTERS:
            return text
        for written in {self.__value, self.__value.replace("/", "\\/")}:  # some services escape "/" in JSON
            text = text.replace(written.encode(), b"***")
        return text

    def fingerprint(self, salt: bytes) -> str:
        """A name for the key in records, from which the key cannot be derived."""
        return hashlib.blake2b(self.__value.encode(), digest_size=8, salt=salt).hexdigest()

    def __repr__(self) -> str:
        return "<secret>"

    def __getstate__(self) -> object:
        raise TypeError("an API key is not pickled or copied: pass it in the environment")

    def __reduce__(self) -> str:
        raise TypeError("an API key is not pickled or copied: pass it in the environment")
