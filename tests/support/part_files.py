"""Short names for tests of part files."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bide._downloads.media_types import HEAD_BYTES
from bide._downloads.part_file import PartFile

ETAG = '"v1"'
MIB = 2**20


def part_of(folder: Path) -> Path:
    return folder / ".t1-0.part"


def log_of(folder: Path) -> Path:
    return folder / ".t1-0.part.log"


def opened(folder: Path) -> PartFile:
    return PartFile.open(folder, "t1-0")


def left(folder: Path, *pieces: bytes, validator: str | None = ETAG, total: int | None = None) -> bytes:
    """Leave a part with these pieces, as one who is interrupted."""
    part = opened(folder)
    part.begin(validator=validator, total=total)
    for piece in pieces:
        part.write(piece)
    part._release()
    return b"".join(pieces)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_holds(part: PartFile, data: bytes) -> None:
    assert part.size == len(data)
    assert part.path.read_bytes() == data
    assert part.sha256() == digest(data)
    assert part.head == data[:HEAD_BYTES]


@contextmanager
def no_new_descriptors() -> Iterator[None]:
    before = len([*Path("/proc/self/fd").iterdir()])
    yield
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@contextmanager
def other_process(code: str, *arguments: object, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another Python; gone at the end, whatever happens."""
    begin = f"import os, sys, time\n{before}\nfrom pathlib import Path\nfrom {PartFile.__module__} import *\n"
    command = [sys.executable, "-c", begin + textwrap.dedent(code), *map(str, arguments)]
    # Measuring coverage makes the start slow; it is worth that only where no test in this process gets.
    env = {name: value for name, value in os.environ.items() if before or not name.startswith("COVERAGE_")}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _symlink(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("made through a link"))


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, victim: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


PLANTS = [_symlink, _dangling, _hard_link, _fifo, _socket]
