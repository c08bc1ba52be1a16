"""Other Python processes, for tests that need them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.waits import A_MINUTE

TESTS = Path(__file__).parents[1]
BEGIN = """
    import asyncio, gc, os, signal, sys, time
    sys.path.insert(0, sys.argv[2])
    from attrs import evolve
    from bide.ledgers import SQLiteLedger
    from bide.models import Task, TaskStatus
    from support.toy import ToyService
    from support.ledger_worlds import *
    path = sys.argv[1]

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole, whoever else writes
"""


class Program:
    """Another process that runs *code* over *path*."""

    def __init__(self, code: str, path: Path, *arguments: object) -> None:
        text = textwrap.dedent(BEGIN) + textwrap.dedent(code)
        command = [sys.executable, "-c", text, str(path), str(TESTS), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(A_MINUTE):
            return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


@asynccontextmanager
async def program(code: str, path: Path, *arguments: object) -> AsyncIterator[Program]:
    made = Program(code, path, *arguments)
    try:
        yield made
    finally:
        made.end()
