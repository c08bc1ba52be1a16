"""The files that tasks result in: pictures made on the spot, and one short clip."""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import cache, lru_cache
from pathlib import Path

from bide.emulator._files import ResultFile

LONGEST_SIDE = 4096
"""Pixels. The services stop at 2048 or so; a larger wish is refused before it costs memory."""

_TILES = 8
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def png(text: str, width: int, height: int, at_least: int = 0) -> ResultFile:
    """A PNG of this size whose mosaic depends on *text*, padded to *at_least* so many bytes."""
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

    Only the first row of a band is drawn; the others repeat it by the "up" filter (zeros), so that
    a picture costs little however large it is.
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
    """A two-second H.264 clip (320 by 180), padded to *at_least* so many bytes.

    The pictures are always the same; a `free` box, which players skip, holds a digest of *text*, so that the
    files of two tasks differ.
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
