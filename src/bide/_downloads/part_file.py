"""One file on its way to disk: a part file beside its target, with a journal that tells how much of it is good.

Nothing of a piece is flushed when it is written. After a crash the journal's digests tell which of it has arrived, so
that a power cut costs some bytes and never the truth of those that are kept.
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

from bide._downloads import media_types as _media

try:
    import fcntl
except ImportError:  # Windows: no lock keeps others out there
    fcntl = None  # type: ignore[assignment]  # asked for before each use

if TYPE_CHECKING:
    from _hashlib import HASH

READ = 2**20
"""Bytes of one read."""
PUSH = 8 * 2**20
"""Bytes after which the system is told to begin to bring them to disk: else the end waits for all of them."""
JOURNAL = 16 * 2**20
"""A journal that is longer is not ours."""
TRIES = 100
"""How often a name is opened again when somebody else changes what it stands for."""

_FLAGS = (
    os.O_RDWR
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO in our place must not hold us up
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


class PartBusyError(Exception):
    """Somebody else is writing this part now."""


class PartFile:
    """A file that comes in piece by piece, and is whole or absent under its name. Blocks: for a worker thread.

    Attributes:
        path: where its bytes are until then.
        size: bytes that are there and are known to be good.
        validator: the text of the ETag or Last-Modified that `begin` noted.
        total: the length of the whole file, if it was told.
        head: its first bytes, which tell its type.
    """

    def __init__(self, path: Path, file: FileIO, journal: FileIO, *, identity: str, locked: bool) -> None:
        self.path = path
        self._identity = identity
        self.size = 0
        self.validator: str | None = None
        self.total: int | None = None
        self.head = b""
        self._file = file
        self._journal = journal
        self._noted = 0  # bytes of the journal
        self._hash = hashlib.sha256()
        self._locked = locked
        self._pushed = 0  # bytes that the system was told to bring to disk

    @classmethod
    def open(cls, folder: Path, stem: str, identity: str = "") -> PartFile:
        """The part of *stem* in *folder*, with what a crash has left of it, as far as its bytes can be trusted, and if
        they are of the same *identity*: the same name may be another file's tomorrow.

        Raises:
            PartBusyError: somebody else has it open.
            OSError: the folder does not let us.
            ValueError: the stem is no name of a file.
        """
        if not stem or Path(f".{stem}.part").name != f".{stem}.part" or "\0" in stem or "\\" in stem:
            raise ValueError(f"{stem!r} cannot name a file")
        path = folder / f".{stem}.part"
        file, locked = _claim_alone(path)
        try:
            journal = _claim(_journal_of(path))
        except BaseException:
            _let_go(file)
            raise
        part = cls(path, file, journal, identity=identity, locked=locked)
        try:
            part._take_up()
        except BaseException:
            part._shut()
            raise
        return part

    def begin(self, *, validator: str | None, total: int | None) -> None:
        """Empty it, and note what is coming: its *validator*, by which one may go on later, and its *total* length."""
        self._cut_to(0, 0, hashlib.sha256())
        self.validator = self.total = None
        note = json.dumps({"version": 1, "identity": self._identity, "validator": validator, "total": total})
        self._note(f"{note} {hashlib.sha256(note.encode()).hexdigest()}\n")
        self.validator, self.total = validator, total

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append *piece*. When the disk is full it stays as it was before."""
        sha256 = self._hash.copy()
        sha256.update(piece)
        size = self.size + memoryview(piece).nbytes
        if os.fstat(self._file.fileno()).st_size < self.size:  # a write would leave a hole in it
            raise OSError(errno.ESTALE, "somebody else has cut the part file", str(self.path))
        try:
            _write_at(self._file, self.size, piece)
            self._note(f"{size} {sha256.hexdigest()}\n")
        except BaseException:
            with suppress(OSError):  # and if not: the next write goes to the same place
                self._file.truncate(self.size)
            raise
        self.size, self._hash = size, sha256
        if size - self._pushed >= PUSH:
            self._push()
        if len(self.head) < _media.HEAD:
            self.head += bytes(memoryview(piece).cast("B")[: _media.HEAD - len(self.head)])

    def _push(self) -> None:
        """Have the system begin to bring it to disk. It does so for what it is told not to keep."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                news = self.size - self._pushed
                os.posix_fadvise(self._file.fileno(), self._pushed, news, os.POSIX_FADV_DONTNEED)
        self._pushed = self.size

    def sha256(self) -> str:
        """The digest of what is there, hexadecimal."""
        return self._hash.hexdigest()

    def cut_off(self, media_type: str | None) -> str | None:
        """Words that prove that what is there is cut off, by the structure of its type."""
        return _media.cut_off(self._file, self.size, media_type)

    def proves_whole(self, media_type: str | None) -> bool:
        """Whether the structure of its type proves that nothing is missing."""
        return _media.proves_whole(self._file, self.size, media_type)

    def finish(self, target: Path, *, overwrite: bool) -> bool:
        """Put it under the name *target*, on disk when this returns. Returns False if the same bytes were there.

        Raises:
            FileExistsError: something else has that name, and *overwrite* is False. The part stays.
            OSError: it cannot be put there. The part stays.
        """
        self._check()
        if not overwrite:
            found = _lstat(target)
            if found is not None:
                if not self._is_same(target, found):
                    raise FileExistsError(errno.EEXIST, "there is another file of that name", str(target))
                self.discard()
                return False
        os.fsync(self._file.fileno())
        if fcntl is None:  # Windows renames no file that is open
            self._file.close()
        self.path.replace(target)
        _sync_folder(target.parent)
        self.discard()
        return True

    def discard(self) -> None:
        """Remove it and its journal. Does nothing if it is closed."""
        if self._file.closed and self._journal.closed:
            return
        # The journal goes first, and the part while it is locked: who opens it next meets neither half-gone.
        for file, path in ((self._journal, _journal_of(self.path)), (self._file, self.path)):
            if fcntl is None:  # Windows removes no file that is open
                file.close()
            with suppress(OSError):
                if file.closed or _is_at(path, file):
                    path.unlink()
        self._shut()

    def close(self) -> None:
        """Keep what is there for a next time, if one can go on with it then. Does nothing if it is closed."""
        if self.size and self.validator is not None:
            self._shut()
        else:
            self.discard()

    def _shut(self) -> None:
        self._journal.close()
        _let_go(self._file)

    def _take_up(self) -> None:
        """Find the longest beginning of the part that its journal vouches for, and cut both to it."""
        lines = _lines(self._journal)
        note = _read_note(lines[0], self._identity) if lines else None
        if note is None or note[0] is None:  # without a validator nobody can go on with it
            self._cut_to(0, 0, hashlib.sha256())
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
        self._cut_to(*good)
        if self.size:
            self.validator, self.total = note
            self._file.seek(0)
            self.head = self._file.read(min(self.size, _media.HEAD))

    def _cut_to(self, size: int, noted: int, sha256: HASH) -> None:
        """Leave *size* bytes, and the *noted* first bytes of the journal."""
        self._journal.truncate(noted)
        self._file.truncate(size)
        self.size, self._noted, self._hash = size, noted, sha256
        self._pushed = size
        self.head = self.head[:size]

    def _note(self, line: str) -> None:
        text = line.encode()
        try:
            _write_at(self._journal, self._noted, text)
        except BaseException:
            with suppress(OSError):
                self._journal.truncate(self._noted)
            raise
        self._noted += len(text)

    def _check(self) -> None:
        """The file of that name is still ours and as long as we wrote it: else what gets the target's name is not."""
        if not _is_at(self.path, self._file) or os.fstat(self._file.fileno()).st_size != self.size:
            raise OSError(errno.ESTALE, "somebody else has changed the part file", str(self.path))
        if not self._locked:
            sha256 = hashlib.sha256()
            _hash_on(self._file, 0, self.size, sha256)
            if sha256.digest() != self._hash.digest():
                raise OSError(errno.ESTALE, "somebody else has written to the part file", str(self.path))

    def _is_same(self, target: Path, found: os.stat_result) -> bool:
        """Whether *target* is a file with the bytes of this one."""
        if not stat.S_ISREG(found.st_mode) or found.st_size != self.size:
            return False
        sha256 = hashlib.sha256()
        with FileIO(os.open(target, (_FLAGS & ~os.O_RDWR) | os.O_RDONLY)) as file:
            _hash_on(file, 0, self.size, sha256)
        return sha256.digest() == self._hash.digest()


