"""Running `bide` as a user does: in a process of its own, piped or in a pseudo-terminal, at an emulator."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import shlex
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nursery import nursery_for

from world import emulator_with

if TYPE_CHECKING:
    from bide.emulator import Emulator

KEY = "sk-canary-0123456789"

PRELUDE = """
import sys
from functools import partial
import bide
import bide.cli._services as services
services.DashScope = partial(services.DashScope, image_floor=0.1, video_floor=0.1)
services.Dieyuyun = partial(services.Dieyuyun, image_floor=0.1, video_floor=0.1)
bide.Client = partial(bide.Client, pace=bide.Pace.fixed(0.1))
from bide.cli import main
"""
"""It looks more often: a test does not wait for seconds between two looks."""

PROGRAM = "sys.exit(main())"
"""After the prelude: `bide`, but for that."""

IMPORTS = """
import anyio._backends._asyncio, anyio.streams.tls
import bide.cli._app, bide.cli._doctor, bide.cli._records, bide.cli._tasks
import bide.ledgers.sqlite
import cyclopts.help, docstring_parser, importlib.readers, rich._emoji_codes, rich.panel, sniffio, zipfile
"""
"""What commands import when they need it, but for the emulator: it has been done before they begin."""

IMAGE = ("image", "--model", "wan2.5-t2i-preview")
VIDEO = ("video", "--model", "wan2.6-t2v")

TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Ended:
    """What a command has left behind."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


HOMES = tempfile.TemporaryDirectory(prefix="bide-homes-")
"""No command here sees the real home, nor a ledger of another test: each emulator has a home of its own."""


def home_of(emulator: Emulator) -> Path:
    """The home of who uses *emulator*."""
    home = Path(HOMES.name) / emulator.dashscope_url.rpartition(":")[2].partition("/")[0] / str(id(emulator))
    home.mkdir(parents=True, exist_ok=True)
    return home


def ledger_of(emulator: Emulator) -> Path:
    """The default ledger of the commands at *emulator*."""
    return home_of(emulator) / ".local" / "state" / "bide" / "ledger.db"


def outer_environment() -> dict[str, str]:
    """What every program here has of ours."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "LANG") or name.startswith("COVERAGE")
    }


def environment(emulator: Emulator, **more: str) -> dict[str, str]:
    """Only a key of DashScope's is set."""
    return {
        **outer_environment(),
        "HOME": str(home_of(emulator)),
        "DASHSCOPE_BASE_URL": emulator.dashscope_url,
        "DIEYUYUN_BASE_URL": emulator.dieyuyun_url,
        "DASHSCOPE_API_KEY": KEY,
        "NO_PROXY": "127.0.0.1",
        **more,
    }


async def start(emulator: Emulator, *words: str, before: str = "", **more: str) -> asyncio.subprocess.Process:
    """Begin a command with pipes; the program *before* runs first.

    What changes how an interpreter begins, or what is there to import, needs one of its own: in the nursery all has
    been imported.
    """
    pipe = asyncio.subprocess.PIPE
    env = environment(emulator, **more)
    if before or any(name.startswith("PYTHON") for name in more):
        command = [sys.executable, "-c", before + PRELUDE + PROGRAM, *words]
    else:
        command = nursery_for(PRELUDE + IMPORTS, PROGRAM, *outer_environment().items()).command(*words)
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)


async def piped(emulator: Emulator, *words: str, given: str | None = None, **more: str) -> Ended:
    """Run a command with pipes to its end."""
    process = await start(emulator, *words, **more)
    out, err = await asyncio.wait_for(process.communicate((given or "").encode()), 30)
    return Ended(process.returncode or 0, out.decode(), err.decode())


class Terminal:
    """A command in a pseudo-terminal, with everything that it shows there."""

    def __init__(
        self, emulator: Emulator, *words: str, stdout: Path | None = None, columns: int = 200, **more: str
    ) -> None:
        self.shown = ""
        env = environment(emulator, TERM="xterm-256color", COLUMNS=str(columns), LINES="30", **more)
        self._pid, self._file = pty.fork()
        if self._pid == 0:  # pragma: no cover - the child
            if stdout is not None:
                os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT), 1)
            os.execve(sys.executable, [sys.executable, "-c", PRELUDE + PROGRAM, *words], env)
        asyncio.get_running_loop().add_reader(self._file, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._file, 65536)
        except OSError:  # Linux says so when the other side has ended
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._file)
        self.shown += TERMINAL_CODES.sub("", data.decode("utf-8", "replace"))

    async def shows(self, text: str) -> None:
        """Wait until *text* was on the screen."""
        try:
            async with asyncio.timeout(20):
                while text not in self.shown:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in:\n{self.shown}") from None

    def hang_up(self) -> None:
        """The connection to the terminal is lost."""
        os.kill(self._pid, signal.SIGHUP)

    def press_ctrl_c(self) -> None:
        """As the terminal's own driver does it: a signal to who runs in it."""
        os.write(self._file, b"\x03")

    async def ends(self) -> int:
        """Wait for the end; the exit status."""
        async with asyncio.timeout(20):
            while True:
                pid, status = os.waitpid(self._pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
                if pid:
                    break
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        with suppress(OSError):
            asyncio.get_running_loop().remove_reader(self._file)
            os.close(self._file)
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End it, if it has not ended."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def quick(**options: Any) -> Emulator:
    return emulator_with(image_seconds=0.3, video_seconds=0.3, queue_seconds=0.0, **options)


def watch_command(err: str) -> list[str]:
    """The last one that was printed."""
    return shlex.split(re.findall("to continue: (.*)", err)[-1])


def left_ids(err: str) -> list[str]:
    """The tasks that were named last as left running."""
    return re.findall(r"left at the service: (.*)", err)[-1].strip().split(", ")


def statuses(emulator: Emulator) -> list[str]:
    return [task.status for task in emulator.tasks()]
