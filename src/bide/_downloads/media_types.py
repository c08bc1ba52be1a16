"""What the bytes of a file show: its media type, our extension for it, and whether its end is missing."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD_BYTES = 512
"""The first bytes of a file; they show its type."""
MAX_STEPS = 50_000
"""Chunks, boxes or segments that are read in one file. After these its end stays unknown."""
JPEG_TAIL_BYTES = 64 * 1024
"""The last bytes of a JPEG: its end marker is searched here first."""
MAX_JPEG_SCAN_BYTES = 256 * 2**20
"""The most bytes that are read if that marker is not there."""

_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (0, b"II+\0", "image/tiff"),
    (0, b"MM\0+", "image/tiff"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
    (0, b"\xff\x0a", "image/jxl"),
    (0, b"8BPS\0", "image/vnd.adobe.photoshop"),
    (4, b"moov", "video/quicktime"),  # films from before 2001 have no "ftyp"
    (4, b"mdat", "video/quicktime"),
    (4, b"wide", "video/quicktime"),
    (8, b"AVI ", "video/x-msvideo"),
    (0, b"FLV\x01", "video/x-flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-asf"),
    (0, b"\0\0\x01\xba", "video/mpeg"),
    (8, b"WAVE", "audio/wav"),
    (8, b"AIFF", "audio/aiff"),
    (8, b"AIFC", "audio/aiff"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfa", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf2", "audio/mpeg"),
    (0, b"\xff\xf3", "audio/mpeg"),
    (0, b"\xff\xf0", "audio/aac"),
    (0, b"\xff\xf1", "audio/aac"),
    (0, b"\xff\xf8", "audio/aac"),
    (0, b"\xff\xf9", "audio/aac"),
    (0, b"fLaC", "audio/flac"),
    (0, b"#!AMR", "audio/amr"),
    (0, b"glTF", "model/gltf-binary"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"PK\x05\x06", "application/zip"),
    (0, b"\x1f\x8b", "application/gzip"),
    (0, b"%PDF-", "application/pdf"),
)
# The brands of the MPEG-4 family, after "ftyp". Any other brand counts as MP4.
_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"heim": "image/heic",
    b"heis": "image/heic",
    b"hevc": "image/heic",
    b"hevx": "image/heic",
    b"mif1": "image/heif",
    b"msf1": "image/heif",
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"M4P ": "audio/mp4",
    b"3gp": "video/3gpp",
    b"3g2": "video/3gpp2",
}
_EXTENSIONS = {
    "image/png": "png",
    "image/apng": "png",
    "image/jpeg": "jpg",
    "image/jpg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/heif": "heif",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "image/jxl": "jxl",
    "image/x-icon": "ico",
    "image/vnd.microsoft.icon": "ico",
    "image/vnd.adobe.photoshop": "psd",
    "video/mp4": "mp4",
    "video/x-m4v": "m4v",
    "video/quicktime": "mov",
    "video/3gpp": "3gp",
    "video/3gpp2": "3g2",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
    "video/x-flv": "flv",
    "video/x-ms-asf": "asf",
    "video/mpeg": "mpg",
    "video/mp2t": "ts",
    "video/ogg": "ogv",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/aiff": "aiff",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "audio/x-m4a": "m4a",
    "audio/aac": "aac",
    "audio/amr": "amr",
    "model/gltf-binary": "glb",
    "application/zip": "zip",
    "application/gzip": "gz",
    "application/pdf": "pdf",
    "application/json": "json",
}


def media_type_of(head: bytes) -> str | None:
    """The media type that a file's first bytes (`HEAD_BYTES` of them) show, or None."""
    if head[4:8] == b"ftyp":
        return _mpeg4_type(head)
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "video/x-matroska" if _doc_type(head) == b"matroska" else "video/webm"
    if head.startswith(b"OggS"):
        return "video/ogg" if b"\x80theora" in head[:64] else "audio/ogg"
    for at, magic, kind in _MAGIC:
        if head[at : at + len(magic)] == magic:
            return kind
    return _short_magic_type(head)


def _mpeg4_type(head: bytes) -> str:
    """The type of a file of the MPEG-4 family."""
    brand = head[8:12]
    if brand in (b"mif1", b"msf1"):  # only "HEIF": the exact type is among the brands that follow
        end = min(int.from_bytes(head[:4], "big"), len(head))
        others = [head[at : at + 4] for at in range(16, end - 3, 4)]
        brand = next((each for each in others if each in (b"avif", b"avis", b"heic", b"heix")), brand)
    return _BRANDS.get(brand) or _BRANDS.get(brand[:3]) or "video/mp4"


def _doc_type(head: bytes) -> bytes:
    """The DocType in the first bytes of a WebM or a Matroska."""
    at = head.find(b"\x42\x82")
    if at < 0 or len(head) < at + 3:
        return b""
    length = head[at + 2] & 0x7F  # one byte holds it: the name is short
    return head[at + 3 : at + 3 + length].rstrip(b"\0")


