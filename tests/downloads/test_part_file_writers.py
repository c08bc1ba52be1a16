"""A part file and others who write to it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest

from bide._downloads import part_file as _part
from bide._downloads.part_file import PartBusyError
from support.part_files import (
    ETAG,
    PLANTS,
    assert_holds,
    left,
    line_of,
    log_of,
    names,
    no_new_descriptors,
    opened,
    other_process,
    part_of,
)
from support.waits import A_MINUTE

# Others ------------------------------------------------------------------------------------------------------


def test_a_part_that_is_open_here_is_busy(tmp_path: Path) -> None:
    part = opened(tmp_path)
    part.begin(validator=ETAG, total=None)
    part.write(b"bytes")

    with no_new_descriptors(), pytest.raises(PartBusyError, match=r"t1-0\.part is being written"):
        opened(tmp_path)

    assert_holds(part, b"bytes")
    part.close()
    opened(tmp_path).discard()


def test_a_part_that_another_process_has_open_is_busy_until_it_is_gone(tmp_path: Path) -> None:
    code = """
        part = PartFile.open(Path(sys.argv[1]), "t1-0")
        part.begin(validator="v", total=None)
        part.write(b"theirs")
        print("open", flush=True)
        time.sleep(60)
    """
    with other_process(code, tmp_path) as process:
        assert line_of(process) == "open"
        with pytest.raises(PartBusyError):
            opened(tmp_path)
        process.kill()
        process.wait(A_MINUTE)

    part = opened(tmp_path)
    assert_holds(part, b"theirs")
    part.discard()


def test_of_many_processes_that_open_and_finish_one_part_each_writes_a_whole_file(tmp_path: Path) -> None:
    code = """
        print("here", flush=True)
        sys.stdin.readline()
        me, done = sys.argv[2].encode(), 0
        while done < 40:
            try:
                part = PartFile.open(Path(sys.argv[1]), "t1-0")
            except PartBusyError:
                time.sleep(0.0003)
                continue
            part.begin(validator="v", total=None)
            for _ in range(3):
                part.write(me * 20_000)
            if done % 3 == 0:
                part.discard()
            else:
                part.finish(Path(sys.argv[1]) / f"{sys.argv[2]}{done}", overwrite=done % 3 == 1)
            done += 1
        print("done", flush=True)
    """
    with other_process(code, tmp_path, "a") as one, other_process(code, tmp_path, "b") as other:
        for process in (one, other):
            assert line_of(process) == "here"
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        assert (line_of(one), line_of(other)) == ("done", "done")

    for number in range(40):
        for me in "ab":
            path = tmp_path / f"{me}{number}"
            assert path.exists() == (number % 3 != 0)
            assert not path.exists() or path.read_bytes() == me.encode() * 60_000


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """The parent is killed; a child that it forked lives on."""
    code = """
        part = PartFile.open(Path(sys.argv[1]), "t1-0")
        part.begin(validator="v", total=None)
        part.write(b"theirs")
        child = os.fork()
        if not child:
            part.close()  # does nothing to the parent's
            part.discard()
            print("child", os.getpid(), flush=True)
        time.sleep(60)
    """
    with other_process(code, tmp_path) as process:
        child = int(line_of(process).removeprefix("child "))
        try:
            with pytest.raises(PartBusyError):
                opened(tmp_path)
            process.kill()
            process.wait(A_MINUTE)

            part = opened(tmp_path)
            assert_holds(part, b"theirs")
            part.discard()
        finally:
            os.kill(child, signal.SIGKILL)


def test_after_a_fork_the_part_is_closed_for_the_child(tmp_path: Path) -> None:
    left(tmp_path, b"bytes")
    part = opened(tmp_path)

    _part._after_fork()

    part.discard()
    assert names(tmp_path) == [".t1-0.part", ".t1-0.part.log"]
    opened(tmp_path).discard()


def test_a_closed_part_is_free_though_a_child_has_its_descriptor(tmp_path: Path) -> None:
    part = opened(tmp_path)
    part.begin(validator=ETAG, total=None)
    part.write(b"bytes")
    copy = os.dup(part._file.fileno())  # as a process that is just being started has it
    part.close()

    part = opened(tmp_path)

    assert_holds(part, b"bytes")
    part.discard()
    os.close(copy)


def test_without_locks_a_part_is_written_all_the_same(tmp_path: Path) -> None:
    """As on Windows, where the module is not there and an open file can be neither renamed nor removed."""
    code = """
        folder = Path(sys.argv[1])
        part = PartFile.open(folder, "t1-0")
        part.begin(validator="v", total=None)
        part.write(b"bytes")
        part.close()
        part = PartFile.open(folder, "t1-0")
        print(part.size, part.finish(folder / "file", overwrite=False), *os.listdir(folder), flush=True)
        for piece in (b"bytes", b"other"):
            part = PartFile.open(folder, "t1-0")
            part.begin(validator="v", total=None)
            part.write(piece)
            try:
                print(part.finish(folder / "file", overwrite=False), flush=True)
            except FileExistsError:
                part.discard()
                print("another", *os.listdir(folder), flush=True)
    """
    with other_process(code, tmp_path, before="sys.modules['fcntl'] = None") as process:
        assert [line_of(process) for _ in range(3)] == ["5 True file", "False", "another file"]
        assert process.wait(A_MINUTE) == 0


def test_where_files_have_no_locks_the_bytes_are_read_again_before_they_get_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    left(tmp_path, b"bytes")
    one, other = opened(tmp_path), opened(tmp_path)
    other.begin(validator='"v2"', total=None)
    other.write(b"BYTES")

    with pytest.raises(OSError, match="another process has written to the part file"):
        one.finish(tmp_path / "file", overwrite=False)
    assert other.finish(tmp_path / "file", overwrite=False)

    assert (tmp_path / "file").read_bytes() == b"BYTES"
    one.discard()
    assert names(tmp_path) == ["file"]


def test_a_part_that_was_finished_while_it_was_opened_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path)
    first.begin(validator=ETAG, total=None)
    first.write(b"first")
    real = fcntl.flock

    def flock(file: FileIO, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        assert first.finish(tmp_path / "file", overwrite=False)
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    second = opened(tmp_path)
    second.begin(validator=ETAG, total=None)
    second.write(b"second")
    assert second.finish(tmp_path / "other", overwrite=False)

    assert (tmp_path / "file").read_bytes() == b"first"
    assert (tmp_path / "other").read_bytes() == b"second"


@pytest.mark.parametrize("place", [part_of, log_of])
@pytest.mark.parametrize("plant", [*PLANTS, None])
def test_what_changes_between_the_look_and_the_opening_is_looked_at_again(
    plant: Callable[[Path, Path], None] | None,
    place: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = tmp_path / "out"
    folder.mkdir()
    left(folder, b"bytes")
    real, plants = os.open, [plant]

    def swapped(path: Path, flags: int, mode: int = 0o777) -> int:
        if plants and path == place(folder):
            path.unlink()
            if (chosen := plants.pop()) is not None:
                chosen(path, victim)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", swapped)
    part = opened(folder)
    part.begin(validator=ETAG, total=None)
    part.write(b"bytes")

    assert_holds(part, b"bytes")
    assert victim.read_bytes() == b"precious"
    part.discard()


def test_a_name_that_never_rests_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def swapped(path: Path, flags: int, mode: int = 0o777) -> int:
        path.unlink(missing_ok=True)
        path.symlink_to("elsewhere")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", swapped)

    with no_new_descriptors(), pytest.raises(OSError, match="another process keeps replacing"):
        opened(tmp_path)


def test_a_part_that_goes_away_whenever_it_is_locked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: part_of(tmp_path).unlink(missing_ok=True))

    with no_new_descriptors(), pytest.raises(OSError, match="another process keeps replacing"):
        opened(tmp_path)


def test_a_part_that_may_not_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left(tmp_path, b"bytes")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(PermissionError):
        opened(tmp_path)
