"""One HTTP exchange at the emulator, as plain data: the call, and its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from bide.emulator._files import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bide.emulator._files import FileSlice

JSON = "application/json"


class RefusalError(Exception):
    """The service refuses a call. Each service puts `code` and `message` into a body of its own shape."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


@dataclass(frozen=True)
class Call:
    """A request that has arrived completely. Header names are in lower case."""

    method: str
    path: str
    target: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)

    def json(self) -> dict[str, Any] | None:
        """The body as a JSON object; None if it is anything else."""
        try:
            data = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return data if isinstance(data, dict) else None

    @property
    def key(self) -> str | None:
        """The bearer token; empty if the header is malformed, None without a header."""
        header = self.headers.get("authorization")
        if header is None:
            return None
        scheme, _, token = header.strip().partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""


@dataclass(frozen=True)
class Answer:
    """A response. It is sent after `wait` seconds of loop time; a `file` is sent instead of the `body`."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    file: FileSlice | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        """The length of the body in bytes."""
        return len(self.body if self.file is None else self.file)

    def pieces(self, most: int) -> Iterator[bytes]:
        """The body, or the first *most* bytes of it, in pieces."""
        if self.file is not None:
            return self.file.pieces(most)
        stop = min(most, len(self.body))
        return (self.body[place : min(stop, place + BLOCK)] for place in range(0, stop, BLOCK))

    @classmethod
    def json(cls, data: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Self:
        """*data* as JSON."""
        body = json.dumps(data, ensure_ascii=False).encode()
        return cls(status, body, {"Content-Type": JSON, **(headers or {})})
