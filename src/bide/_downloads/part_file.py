"""`PartFile`: an unfinished file beside its target, with a journal that shows which of its bytes are good.

A written piece is not flushed. After a crash the digests in the journal show which pieces have reached the disk. So a
power cut may lose some bytes, but the bytes that are kept are right.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from bide._downloads import media_types

try:
    import fcntl
except ImportError:  # Windows: there is no such lock
    fcntl = None  # type: ignore[assignment]  # checked before each use

if TYPE_CHECKING:
    from _hashlib import HASH

READ_BYTES = 2**20
"""Bytes that are read at once."""
WRITEBACK_BYTES = 8 * 2**20
"""New bytes after which the system is asked to start to write them to disk. Else the last flush waits for them all."""
MAX_JOURNAL_BYTES = 16 * 2**20
"""The longest journal that we write; a longer one is ignored."""
MAX_OPEN_TRIES = 100
"""How often a name is opened again while another process replaces its file."""

_FLAGS = (
    os.O_RDWR
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO with that name must not block us
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


class PartBusyError(Exception):
    """Another process or task is writing this part file now."""


class PartFile:
    """A file that is written piece by piece and gets its name when it is complete. Blocks: for a worker thread.

    Attributes:
        path: the file with the bytes received so far.
        size: its bytes that are known to be good.
        validator: the ETag or Last-Modified that `begin` recorded.
        total: the length of the whole file in bytes, if `begin` recorded one.
        head: its first bytes, which show its type.
    """

    def __init__(self, path: Path, file: FileIO, journal: FileIO, *, identity: str, is_locked: bool) -> None:
        self.path = path
        self._identity = identity
        self.size = 0
        self.validator: str | None = None
        self.total: int | None = None
        self.head = b""
        self._file = file
        self._journal = journal
        self._journal_size = 0  # bytes of the journal
        self._hash = hashlib.sha256()
        self._is_locked = is_locked
        self._writeback_size = 0  # bytes that the system was asked to write to disk
        self._recover()

    @classmethod
    def open(cls, folder: Path, stem: str, identity: str = "") -> PartFile:
        """Open the part file of *stem* in *folder*, or make it.

        Bytes from before a crash are kept if their digests agree and they have the same *identity*: the same name may
        later belong to another file.

        Raises:
            PartBusyError: another process or task has it open.
            OSError: it cannot be opened there.
            ValueError: *stem* cannot name a file.
        """
        if not stem or Path(f".{stem}.part").name != f".{stem}.part" or "\0" in stem or "\\" in stem:
            raise ValueError(f"{stem!r} cannot name a file")
        path = folder / f".{stem}.part"
        file, is_locked = _open_locked(path)
        try:
            journal = _open_own(_journal_path(path))
        except BaseException:
            _unlock_and_close(file)
            raise
        try:
            return cls(path, file, journal, identity=identity, is_locked=is_locked)
        except BaseException:
            journal.close()
            _unlock_and_close(file)
            raise

    def begin(self, *, validator: str | None, total: int | None) -> None:
        """Empty it, and record the *validator* and *total* length of the file that comes: a later try needs them."""
        self._truncate(0, 0, hashlib.sha256())
        self.validator = self.total = None
        note = json.dumps({"version": 1, "identity": self._identity, "validator": validator, "total": total})
        self._append_to_journal(f"{note} {hashlib.sha256(note.encode()).hexdigest()}\n")
        self.validator, self.total = validator, total

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append *piece*. If the disk is full, the file stays as it was before."""
        sha256 = self._hash.copy()
        sha256.update(piece)
        size = self.size + memoryview(piece).nbytes
        if os.fstat(self._file.fileno()).st_size < self.size:  # a write would leave a gap in it
            raise OSError(errno.ESTALE, "another process has cut the part file", str(self.path))
        try:
            _write_at(self._file, self.size, piece)
            self._append_to_journal(f"{size} {sha256.hexdigest()}\n")
        except BaseException:
            with suppress(OSError):  # if it fails: the next write starts at the same position
                self._file.truncate(self.size)
            raise
        self.size, self._hash = size, sha256
        if size - self._writeback_size >= WRITEBACK_BYTES:
            self._start_writeback()
        if len(self.head) < media_types.HEAD_BYTES:
            self.head += bytes(memoryview(piece).cast("B")[: media_types.HEAD_BYTES - len(self.head)])

    def _start_writeback(self) -> None:
        """Ask the system to start to write the new bytes to disk: it does so for pages that it need not cache."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                length = self.size - self._writeback_size
                os.posix_fadvise(self._file.fileno(), self._writeback_size, length, os.POSIX_FADV_DONTNEED)
        self._writeback_size = self.size

    def sha256(self) -> str:
        """The digest of the bytes so far, hexadecimal."""
        return self._hash.hexdigest()

    def find_truncation(self, media_type: str | None) -> str | None:
        """Why the bytes so far are cut off, if the structure of the type proves it; else None."""
        return media_types.find_truncation(self._file, self.size, media_type)

    def proves_whole(self, media_type: str | None) -> bool:
        """Whether the structure of its type proves that nothing is missing."""
        return media_types.proves_whole(self._file, self.size, media_type)

    def finish(self, target: Path, *, overwrite: bool) -> bool:
        """Rename it to *target*; it is on disk when this returns. Returns False if *target* had the same bytes already.

        Raises:
            FileExistsError: another file has that name, and *overwrite* is False. The part file stays.
            OSError: it cannot be renamed, or another process has changed it. The part file stays.
        """
        self._check_unchanged()
        if not overwrite:
            found = _lstat(target)
            if found is not None:
                if not self._is_same(target, found):
                    raise FileExistsError(errno.EEXIST, "there is another file of that name", str(target))
                self.discard()
                return False
        os.fsync(self._file.fileno())
        if fcntl is None:  # Windows cannot rename an open file
            self._file.close()
        self.path.replace(target)
        _sync_folder(target.parent)
        self.discard()
        return True

    def discard(self) -> None:
        """Remove the part file and its journal. Does nothing after they are closed."""
        if self._file.closed and self._journal.closed:
            return
        # The journal first, then the part file while it is locked: the next process that opens it never finds only one.
        for file, path in ((self._journal, _journal_path(self.path)), (self._file, self.path)):
            if fcntl is None:  # Windows cannot remove an open file
                file.close()
            with suppress(OSError):
                if file.closed or _is_at(path, file):
                    path.unlink()
        self._release()

    def close(self) -> None:
        """Close it. Keep the bytes if a later try can continue with them; else remove them. Does nothing after that."""
        if self.size and self.validator is not None:
            self._release()
        else:
            self.discard()

    def _release(self) -> None:
        self._journal.close()
        _unlock_and_close(self._file)

    def _recover(self) -> None:
        """Find the longest start of the part file that its journal confirms, and cut both to it."""
        lines = _journal_lines(self._journal)
        note = _read_note(lines[0], self._identity) if lines else None
        if note is None or note[0] is None:  # without a validator no try can continue it
            self._truncate(0, 0, hashlib.sha256())
            return
        length = os.fstat(self._file.fileno()).st_size
        marks, end = {}, 0
        for line in lines:
            end += len(line)
            size, digest = _read_mark(line)
            if 0 < size <= length:
                marks[size, digest] = end
        sha256, good = hashlib.sha256(), (0, 0, hashlib.sha256())
        hashed = 0
        for (size, digest), end in sorted(marks.items()):  # a damaged size may be out of order
            _hash_on(self._file, hashed, size, sha256)
            hashed = size
            if sha256.hexdigest() == digest:
                good = (size, end, sha256.copy())
        self._truncate(*good)
        if self.size:
            self.validator, self.total = note
            self._file.seek(0)
            self.head = self._file.read(min(self.size, media_types.HEAD_BYTES))

    def _truncate(self, size: int, journal_size: int, sha256: HASH) -> None:
        """Keep the first *size* bytes, and the first *journal_size* bytes of the journal."""
        self._journal.truncate(journal_size)
        self._file.truncate(size)
        self.size, self._journal_size, self._hash = size, journal_size, sha256
        self._writeback_size = size
        self.head = self.head[:size]

    def _append_to_journal(self, line: str) -> None:
        text = line.encode()
        try:
            _write_at(self._journal, self._journal_size, text)
        except BaseException:
            with suppress(OSError):
                self._journal.truncate(self._journal_size)
            raise
        self._journal_size += len(text)

    def _check_unchanged(self) -> None:
        """Raise OSError unless the file of that name is still ours, with our size: it is about to become the target."""
        if not _is_at(self.path, self._file) or os.fstat(self._file.fileno()).st_size != self.size:
            raise OSError(errno.ESTALE, "another process has changed the part file", str(self.path))
        if not self._is_locked:
            sha256 = hashlib.sha256()
            _hash_on(self._file, 0, self.size, sha256)
            if sha256.digest() != self._hash.digest():
                raise OSError(errno.ESTALE, "another process has written to the part file", str(self.path))

    def _is_same(self, target: Path, found: os.stat_result) -> bool:
        """Whether *target* is a plain file with the same bytes."""
        if not stat.S_ISREG(found.st_mode) or found.st_size != self.size:
            return False
        sha256 = hashlib.sha256()
        with FileIO(os.open(target, (_FLAGS & ~os.O_RDWR) | os.O_RDONLY)) as file:
            _hash_on(file, 0, self.size, sha256)
        return sha256.digest() == self._hash.digest()


def _journal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.log")


def _journal_lines(journal: FileIO) -> list[bytes]:
    """The complete lines of a journal. A crash may have cut the last line; it is left out."""
    if os.fstat(journal.fileno()).st_size > MAX_JOURNAL_BYTES:
        return []
    journal.seek(0)
    return [line + b"\n" for line in journal.readall().split(b"\n")[:-1]]


def _read_note(line: bytes, identity: str) -> tuple[str | None, int | None] | None:
    """The validator and the total length in the first line, or None if it is damaged or of another *identity*."""
    text, _, digest = line[:-1].rpartition(b" ")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    with suppress(ValueError):
        note = json.loads(text)
        if isinstance(note, dict) and note.get("version") == 1 and note.get("identity") == identity:
            return note["validator"], note["total"]
    return None


def _read_mark(line: bytes) -> tuple[int, str]:
    """The size and the digest in a line; a size of 0 if the line is damaged."""
    size, _, digest = line[:-1].partition(b" ")
    if size.isdigit() and len(size) < 20 and len(digest) == 64:
        return int(size), digest.decode("ascii", "replace")
    return 0, ""


def _write_at(file: FileIO, position: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of *data*: one call may write a part only, and the next one report that the disk is full."""
    file.seek(position)
    with memoryview(data) as view, view.cast("B") as rest:
        done = 0
        while done < len(rest):
            done += file.write(rest[done:])