def _journal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.log")


def _lines(journal: FileIO) -> list[bytes]:
    """The whole lines of a journal; what comes after the last was torn off by a crash."""
    if os.fstat(journal.fileno()).st_size > JOURNAL:
        return []
    journal.seek(0)
    return [line + b"\n" for line in journal.readall().split(b"\n")[:-1]]


def _read_note(line: bytes, identity: str) -> tuple[str | None, int | None] | None:
    """The validator and the total length in the first line, or None if it is not what was written of *identity*."""
    text, _, digest = line[:-1].rpartition(b" ")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    with suppress(ValueError):
        note = json.loads(text)
        if isinstance(note, dict) and note.get("version") == 1 and note.get("identity") == identity:
            return note["validator"], note["total"]
    return None


def _read_mark(line: bytes) -> tuple[int, str]:
    """The size and the digest in a line; a size of 0 if it is no such line."""
    size, _, digest = line[:-1].partition(b" ")
    if size.isdigit() and len(size) < 20 and len(digest) == 64:
        return int(size), digest.decode("ascii", "replace")
    return 0, ""


def _write_at(file: FileIO, position: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of *data*: the system may take a part of it, before it tells that the disk is full."""
    file.seek(position)
    with memoryview(data) as view, view.cast("B") as rest:
        done = 0
        while done < len(rest):
            done += file.write(rest[done:])


def _hash_on(file: FileIO, start: int, end: int, sha256: HASH) -> None:
    """Feed *sha256* with the bytes from *start* to *end*."""
    file.seek(start)
    position = start
    while position < end and (piece := file.read(min(READ, end - position))):
        sha256.update(piece)
        position += len(piece)


# Opening -----------------------------------------------------------------------------------------------------

_open_here: WeakSet[FileIO] = WeakSet()


def _claim_alone(path: Path) -> tuple[FileIO, bool]:
    """Open *path* for us alone. Also returns whether a lock keeps others out."""
    for _ in range(TRIES):
        file = _claim(path)
        try:
            locked = _lock(file, path)
            if _is_at(path, file):
                return file, locked
        except BaseException:
            file.close()
            raise
        _let_go(file)  # whoever had it has finished or removed it since we opened it
    raise _restless(path)


def _claim(path: Path) -> FileIO:
    """Open our own plain file *path*, or a new one: what else has that name is removed and never written through."""
    for _ in range(TRIES):
        found = _lstat(path)
        if found is None:
            with suppress(FileExistsError):
                return _opened(path, _FLAGS | os.O_CREAT | os.O_EXCL)
            continue
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a directory stands where the part file belongs", str(path))
        if not _is_ours(found):
            path.unlink(missing_ok=True)
            continue
        with suppress(FileNotFoundError):
            file = _open_found(path)
            if file is not None:
                return file
    raise _restless(path)


def _open_found(path: Path) -> FileIO | None:
    """Open a file that was ours a moment ago; None if it is not any more."""
    try:
        file = _opened(path, _FLAGS)
    except OSError as fault:
        if fault.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a FIFO, a directory by now
            return None
        raise
    if _is_ours(os.fstat(file.fileno())):
        return file
    file.close()
    return None


def _opened(path: Path, flags: int) -> FileIO:
    file = FileIO(os.open(path, flags, 0o666), "r+")
    _open_here.add(file)
    return file


def _is_ours(found: os.stat_result) -> bool:
    """Whether this is a plain file of this user, with no other name by which it is somebody's file."""
    is_mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    return stat.S_ISREG(found.st_mode) and is_mine and found.st_nlink == 1


def _lock(file: FileIO, path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PartBusyError(f"{path} is being written by somebody else") from None
    except OSError:  # a file system without locks: `finish` reads the bytes again
        return False
    return True


def _let_go(file: FileIO) -> None:
    """Unlock and close *file*; a child that is just being started may have a copy of it, so closing is not enough."""
    if not file.closed:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _after_fork() -> None:
    """A child that kept the file open would hold its lock even when the parent is dead."""
    for file in list(_open_here):
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


def _restless(path: Path) -> OSError:
    return OSError(errno.EBUSY, "somebody else keeps changing what has this name", str(path))


def _sync_folder(folder: Path) -> None:
    """The new name is on disk when this returns, where folders can be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
