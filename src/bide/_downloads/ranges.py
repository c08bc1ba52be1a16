"""What the reply to a download means: the whole file, the rest of it, or neither. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from bide._text import excerpt, redact
from bide._wire import Reply, parse_http_date

if TYPE_CHECKING:
    from collections.abc import Mapping

REFUSED_STATUSES = frozenset({400, 401, 403, 404, 410})
"""The statuses of an address whose signature has expired (400: a session's signature), or whose file has moved. A new
poll of the task may give a fresh address."""
TEMPORARY_STATUSES = frozenset({408, 425, 429})

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII | re.IGNORECASE)
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,18})", re.ASCII | re.IGNORECASE)
MAX_VALIDATOR_CHARACTERS = 200


@frozen
class Partial:
    """The part of a file that is on disk: the first *size* bytes of the version that *validator* names."""

    size: int = 0
    validator: str | None = None
    total: int | None = None

    @property
    def range_headers(self) -> dict[str, str]:
        """The request headers for the rest; empty if the part cannot be continued."""
        if not self.size or self.validator is None:
            return {}
        return {"range": f"bytes={self.size}-", "if-range": self.validator}


@frozen
class Whole:
    """The whole file comes, from its first byte.

    Attributes:
        total: its length in bytes, if the server states it.
        is_framed: whether the length or the framing of the body will reveal a cut.
    """

    validator: str | None
    total: int | None
    is_framed: bool


@frozen
class Rest:
    """The rest of the file comes: *expected* bytes. The whole file has *total* bytes."""

    expected: int
    total: int | None


@frozen
class Complete:
    """All bytes are on disk already."""


@frozen
class Restart:
    """The bytes on disk cannot be used: fetch the file again from its first byte."""

    why: str


@frozen
class RetryLater:
    """A temporary fault. *after*: the seconds that the server asks to wait."""

    why: str
    after: float | None = None


@frozen
class AddressRefused:
    """The server refuses this address. It may have worked before."""

    status: int


@frozen
class Permanent:
    """Another try will not help."""

    why: str


Meaning: TypeAlias = Whole | Rest | Complete | Restart | RetryLater | AddressRefused | Permanent


def meaning_of(status: int, headers: Mapping[str, str], on_disk: Partial) -> Meaning:
    """What the reply to a request with `on_disk.range_headers` means. Header names are in lower case.

    Source of the rules: RFC 9110, sections 8.8 (validators), 13.1.5 (If-Range), 14.4 (Content-Range), 15.3.7 (206).
    """
    if status == 200:
        length = _length(headers)
        return Whole(validator_of(headers), length, length is not None or "transfer-encoding" in headers)
    if status == 206:
        return _meaning_of_part(headers, on_disk)
    if status == 416 and on_disk.range_headers:
        match = _UNSATISFIED.fullmatch(headers.get("content-range", "").strip())
        known = (None, on_disk.size)
        if match and int(match[1]) == on_disk.size and on_disk.total in known and _is_same(headers, on_disk):
            return Complete()
        return Restart("the server has no bytes after those on disk, and the lengths do not agree")
    if status in REFUSED_STATUSES:
        return AddressRefused(status)
    if status in TEMPORARY_STATUSES or status >= 500:
        reply = Reply(status, headers, b"")
        return RetryLater(f"HTTP {status}{reply.retry_after_note}", reply.retry_after)
    return Permanent(f"HTTP {status}")


def _meaning_of_part(headers: Mapping[str, str], on_disk: Partial) -> Meaning:
    content_range = headers.get("content-range", "").strip()
    match = _CONTENT_RANGE.fullmatch(content_range)
    if not on_disk.range_headers or match is None:
        return Restart(
            f"the server sent an unrequested part ({excerpt(redact(content_range or 'without a range'), 60)})"
        )
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    length = on_disk.total if total is None else total
    if first != on_disk.size or last < first or (length is not None and last >= length):
        return Restart(
            f"the server sent another part than the requested one ({excerpt(redact(content_range), 60)})"
        )
    if not _is_same(headers, on_disk) or (None not in (total, on_disk.total) and total != on_disk.total):
        return Restart("the file has changed since its first part was fetched")
    return Rest(last + 1 - first, total if total is not None else on_disk.total)


def _is_same(headers: Mapping[str, str], on_disk: Partial) -> bool:
    """Whether the reply is about the version on disk, as far as its headers show."""
    for name in ("etag", "last-modified"):
        validator = headers.get(name, "").strip()
        if validator and (name == "etag") == (on_disk.validator or "").endswith('"'):
            return validator == on_disk.validator
    return True


def validator_of(headers: Mapping[str, str]) -> str | None:
    """The value that identifies this version of the file byte for byte; None if the headers have none.

    It is a strong ETag. Without any ETag it is a Last-Modified that is at least one second before the reply's Date
    (RFC 9110, 8.8.2.2 and 13.1.5): a file may change twice within a second. A weak ETag promises the same meaning, not
    the same bytes.
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
    return 1 < len(value) <= MAX_VALIDATOR_CHARACTERS and value.isascii() and value.isprintable()


def _length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length", "").strip()
    return int(value) if value.isdecimal() and value.isascii() and len(value) <= 18 else None