def _hash_on(file: FileIO, start: int, end: int, sha256: HASH) -> None:
    """Update *sha256* with the bytes from *start* to *end*."""
    file.seek(start)
    position = start
    while position < end and (piece := file.read(min(READ_BYTES, end - position))):
        sha256.update(piece)
        position += len(piece)


# Opening -----------------------------------------------------------------------------------------------------

_open_files: WeakSet[FileIO] = WeakSet()


def _open_locked(path: Path) -> tuple[FileIO, bool]:
    """Open *path* for us alone. Also returns whether it is locked against other processes."""
    for _ in range(MAX_OPEN_TRIES):
        file = _open_own(path)
        try:
            is_locked = _lock(file, path)
            if _is_at(path, file):
                return file, is_locked
        except BaseException:
            file.close()
            raise
        _unlock_and_close(file)  # another process has renamed or removed it since we opened it
    raise _unstable_name_error(path)


def _open_own(path: Path) -> FileIO:
    """Open our own plain file *path*, or make it. A link or foreign file of that name is removed, never written to."""
    for _ in range(MAX_OPEN_TRIES):
        found = _lstat(path)
        if found is None:
            with suppress(FileExistsError):
                return _open_tracked(path, _FLAGS | os.O_CREAT | os.O_EXCL)
            continue
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a directory has the name of the part file", str(path))
        if not _is_ours(found):
            path.unlink(missing_ok=True)
            continue
        with suppress(FileNotFoundError):
            file = _open_found(path)
            if file is not None:
                return file
    raise _unstable_name_error(path)


