"""Whether a PNG or MP4 file is complete: checks from the specifications of the formats."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel, by PNG colour type."""
_PATH_TO_SAMPLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def is_readable(path: Path) -> bool:
    """Whether the file at *path* is a complete PNG or MP4, as its suffix says."""
    data = path.read_bytes()
    try:
        return {".png": is_png, ".mp4": is_mp4}[path.suffix](data)
    except (KeyError, struct.error, zlib.error):
        return False


def is_png(data: bytes) -> bool:
    """Whether *data* is a complete PNG (not interlaced): valid chunks, and as many pixels as its header says.

    Raises:
        struct.error, zlib.error: it is not.
    """
    if not data.startswith(_SIGNATURE):
        return False
    chunks = list(_png_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR" or chunks[-1] != (b"IEND", b""):
        return False
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    row = 1 + (width * depth * _CHANNELS.get(colour, 0) + 7) // 8
    unpacker = zlib.decompressobj()
    pixels = unpacker.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"), row * height + 1)
    return bool(width and height) and not interlaced and unpacker.eof and len(pixels) == row * height


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk. Raises `struct.error` if a chunk is cut off or its checksum is wrong."""
    at = len(_SIGNATURE)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if checksum != zlib.crc32(kind + body):
            raise struct.error("wrong checksum")
        yield kind, body
        at += 12 + length


def is_mp4(data: bytes) -> bool:
    """Whether *data* is a complete MP4: boxes up to the last byte, a duration, and media at the place in its tables.

    Raises:
        struct.error: it is not.
    """
    boxes = list(_boxes(data, 0, len(data)))
    if not boxes or boxes[0][0] != b"ftyp":
        return False
    start, end = 0, len(data)
    for name in _PATH_TO_SAMPLES:
        start, end = _box(data, name, start, end)
    offsets, _ = _box(data, b"stco", start, end)
    _, entries, first_chunk = struct.unpack_from(">III", data, offsets)
    header, _ = _box(data, b"mvhd", *_box(data, b"moov", 0, len(data)))
    scale, duration = struct.unpack_from(">II", data, header + 12)
    in_media = any(kind == b"mdat" and first <= first_chunk < stop for kind, first, stop in boxes)
    return bool(entries and scale and duration) and in_media


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the body of each box. Raises `struct.error` if the boxes do not fill the space."""
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if not 8 <= size <= end - start:
            raise struct.error("a box that does not fit")
        yield kind, start + 8, start + size
        start += size


def _box(data: bytes, name: bytes, start: int, end: int) -> tuple[int, int]:
    """Start and end of the body of the first box of this *name*."""
    for kind, first, stop in _boxes(data, start, end):
        if kind == name:
            return first, stop
    raise struct.error(f"no {name!r} box")
