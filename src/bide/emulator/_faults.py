"""The faults that a test orders: wrong answers, cut connections, and wrong result files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from bide.emulator._answers import JSON, Answer

if TYPE_CHECKING:
    from bide.emulator._answers import Call

OPERATIONS = ("create", "query", "cancel", "list", "asset")
SERVICES = ("dieyuyun", "dashscope")
VALIDATORS = ("last-modified", "weak", "none")
MAX_INFLATED_BYTES = 4_000_000_000
"""Bytes. For a larger file the checksum alone takes seconds."""
_ASSET_FIELDS = ("length", "changed", "validator", "drip", "redirect", "bomb", "unranged")


@dataclass(frozen=True)
class Fault:
    """One ordered fault; `Emulator.fault` documents the fields.

    Raises:
        ValueError: a field does not have its documented form.
    """

    on: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    drop: Literal["before", "after"] | None = None
    delay: float = 0.0
    truncate: int | None = None
    effect: bool = False
    service: str | None = None
    match: str | None = None
    length: int | None = None
    changed: bool = False
    validator: Literal["last-modified", "weak", "none"] | None = None
    drip: float | None = None
    redirect: str | None = None
    bomb: int | None = None
    unranged: bool = False

    def __post_init__(self) -> None:
        _require(self.on in OPERATIONS, f"on must be one of {', '.join(OPERATIONS)}")
        _require(_is_count(self.times) and self.times > 0, "times must be a whole number above 0")
        _require(
            self.status is None or (_is_count(self.status) and 200 <= self.status <= 599),
            "status must be an HTTP status from 200 to 599",
        )
        _require(isinstance(self.headers, Mapping), "headers must be a mapping")
        _require(self.drop in (None, "before", "after"), "drop must be 'before' or 'after'")
        _require(_is_seconds(self.delay), "delay must be in seconds and not negative")
        _require(
            self.truncate is None or (_is_count(self.truncate) and self.truncate >= 0),
            "truncate must be a number of bytes",
        )
        _require(isinstance(self.effect, bool), "effect must be true or false")
        _require(self.service in (None, *SERVICES), f"service must be one of {', '.join(SERVICES)}")
        _require(self.match is None or isinstance(self.match, str), "match must be text")
        self._check_asset_fields()

    def _check_asset_fields(self) -> None:
        _require(
            self.length is None or (_is_count(self.length) and self.length >= 0),
            "length must be a number of bytes",
        )
        _require(isinstance(self.changed, bool), "changed must be true or false")
        _require(self.validator in (None, *VALIDATORS), f"validator must be one of {', '.join(VALIDATORS)}")
        _require(
            self.drip is None or (_is_seconds(self.drip) and self.drip > 0),
            "drip must be bytes a second, above 0",
        )
        _require(
            self.redirect is None
            or (isinstance(self.redirect, str) and self.redirect != "" and self.redirect.isprintable()),
            "redirect must be a URL or 'loop'",
        )
        _require(
            self.bomb is None or (_is_count(self.bomb) and 0 < self.bomb <= MAX_INFLATED_BYTES),
            f"bomb must be a number of bytes, from 1 to {MAX_INFLATED_BYTES}",
        )
        _require(isinstance(self.unranged, bool), "unranged must be true or false")
        _require(
            self.redirect is None or self.status is None or self.status // 100 == 3,
            "the status of a redirect must be 3xx",
        )
        instead = [name for name in ("body", "redirect", "bomb") if getattr(self, name) is not None]
        _require(len(instead) < 2, f"{' and '.join(instead)} cannot be combined")
        given = {name: getattr(self, name) for name in _ASSET_FIELDS}
        odd = [name for name, value in given.items() if value is not None and value is not False]
        _require(self.on == "asset" or not odd, f"{', '.join(odd)} only with on='asset'")

    @classmethod
    def from_dict(cls, data: object) -> Fault:
        """The fault that a JSON object describes."""
        _require(isinstance(data, dict) and "on" in data, "a fault must be an object with at least 'on'")
        assert isinstance(data, dict)  # noqa: S101  # for the type checker; checked above
        unknown = set(data) - {each.name for each in fields(cls)}
        _require(not unknown, f"no such field: {', '.join(sorted(map(str, unknown)))}")
        return cls(**data)

    @property
    def replaces(self) -> bool:
        """Whether its answer replaces that of the service."""
        is_asset_answer = self.redirect is not None or self.bomb is not None
        return not is_asset_answer and (self.status is not None or self.body is not None)

    @property
    def takes_effect(self) -> bool:
        """Whether the service carries the call out."""
        if self.drop is not None:
            return self.drop == "after"
        return self.effect or not self.replaces

    def matches(self, on: str, service: str | None, text: str) -> bool:
        """Whether it applies to a call."""
        return (
            self.on == on and self.service in (None, service) and (self.match is None or self.match in text)
        )

    def apply_to(self, answer: Answer) -> Answer:
        """The *answer* with the status, headers and body of this fault."""
        status = answer.status if self.status is None else self.status
        if self.body is None:
            return replace(answer, status=status, headers=_merge_headers(answer.headers, self.headers))
        headers = _merge_headers({**answer.headers, "Content-Type": JSON}, self.headers)
        return replace(answer, status=status, headers=headers, body=_encode(self.body), file=None)


def _merge_headers(own: Mapping[str, str], ordered: Mapping[str, str]) -> dict[str, str]:
    """The *ordered* headers, and those of *own* that they do not replace (upper and lower case are the same)."""
    replaced = {name.lower() for name in ordered}
    kept = {name: value for name, value in own.items() if name.lower() not in replaced}
    return kept | {name: str(value) for name, value in ordered.items()}


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"not a fault: {what}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _encode(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


class Faults:
    """The ordered faults that no call has received yet, oldest first."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Order a *fault*."""
        self._waiting.append(fault)

    def take(self, on: str, service: str | None, text: str) -> Fault | None:
        """The fault for a call, or None. Reduces its `times` by one."""
        for place, fault in enumerate(self._waiting):
            if fault.matches(on, service, text):
                if fault.times > 1:
                    self._waiting[place] = replace(fault, times=fault.times - 1)
                else:
                    del self._waiting[place]
                return fault
        return None

    def clear(self) -> None:
        """Remove all faults."""
        self._waiting.clear()

    def __len__(self) -> int:
        return sum(fault.times for fault in self._waiting)


