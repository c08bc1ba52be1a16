"""Read a service's JSON without ever raising.

A field that is missing, or has the wrong type, becomes None or empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from bide._text import excerpt
from bide.models import ErrorDetail, Output

MAX_URL_CHARACTERS = 16_384
MAX_MESSAGE_CHARACTERS = 2_000
"""Characters of a service's message that an error keeps; the rest is cut."""

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)

_SUFFIXES = {
    "image": ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    "video": ("mp4", "mov", "webm", "mkv", "avi"),
    "audio": ("mp3", "wav", "flac", "m4a", "ogg", "aac"),
}
_KINDS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
_DATED_SIGNATURES = ("x-oss", "x-amz", "x-goog", "x-tos")
"""Prefixes of the fields of signatures that hold their date and their lifetime: Alibaba Cloud OSS, Amazon S3,
Google Cloud Storage, Volcengine TOS."""


# Values ----------------------------------------------------------------------------------------------------


def _values(data: object, names: tuple[str, ...]) -> Iterator[object]:
    if isinstance(data, Mapping):
        for name in names:
            yield data.get(name)


def text(data: object, *names: str) -> str | None:
    """The first of the fields *names* that holds a text or a whole number, as text.

    Half of a surrogate pair, which JSON can write and UTF-8 cannot, becomes "?".
    """
    for value in _values(data, names):
        if isinstance(value, str) and value.strip():
            return value.encode("utf-8", "replace").decode()
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
            return str(value)
    return None


