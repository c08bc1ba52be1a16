"""What a client is given: checked before anything is sent, and keys wrapped before anything can be shown."""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from bide._wire import Secret, shown
from bide.errors import DownloadError
from bide.models import Limits

if TYPE_CHECKING:
    from bide.providers import Provider

_T = TypeVar("_T")

Limiting: TypeAlias = Limits | Mapping[str, Limits] | None


def secrets_of(api_key: Any) -> tuple[Secret, ...] | None:
    """What was given as the key, or keys, wrapped; None if nothing was."""
    if api_key is None:
        return None
    return tuple(map(Secret, api_key if isinstance(api_key, list | tuple) else (api_key,)))


def checked_keys(provider: Provider, keys: tuple[Secret, ...] | None) -> tuple[Secret, ...]:
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
                f"{key.shape} (is there a line end?)"
            )
    return tuple(dict.fromkeys(keys))


def checked_limits(limits: Limiting) -> Limiting:
    if limits is None or isinstance(limits, Limits):
        return limits
    if not isinstance(limits, Mapping):
        raise TypeError(
            f"limits must be a Limits or a mapping from kind to Limits, such as Limits(concurrency=3), not {limits!r}"
        )
    for kind, each in limits.items():
        if not isinstance(each, Limits):
            raise TypeError(f"limits[{kind!r}] must be a Limits, not {type(each).__name__}")
    return dict(limits)


def checked_rate(provider: Provider, queries_per_second: float | None) -> float | None:
    """Status queries that the account may make in any second; None is no limit."""
    rate = provider.queries_per_second if queries_per_second is None else queries_per_second
    if queries_per_second is not None:
        if isinstance(queries_per_second, bool) or not isinstance(queries_per_second, int | float):
            raise TypeError(f"queries_per_second must be a number, not {queries_per_second!r}")
        if not queries_per_second > 0:
            raise ValueError(f"queries_per_second must be above 0, not {queries_per_second!r}")
    return None if rate == math.inf else rate


def checked(name: str, value: _T | None, kind: type[_T], example: str) -> _T:
    """*value* of the argument *name*, or what stands for None; it must be a *kind*."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {example}, not {shown(repr(value), 60)}")
    return kind() if value is None else value


def folder_of(directory: str | os.PathLike[str]) -> Path:
    """*directory* as a path.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not isinstance(directory, str | os.PathLike) or isinstance(os.fspath(directory), bytes):
        raise TypeError(f"directory must be a str or a path, not {shown(repr(directory), 60)}")
    if not str(directory) or "\0" in str(directory):
        raise ValueError(f"directory must name a folder, not {shown(repr(str(directory)), 60)}")
    return Path(directory)


def check_output(output: object) -> None:
    """Raise ValueError unless *output* can be a place among the outputs, or None for all of them."""
    if output is not None and (isinstance(output, bool) or not isinstance(output, int) or output < 0):
        raise ValueError(
            f"output must be a whole number, 0 for the first one, or None for all, not {output!r}"
        )


async def check_writable(folder: Path) -> None:
    """Make *folder* and try it out: before anything is bought whose result could not be saved.

    Raises:
        DownloadError: files cannot be written there.
    """
    try:
        await asyncio.to_thread(_try_out, folder)
    except OSError as fault:
        raise DownloadError(f"save_to: cannot write to {folder}: {fault}; nothing was sent") from None


def _try_out(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
