"""How a file gets on disk: what is written, and what is taken up after a crash."""

from __future__ import annotations

import errno
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bide._downloads import part_file as _part
from bide._downloads.media_types import HEAD_BYTES
from support.part_files import (
    ETAG,
    MIB,
    assert_holds,
    digest,
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

# Writing -----------------------------------------------------------------------------------------------------


def test_a_finished_file_has_the_bytes_that_were_written(tmp_path: Path) -> None:
    data = os.urandom(3 * MIB + 17)
    with no_new_descriptors():
        part = opened(tmp_path)
        part.begin(validator=ETAG, total=len(data))
        part.write(data[:1000])
        part.write(bytearray(data[1000:MIB]))
        part.write(memoryview(data)[MIB:])

        assert_holds(part, data)
        assert part.finish(tmp_path / "t1-0.png", overwrite=False)

    assert (tmp_path / "t1-0.png").read_bytes() == data
    assert names(tmp_path) == ["t1-0.png"]


def test_the_head_grows_up_to_its_length(tmp_path: Path) -> None:
    part = opened(tmp_path)
    part.begin(validator=None, total=None)
    for _ in range(HEAD_BYTES):
        part.write(b"abc")

    assert part.head == (b"abc" * HEAD_BYTES)[:HEAD_BYTES]
    part.discard()


def test_views_of_wider_items_are_written_as_bytes(tmp_path: Path) -> None:
    part = opened(tmp_path)
    part.begin(validator=None, total=None)
    part.write(memoryview(bytes(range(8))).cast("I"))

    assert_holds(part, bytes(range(8)))
    part.discard()


def test_to_begin_again_empties_it(tmp_path: Path) -> None:
    part = opened(tmp_path)
    part.begin(validator=ETAG, total=9)
    part.write(b"old bytes")
    part.begin(validator='"v2"', total=3)
    part.write(b"new")

    assert_holds(part, b"new")
    assert (part.validator, part.total) == ('"v2"', 3)
    part.close()
    part = opened(tmp_path)
    assert_holds(part, b"new")
    assert (part.validator, part.total) == ('"v2"', 3)
    part.discard()


def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        left(tmp_path, b"bytes")
        part = opened(tmp_path)
        part.finish(tmp_path / "file", overwrite=False)
    finally:
        os.umask(before)

    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """As on a full disk: the system takes what fits of a piece, and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there_before_the_piece(tmp_path: Path) -> None:
    part = opened(tmp_path)
    part.begin(validator=ETAG, total=None)
    part.write(b"a" * 1000)

    with files_limited_to(1500):
        with pytest.raises(OSError, match="File too large"):
            part.write(b"b" * 1000)
        assert_holds(part, b"a" * 1000)
        part.write(b"c" * 200)

    part.close()
    part = opened(tmp_path)
    assert_holds(part, b"a" * 1000 + b"c" * 200)
    part.discard()


def test_a_piece_that_cannot_be_noted_is_taken_back(tmp_path: Path) -> None:
    part = opened(tmp_path)
    part.begin(validator="v" * 400, total=None)
    part.write(b"a")
    noted = log_of(tmp_path).read_bytes()

    with files_limited_to(len(noted) + 20), pytest.raises(OSError, match="File too large"):
        part.write(b"b" * 10)

    assert_holds(part, b"a")
    assert log_of(tmp_path).read_bytes() == noted
    part.write(b"c")
    part.close()
    part = opened(tmp_path)
    assert_holds(part, b"ac")
    part.discard()


def test_a_part_that_cannot_even_be_begun_is_empty(tmp_path: Path) -> None:
    left(tmp_path, b"bytes")
    part = opened(tmp_path)

    with files_limited_to(20), pytest.raises(OSError, match="File too large"):
        part.begin(validator='"v2"', total=9)

    assert_holds(part, b"")
    assert (part.validator, part.total) == (None, None)
    part.close()
    assert names(tmp_path) == []


# Taking up ---------------------------------------------------------------------------------------------------


def test_what_was_closed_is_taken_up_and_gone_on_with(tmp_path: Path) -> None:
    data = left(tmp_path, b"one", b"two" * MIB, total=10 * MIB)

    with no_new_descriptors():
        part = opened(tmp_path)
        assert_holds(part, data)
        assert (part.validator, part.total) == (ETAG, 10 * MIB)
        part.write(b"three")
        part.close()

    part = opened(tmp_path)
    assert_holds(part, data + b"three")
    assert part.finish(tmp_path / "file", overwrite=False)
    assert (tmp_path / "file").read_bytes() == data + b"three"


@pytest.mark.parametrize("validator", ['W/"a b"', "Wed, 21 Oct 2026 07:28:00 GMT", '"签名\\\n\0 "', ""])
def test_a_validator_comes_back_as_it_was(validator: str, tmp_path: Path) -> None:
    left(tmp_path, b"bytes", validator=validator, total=None)

    part = opened(tmp_path)

    assert (part.validator, part.total) == (validator, None)
    part.discard()


@pytest.mark.parametrize(("validator", "pieces"), [(None, [b"bytes"]), (ETAG, []), (None, [])])
def test_what_nobody_can_go_on_with_is_not_kept(
    validator: str | None, pieces: list[bytes], tmp_path: Path
) -> None:
    part = opened(tmp_path)
    part.begin(validator=validator, total=None)
    for piece in pieces:
        part.write(piece)
    part.close()
    part.close()

    assert names(tmp_path) == []


def test_bytes_without_a_validator_are_not_taken_up(tmp_path: Path) -> None:
    left(tmp_path, b"bytes", validator=None, total=5)

    part = opened(tmp_path)

    assert_holds(part, b"")
    assert (part.validator, part.total) == (None, None)
    part.discard()


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda part, log: (part, log[:-1]), 2),  # a torn last line
        (lambda part, log: (part, log[:-40]), 2),
        (lambda part, log: (part[:-1], log), 2),
        (lambda part, log: (part[:2500], log), 2),
        (lambda part, log: (part + b"more", log), 3),
        (lambda part, log: (part, log + b"garbage"), 3),
        (lambda part, log: (part, log + b"9999 garbage\n\n \nx\n"), 3),
        (lambda part, log: (part[:1000] + bytes(2000), log), 1),  # pages that the power cut left empty
        (lambda part, log: (part[:2000] + bytes(1000), log), 2),
        (lambda part, log: (bytes(3000), log), 0),
        (lambda part, log: (damaged(part, 1500), log), 1),
        (lambda part, log: (damaged(part, 0), log), 0),
        (lambda part, log: (b"", log), 0),
        (lambda part, log: (part, b""), 0),
        (lambda part, log: (part, os.urandom(300)), 0),
        (lambda part, log: (part, bytes(len(log))), 0),
        (lambda part, log: (part, damaged(log, 15)), 0),  # the note
        (lambda part, log: (part, log.replace(b"v1", b"v2", 1)), 0),
        (lambda part, log: (part, log.replace(b"5000", b"6000", 1)), 0),
        (lambda part, log: (part, log + b"9000 " + log[-65:]), 3),
        (lambda part, log: (part, damaged(log, len(log) - 3)), 2),
        (lambda part, log: (part, log.replace(b"\n2000 ", b"\n9000 ")), 3),  # a later mark is enough
        (lambda part, log: (part, b"".join(log.splitlines(True)[:1] + log.splitlines(True)[:0:-1])), 3),
        (lambda part, log: (part, log[:-1].replace(b"\n1000 ", b"\n2900 ")), 2),
        (lambda part, log: (part, log * 2), 3),
        (lambda part, log: (part, log + b"x" * 17 * MIB), 0),
    ],
)
def test_the_longest_beginning_that_the_journal_vouches_for_is_kept(
    damage: Callable[[bytes, bytes], tuple[bytes, bytes]], kept: int, tmp_path: Path
) -> None:
    pieces = [os.urandom(1000) for _ in range(3)]
    data = left(tmp_path, *pieces, total=5000)
    bad_part, bad_log = damage(data, log_of(tmp_path).read_bytes())
    part_of(tmp_path).write_bytes(bad_part)
    log_of(tmp_path).write_bytes(bad_log)

    part = opened(tmp_path)

    assert_holds(part, data[: 1000 * kept])
    assert (part.validator, part.total) == ((ETAG, 5000) if kept else (None, None))
    if not kept:
        part.begin(validator=ETAG, total=5000)
    part.write(b"more")
    part.close()
    part = opened(tmp_path)
    assert_holds(part, data[: 1000 * kept] + b"more")
    part.discard()


@pytest.mark.parametrize(
    "note", [b'{"version": 2, "validator": "v", "total": 5}', b'["v"]', b"no JSON", b'{"version": 1']
)
def test_a_note_that_another_version_wrote_is_not_read(note: bytes, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(b"bytes")
    log_of(tmp_path).write_text(f"{note.decode()} {digest(note)}\n5 {digest(b'bytes')}\n")

    part = opened(tmp_path)

    assert_holds(part, b"")
    part.discard()


def test_a_disk_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = left(tmp_path, b"bytes")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(_part, "_hash_on", broken)
        with no_new_descriptors(), pytest.raises(OSError, match="Input/output error"):
            opened(tmp_path)

    part = opened(tmp_path)
    assert_holds(part, data)
    part.discard()


def test_a_part_without_its_journal_is_begun_anew(tmp_path: Path) -> None:
    left(tmp_path, b"bytes")
    log_of(tmp_path).unlink()

    part = opened(tmp_path)

    assert_holds(part, b"")
    part.discard()


def test_a_journal_without_its_part_is_begun_anew(tmp_path: Path) -> None:
    left(tmp_path, b"bytes")
    part_of(tmp_path).unlink()

    part = opened(tmp_path)

    assert_holds(part, b"")
    part.discard()
    assert names(tmp_path) == []


DAMAGES = st.tuples(
    st.sampled_from([".t1-0.part", ".t1-0.part.log"]),
    st.sampled_from(["truncate", "flip", "append", "zero", "insert", "remove"]),
    st.integers(0, 400),
    st.binary(max_size=90),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=60), max_size=6),
    st.lists(DAMAGES, min_size=1, max_size=4),
    st.lists(st.binary(max_size=60), max_size=2),
)
@pytest.mark.no_cover
def test_whatever_is_damaged_what_is_taken_up_was_written(
    pieces: list[bytes], damages: list[tuple[str, str, int, bytes]], more: list[bytes]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = left(folder, *pieces, total=77)
        for file, kind, at, extra in damages:
            path = folder / file
            old = path.read_bytes() if path.exists() else b""
            path.write_bytes(
                {
                    "truncate": old[:at],
                    "flip": damaged(old, at) if at < len(old) else old,
                    "append": old + extra,
                    "zero": old[:at] + bytes(len(old[at:])),
                    "insert": old[:at] + extra + old[at:],
                    "remove": b"",
                }[kind]
            )

        part = opened(folder)
        kept = data[: part.size]
        assert_holds(part, kept)
        assert part.size in {sum(map(len, pieces[:count])) for count in range(len(pieces) + 1)}
        assert (part.validator, part.total) == ((ETAG, 77) if kept else (None, None))
        if not kept:
            part.begin(validator=ETAG, total=77)
        for piece in more:
            part.write(piece)
        part._release()

        part = opened(folder)
        assert_holds(part, kept + b"".join(more))
        part.discard()
        assert names(folder) == []


WRITER = """
    part = PartFile.open(Path(sys.argv[1]), "t1-0")
    part.begin(validator="v", total=None)
    number = 0
    while True:
        part.write(bytes([number % 251]) * 70_001)
        number += 1
        if number == 20:
            print("well on the way", flush=True)
"""


@pytest.mark.parametrize("wait", [0, 0.003, 0.011])
def test_what_a_killed_process_has_written_is_taken_up(wait: float, tmp_path: Path) -> None:
    with other_process(WRITER, tmp_path) as process:
        assert line_of(process) == "well on the way"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait(A_MINUTE) == -signal.SIGKILL

    part = opened(tmp_path)

    pieces = part.size // 70_001
    assert pieces >= 20
    assert_holds(part, b"".join(bytes([number % 251]) * 70_001 for number in range(pieces)))
    part.discard()


FINISHER = """
    number = 0
    while True:
        part = PartFile.open(Path(sys.argv[1]), "t1-0")
        part.begin(validator="v", total=None)
        part.write(bytes([number % 251]) * 200_000)
        part.finish(Path(sys.argv[1]) / "file", overwrite=sys.argv[2] == "overwrite")
        if number == 3:
            print("well on the way", flush=True)
        number += 1
        if sys.argv[2] != "overwrite":
            os.rename(Path(sys.argv[1]) / "file", Path(sys.argv[1]) / "old")
"""


@pytest.mark.parametrize("overwrite", ["overwrite", "not"])
@pytest.mark.parametrize("wait", [0, 0.007])
def test_a_process_killed_at_the_end_leaves_a_whole_file_or_none(
    overwrite: str, wait: float, tmp_path: Path
) -> None:
    with other_process(FINISHER, tmp_path, overwrite) as process:
        assert line_of(process) == "well on the way"
        time.sleep(wait)
        process.kill()
        process.wait(A_MINUTE)

    for name in {"file", "old"}.intersection(names(tmp_path)):
        data = (tmp_path / name).read_bytes()
        assert data == data[:1] * 200_000
    part = opened(tmp_path)
    part.begin(validator=None, total=None)
    part.write(b"new")
    assert part.finish(tmp_path / "file", overwrite=True)
    assert {"file"} <= set(names(tmp_path)) <= {"file", "old"}
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_crash_between_the_rename_and_the_removal_of_the_journal_harms_nothing(tmp_path: Path) -> None:
    left(tmp_path, b"whole")
    part_of(tmp_path).rename(tmp_path / "file")

    part = opened(tmp_path)
    part.begin(validator=ETAG, total=None)
    part.write(b"other")

    assert (tmp_path / "file").read_bytes() == b"whole"
    part.discard()
    assert names(tmp_path) == ["file"]
