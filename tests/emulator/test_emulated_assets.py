"""The result files, and the origin that serves them."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc
import zlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from bide.emulator import Emulator
from bide.emulator._files import BLOCK, FileSlice, ResultFile
from support.emulator_callers import VIDEOS, Caller, DashScopeCaller, DieyuyunCaller

if TYPE_CHECKING:
    from collections.abc import Iterator


def decoded_png(data: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and the unfiltered rows of a PNG, with every checksum looked at."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks = list(_png_chunks(data[8:]))
    assert chunks[0][0] == b"IHDR"
    assert chunks[-1] == (b"IEND", b"")
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, colour) == (8, 2)
    pixels = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    assert len(pixels) == height * (1 + 3 * width)
    rows = [pixels[start : start + 1 + 3 * width] for start in range(0, len(pixels), 1 + 3 * width)]
    above, unfiltered = bytes(3 * width), []
    for row in rows:
        assert row[0] in (0, 2)
        above = row[1:] if row[0] == 0 else bytes((a + b) % 256 for a, b in zip(row[1:], above, strict=True))
        unfiltered.append(above)
    return width, height, unfiltered


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    while data:
        (length,) = struct.unpack(">I", data[:4])
        kind, body = data[4:8], data[8 : 8 + length]
        assert data[8 + length : 12 + length] == struct.pack(">I", zlib.crc32(kind + body))
        yield kind, body
        data = data[12 + length :]


def mp4_boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """The top boxes of an MP4."""
    boxes = []
    while data:
        (length,) = struct.unpack(">I", data[:4])
        assert 8 <= length <= len(data)
        boxes.append((data[4:8], data[8:length]))
        data = data[length:]
    return boxes


async def _made(emulator: Emulator, prompt: str, *, kind: str = "images", **fields: object) -> list[str]:
    """The URLs of a finished task's files."""
    async with DieyuyunCaller(emulator) as caller:
        task_id = await caller.created(f"{prompt} [seconds 1]", kind=kind, **fields)
        await asyncio.sleep(1)
        return [each["url"] for each in (await caller.task(task_id))["result"]["data"]]


@pytest.mark.parametrize(("width", "height"), [(64, 48), (3, 5), (1, 1)])
async def test_a_picture_is_a_png_of_the_asked_size(width: int, height: int) -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        (url,) = await _made(emulator, "a cat", size=f"{width}x{height}")
        answer = await anyone.get(url)

    assert answer.headers["content-type"] == "image/png"
    assert decoded_png(answer.content)[:2] == (width, height)


async def test_pictures_differ_by_prompt_and_index_and_stay_the_same() -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        cats = await _made(emulator, "a cat", size="64x64", n=2)
        dogs = await _made(emulator, "a dog", size="64x64")
        files = [(await anyone.get(url)).content for url in (*cats, *dogs, cats[0])]

    pictures = [tuple(decoded_png(data)[2]) for data in files]
    assert len(set(pictures)) == 3
    assert files[0] == files[3]
    assert all(len(set(picture)) > 1 for picture in pictures)


async def test_the_largest_picture_is_small_to_send() -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        (url,) = await _made(emulator, "a cat", size="4096x4096")
        answer = await anyone.get(url)

    assert len(answer.content) < 400_000


async def test_a_video_is_an_mp4_with_a_track() -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        first, second = (
            await _made(emulator, "a cat", kind="videos"),
            await _made(emulator, "a dog", kind="videos"),
        )
        answers = [await anyone.get(url) for url in first + second]

    boxes = mp4_boxes(answers[0].content)
    kinds = [kind for kind, _ in boxes]
    assert kinds[:2] == [b"ftyp", b"moov"]
    assert b"mdat" in kinds
    assert b"avc1" in dict(boxes)[b"moov"]
    assert answers[0].headers["content-type"] == "video/mp4"
    assert answers[0].content != answers[1].content