# Faults of result files --------------------------------------------------------------------------------------

_ZEROS = bytes(2**20)
_BOMB_START_BYTES = 64 * 1024


def mislead(call: Call, own: Answer, fault: Fault, origin: str) -> Answer:
    """The redirect or bomb that the *fault* orders; the *own* answer of the origin if it orders neither."""
    if fault.redirect is not None:
        target = f"{origin}{call.target}" if fault.redirect == "loop" else fault.redirect
        return Answer(302, b"", {"Location": target})
    if fault.bomb is not None:
        # The body begins with the file's own bytes: otherwise the client would stop at once, as the format is wrong.
        start = b"".join(own.pieces(min(_BOMB_START_BYTES, fault.bomb))) if own.status < 300 else b""
        kept = {name: value for name, value in own.headers.items() if name in ("Content-Type", "ETag")}
        return Answer(200, _bomb(start, fault.bomb), {**kept, "Content-Encoding": "gzip"})
    return own


@lru_cache(maxsize=4)
def _bomb(start: bytes, size: int) -> bytes:
    """A valid gzip file that decompresses to *size* bytes: *start*, then zeros. It has a thousandth of that size.

    The compressed zeros end at a byte boundary (a full flush), so the same piece can be repeated.
    """
    times, rest = divmod(size - len(start), len(_ZEROS))
    checksum = zlib.crc32(start)
    for _ in range(times):
        checksum = zlib.crc32(_ZEROS, checksum)
    checksum = zlib.crc32(_ZEROS[:rest], checksum)
    packed = [_deflate(start, zlib.Z_FULL_FLUSH), _deflate(_ZEROS, zlib.Z_FULL_FLUSH) * times]
    packed.append(_deflate(_ZEROS[:rest], zlib.Z_FINISH))
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    trailer = checksum.to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little")
    return header + b"".join(packed) + trailer


def _deflate(data: bytes, flush: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(flush)


class RandomCuts:
    """Chooses at random where answers break off. With the same seed, the n-th answer always ends at the same share."""

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._random = Random(f"{seed}:cuts")  # noqa: S311  # no secret

    def place(self, length: int) -> int | None:
        """After how many of its *length* bytes the next answer breaks off; None if it does not."""
        cut, place = self._random.random() < self._share, self._random.random()
        return int(place * length) if cut and length else None