def _open_found(path: Path) -> FileIO | None:
    """Open a file that was ours a moment ago; None if it is ours no longer."""
    try:
        file = _open_tracked(path, _FLAGS)
    except OSError as fault:
        if fault.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a FIFO, a directory by now
            return None
        raise
    if _is_ours(os.fstat(file.fileno())):
        return file
    file.close()
    return None


def _open_tracked(path: Path, flags: int) -> FileIO:
    file = FileIO(os.open(path, flags, 0o666), "r+")
    _open_files.add(file)
    return file


def _is_ours(found: os.stat_result) -> bool:
    """Whether this is a plain file of this user with no second name (hard link)."""
    is_mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    return stat.S_ISREG(found.st_mode) and is_mine and found.st_nlink == 1


def _lock(file: FileIO, path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PartBusyError(f"{path} is being written by another process") from None
    except OSError:  # a file system without locks: `finish` reads the bytes again
        return False
    return True


def _unlock_and_close(file: FileIO) -> None:
    """Unlock and close *file*. Closing alone is not enough: a child process being started may have a copy of it."""
    if not file.closed:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _after_fork() -> None:
    """Close the files in the child: it would keep their locks even after the parent's end."""
    for file in list(_open_files):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# Names -------------------------------------------------------------------------------------------------------


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _is_at(path: Path, file: FileIO) -> bool:
    """Whether *path* is the name of this open *file*."""
    found = _lstat(path)
    return found is not None and os.path.samestat(found, os.fstat(file.fileno()))


def _unstable_name_error(path: Path) -> OSError:
    return OSError(errno.EBUSY, "another process keeps replacing the file of this name", str(path))


def _sync_folder(folder: Path) -> None:
    """Write the names in *folder* to disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
