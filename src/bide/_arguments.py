"""Check the arguments of a client before anything is sent, and wrap keys so that no message can show them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from bide._text import excerpt
from bide._wire import Secret
from bide.models import Limits

if TYPE_CHECKING:
    from bide._runtime.settings import LimitsByKind
    from bide.providers import Provider


_T = TypeVar("_T")

KINDS = ("image", "video")
KIND_LIKENESS = 0.7
"""A word that resembles a kind by at least this ratio of `difflib` is taken for a misspelling of it."""


def secrets_of(api_key: Any) -> tuple[Secret, ...] | None:
    """The key, or keys, as secrets; None if *api_key* is None."""
    if api_key is None:
        return None
    return tuple(map(Secret, api_key if isinstance(api_key, list | tuple) else (api_key,)))


def check_keys(provider: Provider, keys: tuple[Secret, ...] | None) -> tuple[Secret, ...]:
    """*keys* without duplicates, or the environment's key. Raises ValueError if there is none, or it cannot be sent."""
    names = provider.key_variables
    if keys is None:
        keys = secrets_of(next(filter(None, map(os.environ.get, names)), None))
        if keys is None:
            raise ValueError(f"no API key: pass api_key=, or set ${' or $'.join(names)} in the environment")
    if not keys:
        raise ValueError("no API key: api_key is an empty sequence")
    for number, key in enumerate(keys, 1):
        if not key.is_sendable:
            raise ValueError(
                f"API key {number} of {len(keys)} cannot be sent: expected printable ASCII without spaces, got "
                f"{key.description} (does it end with a line break?)"
            )
    return tuple(dict.fromkeys(keys))


def check_kind(name: str, kind: object) -> None:
    """Raise unless *kind*, given as *name*, is a kind of work. A word of the user's own, for a `RawRequest`, is one.

    Raises:
        TypeError: it is not a str.
        ValueError: it misspells one of `KINDS`, whose limits it would not have.
    """
    if not isinstance(kind, str):
        raise TypeError(
            f"{name}: a kind of work is a str such as 'image' or 'video', not {excerpt(repr(kind), 60)}"
        )
    meant = _kind_meant(kind.strip().lower())
    if meant is not None and kind != meant:
        raise ValueError(
            f"{name}: {excerpt(repr(kind), 60)} is not a kind of work; did you mean {meant!r}? The kinds are "
            f"{' and '.join(map(repr, KINDS))}; a kind of your own, for a RawRequest, must resemble neither"
        )


def _kind_meant(word: str) -> str | None:
    """The kind that *word* is or misspells, such as "images", "img" or "vedio"; None for a word of its own."""
    same_letters = [kind for kind in KINDS if sorted(kind) == sorted(word)]
    near = get_close_matches(word, KINDS, n=1, cutoff=KIND_LIKENESS) if word.isalpha() else []
    return next(iter([*same_letters, *near]), None)


def check_limits(limits: LimitsByKind) -> LimitsByKind:
    """*limits*; of a mapping, a copy. Raises TypeError if they are not limits, ValueError for a misspelled kind."""
    if limits is None or isinstance(limits, Limits):
        return limits
    if not isinstance(limits, Mapping):
        raise TypeError(
            f"limits must be a Limits or a mapping from kind to Limits, such as Limits(concurrency=3), not {limits!r}"
        )
    for kind, each in limits.items():
        check_kind(f"limits[{kind!r}]", kind)
        if not isinstance(each, Limits):
            raise TypeError(f"limits[{kind!r}] must be a Limits, not {type(each).__name__}")
    return dict(limits)


def check_rate(provider: Provider, queries_per_second: float | None) -> float | None:
    """How many queries, lists and cancels the account may make in any second; None is no limit."""
    rate = provider.queries_per_second if queries_per_second is None else queries_per_second
    if queries_per_second is not None:
        if isinstance(queries_per_second, bool) or not isinstance(queries_per_second, int | float):
            raise TypeError(f"queries_per_second must be a number, not {queries_per_second!r}")
        if not queries_per_second > 0:
            raise ValueError(f"queries_per_second must be above 0, not {queries_per_second!r}")
    return None if rate == math.inf else rate


def check_type(name: str, value: _T | None, kind: type[_T], example: str) -> _T:
    """*value* of the argument *name*, which must be a *kind*; None stands for the default, `kind()`."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {example}, not {excerpt(repr(value), 60)}")
    return kind() if value is None else value
