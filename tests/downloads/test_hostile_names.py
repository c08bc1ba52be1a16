"""What a stranger calls a file decides nothing: neither where it goes, nor what it is called or written through."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import stat
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bide import Client, DownloadError, Output, SavedFile, Task, TaskStatus, VideoRequest
from bide._downloads.media_types import _EXTENSIONS, extension_of
from bide._validators import is_ticket
from support.hostile_server import PNG, SECRET, done, far_client, moved, reply, serving

LONG = "x" * 300
UPWARD = [
    "../evil", "../../evil", "..", ".", "../", "/etc/passwd", "//evil", "/", "\\evil", "..\\..\\evil", "C:\\evil",
    "C:evil", "\\\\server\\share\\evil", "a/../../evil", "a/b", "./a", "~/evil", "~root", "$HOME/evil",
    "%2e%2e%2fevil", "..%2fevil", "..;/evil", "....//evil", "a\0b", "\0", "a\nb", "a\rb", "a\tb", "a b", " a", "a ",
    "", " ", "-rf", ".hidden", ".t1-0.part", "a:b", "a:stream", "a*", "a?", 'a"b', "a<b", "a|b", "a;rm -rf", "`id`",
    "$(id)", "é", "ａ", "\u202egnp.exe", "\u2024\u2024/evil", "\uff0e\uff0e\uff0fevil", "\ud800", "a\x1b[2J", "a\x7f",
    LONG, "a/" * 200,
]  # fmt: skip
"""Names that leave a folder somewhere, or mean something to a shell, a terminal or a file system."""
PATHS = [
    "/../../../../evil.png", "/%2e%2e/%2e%2e/evil.png", "/..%2f..%2fevil.png", "/a/../../evil", "/..%5c..%5cevil.exe",
    "/%252e%252e%252fevil", "/evil.exe", "/evil.sh", "/.bashrc", "/.ssh/authorized_keys", "/NUL", "/CON.png",
    "/aux.mp4", "/COM1", "/LPT1.png", "/evil.png%00.exe", "/evil%0aname", "/evil%0d%0aX:%20y", "/a%00b", "/", "//",
    "///etc/passwd", "/C:%5cevil", "/evil.png/", "/evil.png.", "/evil.png::$DATA", "/~root/evil", "/%E2%80%AEgnp.exe",
    "/-rf", "/*", "/t1-0.png", "/.t1-0.part", "/.t1-0.part.log", f"/{LONG}{LONG}", "/a;type=i", "/%ff%fe",
    "/e%CC%81.png", "/desktop.ini", "/Thumbs.db", "/evil.png?name=../../evil&file=/etc/passwd",
    "/evil?response-content-disposition=attachment%3Bfilename%3D..%2Fevil",
]  # fmt: skip
TYPES = [
    "image/../../evil", "image/png/../../../evil", "../../evil", "/etc/passwd", "image/sh", "application/x-sh",
    "application/x-msdownload", "text/html", "text/x-python", "image/svg+xml", "application/x-desktop",
    "image/png.exe", "image/.exe", "image/", "/png", "/", "", " ", "image", "IMAGE/EXE", "image/png;name=../../evil",
    "image/png; x=\x1b[2J", "\x1b]0;gotcha\x07", "image/p\x7fng", "image/é", "image/" + LONG, "x" * 5000,
    "image/png\tevil", "a/b/c/d", "*/*", "image/*", "application/octet-stream", "multipart/mixed; boundary=a",
    "message/http", "video/..", "video/%2e%2e", "image/CON", "image/NUL", 'image/"png', "image/png\\..\\evil",
    "image/x-evil", "audio/x-evil+json",
]  # fmt: skip
DISPOSITIONS = [
    *(f'attachment; filename="{name}"' for name in UPWARD if name.isascii() and name.isprintable()),
    "attachment; filename*=UTF-8''..%2F..%2Fevil", "attachment; filename*=UTF-8''%2Fetc%2Fpasswd",
    'attachment; filename="a"; filename="../b"', "inline; filename=evil.exe", "filename=../evil",
    "attachment; filename*=utf-7''+AC4ALgAv-", "attachment; filename*1=../; filename*2=evil", "attachment; name=../x",
    "attachment; filename=", "x" * 5000,
]  # fmt: skip
BODIES = {
    "png": PNG,
    "program": b"\x7fELF\x02\x01\x01" + bytes(200),
    "unknown": bytes(range(1, 32)) * 9,
}
OURS = {*_EXTENSIONS.values(), "bin"}


def tree(root: Path) -> dict[str, Any]:
    """Everything below *root*: names, kinds and contents."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        kind = path.lstat()
        what: Any = stat.S_IFMT(kind.st_mode)
        if stat.S_ISLNK(kind.st_mode):
            what = ("link", path.readlink())
        elif stat.S_ISREG(kind.st_mode):
            what = ("file", path.read_bytes(), stat.S_IMODE(kind.st_mode), kind.st_mtime_ns)
        found[str(path.relative_to(root))] = what
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where results go; what is beside and above it is as before when the test has ended."""
    inner = tmp_path / "above" / "deeper" / "out"
    inner.mkdir(parents=True)
    for name in ("above/evil", "above/deeper/evil.png", "above/passwd"):
        (tmp_path / name).write_bytes(b"as it was")
    monkeypatch.chdir(tmp_path / "above")
    monkeypatch.setenv("HOME", str(tmp_path / "above"))
    before = tree(tmp_path)
    yield inner
    mine = str(inner.relative_to(tmp_path))
    assert {name: what for name, what in tree(tmp_path).items() if not name.startswith(f"{mine}/")} == before


def at_home(server: Any) -> Client:
    """A client whose API is on loopback, so that its files may be."""
    return far_client(base_url=f"http://127.0.0.1:{server.port}/api/v1")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_there_are_enough_of_them() -> None:
    assert min(len(UPWARD), len(PATHS), len(TYPES), len(DISPOSITIONS)) >= 40


# Ids and tickets ---------------------------------------------------------------------------------------------


async def test_no_hostile_ticket_names_a_file(folder: Path) -> None:
    async with serving(reply()) as server, at_home(server) as client:
        for ticket in UPWARD:
            task = done(f"http://127.0.0.1:{server.port}/a", ticket=ticket)
            with pytest.raises(ValueError, match="cannot name a file") as caught:
                await client.save(task, folder)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 300

    assert server.connections == 0
    assert names(folder) == []


async def test_no_hostile_ticket_is_taken_in_the_first_place() -> None:
    async with far_client() as client:
        for ticket in UPWARD:
            with pytest.raises(ValueError, match="not a ticket"):
                await client.submit(VideoRequest("a cat", model="wan2.6-t2v"), ticket=ticket)


@given(st.text() | st.from_regex(r"[.\w/\\:-]{1,200}"))
def test_whatever_counts_as_a_ticket_stays_in_its_folder(ticket: str) -> None:
    if is_ticket(ticket):
        for name in (f"{ticket}-0.png", f".{ticket}-0.part.log"):
            assert Path("out", name).name == name
            assert len(name.encode()) < 255


async def test_no_hostile_task_id_names_a_file(folder: Path) -> None:
    async with serving(reply()) as server, at_home(server) as client:
        for number, task_id in enumerate(UPWARD):
            ticket = f"t{number}"
            output = Output(url=f"http://127.0.0.1:{server.port}/a", kind="image")
            task = Task(ticket=ticket, task_id=task_id, status=TaskStatus.SUCCEEDED, outputs=(output,))
            (file,) = await client.save(task, folder)
            assert Path(file) == folder / f"{ticket}-0.png"

    assert len(names(folder)) == len(UPWARD)


@pytest.mark.parametrize("output", [-1, 1, 10**9, True, "0", "../0", 0.0, [0]])
async def test_no_odd_number_of_an_output_names_a_file(output: Any, folder: Path) -> None:
    async with far_client() as client:
        with pytest.raises(ValueError, match=r"output must be (from 0 to 0|a whole number)"):
            await client.save(done("https://cdn.example/a"), folder, output=output)

    assert names(folder) == []


# What servers say --------------------------------------------------------------------------------------------


async def test_no_path_of_an_address_names_a_file(folder: Path) -> None:
    async with serving(reply(headers="Content-Type: image/png\r\n")) as server, at_home(server) as client:
        for number, path in enumerate(PATHS):
            task = done(f"http://127.0.0.1:{server.port}{path}", ticket=f"t{number}")
            (file,) = await client.save(task, folder)
            assert Path(file) == folder / f"t{number}-0.png"

    assert names(folder) == sorted(f"t{number}-0.png" for number in range(len(PATHS)))


async def test_no_path_of_a_redirect_names_a_file(folder: Path) -> None:
    paths = [path for path in PATHS if not path.startswith("//")]  # those name a host

    def hop(path: str, head: bytes) -> bytes:
        return moved(paths[int(path[4:])]) if path.startswith("/hop") else reply()

    async with serving(hop) as server, at_home(server) as client:
        for number in range(len(paths)):
            task = done(f"http://127.0.0.1:{server.port}/hop{number}", ticket=f"t{number}")
            (file,) = await client.save(task, folder)
            assert Path(file) == folder / f"t{number}-0.png"


async def test_no_content_disposition_names_a_file(folder: Path) -> None:
    def answer(path: str, head: bytes) -> bytes:
        return reply(headers=f"Content-Disposition: {DISPOSITIONS[int(path[1:])]}\r\n")

    async with serving(answer) as server, at_home(server) as client:
        for number in range(len(DISPOSITIONS)):
            task = done(f"http://127.0.0.1:{server.port}/{number}", ticket=f"t{number}")
            (file,) = await client.save(task, folder)
            assert Path(file) == folder / f"t{number}-0.png"


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_no_content_type_makes_an_extension(body: bytes, folder: Path) -> None:
    told = [kind for kind in TYPES if kind.isprintable() and kind.strip()]

    def answer(path: str, head: bytes) -> bytes:
        return reply(body, headers=f"Content-Type: {told[int(path[1:])]}\r\n")

    async with serving(answer) as server, at_home(server) as client:
        for number in range(len(told)):
            task = done(f"http://127.0.0.1:{server.port}/{number}", ticket=f"t{number}")
            (file,) = await client.save(task, folder)
            assert_ours(file, folder, f"t{number}", is_png=body == PNG)


@pytest.mark.parametrize("body", [BODIES["png"], BODIES["unknown"]], ids=["png", "unknown"])
async def test_no_media_type_of_an_output_makes_an_extension(body: bytes, folder: Path) -> None:
    async with serving(reply(body)) as server, at_home(server) as client:
        for number, kind in enumerate(TYPES):
            output = Output(url=f"http://127.0.0.1:{server.port}/a", kind="image", media_type=kind)
            task = Task(ticket=f"t{number}", task_id="x", status=TaskStatus.SUCCEEDED, outputs=(output,))
            (file,) = await client.save(task, folder)
            assert_ours(file, folder, f"t{number}", is_png=body == PNG)


@pytest.mark.parametrize("kind", ["../../evil", "", "\0", LONG, "image/png", "\x1b[2J"])
async def test_no_kind_of_an_output_names_a_file(kind: str, folder: Path) -> None:
    async with serving(reply()) as server, at_home(server) as client:
        (file,) = await client.save(done(f"http://127.0.0.1:{server.port}/a", kind=kind), folder)

    assert names(folder) == ["t1-0.png"]
    assert Path(file).read_bytes() == PNG


async def test_no_data_address_makes_an_extension(folder: Path) -> None:
    async with far_client() as client:
        for number, kind in enumerate(TYPES):
            for body in (PNG, BODIES["unknown"]):
                data = f"data:{kind};base64,{base64.b64encode(body).decode()}"
                output = Output(data=data, kind="image", media_type=kind)
                ticket = f"t{number}-{len(body)}"
                task = Task(ticket=ticket, task_id="x", status=TaskStatus.SUCCEEDED, outputs=(output,))
                (file,) = await client.save(task, folder)
                assert_ours(file, folder, ticket, is_png=body == PNG)


def assert_ours(file: SavedFile, folder: Path, ticket: str, *, is_png: bool) -> None:
    path = Path(file)
    assert path.parent == folder
    stem, _, extension = path.name.rpartition(".")
    assert stem == f"{ticket}-0"
    assert extension in ({"png"} if is_png else {"bin"})
    assert path.is_file()
    assert not path.stat().st_mode & 0o111
    if file.media_type is not None:
        assert file.media_type.isascii()
        assert file.media_type.isprintable()
        assert len(file.media_type) < 110


@settings(max_examples=200)
@given(st.text() | st.sampled_from(TYPES) | st.sampled_from(sorted(_EXTENSIONS)))
def test_extensions_are_only_ours(kind: str) -> None:
    assert extension_of(kind) in OURS
    assert all(each.isalnum() and len(each) < 5 for each in OURS)


@pytest.mark.parametrize("kind", ["\x1b]0;gotcha\x07", "x" * 9000, "a\x7f\x08\x08b", "\xe9\x80"])
async def test_no_content_type_writes_to_a_terminal(kind: str, folder: Path) -> None:
    """A page of words under an odd type: it is told, and as it may be shown."""
    page = f"<html>https://cdn.example/a?Signature={SECRET}\x1b[2J</html>".encode().replace(b"\x1b", b" ")
    async with serving(reply(page, headers=f"Content-Type: {kind}\r\n")) as server, at_home(server) as client:
        with pytest.raises(DownloadError) as caught:
            await client.save(done(f"http://127.0.0.1:{server.port}/a"), folder)

    assert_fit_to_show(caught.value)


# What the HTTP library says of broken bytes quotes them.
@pytest.mark.parametrize(
    "head",
    [
        f"HTTP/1.1 302 X\r\nLocation https://a.example/?Signature={SECRET}\r\n\r\n",
        f"HTTP/1.1 200 X\r\nContent-Length: https://a.example/?Signature={SECRET}\r\n\r\n",
        f"HTTP/1.1 200 X\r\nTransfer-Encoding: https://a.example/?Signature={SECRET}\r\n\r\n",
        f"https://a.example/?Signature={SECRET}\r\n\r\n",
        f"HTTP/1.1 999 https://a.example/?Signature={SECRET}\r\n\r\n",
        "\x1b]0;gotcha\x07\r\n\r\n",
        f"HTTP/1.1 416 X\r\nContent-Range: https://a.example/?Signature={SECRET}\r\n\r\n",
        f"HTTP/1.1 206 X\r\nContent-Range: https://a.example/?Signature={SECRET}\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_no_broken_head_of_an_answer_puts_a_signature_into_an_error(head: str, folder: Path) -> None:
    async with serving(head.encode()) as server, at_home(server) as client:
        with pytest.raises(DownloadError) as caught:
            await client.save(done(f"http://127.0.0.1:{server.port}/a?Signature={SECRET}"), folder)

    assert_fit_to_show(caught.value)
    assert names(folder) == []


def assert_fit_to_show(error: BaseException) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 1200
    assert SECRET not in str(error)


# What others have planted ------------------------------------------------------------------------------------

NAMES = [".t1-0.part", ".t1-0.part.log", "t1-0.png"]


def plant(kind: str, at: Path, victim: Path) -> None:
    match kind:
        case "symlink":
            at.symlink_to(victim)
        case "relative symlink":
            at.symlink_to(os.path.relpath(victim, at.parent))
        case "dangling symlink":
            at.symlink_to(victim.parent / "not-there-yet")
        case "symlink to a folder":
            at.symlink_to(victim.parent)
        case "symlink to itself":
            at.symlink_to(at)
        case "device":
            at.symlink_to("/dev/null")
        case "hard link":
            os.link(victim, at)
        case "FIFO":
            os.mkfifo(at)
        case "folder":
            at.mkdir()
            (at / "inside").write_bytes(b"as it was")


KINDS = [
    "symlink", "relative symlink", "dangling symlink", "symlink to a folder", "symlink to itself", "device",
    "hard link", "FIFO", "folder",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("overwrite", [False, True], ids=["keep", "overwrite"])
async def test_nothing_is_written_through_what_others_have_planted(
    kind: str, name: str, overwrite: bool, folder: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "above" / "deeper" / "evil.png"
    planted = folder / name
    plant(kind, planted, victim)
    is_target, is_folder = name == NAMES[-1], kind == "folder"
    async with serving(reply(headers='ETag: "1"\r\n')) as server, at_home(server) as client:
        task = done(f"http://127.0.0.1:{server.port}/a")
        if is_folder or (is_target and not overwrite):
            with pytest.raises(DownloadError) as caught:
                await client.save(task, folder, overwrite=overwrite)
            assert name in str(caught.value)
        else:
            await client.save(task, folder, overwrite=overwrite)
            target = folder / "t1-0.png"
            assert stat.S_ISREG(target.lstat().st_mode)
            assert target.stat().st_nlink == 1
            assert target.read_bytes() == PNG
            assert names(folder) == ["t1-0.png"]

    assert victim.read_bytes() == b"as it was"
    if is_folder:
        assert (planted / "inside").read_bytes() == b"as it was"


async def test_a_planted_link_to_the_same_bytes_is_not_taken_for_the_file(
    folder: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "above" / "same"
    elsewhere.write_bytes(PNG)
    (folder / "t1-0.png").symlink_to(elsewhere)
    async with serving(reply()) as server, at_home(server) as client:
        with pytest.raises(DownloadError, match="is there already, and is another file"):
            await client.save(done(f"http://127.0.0.1:{server.port}/a"), folder)

    elsewhere.unlink()
    (folder / "t1-0.png").unlink()


async def test_a_part_and_a_journal_that_others_wrote_are_not_believed(folder: Path) -> None:
    """They may say what they like: what is kept agrees with its digests, and the server decides by the validator."""
    (folder / ".t1-0.part").write_bytes(b"evil" * 4)
    (folder / ".t1-0.part.log").write_bytes(
        b'{"version":1,"validator":"\\"1\\"","total":16}\n16 ' + b"0" * 64 + b"\n"
    )
    async with serving(reply(headers='ETag: "1"\r\n')) as server, at_home(server) as client:
        (file,) = await client.save(done(f"http://127.0.0.1:{server.port}/a"), folder)

    assert Path(file).read_bytes() == PNG
    assert b"range" not in server.requests[0].lower()
    assert names(folder) == ["t1-0.png"]


async def test_a_directory_that_others_swap_for_a_link_gets_nothing_that_was_elsewhere(
    folder: Path, tmp_path: Path
) -> None:
    """A folder that the caller names may be a link of the caller's: it is followed, and no further."""
    link = folder / "link"
    link.symlink_to(folder, target_is_directory=True)
    async with serving(reply()) as server, at_home(server) as client:
        (file,) = await client.save(done(f"http://127.0.0.1:{server.port}/a"), link)

    assert Path(file) == link / "t1-0.png"
    assert names(folder) == ["link", "t1-0.png"]


