"""A command from the nursery begins, hears and ends as a fresh program does."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from support.forked_programs import nursery_for
from support.terminal import Ended, outer_environment
from support.waits import A_MINUTE

pytestmark = pytest.mark.real_time

PRELUDE = "import atexit, os, random, signal, sys, threading, time\n"
PROGRAM = "exec(sys.argv[1])"

TELLS_WHAT_IT_IS_GIVEN = """
print(sys.argv, sys.path[0], os.getcwd(), sorted(os.environ.items()), os.umask(0), threading.active_count())
for file in (sys.stdin, sys.stdout, sys.stderr):
    print(file.name, file.encoding, file.errors, file.line_buffering, file.write_through, file.buffer)
print([signal.getsignal(each) for each in signal.valid_signals()], signal.pthread_sigmask(signal.SIG_BLOCK, []))
print(repr(sys.stdin.read()))
"""

WAITS = "print('ready', flush=True); time.sleep(600)"


async def start(*words: str, fresh: bool) -> Process:
    env = {**outer_environment(), "SAID": "猫"}
    command = nursery_for(PRELUDE, PROGRAM, *outer_environment().items()).command(*words)
    if fresh:
        command = [sys.executable, "-c", PRELUDE + PROGRAM, *words]
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env)


async def ended(*words: str, fresh: bool) -> Ended:
    process = await start(*words, fresh=fresh)
    out, err = await asyncio.wait_for(process.communicate("一\r\n2\n".encode()), A_MINUTE)
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def ready(program: str, *, fresh: bool) -> Process:
    process = await start(program, fresh=fresh)
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), A_MINUTE) == b"ready\n"
    return process


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (TELLS_WHAT_IT_IS_GIVEN, 0),
        ("sys.exit(7)", 7),
        ("sys.exit('no')", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.abort()", -signal.SIGABRT),
        ("print('unwritten'); os.close(1)", 120),
        ("atexit.register(print, 'last'); threading.Timer(0.1, print, ['later']).start(); print('now')", 0),
    ],
)
async def test_it_begins_and_ends_as_a_fresh_program(
    program: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forked, fresh = [await ended(program, "a word", "詞\udcff", fresh=each) for each in (False, True)]

    assert forked == fresh
    assert fresh.status == status


@pytest.mark.parametrize(
    ("program", "status"), [("raise KeyboardInterrupt", -signal.SIGINT), ("raise ValueError('no')", 1)]
)
async def test_what_nobody_catches_is_shown(program: str, status: int) -> None:
    forked, fresh = [await ended(program, fresh=each) for each in (False, True)]

    assert forked.status == fresh.status == status
    assert forked.err.splitlines()[-1] == fresh.err.splitlines()[-1] != ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("handles", [True, False])
async def test_signals_reach_it(number: signal.Signals, handles: bool) -> None:
    program = f"signal.signal({number:d}, lambda *_: sys.exit(9))\n{WAITS}" if handles else WAITS
    process = await ready(program, fresh=False)
    process.send_signal(number)

    await asyncio.wait_for(process.communicate(), A_MINUTE)
    assert process.returncode == (9 if handles else -number)


async def test_who_kills_it_has_killed_it() -> None:
    process = await ready(WAITS, fresh=False)
    process.kill()
    await asyncio.wait_for(process.communicate(), A_MINUTE)  # its pipes have ended, and nobody else held them

    assert process.returncode == -signal.SIGKILL
