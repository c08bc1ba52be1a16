"""A result file as it is sent: made block by block, so that a large one is never in memory as a whole."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 128 * 1024
"""Bytes of a file that are made at a time."""

_COUNTER = 8


class ResultFile:
    """A file of a few bytes that matter, and as much filler before its tail as was ordered.

    No two blocks of filler are alike, in one file or in two: a download that went on at a wrong place, or with
    another file, shows.

    Args:
        name: what tells the file from all others.
        head, tail: what stands before and behind the filler.
        at_least: the least size in bytes.
        frame: wraps filler so that viewers skip it.
    """

    def __init__(
        self,
        name: str,
        media_type: str,
        *,
        head: bytes,
        tail: bytes,
        at_least: int,
        frame: Callable[[bytes], bytes],
    ) -> None:
        self.media_type = media_type
        self.digest = hashlib.sha256(f"{media_type} {at_least} {name}".encode() + head).hexdigest()[:32]
        self._head, self._tail = head, tail
        self._frame = frame
        self._overhead = len(frame(b""))
        self._blocks, self._last = _divided(at_least - len(head) - len(tail), self._overhead)
        filler = (self._blocks - 1) * BLOCK + self._last if self._blocks else 0
        self._length = len(head) + filler + len(tail)

    def __len__(self) -> int:
        return self._length

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from *start* to *stop*, which lie within the file."""
        number = 0
        if start >= len(self._head):
            number = 1 + min((start - len(self._head)) // BLOCK, max(0, self._blocks - 1))
        while start < stop:
            offset, part = self._part(number)
            piece = part[start - offset : stop - offset]
            if piece:
                yield piece
            start += len(piece)
            number += 1

    def _part(self, number: int) -> tuple[int, bytes]:
        """Where a part stands, and its bytes: the head is part 0, the tail comes after the last block."""
        if number == 0:
            return 0, self._head
        if number > self._blocks:
            return self._length - len(self._tail), self._tail
        size = self._last if number == self._blocks else BLOCK
        noise = _noise(self.digest)
        filler = (number.to_bytes(_COUNTER, "big") + noise)[: size - self._overhead]
        return len(self._head) + (number - 1) * BLOCK, self._frame(filler)


class Span:
    """A part of a file, or all of it."""

    def __init__(self, file: ResultFile, start: int = 0, stop: int | None = None) -> None:
        self._file = file
        self._start = start
        self._stop = len(file) if stop is None else stop

    def __len__(self) -> int:
        return self._stop - self._start

    def pieces(self, most: int | None = None) -> Iterator[bytes]:
        """Its bytes, or the first *most* of them."""
        stop = self._stop if most is None else min(self._stop, self._start + most)
        return self._file.pieces(self._start, stop)


def _divided(missing: int, overhead: int) -> tuple[int, int]:
    """How many blocks hold the *missing* bytes, and the size of the last; no block is smaller than its frame."""
    if missing <= 0:
        return 0, 0
    full, rest = divmod(missing, BLOCK)
    if rest == 0:
        return full, BLOCK
    if rest >= overhead:
        return full + 1, rest
    return (full, BLOCK + rest) if full else (1, overhead)


@lru_cache(maxsize=32)
def _noise(name: str) -> bytes:
    return Random(name).randbytes(BLOCK)  # noqa: S311  # filler, no secret