async def test_files_can_be_ordered_large() -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        (image,) = await _made(emulator, "a cat [bytes 300000]", size="8x8")
        (video,) = await _made(emulator, "a cat [bytes 300000]", kind="videos")
        files = [(await anyone.get(url)).content for url in (image, video)]

    assert [len(data) for data in files] == [300_000, 300_000]
    assert decoded_png(files[0])[:2] == (8, 8)
    assert mp4_boxes(files[1])[-1][0] == b"free"


async def test_files_come_from_another_origin_where_no_key_is_asked_for() -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        (url,) = await _made(emulator, "a cat")
        answer = await anyone.get(url)
        (record,) = [each for each in emulator.requests() if each.on == "asset"]

    assert urlsplit(url).netloc != urlsplit(emulator.dieyuyun_url).netloc
    assert answer.status_code == 200
    assert (record.service, record.has_key, record.status) == ("dieyuyun", False, 200)


async def test_the_log_tells_that_a_key_came_along_but_never_the_key() -> None:
    async with Emulator() as emulator, Caller("", "sk-very-secret") as careless:
        (url,) = await _made(emulator, "a cat")
        await careless.get(url)
        record = emulator.requests()[-1]

    assert record.has_key
    assert "accept" in record.headers
    assert "sk-very-secret" not in repr((vars(record), emulator.stats(), emulator.tasks()))


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        ("bytes=0-9", 206, (0, 10)),
        ("bytes=10-", 206, (10, None)),
        ("bytes=-7", 206, (-7, None)),
        ("bytes=5-999999999", 206, (5, None)),
        ("bytes=-999999999", 206, (0, None)),
        ("bytes=999999999-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=-", 200, (0, None)),
        ("bytes=0-1,3-4", 200, (0, None)),
        ("lines=1-2", 200, (0, None)),
    ],
)
async def test_a_range_is_answered_with_that_part(
    asked: str, status: int, span: tuple[int, int | None] | None
) -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        (url,) = await _made(emulator, "a cat", size="64x64")
        whole = (await anyone.get(url)).content
        answer = await anyone.get(url, headers={"Range": asked})

    expected = b"" if span is None else whole[span[0] : span[1]]
    assert (answer.status_code, answer.content) == (status, expected)
    assert int(answer.headers["content-length"]) == len(expected)
    if status == 206:
        start = whole.index(expected)
        told = f"bytes {start}-{start + len(expected) - 1}/{len(whole)}"
        assert answer.headers["content-range"] == told
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(whole)}"


async def test_a_range_of_a_file_that_has_changed_is_answered_with_the_whole() -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        (url,) = await _made(emulator, "a cat", size="64x64")
        tag = (await anyone.get(url)).headers["etag"]
        same = await anyone.get(url, headers={"Range": "bytes=0-3", "If-Range": tag})
        changed = await anyone.get(url, headers={"Range": "bytes=0-3", "If-Range": '"other"'})
        unchanged = await anyone.get(url, headers={"If-None-Match": tag})

    assert [answer.status_code for answer in (same, changed, unchanged)] == [206, 200, 304]


async def test_head_tells_the_length_without_the_file() -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        (url,) = await _made(emulator, "a cat", size="64x64")
        got, head = await anyone.get(url), await anyone.head(url)

    assert head.content == b""
    assert head.headers["content-length"] == str(len(got.content))
    assert head.headers["accept-ranges"] == "bytes"


