"""Commands as processes of their own, without the half second in which each would import the same again.

One program has imported everything, and forks a child for each command. The child gets the pipes, arguments,
environment and directory of a tiny launcher, and from there on goes the way of a fresh program, to the interpreter's
own end. The launcher is what a test holds: it hands signals on and ends as the child ends, and who kills it kills the
child.
"""

from __future__ import annotations

import atexit
import gc
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# With `signal` and `socket` instead of what they are made of it would take twice as long.
LAUNCHER = """
import marshal, os, sys
from _signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGUSR1, SIG_BLOCK, SIG_DFL, SIG_UNBLOCK, pthread_sigmask, signal
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket

nursery = socket(AF_UNIX, SOCK_STREAM)
nursery.connect(sys.argv[1])
signals = (SIGHUP, SIGINT, SIGTERM, SIGUSR1)
pthread_sigmask(SIG_BLOCK, signals)  # none comes into the midst of the request, nor between it and the handlers
for number in signals:
    signal(number, lambda number, frame: nursery.send(bytes((number,))))
request = marshal.dumps(([os.fsencode(word) for word in sys.argv[2:]], os.getcwdb(), dict(os.environb)))
files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
nursery.sendmsg([len(request).to_bytes(4, "big")], [(SOL_SOCKET, SCM_RIGHTS, files)])
nursery.sendall(request)
pthread_sigmask(SIG_UNBLOCK, signals)
os.closerange(0, 3)  # the child alone says when a pipe ends
status = int.from_bytes(nursery.recv(4) or bytes((SIGKILL,)), "big")
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) != SIGKILL:
        signal(os.WTERMSIG(status), SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""


# In the tests' process ---------------------------------------------------------------------------------------


class Nursery:
    """The program that has run *prelude*, and whose children go on with *program*."""

    def __init__(self, prelude: str, program: str, environment: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bide-nursery-")
        self._address = str(Path(self._folder.name) / "nursery")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen(64)
            # With pipes from the start its standard files are made as those of a command with pipes would be.
            self._process = subprocess.Popen(
                [sys.executable, __file__, prelude, program, str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                env=environment,
            )

    def command(self, *words: str) -> list[str]:
        """What to start for a child with these arguments."""
        return [sys.executable, "-I", "-S", "-c", LAUNCHER, self._address, *words]

    def close(self) -> None:
        """End it, and the children that are left."""
        self._process.communicate()
        self._folder.cleanup()


@cache
def nursery_for(prelude: str, program: str, *environment: tuple[str, str]) -> Nursery:
    """The one that this process has for these; it ends with this process."""
    nursery = Nursery(prelude, program, dict(environment))
    atexit.register(nursery.close)
    return nursery


# In the nursery ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """A child, its launcher, and a pipe that ends with the child."""

    child: int
    launcher: socket.socket
    leash: int

    def let_go(self) -> None:
        self.launcher.close()
        os.close(self.leash)


def serve(listener: socket.socket) -> None:
    """Fork a child for each launcher. Returns in the children alone."""
    running: list[Running] = []
    while True:
        leashes, launchers = [each.leash for each in running], [each.launcher for each in running]
        ready, _, _ = select.select([0, listener, *leashes, *launchers], [], [])
        if 0 in ready:  # the tests have ended
            for number in (*(each.child for each in running), os.getpid()):
                os.kill(number, signal.SIGKILL)
        for each in [*running]:
            if each.leash in ready:
                bury(each)
                running.remove(each)
            elif each.launcher in ready:  # a signal was for it, or it is no more: SIGKILL tells nobody
                for number in each.launcher.recv(64) or [signal.SIGKILL]:
                    os.kill(each.child, number)
        if listener in ready:
            launcher, _ = listener.accept()
            files, request = heard(launcher)
            leash, held = os.pipe()
            new = Running(os.fork(), launcher, leash)
            if new.child == 0:
                listener.close()
                for each in (*running, new):
                    each.let_go()
                become(files, *marshal.loads(request))
                return
            running.append(new)
            for number in (*files, held):
                os.close(number)


def heard(launcher: socket.socket) -> tuple[list[int], bytes]:
    """Its standard files, and the rest that a child must know."""
    length, files, _, _ = socket.recv_fds(launcher, 4, 3)
    request = b""
    while more := launcher.recv(int.from_bytes(length, "big") - len(request)):
        request += more
    return files, request


def bury(ended: Running) -> None:
    """Tell its launcher how it has ended."""
    _, status = os.waitpid(ended.child, 0)
    with suppress(OSError):  # the launcher may have been killed
        ended.launcher.sendall(status.to_bytes(4, "big"))
    ended.let_go()


def become(files: list[int], words: list[bytes], directory: bytes, environment: dict[bytes, bytes]) -> None:
    """Be the launcher's program."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(directory)
    os.environb.clear()
    os.environb.update(environment)
    sys.argv[:] = ["-c", *map(os.fsdecode, words)]
    # Where the tests themselves run in the background of a shell, SIGINT is ignored, and would be in each program.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def settle() -> None:
    """Make ready what every child begins with."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C ends the tests, and they the nursery
    coverage = sys.modules.get("coverage")
    if coverage is not None and coverage.Coverage.current() is not None:
        coverage.Coverage.current().save()  # or each child would tell again what the imports have covered
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    prelude, program, listening = sys.argv[1:]
    sys.path[0] = ""  # as with any program that is no file
    names = {"__name__": "__main__"}
    exec(prelude, names)
    settle()
    serve(socket.socket(fileno=int(listening)))
    exec(program, names)