def number(data: object, *names: str) -> float | None:
    """The first of the fields *names* that holds a finite number, or one as text ("60", "60%")."""
    for value in _values(data, names):
        found = _number(value)
        if found is not None:
            return found
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value.strip().removesuffix("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def mapping(data: object, name: str) -> dict[str, Any]:
    """The object in the field *name*; an empty object if the field holds none."""
    value = data.get(name) if isinstance(data, Mapping) else None
    return value if isinstance(value, dict) else {}


def sequence(data: object, name: str) -> list[Any]:
    """The array in the field *name*; an empty list if the field holds none."""
    value = data.get(name) if isinstance(data, Mapping) else None
    return value if isinstance(value, list) else []


# Times -----------------------------------------------------------------------------------------------------


def moment(data: object, *names: str, zone: tzinfo = UTC, per_second: int = 1) -> datetime | None:
    """The first of the fields *names* that holds a time, as UTC: a written time, or a number since the epoch.

    Args:
        zone: the time zone of a written time that names none.
        per_second: 1 if numbers are seconds, 1000 if they are milliseconds.
    """
    for value in _values(data, names):
        found = _written_time(value, zone) if isinstance(value, str) else None
        if found is None and (count := _number(value)) is not None:
            found = _from_epoch(count / per_second)
        if found is not None:
            return found
    return None


def _written_time(value: str, zone: tzinfo) -> datetime | None:
    # A text that has only digits is a number since the epoch, although "20260101" is also a day in ISO 8601.
    if value.strip().isdecimal():
        return None
    try:
        found = datetime.fromisoformat(value.strip())
        found = (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return found if _EARLIEST <= found <= _LATEST else None


def _from_epoch(seconds: float) -> datetime | None:
    """*seconds* since the epoch as UTC; None for a time before 2000 or after 2200, which cannot be a time of a task."""
    if not _EARLIEST.timestamp() <= seconds <= _LATEST.timestamp():
        return None
    return datetime.fromtimestamp(seconds, UTC)


# Results ---------------------------------------------------------------------------------------------------


def error_detail(code: str | None, message: str | None, *, retryable: bool | None = None) -> ErrorDetail:
    """Why a task or a part of it failed. The service's texts are cut and escaped."""
    return ErrorDetail(code=excerpt_or_none(code, 100), message=excerpt_or_none(message), retryable=retryable)


def excerpt_or_none(words: str | None, limit: int = MAX_MESSAGE_CHARACTERS) -> str | None:
    """A service's *words*, cut and escaped; None stays None."""
    return None if words is None else excerpt(words, limit)


def short_text(data: object, *names: str, limit: int) -> str | None:
    """What `text` returns, cut to *limit* characters and escaped."""
    return excerpt_or_none(text(data, *names), limit)


def file_output(
    url: object,
    kind: str,
    *,
    expires_at: datetime | None = None,
    media_type: str | None = None,
    revised_prompt: str | None = None,
) -> Output:
    """The result file at *url*. A URL that is not HTTP becomes an output with an error.

    So a `javascript:` or `file:` URL in a hostile reply never reaches a browser or a disk.

    Args:
        kind: the kind of file, unless the suffix of *url* shows another kind.
        expires_at: when the URL stops working, unless its signature says so.
    """
    if not isinstance(url, str) or not _is_fetchable(url):
        words = (
            f"the service gave no usable URL: {excerpt(repr(url) if not isinstance(url, str) else url, 100)}"
        )
        return Output(kind=kind, error=ErrorDetail(message=words))
    return Output(
        url=url,
        kind=_KINDS.get(urlsplit(url).path.rpartition(".")[2].lower(), kind),
        media_type=media_type,
        expires_at=signature_end(url) or expires_at,
        revised_prompt=revised_prompt,
    )


def _is_fetchable(url: str) -> bool:
    if len(url) > MAX_URL_CHARACTERS or not url.isprintable() or any(c.isspace() for c in url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def signature_end(url: str) -> datetime | None:
    """When the signature in *url* expires, or None if the URL does not say; the earliest of several times.

    Names of fields may be in upper or lower case. A time in the past is returned, too. Services document these fields:

    - `Expires`, a time: Alibaba Cloud OSS, Amazon S3 and CloudFront, Google Cloud Storage, Huawei Cloud OBS;
    - `X-…-Date`, and the lifetime in seconds in `X-…-Expires`: the services of `_DATED_SIGNATURES`;
    - `q-sign-time` and `q-key-time`, each as START;END: Tencent Cloud COS;
    - `se`, a written time, with `sig`: Azure Storage;
    - `e`, seconds since the epoch, with `token`: Qiniu Kodo.
    """
    try:
        query = urlsplit(url).query
    except ValueError:
        return None
    given = {name.lower(): value for name, value in parse_qsl(query)}
    return min((each for each in _signature_ends(given) if each is not None), default=None)


def _signature_ends(given: Mapping[str, str]) -> Iterator[datetime | None]:
    """When each signature in *given*, the fields of a query string, expires."""
    yield moment(given, "expires")
    for family in _DATED_SIGNATURES:
        signed, lasts = moment(given, f"{family}-date"), number(given, f"{family}-expires")
        if signed is not None and lasts is not None and lasts >= 0:
            yield _from_epoch(signed.timestamp() + lasts)
    for name in ("q-sign-time", "q-key-time"):
        yield _epoch_time(given.get(name, "").partition(";")[2])
    if "sig" in given:
        yield _written_time(given.get("se", ""), UTC)
    if "token" in given:
        yield _epoch_time(given.get("e"))


def _epoch_time(value: object) -> datetime | None:
    """A time that is written as seconds since the epoch, and in no other form."""
    count = _number(value)
    return None if count is None else _from_epoch(count)


def inline_output(data: str, kind: str, *, revised_prompt: str | None = None) -> Output:
    """A file that the reply holds as base64 text or as a `data:` URL."""
    media_type = None
    if data.startswith("data:"):
        head, _, data = data.partition(",")
        media_type = excerpt_or_none(head.removeprefix("data:").partition(";")[0] or None, 60)
    return Output(data=data, kind=kind, media_type=media_type, revised_prompt=revised_prompt)


def add_hours(then: datetime | None, hours: float) -> datetime | None:
    """The time *hours* after *then*; None if *then* is None."""
    return None if then is None else then + timedelta(hours=hours)


def without_duplicates(outputs: Iterable[Output]) -> tuple[Output, ...]:
    """*outputs* in their order; a URL that a reply holds twice counts once."""
    seen: set[str] = set()
    kept: list[Output] = []
    for each in outputs:
        if each.url is None or each.url not in seen:
            kept.append(each)
            seen.add(each.url or "")
    return tuple(kept)
