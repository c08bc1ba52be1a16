"""What an answer to a download means: a file from its begin, the rest of one, or neither. Plain decisions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from bide._text import excerpt, redact
from bide._wire import Reply, parse_http_date

if TYPE_CHECKING:
    from collections.abc import Mapping

REFUSED = frozenset({400, 401, 403, 404, 410})
"""What an address answers whose signature has ended (400 where it was a session's), or whose file has moved: a new look
may give a fresh one."""
PASSING = frozenset({408, 425, 429})

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII | re.IGNORECASE)
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,18})", re.ASCII | re.IGNORECASE)
_LONGEST_VALIDATOR = 200


@frozen
class Have:
    """What is on disk of a file: the first *size* bytes of the version that *validator* names."""

    size: int = 0
    validator: str | None = None
    total: int | None = None

    @property
    def asks(self) -> dict[str, str]:
        """The headers that ask for the rest; none where there is nothing to go on from."""
        if not self.size or self.validator is None:
            return {}
        return {"range": f"bytes={self.size}-", "if-range": self.validator}


@frozen
class Begin:
    """The whole file comes, from its begin.

    Attributes:
        total: its length, where the server tells it.
        is_framed: whether a cut will show: by the length, or by the framing of the body.
    """

    validator: str | None
    total: int | None
    is_framed: bool


@frozen
class GoOn:
    """The rest comes, *expected* bytes of it; the whole has *total*."""

    expected: int
    total: int | None


@frozen
class Complete:
    """All of it is there already."""


@frozen
class StartOver:
    """What is on disk is of no use: it has to be fetched from its begin."""

    why: str


@frozen
class Later:
    """A passing fault. *after* are the seconds that the server asks to wait."""

    why: str
    after: float | None = None


@frozen
class Refused:
    """The address does not work, or no longer."""

    status: int


@frozen
class Hopeless:
    """Asking again will not help."""

    why: str


Meaning: TypeAlias = Begin | GoOn | Complete | StartOver | Later | Refused | Hopeless


def meaning_of(status: int, headers: Mapping[str, str], have: Have) -> Meaning:
    """What an answer to a request with the headers `have.asks` means. Header names are in lower case.

    Source of the rules: RFC 9110, sections 8.8 (validators), 13.1.5 (If-Range), 14.4 (Content-Range), 15.3.7 (206).
    """
    if status == 200:
        length = _length(headers)
        return Begin(validator_of(headers), length, length is not None or "transfer-encoding" in headers)
    if status == 206:
        return _rest(headers, have)
    if status == 416 and have.asks:
        match = _UNSATISFIED.fullmatch(headers.get("content-range", "").strip())
        known = (None, have.size)
        if match and int(match[1]) == have.size and have.total in known and _is_same(headers, have):
            return Complete()
        return StartOver("the server has no more of the file than is here, and not as much as it said")
    if status in REFUSED:
        return Refused(status)
    if status in PASSING or status >= 500:
        return Later(f"HTTP {status}", Reply(status, headers, b"").retry_after)
    return Hopeless(f"HTTP {status}")


def _rest(headers: Mapping[str, str], have: Have) -> Meaning:
    told = headers.get("content-range", "").strip()
    match = _CONTENT_RANGE.fullmatch(told)
    if not have.asks or match is None:
        return StartOver(
            f"a part came that was not asked for ({excerpt(redact(told or 'without a range'), 60)})"
        )
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    length = have.total if total is None else total
    if first != have.size or last < first or (length is not None and last >= length):
        return StartOver(f"another part came than was asked for ({excerpt(redact(told), 60)})")
    if not _is_same(headers, have) or (None not in (total, have.total) and total != have.total):
        return StartOver("the file has changed since its first part came")
    return GoOn(last + 1 - first, total if total is not None else have.total)


def _is_same(headers: Mapping[str, str], have: Have) -> bool:
    """Whether an answer is about the version of which a part is here, as far as it says."""
    for name in ("etag", "last-modified"):
        told = headers.get(name, "").strip()
        if told and (name == "etag") == (have.validator or "").endswith('"'):
            return told == have.validator
    return True


def validator_of(headers: Mapping[str, str]) -> str | None:
    """What names this version of the file to the byte: a strong ETag, or without any ETag a date of the last change
    that lies a second or more before the answer's own; None without either (RFC 9110, 8.8.2.2 and 13.1.5).

    A weak ETag names what means the same, not the same bytes; and a file may change again within a second.
    """
    tag = headers.get("etag", "").strip()
    if tag:
        return tag if tag.startswith('"') and tag.endswith('"') and _is_header(tag) else None
    changed = headers.get("last-modified", "").strip()
    if not _is_header(changed):
        return None
    then, now = parse_http_date(changed), parse_http_date(headers.get("date"))
    return changed if then is not None and now is not None and now - then >= 1 else None


def _is_header(value: str) -> bool:
    return 1 < len(value) <= _LONGEST_VALIDATOR and value.isascii() and value.isprintable()


def _length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length", "").strip()
    return int(value) if value.isdecimal() and value.isascii() and len(value) <= 18 else None
