"""What a file is, told by its bytes: real shapes of each type, each cut of them, and pages that pretend."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bide.emulator
from bide._downloads.media_types import (
    HEAD_BYTES,
    extension_of,
    find_truncation,
    is_text,
    media_type_of,
    proves_whole,
)

CLIP = (Path(bide.emulator.__file__).parent / "clip.mp4").read_bytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def noise(length: int) -> bytes:
    """Bytes as a compressor leaves them; FF never stands alone."""
    return random.Random(length).randbytes(length).replace(b"\xff", b"\xfe")


def box(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(data)) + kind + data


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data


def riff(form: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + form + body


PNG = b"".join(
    (
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)),
        chunk(b"IDAT", noise(3000)),
        chunk(b"IDAT", noise(500)),
        chunk(b"IEND", b""),
    )
)
THUMBNAIL = b"\xff\xd8\xff\xdb" + noise(40) + b"\xff\xd9"
JPEG = b"".join(
    (
        b"\xff\xd8",
        segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"),
        segment(0xE1, b"Exif\0\0" + THUMBNAIL),
        b"\xff",  # to fill up
        segment(0xDB, bytes(65)),
        segment(0xC0, bytes(15)),
        segment(0xDA, bytes(10)),
        noise(3000),
        b"\xff\xd9",
    )
)
GIF = b"GIF89a" + bytes(7) + b"\x2c" + bytes(9) + b"\x02\x40" + b"d" * 64 + b"\0\x3b"
WEBP = riff(b"WEBP", (b"VP8X", bytes(10)), (b"VP8 ", noise(2001)))
AVI = riff(b"AVI ", (b"LIST", b"hdrl" + bytes(60)), (b"LIST", b"movi" + noise(2000)), (b"idx1", bytes(32)))
MP4 = box(b"ftyp", b"isom\0\0\2\0isomavc1") + box(b"moov", noise(300)) + box(b"mdat", noise(3000))
MOV = box(b"ftyp", b"qt  \0\0\2\0qt  ") + box(b"wide") + box(b"mdat", noise(3000)) + box(b"moov", noise(300))
LIVE = (
    box(b"ftyp", b"iso5\0\0\0\0")
    + box(b"moov", noise(99))
    + (box(b"moof", noise(50)) + box(b"mdat", noise(400))) * 3
)
AVIF = box(b"ftyp", b"avif\0\0\0\0mif1miaf") + box(b"meta", noise(90)) + box(b"mdat", noise(900))
GLB = b"glTF" + struct.pack("<II", 2, 12 + 800) + noise(800)
EBML = b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82"

TYPES = [
    (PNG, "image/png", "png"),
    (JPEG, "image/jpeg", "jpg"),
    (b"\xff\xd8\xff" + b"j" * 9, "image/jpeg", "jpg"),
    (GIF, "image/gif", "gif"),
    (b"GIF87a....", "image/gif", "gif"),
    (WEBP, "image/webp", "webp"),
    (b"RIFF____WEBPVP8 ", "image/webp", "webp"),
    (AVIF, "image/avif", "avif"),
    (b"____ftypavif....", "image/avif", "avif"),
    (box(b"ftyp", b"mif1\0\0\0\0mif1avifmiaf"), "image/avif", "avif"),
    (box(b"ftyp", b"mif1\0\0\0\0mif1heic"), "image/heic", "heic"),
    (box(b"ftyp", b"mif1\0\0\0\0mif1") + b"heic", "image/heif", "heif"),
    (box(b"ftyp", b"heic\0\0\0\0mif1"), "image/heic", "heic"),
    (b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "image/bmp", "bmp"),
    (b"II*\0\x08\0\0\0", "image/tiff", "tiff"),
    (b"MM\0*\0\0\0\x08", "image/tiff", "tiff"),
    (b"\xff\x0a\xfa\x7f", "image/jxl", "jxl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "image/jxl", "jxl"),
    (b"\0\0\x01\0\x01\0\x20\x20\0\0\x01\0", "image/x-icon", "ico"),
    (MP4, "video/mp4", "mp4"),
    (CLIP, "video/mp4", "mp4"),
    (box(b"ftyp", b"M4V \0\0\0\0"), "video/mp4", "mp4"),
    (MOV, "video/quicktime", "mov"),
    (box(b"wide") + box(b"mdat"), "video/quicktime", "mov"),
    (box(b"ftyp", b"3gp5\0\0\0\0"), "video/3gpp", "3gp"),
    (box(b"ftyp", b"M4A \0\0\0\0"), "audio/mp4", "m4a"),
    (EBML + b"\x84webmB\x87\x81\x04", "video/webm", "webm"),
    (EBML + b"\x88matroskaB\x87\x81\x04", "video/x-matroska", "mkv"),
    (b"\x1aE\xdf\xa3....", "video/webm", "webm"),
    (AVI, "video/x-msvideo", "avi"),
    ((b"G" + bytes(187)) * 3, "video/mp2t", "ts"),
    (b"RIFF____WAVEfmt ", "audio/wav", "wav"),
    (b"ID3\x04.......", "audio/mpeg", "mp3"),
    (b"\xff\xfb\x90\x64", "audio/mpeg", "mp3"),
    (b"\xff\xf3\x40\xc0", "audio/mpeg", "mp3"),
    (b"\xff\xf2\x40\xc0", "audio/mpeg", "mp3"),
    (b"\xff\xf1\x50\x80", "audio/aac", "aac"),
    (b"fLaC\0\0\0\x22", "audio/flac", "flac"),
    (b"OggS\0\x02" + bytes(22) + b"\x01vorbis", "audio/ogg", "ogg"),
    (b"OggS\0\x02" + bytes(22) + b"\x80theora", "video/ogg", "ogv"),
    (GLB, "model/gltf-binary", "glb"),
    (b"PK\x03\x04\x14\0", "application/zip", "zip"),
    (b"%PDF-1.7\n%\xe2\xe3", "application/pdf", "pdf"),
]
IDS = [f"{number}-{extension}" for number, (_, _, extension) in enumerate(TYPES)]
WHOLE = [(PNG, "image/png"), (JPEG, "image/jpeg"), (GIF, "image/gif"), (WEBP, "image/webp")]
WHOLE += [(MP4, "video/mp4"), (CLIP, "video/mp4"), (MOV, "video/quicktime"), (AVIF, "image/avif")]
WHOLE += [(GLB, "model/gltf-binary")]
VALID = [*WHOLE, (AVI, "video/x-msvideo"), (LIVE, "video/mp4")]


def cut(data: bytes, media_type: str | None) -> str | None:
    return find_truncation(io.BytesIO(data), len(data), media_type)


def whole(data: bytes, media_type: str | None) -> bool:
    return proves_whole(io.BytesIO(data), len(data), media_type)


# Types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "media_type", "extension"), TYPES, ids=IDS)
def test_the_first_bytes_tell_the_type_and_the_extension(
    data: bytes, media_type: str, extension: str
) -> None:
    assert media_type_of(data[:HEAD_BYTES]) == media_type
    assert extension_of(media_type) == extension
    assert not is_text(data[:HEAD_BYTES])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"B",
        b"BM is a company",
        b"G" * 187,
        b"who knows what",
        b"GIVEN",
        b"\0\0\x01\0",
        b"\0\0\x01\0\0\0",
    ],
)
def test_bytes_that_tell_nothing_have_no_type(data: bytes) -> None:
    assert media_type_of(data) is None


@pytest.mark.parametrize(
    ("media_type", "extension"),
    [
        ("application/json", "json"),
        ("Image/PNG; charset=binary", "png"),
        ("image/jpg", "jpg"),
        (None, "bin"),
        ("", "bin"),
        ("text/html", "bin"),
        ("application/x-msdownload", "bin"),
        ("image/../../../etc/passwd", "bin"),
        ("image/png\0.exe", "bin"),
        ("image/svg+xml", "bin"),
    ],
)
def test_the_extension_is_ours_whatever_the_server_says(media_type: str | None, extension: str) -> None:
    assert extension_of(media_type) == extension


@given(st.binary(max_size=600))
def test_any_bytes_have_an_extension_of_letters_and_digits(data: bytes) -> None:
    assert extension_of(media_type_of(data)).isalnum()

    is_text(data)


# Pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body>Not Found</body></html>",
        b"\xef\xbb\xbf<html></html>",
        b'\r\n\t {"code": "AccessDenied"}',
        b"[]",
        b"AccessDenied: the signature has expired",
        "签名已过期，请重新获取下载地址".encode(),
        "签名已过期，请重新获取下载地址".encode() * 20,
        "<Error><Message>签名已过期</Message></Error>".encode("gbk"),
        "<p>Accès refusé</p>".encode("latin-1"),
        "<html>Error</html>".encode("utf-16"),
        b"\xfe\xff" + "<html>Error</html>".encode("utf-16-be"),
        b"<?xml version='1.0'?><Error/>",
    ],
)
def test_pages_json_and_words_are_text(data: bytes) -> None:
    assert is_text(data[:HEAD_BYTES])


@pytest.mark.parametrize("length", [510, 511, 512, 513])
def test_a_character_that_the_head_cuts_apart_is_still_text(length: int) -> None:
    assert is_text(("x" * length + "签名").encode()[:HEAD_BYTES])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"  \n",
        b"\xef\xbb\xbf",
        b"\0" * 100,
        b"words and\0 a zero",
        b"<html>\x01",
        b"\xff\xfe\x01\x00<\x00",
        bytes(range(256)),
        noise(512),
        b"\xff\xd8\xff" + b"j" * 500,
        b"\x7fELF\x02\x01\x01",
        b"%PDF-1.7\nwords",
    ],
)
def test_binary_bytes_and_no_bytes_are_no_text(data: bytes) -> None:
    assert not is_text(data)


# Ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "media_type"), VALID)
def test_a_valid_file_is_never_called_cut_off(data: bytes, media_type: str) -> None:
    assert cut(data, media_type) is None
    assert cut(data, media_type + "; charset=binary") is None


@pytest.mark.parametrize(("data", "media_type"), WHOLE)
def test_a_file_that_ends_where_its_structure_ends_is_proven_whole(data: bytes, media_type: str) -> None:
    assert whole(data, media_type)


@pytest.mark.parametrize(("data", "media_type"), VALID)
def test_no_cut_of_a_file_is_proven_whole(data: bytes, media_type: str) -> None:
    for length in range(0, len(data), 7 if len(data) < 10_000 else 1009):
        assert not whole(data[:length], media_type), length


@pytest.mark.parametrize(
    ("data", "media_type", "spared"), [(PNG, "image/png", 8), (GLB, "model/gltf-binary", 12)]
)
def test_each_cut_of_a_file_whose_structure_tells_is_found(data: bytes, media_type: str, spared: int) -> None:
    assert [length for length in range(len(data)) if cut(data[:length], media_type) is None] == [
        *range(spared)
    ]


def test_a_jpeg_is_cut_off_wherever_it_lacks_its_own_end_marker() -> None:
    """The end marker of its thumbnail, in a segment before, is not its own."""
    unseen = [length for length in range(len(JPEG)) if cut(JPEG[:length], "image/jpeg") is None]

    assert unseen == [0, 1, 2]


def test_a_webp_that_is_shorter_than_it_says_is_cut_off() -> None:
    """The last byte of this one fills up its chunk: without it nothing is missing."""
    unseen = [length for length in range(len(WEBP)) if cut(WEBP[:length], "image/webp") is None]

    assert unseen == [*range(12), len(WEBP) - 1]


@pytest.mark.parametrize(("data", "media_type"), [(MP4, "video/mp4"), (MOV, "video/quicktime")])
def test_a_film_is_cut_off_when_its_last_box_ends_beyond_the_file(data: bytes, media_type: str) -> None:
    found = [length for length in range(len(data)) if cut(data[:length], media_type) is not None]

    assert len(found) > 0.98 * len(data)  # the others end in the head of a box
    assert cut(data[:2000], media_type) == f"its mdat continues to byte {data.index(b'mdat') - 4 + 3008}"


def test_a_long_box_tells_its_length_in_64_bits() -> None:
    long = box(b"ftyp", b"isom\0\0\0\0") + box(b"moov", bytes(20)) + b"\0\0\0\x01mdat"
    data = long + (16 + 500).to_bytes(8, "big") + noise(500)

    assert whole(data, "video/mp4")
    assert cut(data[:-1], "video/mp4") == f"its mdat continues to byte {len(data)}"
    assert cut(long + (5 * 2**30).to_bytes(8, "big") + noise(500), "video/mp4") is not None


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (MP4 + b"\0\0\0\0", "video/mp4"),
        (MP4 + b"TAG" + b"a title" * 20, "video/mp4"),
        (box(b"ftyp", b"isom\0\0\0\0") + b"\0\0\0\0mdat" + noise(99), "video/mp4"),
        (box(b"ftyp", b"isom\0\0\0\0") + b"\0\0\0\x05mdat" + noise(99), "video/mp4"),
        (box(b"ftyp", b"isom\0\0\0\0") + b"\0\0\0\x01mdat", "video/mp4"),
        (box(b"ftyp", b"isom\0\0\0\0") + box(b"mdat", noise(50)), "video/mp4"),
        (b"____ftypisom" + noise(99), "image/png"),
        (LIVE, "video/mp4"),
        (PNG + b"words of a tool", "image/png"),
        (PNG[:8] + b"p" * 100, "image/png"),
        (PNG[:33] + b"\xff\xff\xff\xffIDAT" + noise(99), "image/png"),
        (JPEG + noise(500), "image/jpeg"),
        (JPEG + MP4 * 60, "image/jpeg"),
        (b"\xff\xd8\xff" + b"j" * 500, "image/jpeg"),
        (b"\xff\xd8\xff\xd9" + noise(99), "image/jpeg"),
        (GIF + bytes(2000), "image/gif"),
        (GIF + b"\n", "image/gif"),
        (GIF[:-1], "image/gif"),  # old programs write it so, and all show it
        (WEBP + b"\0\0", "image/webp"),
        (WEBP[:4] + struct.pack("<I", len(WEBP)) + WEBP[8:], "image/webp"),
        (WEBP[:4] + b"\xff\xff\xff\xff" + WEBP[8:], "image/webp"),
        (GLB + b"\0", "model/gltf-binary"),
        (b"RIFF\xff\xff\xff\x7fWAVEfmt ", "audio/wav"),
        (b"whatever it is", "video/mp4"),
        (b"whatever it is", None),
        (b"whatever it is", "application/x-odd"),
        (b"", "image/png"),
    ],
)
def test_what_cannot_be_followed_is_neither_cut_off_nor_proven_whole(
    data: bytes, media_type: str | None
) -> None:
    assert cut(data, media_type) is None
    assert not whole(data, media_type)


def test_a_live_film_is_proven_whole_by_its_last_index_only() -> None:
    assert not whole(LIVE, "video/mp4")
    assert whole(LIVE + box(b"mfra", bytes(16)), "video/mp4")


def test_a_gif_whose_data_breaks_off_is_cut_off() -> None:
    assert cut(GIF[:-2], "image/gif") == "the GIF has no end"


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (MP4 + box(b"free") * 100_000, "video/mp4"),
        (PNG[:33] + chunk(b"IDAT", b"") * 100_000, "image/png"),
        (b"\xff\xd8" + segment(0xE0, b"") * 100_000, "image/jpeg"),
        (WEBP[:12].replace(WEBP[4:8], struct.pack("<I", 800_012)) + b"VP8 \0\0\0\0" * 100_000, "image/webp"),
    ],
)
def test_a_file_of_very_many_parts_is_given_up(data: bytes, media_type: str) -> None:
    class Counted(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            Counted.reads += 1
            return super().read(size)

    assert find_truncation(Counted(data), len(data), media_type) is None
    assert Counted.reads < 60_000


def test_a_large_film_is_judged_by_a_few_small_reads(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with path.open("wb") as file:
        file.write(box(b"ftyp", b"isom\0\0\0\0") + struct.pack(">I4sQ", 1, b"mdat", 3 * 2**30))
        file.truncate(2 * 2**30)

    with path.open("rb") as file:
        assert find_truncation(file, 2 * 2**30, "video/mp4") == f"its mdat continues to byte {3 * 2**30 + 16}"


@given(st.binary(max_size=300), st.sampled_from([kind for _, kind in VALID]), st.booleans())
def test_any_bytes_can_be_judged(data: bytes, media_type: str, has_head: bool) -> None:
    if has_head:
        data = next(valid for valid, kind in VALID if kind == media_type)[:40] + data

    assert not (cut(data, media_type) and whole(data, media_type))