def _short_magic_type(head: bytes) -> str | None:
    """The types with so short a signature that text may start with it: more of the head must match."""
    if head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in _BITMAP_HEADERS:
        return "image/bmp"
    if head[:4] == b"\0\0\x01\0" and len(head) > 9 and head[4] and not head[5] and not head[9]:
        return "image/x-icon"
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "video/mp2t"
    return None


_BITMAP_HEADERS = {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}


def extension_of(media_type: str | None) -> str:
    """Our extension for a media type; "bin" for an unknown one. The server's file name does not matter."""
    return _EXTENSIONS.get(_essence(media_type), "bin")


def _essence(media_type: str | None) -> str:
    return (media_type or "").partition(";")[0].strip().lower()


def is_text(head: bytes) -> bool:
    """Whether these first bytes are HTML, JSON or other text, and not a media file."""
    if not head.strip() or media_type_of(head) is not None:
        return False
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _is_words(head, "utf-16")
    if _is_words(head, "utf-8-sig"):
        return True
    # HTML in another encoding (GBK, Latin-1) still has its tags in ASCII, and no control bytes.
    return head.lstrip()[:1] in (b"<", b"{", b"[") and not _CONTROLS.intersection(head)


_CONTROLS = frozenset(range(32)).difference(b"\t\n\r\f") | {127}