async def test_only_signed_urls_of_finished_files_are_served() -> None:
    async with (
        Emulator(image_seconds=10, url_seconds=60) as emulator,
        DashScopeCaller(emulator) as caller,
        Caller("", None) as anyone,
    ):
        task_id = await caller.created("cats [part]", n=2)
        await asyncio.sleep(10)
        url = (await caller.output(task_id))["results"][0]["url"]
        attempts = {
            "signed": url,
            "forged": url.replace("Signature=", "Signature=0"),
            "prolonged": url.replace("Expires=", "Expires=9"),
            "unsigned": url.partition("?")[0],
            "of the part that failed": url.replace("/0.png", "/1.png"),
            "of another kind": url.replace(".png", ".mp4"),
            "of another task": url.replace(task_id, "other"),
            "of another service": url.replace("/dashscope/", "/other/"),
            "of no form": emulator.asset_url + "/",
        }
        answers = {name: (await anyone.get(each)).status_code for name, each in attempts.items()}
        posted = (await anyone.post(url)).status_code
        await asyncio.sleep(60)
        late = (await anyone.get(url)).status_code
        known = (await caller.output(task_id))["task_status"]

    assert answers == {
        "signed": 200,
        "forged": 403,
        "prolonged": 403,
        "unsigned": 403,
        "of the part that failed": 403,
        "of another kind": 404,
        "of another task": 404,
        "of another service": 404,
        "of no form": 404,
    }
    assert (posted, late, known) == (405, 403, "SUCCEEDED")


async def test_files_can_be_dropped_and_truncated_on_order() -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        (url,) = await _made(emulator, "a cat", size="64x64")
        emulator.fault(on="asset", status=503, headers={"Retry-After": "1"})
        emulator.fault(on="asset", truncate=20)
        busy = await anyone.get(url)
        with pytest.raises(Exception, match="peer closed connection"):
            await anyone.get(url)
        fine = await anyone.get(url)

    assert (busy.status_code, fine.status_code) == (503, 200)
    assert emulator.stats()["asset_gets"] == 3


async def test_a_videos_path_works_at_dashscope_too() -> None:
    async with (
        Emulator(video_seconds=5) as emulator,
        DashScopeCaller(emulator) as caller,
        Caller("", None) as anyone,
    ):
        task_id = await caller.created(path=VIDEOS)
        await asyncio.sleep(5)
        answer = await anyone.get((await caller.output(task_id))["video_url"])

    assert mp4_boxes(answer.content)[0][0] == b"ftyp"


@pytest.mark.parametrize("overhead", [8, 12])
@pytest.mark.parametrize("more", [-500, 0, 1, 7, 8, 12, 5000, BLOCK, BLOCK + 3, BLOCK + 12, 3 * BLOCK - 1])
def test_any_part_of_a_file_is_the_same_as_in_the_whole(overhead: int, more: int) -> None:
    head, tail = bytes(range(200)) * 5, b"tail"
    file = ResultFile(
        "name",
        "image/png",
        head=head,
        tail=tail,
        at_least=len(head) + len(tail) + more,
        frame=lambda data: b"\xff" * overhead + data,
    )

    whole = b"".join(file.pieces(0, len(file)))

    assert len(whole) == len(file)
    assert len(file) - len(head) - len(tail) == (max(more, overhead) if more > 0 else 0)
    assert (whole[: len(head)], whole[-len(tail) :]) == (head, tail)
    places = sorted(
        {0, 1, len(head) - 1, len(head), len(head) + BLOCK, len(file) - 4, len(file) - 1, len(file)}
    )
    for start, stop in _pairs([place for place in places if 0 <= place <= len(file)]):
        assert b"".join(FileSlice(file, start, stop).pieces()) == whole[start:stop]
        assert b"".join(FileSlice(file, start, stop).pieces(9)) == whole[start : min(stop, start + 9)]


@pytest.mark.real_time
async def test_a_large_file_costs_little_memory() -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        async with DieyuyunCaller(emulator) as caller:
            made = await caller.created("a cat [bytes 3000000000] [seconds 0]", kind="videos")
            (data,) = (await caller.task(made))["result"]["data"]
        tracemalloc.start()
        end = await anyone.get(data["url"], headers={"Range": "bytes=2990000000-"})
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert end.headers["content-range"] == "bytes 2990000000-2999999999/3000000000"
    assert len(end.content) == 10_000_000
    assert most < 24_000_000  # twice the body at most, and those are the client's


def _pairs(places: list[int]) -> Iterator[tuple[int, int]]:
    return ((start, stop) for start in places for stop in places if start <= stop)
