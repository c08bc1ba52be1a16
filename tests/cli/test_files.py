"""The check of PNG and MP4 files takes what is whole and nothing else."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

import bide
from bide.cli._demo.files import is_readable

CLIP = (Path(bide.__file__).parent / "emulator" / "clip.mp4").read_bytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    *, width: int = 4, height: int = 2, rows: int = 2, interlaced: int = 0, end: bytes = chunk(b"IEND", b"")
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    pixels = zlib.compress((b"\x00" + b"rgb" * 4) * rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + end


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + kind + data


def written(directory: Path, name: str, data: bytes) -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


def test_whole_files_open(tmp_path: Path) -> None:
    assert is_readable(written(tmp_path, "a.png", png()))
    assert is_readable(written(tmp_path, "a.mp4", CLIP))
    assert is_readable(written(tmp_path, "b.mp4", CLIP + box(b"free", b"padding")))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>not found</html>", id="a page"),
        pytest.param(png()[:-20], id="cut off"),
        pytest.param(png(end=b""), id="without its end"),
        pytest.param(png() + b"more", id="with something behind its end"),
        pytest.param(png().replace(b"IDAT", b"IDAX"), id="with a wrong checksum"),
        pytest.param(png(rows=1), id="with too few rows"),
        pytest.param(png(rows=3), id="with too many rows"),
        pytest.param(png(width=0), id="without width"),
        pytest.param(png(interlaced=1), id="interlaced"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="without chunks"),
        pytest.param(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"x") + chunk(b"IEND", b""), id="without a header"
        ),
        pytest.param(CLIP, id="a clip"),
    ],
)
def test_no_whole_png_no_opening(data: bytes, tmp_path: Path) -> None:
    assert not is_readable(written(tmp_path, "a.png", data))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(png(), id="a picture"),
        pytest.param(CLIP[:-1], id="cut off"),
        pytest.param(CLIP + b"\x00\x00\x00\x04free", id="with an impossible box"),
        pytest.param(CLIP[: CLIP.index(b"ftyp") + 20], id="with its first box alone"),
        pytest.param(CLIP.replace(b"mdat", b"free"), id="without media"),
        pytest.param(CLIP.replace(b"mvhd", b"free"), id="without a duration"),
        pytest.param(CLIP.replace(b"moov", b"free"), id="without an index"),
    ],
)
def test_no_whole_mp4_no_opening(data: bytes, tmp_path: Path) -> None:
    assert not is_readable(written(tmp_path, "a.mp4", data))


def test_a_file_of_another_kind_does_not_count(tmp_path: Path) -> None:
    assert not is_readable(written(tmp_path, "a.bin", png()))
