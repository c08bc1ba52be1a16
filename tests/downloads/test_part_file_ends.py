"""What stands in the place of a part or of its target, and how a file ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bide._downloads.part_file import PartFile
from support.part_files import (
    ETAG,
    PLANTS,
    assert_holds,
    left,
    log_of,
    names,
    no_new_descriptors,
    opened,
    part_of,
)

# What stands in its place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [part_of, log_of])
@pytest.mark.parametrize("plant", PLANTS)
def test_what_was_planted_in_its_place_is_removed_and_never_written_through(
    plant: Callable[[Path, Path], None], place: Callable[[Path], Path], tmp_path: Path
) -> None:
    victim = tmp_path / "elsewhere" / "victim"
    victim.parent.mkdir()
    victim.write_bytes(b"precious")
    folder = tmp_path / "out"
    folder.mkdir()
    plant(place(folder), victim)

    with no_new_descriptors():
        part = opened(folder)
        part.begin(validator=ETAG, total=None)
        part.write(b"bytes")
        assert_holds(part, b"bytes")
        assert part.finish(folder / "file", overwrite=False)

    assert (folder / "file").read_bytes() == b"bytes"
    assert names(folder) == ["file"]
    assert (victim.read_bytes(), names(victim.parent)) == (b"precious", ["victim"])


@pytest.mark.parametrize("place", [part_of, log_of])
def test_a_link_to_the_parts_of_another_folder_is_not_taken_up(
    place: Callable[[Path], Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    data = left(other, b"bytes")
    place(tmp_path).symlink_to(place(other))

    part = opened(tmp_path)

    assert_holds(part, b"")
    part.discard()
    assert part_of(other).read_bytes() == data


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and make devices")
@pytest.mark.parametrize("place", [part_of, log_of])
def test_a_file_of_another_user_or_a_device_is_removed(place: Callable[[Path], Path], tmp_path: Path) -> None:
    left(tmp_path, b"bytes")
    os.chown(place(tmp_path), 12345, 12345)
    part = opened(tmp_path)
    assert_holds(part, b"")
    part.discard()

    try:
        os.mknod(place(tmp_path), 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this root may make no devices")
    part = opened(tmp_path)
    assert part.path.is_file()
    part.discard()


@pytest.mark.parametrize("place", [part_of, log_of])
def test_a_directory_in_its_place_is_told(place: Callable[[Path], Path], tmp_path: Path) -> None:
    place(tmp_path).mkdir()

    with (
        no_new_descriptors(),
        pytest.raises(IsADirectoryError, match="a directory has the name of") as caught,
    ):
        opened(tmp_path)

    assert caught.value.filename == str(place(tmp_path))


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PartFile.open(tmp_path / "none", "t1-0")


@pytest.mark.parametrize(
    "stem", ["", "a/b", "../x", "./../../x", "/etc/passwd", "a/../../b", "x\0y", "..\\x", "/", "a/"]
)
def test_a_stem_that_is_no_name_is_refused(stem: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    with pytest.raises(ValueError, match="cannot name a file"):
        PartFile.open(folder, stem)

    assert (names(folder), names(tmp_path)) == ([], ["out"])


# The end -----------------------------------------------------------------------------------------------------


def test_the_same_bytes_under_the_name_are_enough(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"one two")
    before = target.stat()
    left(tmp_path, b"one ", b"two")

    with no_new_descriptors():
        assert opened(tmp_path).finish(target, overwrite=False) is False

    assert names(tmp_path) == ["file"]
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("other", [b"one tvo", b"one two three", b""])
def test_another_file_under_the_name_is_not_touched(other: bytes, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(other)
    data = left(tmp_path, b"one two")
    part = opened(tmp_path)

    with pytest.raises(FileExistsError, match="another file of that name") as caught:
        part.finish(target, overwrite=False)

    assert caught.value.filename == str(target)
    assert target.read_bytes() == other
    assert_holds(part, data)
    assert part.finish(target, overwrite=True)
    assert target.read_bytes() == data
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_no_plain_file_under_the_name_is_refused_or_replaced(
    plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    target = tmp_path / "out" / "file"
    target.parent.mkdir()
    plant(target, victim)
    left(target.parent, b"bytes")
    part = opened(target.parent)

    with pytest.raises(FileExistsError):
        part.finish(target, overwrite=False)
    assert part.finish(target, overwrite=True)

    assert not target.is_symlink()
    assert target.read_bytes() == b"bytes"
    assert victim.read_bytes() == b"precious"
    assert names(tmp_path) == ["out", "victim"]


def test_a_link_to_the_same_bytes_is_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"victim")  # as long as the text of the link
    (tmp_path / "file").symlink_to("victim")
    left(tmp_path, b"victim")
    part = opened(tmp_path)

    with pytest.raises(FileExistsError):
        part.finish(tmp_path / "file", overwrite=False)

    part.discard()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_under_the_name_stays(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    left(tmp_path, b"bytes")
    part = opened(tmp_path)

    with pytest.raises(OSError, match="file"):
        part.finish(tmp_path / "file", overwrite=overwrite)

    assert (tmp_path / "file").is_dir()
    assert_holds(part, b"bytes")
    part.discard()


@pytest.mark.parametrize("meddle", ["remove", "replace", "lengthen", "shorten"])
def test_a_part_that_somebody_changed_gets_no_name(meddle: str, tmp_path: Path) -> None:
    left(tmp_path, b"bytes")
    part = opened(tmp_path)
    if meddle in ("remove", "replace"):
        part.path.unlink()
    if meddle != "remove":
        part.path.write_bytes(b"lengthened" if meddle == "lengthen" else b"byte")

    with pytest.raises(OSError, match="another process has changed the part file"):
        part.finish(tmp_path / "file", overwrite=True)

    part.discard()
    assert names(tmp_path) == ([".t1-0.part"] if meddle == "replace" else [])  # it is not ours to remove


def test_the_bytes_are_on_disk_before_they_have_their_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, names(tmp_path)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    left(tmp_path, b"bytes")
    opened(tmp_path).finish(tmp_path / "file", overwrite=False)

    assert synced == [
        (".t1-0.part", [".t1-0.part", ".t1-0.part.log"]),
        (tmp_path.name, [".t1-0.part.log", "file"]),
    ]


def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    left(tmp_path, b"bytes")

    with no_new_descriptors():
        part = opened(tmp_path)
        part.discard()
        part.discard()
        part.close()

    assert names(tmp_path) == []


def test_a_part_knows_by_its_structure_whether_it_is_cut_off(tmp_path: Path) -> None:
    film = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x09moovx" + b"\0\0\0\x0cmdatdata"
    part = opened(tmp_path)
    part.begin(validator=None, total=None)
    part.write(film[:-1])
    assert part.find_truncation("video/mp4") == f"its mdat continues to byte {len(film)}"
    assert not part.proves_whole("video/mp4")

    part.write(film[-1:])

    assert part.find_truncation("video/mp4") is None
    assert part.proves_whole("video/mp4")
    assert_holds(part, film)
    part.discard()
