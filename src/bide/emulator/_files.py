"""The result files of tasks: pictures made when they are needed, and one short clip.

They are made block by block, so that a large file is never in memory as a whole.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 128 * 1024
"""Bytes of a file that are made at once."""

_COUNTER = 8


class ResultFile:
    """A small picture or clip. Filler before its tail gives it the ordered size.

    No two blocks of filler are equal, in one file or in two. So a test can detect that a download continued at a wrong
    place, or with another file.

    Args:
        name: distinguishes the file from all others.
        head, tail: the bytes before and after the filler.
        at_least: the minimum size in bytes.
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
        self._blocks, self._last = _divide(at_least - len(head) - len(tail), self._overhead)
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
        """The offset of a part, and its bytes. The head is part 0; the tail comes after the last block."""
        if number == 0:
            return 0, self._head
        if number > self._blocks:
            return self._length - len(self._tail), self._tail
        size = self._last if number == self._blocks else BLOCK
        noise = _noise(self.digest)
        filler = (number.to_bytes(_COUNTER, "big") + noise)[: size - self._overhead]
        return len(self._head) + (number - 1) * BLOCK, self._frame(filler)


class FileSlice:
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


def _divide(missing: int, overhead: int) -> tuple[int, int]:
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


# Pictures and clips --------------------------------------------------------------------------------------------

LONGEST_SIDE = 4096
"""Pixels. The services allow about 2048. A longer side is refused before a picture takes memory."""

_TILES = 8
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def png(text: str, width: int, height: int, at_least: int = 0) -> ResultFile:
    """A PNG of this size whose mosaic depends on *text*, padded to *at_least* bytes."""
    picture = _picture(text, width, height)
    return ResultFile(
        text,
        "image/png",
        head=picture[: -len(_END)],
        tail=_END,
        at_least=at_least,
        frame=lambda data: _chunk(b"paDd", data),  # private and ancillary: viewers skip it
    )


@lru_cache(maxsize=64)
def _picture(text: str, width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    pixels = _chunk(b"IDAT", _pixels(text, width, height))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + pixels + _END


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _pixels(text: str, width: int, height: int) -> bytes:
    """The picture's rows, compressed: tiles in three colours, mirrored from left to right.

    Only the first row of a band is drawn. The others repeat it with PNG's "up" filter (zeros), so even a large picture
    takes little time.
    """
    seed = hashlib.sha256(text.encode()).digest()
    colours = (seed[0:3], seed[3:6], bytes(255 - value // 3 for value in seed[6:9]))
    packer = zlib.compressobj(1)
    repeated = b"\x02" + bytes(3 * width)
    parts = []
    for band in range(_TILES):
        rows = _edge(band + 1, height) - _edge(band, height)
        if rows:
            parts.append(packer.compress(b"\x00" + _band(seed[9 + 2 * band :], colours, width)))
            parts.append(packer.compress(repeated * (rows - 1)))
    return b"".join(parts) + packer.flush()


def _band(seed: bytes, colours: tuple[bytes, bytes, bytes], width: int) -> bytes:
    half = [(seed[0] >> 2 * tile & 3) % 3 for tile in range(_TILES // 2)]
    return b"".join(
        colours[pick] * (_edge(tile + 1, width) - _edge(tile, width))
        for tile, pick in enumerate([*half, *reversed(half)])
    )


def _edge(tile: int, length: int) -> int:
    return tile * length // _TILES


def mp4(text: str, at_least: int = 0) -> ResultFile:
    """A two-second H.264 clip (320 by 180), padded to *at_least* bytes.

    The frames are always the same. A `free` box, which players skip, holds a digest of *text*, so that the files of two
    tasks differ.
    """
    clip = _clip() + _free(hashlib.sha256(text.encode()).digest())
    return ResultFile(text, "video/mp4", head=clip, tail=b"", at_least=at_least, frame=_free)


def _free(data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + b"free" + data


@cache
def _clip() -> bytes:
    # Made for this project from ffmpeg's own "gradients" source:
    # ffmpeg -f lavfi -i gradients=s=320x180:r=12:d=2:n=4:seed=7:speed=0.02 -c:v libx264 -pix_fmt yuv420p
    #   -profile:v baseline -preset veryslow -crf 30 -x264-params sei=0 -fflags +bitexact -flags:v +bitexact clip.mp4
    return Path(__file__).with_name("clip.mp4").read_bytes()