def _is_words(head: bytes, encoding: str) -> bool:
    """Whether *head* is text; its last character may be cut off."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text.strip()) and not any(ord(each) in _CONTROLS or 127 < ord(each) < 160 for each in text)


@dataclass(frozen=True, slots=True)
class _End:
    """What the structure of a file shows of its end. Both attributes are empty for a structure that we cannot read.

    Attributes:
        truncation: the reason, if the structure proves that bytes are missing.
        is_whole: whether the structure proves that no byte is missing.
    """

    truncation: str | None = None
    is_whole: bool = False


_UNKNOWN = _End()
_WHOLE = _End(is_whole=True)


def find_truncation(file: BinaryIO, size: int, media_type: str | None) -> str | None:
    """Why *file*, of *size* bytes, is cut off, if its structure proves it; else None. A valid file is never refused.

    Moves the position in *file*. Reads little: it goes from part to part by their lengths.
    """
    return _read_end(file, size, media_type).truncation


def proves_whole(file: BinaryIO, size: int, media_type: str | None) -> bool:
    """Whether the structure of *file* proves that its last byte is there. Needed if the server states no length."""
    return _read_end(file, size, media_type).is_whole


def _read_end(file: BinaryIO, size: int, media_type: str | None) -> _End:
    read_end = _END_READERS.get(_essence(media_type))
    return read_end(file, size) if read_end is not None else _UNKNOWN


def _read_at(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _png(file: BinaryIO, size: int) -> _End:
    """Chunks: length, type, data, checksum. The last one is IEND; bytes after it are harmless."""
    if _read_at(file, 0, 8) != b"\x89PNG\r\n\x1a\n":
        return _UNKNOWN
    position = 8
    for step in range(MAX_STEPS):
        head = _read_at(file, position, 8)
        if len(head) < 8:
            return _End("the PNG has no end")
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if not kind.isalpha() or length >= 2**31 or (step == 0 and kind not in (b"IHDR", b"CgBI")):
            return _UNKNOWN  # no PNG, despite its signature
        position += 12 + length
        if position > size:
            return _End(f"the PNG continues to byte {position} at least")
        if kind == b"IEND":
            return _WHOLE if position == size else _UNKNOWN
    return _UNKNOWN


# The boxes at the top level of a file. Others that seem to exceed its end may be bytes that a tool has appended.
_TOP_BOXES = frozenset(
    b"ftyp styp moov mdat moof mfra free skip wide uuid meta sidx ssix pnot udta emsg prft pdin".split()
)


def _boxes(file: BinaryIO, size: int) -> _End:
    """MP4, QuickTime, AVIF, HEIC: boxes of a length and a type, to the end of the file."""
    position, seen, kind = 0, set[bytes](), b""
    for _ in range(MAX_STEPS):
        if position == size:
            return _WHOLE if _is_complete(seen, kind) else _UNKNOWN
        head = _read_at(file, position, 16)
        if len(head) < 8:
            return _UNKNOWN
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if kind not in _TOP_BOXES and position == 0:
            return _UNKNOWN
        if length < 8:  # 0: to the end of the file, which is unknown
            return _UNKNOWN
        position += length
        if position > size:
            return (
                _End(f"its {kind.decode()} continues to byte {position}") if kind in _TOP_BOXES else _UNKNOWN
            )
        seen.add(kind)
    return _UNKNOWN


def _is_complete(seen: set[bytes], last: bytes) -> bool:
    """Whether a film or picture with these boxes is complete. A live film may be cut between two fragments."""
    if b"moof" in seen:
        return last == b"mfra"
    return b"mdat" in seen and (b"moov" in seen or b"meta" in seen)


def _riff(file: BinaryIO, size: int) -> _End:
    """WebP and AVI: the total length, then chunks of a type, a length, and data that is padded to an even length."""
    head = _read_at(file, 0, 12)
    declared = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or len(head) < 12 or declared < 4 or declared >= 0xFFFF_FFF0:  # written to a pipe
        return _UNKNOWN
    end = 8 + declared
    if end <= size:
        return _WHOLE if end == size and head[8:] == b"WEBP" else _UNKNOWN
    if end - size > 8:
        return _End(f"its header states {end} bytes")
    return _last_chunk(file, size, end)


def _last_chunk(file: BinaryIO, size: int, end: int) -> _End:
    """A few bytes are missing, or an encoder counted wrong (the header, a pad byte). The chunks show which."""
    position = 12
    for _ in range(MAX_STEPS):
        head = _read_at(file, position, 8)
        if len(head) < 8:
            break
        length = int.from_bytes(head[4:], "little")
        if position + 8 + length > size:
            return _End(f"its header states {end} bytes")
        position += 8 + length + length % 2
    return _UNKNOWN


def _jpeg(file: BinaryIO, size: int) -> _End:
    """Segments up to the first scan, then data in which FF D9 occurs only as the end marker."""
    start = _jpeg_scan_start(file, size)
    if not isinstance(start, int):
        return start
    if start <= size - 2 and _read_at(file, size - 2, 2) == b"\xff\xd9":
        return _WHOLE
    if size - start > MAX_JPEG_SCAN_BYTES or b"\xff\xd9" in _read_at(
        file, max(start, size - JPEG_TAIL_BYTES), JPEG_TAIL_BYTES
    ):
        return _UNKNOWN
    # Phones append a film or a depth map after the end marker: only a file without any marker is cut off.
    return (
        _UNKNOWN
        if any(b"\xff\xd9" in each for each in _overlapping_pieces(file, start))
        else _End("the JPEG has no end")
    )


def _jpeg_scan_start(file: BinaryIO, size: int) -> int | _End:
    """Where the data of a JPEG starts: after its segments, whose thumbnails have end markers, too."""
    if _read_at(file, 0, 3) != b"\xff\xd8\xff":
        return _UNKNOWN
    position = 2
    for _ in range(MAX_STEPS):
        head = _read_at(file, position, 4)
        if head[:2] == b"\xff\xff":  # padding
            position += 1
            continue
        if len(head) < 4:
            return _End("the JPEG has no picture")
        if head[0] != 0xFF or head[1] < 0xC0 or 0xD0 <= head[1] <= 0xD9:
            return _UNKNOWN
        position += 2 + int.from_bytes(head[2:], "big")
        if position > size:
            return _End(f"the JPEG continues to byte {position} at least")
        if head[1] == 0xDA:
            return position
    return _UNKNOWN


def _overlapping_pieces(file: BinaryIO, start: int) -> Iterator[bytes]:
    """The bytes of *file* from *start*, in pieces; each one starts with the last byte of the one before."""
    last = b""
    file.seek(start)
    while piece := file.read(2**20):
        yield last + piece
        last = piece[-1:]


def _gif(file: BinaryIO, size: int) -> _End:
    """The last byte is 3B, after the 00 of the last picture."""
    if size < 13 or not _read_at(file, 0, 6).startswith(b"GIF8"):
        return _UNKNOWN
    tail = _read_at(file, max(0, size - 1024), 1024)
    if tail.endswith(b"\0\x3b"):
        return _WHOLE
    # Some programs omit the last byte, some pad with zeros: only data without an end is a proof.
    return _UNKNOWN if b"\x3b" in tail or tail.endswith(b"\0") else _End("the GIF has no end")


def _glb(file: BinaryIO, size: int) -> _End:
    """The header has the total length."""
    head = _read_at(file, 0, 12)
    if head[:4] != b"glTF" or len(head) < 12:
        return _UNKNOWN
    end = int.from_bytes(head[8:], "little")
    return _End(f"its header states {end} bytes") if end > size else _End(is_whole=end == size)


_END_READERS: dict[str, Callable[[BinaryIO, int], _End]] = {
    "image/png": _png,
    "image/apng": _png,
    "image/jpeg": _jpeg,
    "image/jpg": _jpeg,
    "image/gif": _gif,
    "image/webp": _riff,
    "video/x-msvideo": _riff,
    "model/gltf-binary": _glb,
    **dict.fromkeys(
        (
            *(
                "image/avif",
                "image/heic",
                "image/heif",
                "audio/mp4",
                "audio/x-m4a",
                "video/mp4",
                "video/x-m4v",
            ),
            *("video/quicktime", "video/3gpp", "video/3gpp2"),
        ),
        _boxes,
    ),
}
