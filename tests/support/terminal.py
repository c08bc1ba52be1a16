"""Running `bide` as a user does: in a process of its own, piped or in a pseudo-terminal, at an emulator."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import shlex
import signal
import sqlite3
import sys
import tempfile
import termios
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bide.cli import _app, _doctor, _records, _services, _tasks
from support.emulated import emulator_with
from support.forked_programs import nursery_for
from support.waits import end_of, until

if TYPE_CHECKING:
    from bide.emulator import Emulator

KEY = "sk-canary-0123456789"

HALF_A_MINUTE = 30.0
"""What is given as --timeout where a test lets it pass: so long nothing else takes."""

PRELUDE = f"""
import sys
from functools import partial
import bide
import {_services.__name__} as services
services.DashScope = partial(services.DashScope, image_floor=0.1, video_floor=0.1)
services.Dieyuyun = partial(services.Dieyuyun, image_floor=0.1, video_floor=0.1)
bide.Client = partial(bide.Client, pace=bide.Pace.fixed(0.1))
from bide.cli import main

import asyncio, signal
ahead, clock = 0.0, asyncio.BaseEventLoop.time
def pass_time(*_):
    global ahead
    ahead += {HALF_A_MINUTE}
asyncio.BaseEventLoop.time = lambda loop: clock(loop) + ahead
signal.signal(signal.SIGUSR1, pass_time)
"""
"""It polls more often, since a test does not wait for seconds between two polls; and `pass_time` can set its clock
forward."""

PROGRAM = "sys.exit(main())"
"""After the prelude: `bide`, but for that."""

COMMANDS = [_app, _doctor, _records, _tasks]
IMPORTS = f"""
import anyio._backends._asyncio, anyio.streams.tls
import bide.ledgers.sqlite, {", ".join(each.__name__ for each in COMMANDS)}
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


def command_of(words: Sequence[str], environment: Collection[str], before: str = "") -> list[str]:
    """What to start for `bide` with these *words*, and with these variables set.

    What changes how an interpreter starts, or what is there to import, needs an interpreter of its own: where others
    are forked from, all has been imported.
    """
    if before or any(name.startswith(("PYTHON", "BIDE")) for name in environment):
        return [sys.executable, "-c", before + PRELUDE + PROGRAM, *words]
    return nursery_for(PRELUDE + IMPORTS, PROGRAM, *outer_environment().items()).command(*words)


async def start(emulator: Emulator, *words: str, before: str = "", **more: str) -> asyncio.subprocess.Process:
    """Start a command with pipes; the program *before* runs first."""
    pipe = asyncio.subprocess.PIPE
    env = environment(emulator, **more)
    command = command_of(words, more, before)
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)


async def piped(
    emulator: Emulator, *words: str, given: str | None = None, before: str = "", **more: str
) -> Ended:
    """Run a command with pipes to its end."""
    return await finish(await start(emulator, *words, before=before, **more), given or "")


async def finish(process: asyncio.subprocess.Process, given: str = "") -> Ended:
    """Give a command its input, and wait for its end."""
    out, err = await end_of(process, given.encode())
    return Ended(process.returncode or 0, out, err)


async def timed_out(emulator: Emulator, *words: str, when: Callable[[], Any], **more: str) -> Ended:
    """Run a command whose time runs out as soon as *when* holds; or by the clock, should it wait only after that."""
    process = await start(emulator, *words, "--timeout", str(HALF_A_MINUTE), **more)
    await until(when)
    await asyncio.sleep(0.3)  # it starts to wait just after that
    pass_time(process)
    return await finish(process)


def pass_time(process: asyncio.subprocess.Process) -> None:
    """Let half a minute pass in a command: its timeouts fire, and not those of this process."""
    process.send_signal(signal.SIGUSR1)


def on_record(emulator: Emulator) -> list[str]:
    """The states of the submissions on the default ledger of the commands, in their order."""
    path = ledger_of(emulator)
    if not path.exists():
        return []
    connection = sqlite3.connect(path)
    try:
        return [state for (state,) in connection.execute("SELECT status FROM records ORDER BY rowid")]
    except sqlite3.OperationalError:  # it is being made
        return []
    finally:
        connection.close()


LEADER = """
import os, sys
from _signal import SIGHUP, SIGINT, SIG_DFL, SIG_IGN, signal
report, leash, output, *command = sys.argv[1:]
signal(SIGINT, SIG_IGN)
signal(SIGHUP, SIG_IGN)
pid = os.fork()
if pid == 0:
    signal(SIGINT, SIG_DFL)
    signal(SIGHUP, SIG_DFL)
    if output:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
    os.execv(command[0], command)
os.closerange(0, 3)
os.write(int(report), pid.to_bytes(4, "big"))
os.write(int(report), os.waitpid(pid, 0)[1].to_bytes(4, "big"))
os.read(int(leash), 1)
"""
"""Runs a command in its terminal, and lives longer: when the first process of a terminal ends, the kernel throws away
what nobody has read there yet."""


class Terminal:
    """A command in a pseudo-terminal, with everything that it shows there."""

    def __init__(
        self, emulator: Emulator, *words: str, stdout: Path | None = None, columns: int = 200, **more: str
    ) -> None:
        self.shown = ""
        env = environment(emulator, TERM="xterm-256color", COLUMNS=str(columns), LINES="30", **more)
        self._report, report = os.pipe()
        leash, self._leash = os.pipe()
        command = [sys.executable, "-I", "-S", "-c", LEADER, str(report), str(leash), str(stdout or "")]
        command += command_of(words, more)
        self._leader, self._file = pty.fork()
        if self._leader == 0:  # pragma: no cover - the child
            os.set_inheritable(report, True)
            os.set_inheritable(leash, True)
            os.execve(command[0], command, env)
        os.close(report)
        os.close(leash)
        modes = termios.tcgetattr(self._file)
        modes[3] |= termios.NOFLSH  # else the driver throws away at Ctrl-C what nobody has read yet
        termios.tcsetattr(self._file, termios.TCSANOW, modes)
        self._pid = int.from_bytes(os.read(self._report, 4), "big")
        self._is_open = self._is_alive = True
        asyncio.get_running_loop().add_reader(self._file, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._file, 65536)
        except OSError:  # Linux says so when the other side has ended
            data = b""
        if not data:
            self._stop_reading()
        self.shown += TERMINAL_CODES.sub("", data.decode("utf-8", "replace"))

    async def shows(self, text: str) -> None:
        """Wait until *text* was on the screen."""
        try:
            await until(lambda: text in self.shown or not self._is_open)
        finally:
            assert text in self.shown, self.shown

    def hang_up(self) -> None:
        """The connection to the terminal is lost."""
        os.kill(self._pid, signal.SIGHUP)

    def press_ctrl_c(self) -> None:
        """As the terminal's own driver does it: a signal to who runs in it."""
        os.write(self._file, b"\x03")

    async def ends(self) -> int:
        """Wait for the end; the exit status."""
        await until(lambda: not self._is_open)  # all that was written has been read
        status = await asyncio.to_thread(os.read, self._report, 4)
        self._is_alive = False
        return os.waitstatus_to_exitcode(int.from_bytes(status, "big"))

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._stop_reading()
        if self._is_alive:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        os.close(self._leash)
        os.waitpid(self._leader, 0)
        os.close(self._report)
        os.close(self._file)  # not sooner: that is a SIGHUP to who still lives

    def _stop_reading(self) -> None:
        if self._is_open:
            self._is_open = False
            asyncio.get_running_loop().remove_reader(self._file)


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
