"""Validators and converters for the attrs classes of requests and settings. Their errors say what to do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    import attrs


_TICKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_ticket(value: object) -> bool:
    """Whether *value* can be a ticket. A ticket is also part of file names, so it must not lead to another folder."""
    return isinstance(value, str) and _TICKET.fullmatch(value) is not None


def text(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A str that is not blank and can be encoded as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{_where(instance, attribute)} must be a str, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{_where(instance, attribute)} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as fault:
        raise ValueError(f"{_where(instance, attribute)} is not Unicode text: {fault.reason}") from None


def optional_text(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A `text`, or None."""
    if value is not None:
        text(instance, attribute, value)


def source(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A URL of an input that the service can read, or None."""
    if value is None:
        return
    text(instance, attribute, value)
    if not str(value).startswith(("https://", "http://", "oss://", "data:")):
        raise ValueError(
            f"{_where(instance, attribute)} must be a URL (https:, http:, oss: or data:) that the service can read, "
            f"not {str(value)[:60]!r}; upload a local file first, or pass it as a data: URL"
        )


def sources(instance: object, attribute: attrs.Attribute[Any], value: tuple[object, ...]) -> None:
    """A tuple of which each item is a `source` and not None."""
    for each in value:
        source(instance, attribute, each if each is not None else "")


def whole_number(least: int, most: int, *, optional: bool = True) -> Any:
    """A validator for an int from *least* to *most*; None passes if it is *optional*."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{_where(instance, attribute)} must be an int, not {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{_where(instance, attribute)} must be from {least} to {most}, not {value}")

    return check


def positive(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A finite number above 0, or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{_where(instance, attribute)} must be a number, not {value!r}")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{_where(instance, attribute)} must be a finite number above 0, not {value!r}")


def unlimited_or(check: Any) -> Any:
    """A validator that passes `math.inf`, and *check*s everything else."""

    def check_unless_unlimited(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value == math.inf:
            return
        try:
            check(instance, attribute, value)
        except (TypeError, ValueError) as fault:
            raise type(fault)(f"{fault} (or math.inf: no limit; None: the documented limit)") from None

    return check_unless_unlimited


def _where(instance: object, attribute: attrs.Attribute[Any]) -> str:
    return f"{type(instance).__name__}.{attribute.name}"


MAX_DEPTH = 100
"""Levels of nesting that bide accepts in JSON. The code that writes the data may have less stack left than the code
that has read it."""


def is_deep(data: object) -> bool:
    """Whether objects and arrays in *data* are nested deeper than `MAX_DEPTH`. Uses no recursion."""
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def json_copy(value: object) -> dict[str, Any]:
    """A private copy of *value*, a JSON object. A later change of *value* cannot change what is recorded and sent."""
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a mapping of JSON values, not {type(value).__name__}")
    try:
        # Encode it, too: half of a surrogate pair is a valid str in Python, but cannot be sent.
        copy: dict[str, Any] = json.loads(
            json.dumps(dict(value), allow_nan=False, ensure_ascii=False).encode()
        )
    except (TypeError, ValueError, RecursionError) as fault:
        raise ValueError(
            f"not plain JSON: {fault}; use str, int, float, bool, None, lists and dicts only"
        ) from fault
    if is_deep(copy):
        raise ValueError(f"not plain JSON: nested more than {MAX_DEPTH} levels deep")
    return copy


def tuple_of_texts(value: Iterable[str] | str) -> tuple[str, ...]:
    """A converter: *value* as a tuple; a single str becomes a tuple of one."""
    return (value,) if isinstance(value, str) else tuple(value)


def path_below_base(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A path below the base URL; see `path_fault`."""
    text(instance, attribute, value)
    fault = path_fault(str(value))
    if fault is not None:
        raise ValueError(f"{_where(instance, attribute)} {fault}, not {value!r}")


NOT_IN_PATHS = "must have no query, fragment, space, backslash or control character"
MOST_DECODINGS = 3
"""A server or a proxy can decode a path more than once."""


def path_fault(path: str) -> str | None:
    """What *path* must be, if it cannot be called below a base URL; None if it can.

    It starts with one "/" and is printable ASCII without a query, a fragment and a space. Percent-decoded, too, it
    starts with one "/" and has no backslash and no segments "." and "..": they could lead to another host or folder.
    """
    if not path.isascii() or not path.startswith("/"):
        return "must be a path below the base URL, like '/v1/x'"
    if any(c in path for c in "?# "):
        return NOT_IN_PATHS
    for _ in range(MOST_DECODINGS):
        if path.startswith("//") or not {".", ".."}.isdisjoint(path.split("/")):
            return "must be a path below the base URL, like '/v1/x'"
        if "\\" in path or not path.isprintable():
            return NOT_IN_PATHS
        path = unquote(path)
    return None
