"""Build calls: base URLs, paths, sizes, and the fields of a request."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import attrs

from bide._text import excerpt
from bide._validators import path_fault
from bide._wire import Call, quote_id

if TYPE_CHECKING:
    from bide.models import ImageRequest, VideoRequest

_SIZE = re.compile(r"\s*(\d+)\s*[xX*×]\s*(\d+)\s*")


def choose_base_url(given: str | None, variables: Iterable[str], default: str) -> str:
    """The base URL: *given*, else the value of the first environment variable that is set, else *default*.

    Args:
        variables: the names of the environment variables, in the order to try.

    Raises:
        ValueError: it is not an HTTP URL to which paths can be added.
    """
    if given is not None:
        return check_base_url(given, "base_url")
    for name in variables:
        if value := os.environ.get(name, "").strip():
            return check_base_url(value, f"${name}")
    return default


def check_base_url(value: str, where: str) -> str:
    """Return *value* without slashes at its end.

    Raises:
        TypeError: it is not a str.
        ValueError: it is not an HTTP URL to which paths can be added. The message shows no password and no query.
    """
    if not isinstance(value, str):
        raise TypeError(f"{where} must be a str, not {type(value).__name__}")
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
        parts = urlsplit("")
    if "@" in parts.netloc:
        raise ValueError(f"{where} must not hold a user or password; pass the key as api_key=")
    if not valid or not value.isprintable() or any(c in value for c in " \\?#"):
        raise ValueError(
            f"{where} must be a URL such as https://api.example.com/v1, without query or fragment, "
            f"not {excerpt(repr(value.partition('?')[0]), 80)}"
        )
    return value.rstrip("/")


def check_path(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """An attrs validator for a path below the base URL; query_path and cancel_path must hold "{id}" once, and may have
    a query."""
    needed = 1 if attribute.name in ("query_path", "cancel_path") else 0
    path = value if isinstance(value, str) else ""
    path = path.partition("?")[0].replace("{id}", "id") if needed else path
    if not isinstance(value, str) or value.count("{id}") != needed or path_fault(path) is not None:
        rest = ' that has "{id}" once, like "/tasks/{id}"' if needed else ', like "/tasks"'
        raise ValueError(f"{type(instance).__name__}: {attribute.name} must be a path{rest}, not {value!r}")


def task_call(method: str, template: str, task_id: str, headers: Mapping[str, str] | None = None) -> Call:
    """The call to *template*, such as "/tasks/{id}" or "/tasks?task_id={id}", for one task.

    Raises:
        ValueError: *task_id* cannot be a task id.
    """
    path, _, query = template.partition("?")
    filled = path.replace("{id}", quote_id(task_id))
    fields = {
        name: value.replace("{id}", task_id) for name, value in parse_qsl(query, keep_blank_values=True)
    }
    return Call(method, filled, query=fields, headers=headers or {})


def format_size(size: str | None, sign: str) -> str | None:
    """*size* with the service's *sign* between width and height. A word such as "1K" is not changed."""
    match = _SIZE.fullmatch(size or "")
    return f"{match[1]}{sign}{match[2]}" if match else size


def int_if_whole(value: float | None) -> float | None:
    """*value* as an int if it is a whole number, since a service that expects 5 refuses 5.0."""
    return int(value) if value is not None and value == int(value) else value


def field_names(request: ImageRequest | VideoRequest) -> frozenset[str]:
    """The names of the fields of *request*, which its `extra` must not repeat."""
    return frozenset(each.name for each in attrs.fields(type(request))) - {"extra"}


def without_none(**fields: Any) -> dict[str, Any]:
    """The *fields* that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def merge(
    own: dict[str, Any], extra: Mapping[str, Any], where: str, reserved: Iterable[str] = ()
) -> dict[str, Any]:
    """*own* and *extra* in one object.

    Raises:
        ValueError: *extra* repeats a field of *own* or of *reserved*: it is unclear which value to use.
    """
    clash = sorted((own.keys() | set(reserved)) & extra.keys())
    if clash:
        names = ", ".join(clash)
        raise ValueError(
            f"{where} must not hold {names}: use the request's own field, or give it in one place only"
        )
    return {**own, **extra}


def is_other_prompt(shown: str, given: str) -> bool:
    """Whether a service that shows the prompt *shown* was not given the prompt *given*.

    Spaces count once, and a beginning is no other prompt: services cut long ones.
    """
    shown, given = (" ".join(unicodedata.normalize("NFKC", each).split()) for each in (shown, given))
    return not given.startswith(shown.removesuffix("…").rstrip(" ."))


def has_oss_url(value: object) -> bool:
    """Whether *value* holds an `oss://` URL at any depth."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, str) and each.startswith("oss://"):
            return True
        if isinstance(each, Mapping):
            todo.extend(each.values())
        elif isinstance(each, list):
            todo.extend(each)
    return False
