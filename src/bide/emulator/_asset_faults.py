"""Answers of an asset origin that nobody wishes for."""

from __future__ import annotations

import zlib
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

from bide.emulator._answers import Answer

if TYPE_CHECKING:
    from bide.emulator._answers import Call
    from bide.emulator._faults import Fault

MOST_INFLATED = 4_000_000_000
"""Bytes. Their checksum alone takes seconds beyond that."""

_ZEROS = bytes(2**20)
_BAIT = 64 * 1024


def misled(call: Call, own: Answer, fault: Fault, origin: str) -> Answer:
    """What goes out instead of the origin's *own* answer: a redirect or a bomb, if the *fault* orders one."""
    if fault.redirect is not None:
        target = f"{origin}{call.target}" if fault.redirect == "loop" else fault.redirect
        return Answer(302, b"", {"Location": target})
    if fault.bomb is not None:
        # The file's own first bytes come first: a look at them must not be what stops the client.
        bait = b"".join(own.pieces(min(_BAIT, fault.bomb))) if own.status < 300 else b""
        kept = {name: value for name, value in own.headers.items() if name in ("Content-Type", "ETag")}
        return Answer(200, _bomb(bait, fault.bomb), {**kept, "Content-Encoding": "gzip"})
    return own


@lru_cache(maxsize=4)
def _bomb(bait: bytes, size: int) -> bytes:
    """A gzip file that inflates to the *bait* and zeros, *size* bytes together: a thousandth of that, and valid.

    The compressed zeros end at a byte (a full flush), so the same piece can be repeated.
    """
    times, rest = divmod(size - len(bait), len(_ZEROS))
    checksum = zlib.crc32(bait)
    for _ in range(times):
        checksum = zlib.crc32(_ZEROS, checksum)
    checksum = zlib.crc32(_ZEROS[:rest], checksum)
    packed = [_deflated(bait, zlib.Z_FULL_FLUSH), _deflated(_ZEROS, zlib.Z_FULL_FLUSH) * times]
    packed.append(_deflated(_ZEROS[:rest], zlib.Z_FINISH))
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    trailer = checksum.to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little")
    return header + b"".join(packed) + trailer


def _deflated(data: bytes, flush: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(flush)


class RandomCuts:
    """Where answers break off by chance: the n-th answer always has the same fate."""

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._random = Random(f"{seed}:cuts")  # noqa: S311  # a fate, no secret

    def place(self, length: int) -> int | None:
        """After how many bytes the next answer breaks off, of *length* in all; None if it stays whole."""
        cut, place = self._random.random() < self._share, self._random.random()
        return int(place * length) if cut and length else None
