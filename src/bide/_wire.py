"""One HTTP exchange as plain data: what adapters make and read, and the transport carries.

Also the small parsers that every adapter needs and that must not be written twice: `Retry-After`, JSON with a
bound, ids that are safe in a path, text that is safe in a message.
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

from bide._validators import MAX_DEPTH, is_deep
from bide.errors import UnexpectedReplyError

if TYPE_CHECKING:
    from collections.abc import Mapping
from bide._text import excerpt

MIN_SECRET_CHARACTERS = 8
"""Characters. A shorter key is none ("any", "test" in front of an emulator), and stands in answers as a plain word."""

MAX_RETRY_AFTER_SECONDS = 24 * 3600.0
"""A longer `Retry-After` (seconds) is cut to this: no service means "come back next year"."""


@frozen
class Call:
    """A request to a service, without its origin and without the key.

    Attributes:
        path: below the provider's base URL, starting with "/"; ids in it are quoted already.
        body: sent as JSON; None sends no body.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    body: Mapping[str, Any] | None = None


@frozen
class Reply:
    """A service's answer.

    Attributes:
        headers: names in lower case.
        content: the body, no longer than the transport's bound.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict)
    content: bytes = field(default=b"", repr=False)

    def json(self) -> Any:
        """The body as JSON.

        `NaN` and numbers beyond a float, which are no JSON and which few stores take, are read as None.

        Raises:
            UnexpectedReplyError: it is not JSON, or nested deeper than `MAX_DEPTH`.
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
            UnexpectedReplyError: it is something else.
        """
        data = self.json()
        if not isinstance(data, dict):
            raise self.unexpected("not a JSON object")
        return data

    def unexpected(self, why: str) -> UnexpectedReplyError:
        """The error for a body that makes no sense, with the body in its text."""
        kind = self.headers.get("content-type", "no content type")
        return UnexpectedReplyError(
            f"the service's answer makes no sense: {why} (HTTP {self.status}, {excerpt(kind, 60)}, "
            f"{len(self.content)} bytes): {excerpt(self.content)}"
        )

    @property
    def date(self) -> float | None:
        """The service's clock when it answered, in epoch seconds, or None."""
        return parse_http_date(self.headers.get("date"))

    @property
    def retry_after(self) -> float | None:
        """Seconds that the service asks to wait, or None.

        A date is taken relative to the answer's own `Date` (our clock may be wrong). Nonsense is None.
        """
        value = self.headers.get("retry-after", "").strip()
        if not value:
            return None
        try:
            seconds = float(value)
        except ValueError:
            then = parse_http_date(value)
            now = self.date
            if then is None or now is None:
                return None
            seconds = then - now
        if not math.isfinite(seconds) or seconds < 0:
            return 0.0 if seconds < 0 and math.isfinite(seconds) else None
        return min(seconds, MAX_RETRY_AFTER_SECONDS)


def _none_for_constant(_: str) -> None:
    return None


def _float_if_finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def parse_http_date(value: str | None) -> float | None:
    """A date as it stands in a header, in epoch seconds; None if it is none."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
        # The zone "-0000" makes a time without a zone, which Python would take for this machine's own.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


_TASK_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:=~@+-]{0,255}")


def is_task_id(value: object) -> bool:
    """Whether *value* can be a task id: 1 to 256 characters that are harmless in a path, a log and a file name."""
    return isinstance(value, str) and _TASK_ID.fullmatch(value) is not None


def quoted(task_id: str) -> str:
    """*task_id* as one segment of a path.

    Raises:
        ValueError: it cannot be a task id.
    """
    if not is_task_id(task_id):
        raise ValueError(
            f"not a task id: {excerpt(repr(task_id), 80)}; expected 1 to 256 letters, digits or _.:=~@+-, "
            f"as the service gave it"
        )
    return quote(task_id, safe="")


class Secret:
    """An API key that shows itself to nobody: not in a repr, a traceback with locals, a copy or a pickle."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    @property
    def is_sendable(self) -> bool:
        """Whether it can stand in a header."""
        key = self.__value
        return isinstance(key, str) and bool(key) and key.isascii() and key.isprintable() and " " not in key

    @property
    def description(self) -> str:
        """What it is, for a message: its type and length."""
        length = len(self.__value) if isinstance(self.__value, str) else "?"
        return f"a {type(self.__value).__name__} of length {length}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.__value == other.__value

    def __hash__(self) -> int:
        return hash(self.__value)

    def reveal(self) -> str:
        """The key itself: for the header, and for nothing else."""
        return self.__value

    def remove_from(self, text: bytes) -> bytes:
        """*text* with the key taken out, for the case that a service echoes it."""
        if len(self.__value) < MIN_SECRET_CHARACTERS:
            return text
        for written in {self.__value, self.__value.replace("/", "\\/")}:  # as some write it in JSON
            text = text.replace(written.encode(), b"***")
        return text

    def fingerprint(self, salt: bytes) -> str:
        """What names the key in records, and tells nothing of it."""
        return hashlib.blake2b(self.__value.encode(), digest_size=8, salt=salt).hexdigest()

    def __repr__(self) -> str:
        return "<secret>"

    def __getstate__(self) -> object:
        raise TypeError("an API key is not pickled or copied: hand it over in the environment")

    def __reduce__(self) -> str:
        raise TypeError("an API key is not pickled or copied: hand it over in the environment")