# Bombs -------------------------------------------------------------------------------------------------------

BOMB = gzip.compress(bytes(20_000_000), 1)
BOMBS = [
    *product(["gzip", "GZIP", "identity, gzip", "deflate", "br", "zstd", "x-gzip"], [200]),
    ("gzip", 206),
]


@pytest.mark.parametrize(("packing", "status"), [*BOMBS, ("gzip", 302), ("gzip", 500), ("unheard-of", 200)])
async def test_nothing_that_comes_packed_is_inflated(packing: str, status: int, folder: Path) -> None:
    """What is packed in a way that nobody knows is a file like any other."""
    location = "Location: /a\r\n" if status == 302 else ""
    answer = reply(BOMB, status=status, headers=f"Content-Encoding: {packing}\r\n{location}")
    async with serving(answer) as server, at_home(server) as client:
        task = done(f"http://127.0.0.1:{server.port}/a")
        tracemalloc.start()
        try:
            with suppress(DownloadError):
                await client.save(task, folder)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak < 3_000_000
    assert names(folder) == (["t1-0.gz"] if packing == "unheard-of" else [])
    assert all(path.stat().st_size == len(BOMB) for path in folder.iterdir())


# As long as bytes are there, reading them does not wait: 64 KiB in chunks of one byte take a quarter of a second.
@pytest.mark.real_time
async def test_a_body_of_very_many_small_pieces_leaves_the_loop_to_others(folder: Path) -> None:
    turns, during = 0, []

    class Crumbs(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            during.append(turns)
            for _ in range(30_000):
                yield b"\x01"
            during.append(turns)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    headers = {"content-length": "30000"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=Crumbs()))
    async with far_client(transport=transport) as client:
        waiting = asyncio.create_task(others())
        await client.save(done("https://cdn.example/a"), folder)
        waiting.cancel()

    assert during[1] - during[0] >= 5
