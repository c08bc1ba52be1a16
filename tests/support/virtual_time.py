"""An event loop whose clock jumps to the next timer whenever nothing else can happen.

An hour of polling takes milliseconds, exact times can be asserted, and a test that could never end fails at
once. Real loopback sockets work: what one side has sent is readable at the other before the clock may jump.
Work in the loop's executor is waited for in real time, and so are the steps of a SQLite ledger's thread after
`wait_for_ledgers`. Other threads and processes are overtaken: tests with those use the real clock
(`@pytest.mark.real_time`).
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class DeadlockError(AssertionError):
    """Nothing can happen any more: no timer, no socket, no thread."""


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[valid-type, misc]
    """Asks the sockets without waiting; where none is ready, moves the loop's clock to its next timer."""

    loop: VirtualTimeLoop
    silent = 0
    patience = 12_000
    """Looks of 5 ms at sockets and threads, after which nothing can happen: a minute."""

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            self.silent = 0
            return ready
        if self.loop.has_thread_at_work():
            return super().select(0.01)
        # Loopback traffic is almost always readable by now; a moment of real time makes that certain.
        ready = super().select(0.0005 if len(self.get_map()) > 1 else 0)
        if ready:
            self.silent = 0
            return ready
        if timeout is None:
            self.silent += 1
            if self.silent > self.patience:
                raise DeadlockError("the test waits for something that cannot happen")
            return super().select(0.005)
        self.silent = 0
        self.loop.advance(timeout)
        return []


class RealTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop by the real clock, which `advance` sets forward: what is due later becomes due at once."""

    def __init__(self) -> None:
        self._ahead = 0.0
        super().__init__()

    def time(self) -> float:
        return super().time() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


def advance(seconds: float) -> None:
    """Let so many seconds pass in the loop of this test, which is where an `Emulator` lives too."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, RealTimeLoop | VirtualTimeLoop)
    loop.advance(seconds)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop in virtual time; `advance` moves its clock by hand."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        selector.loop = self
        self._in_threads: set[asyncio.Future[Any]] = set()
        self._virtual = 1000.0
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual

    passed = 0.0
    """Virtual seconds of all loops so far."""

    def advance(self, seconds: float) -> None:
        VirtualTimeLoop.passed += seconds
        # The loop runs what is due within its clock's resolution; the jump must not fall short of the timer.
        self._virtual += seconds + 1e-9

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        return self.wait_for_thread(super().run_in_executor(executor, func, *args))

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # From Python 3.12 on the runner gives it 300 seconds, which are a moment here.
        await super().shutdown_default_executor()

    def wait_for_thread(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """Let no virtual time pass until *future*, on which a thread works, is done."""
        self._in_threads.add(future)
        return future

    def has_thread_at_work(self) -> bool:
        self._in_threads = {future for future in self._in_threads if not future.done()}
        return bool(self._in_threads)


def wait_for_ledgers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no virtual time pass while a SQLite ledger's thread is at work for the loop; its own clock passes with it."""
    from bide import _outside
    from bide.ledgers.sqlite.worker import Worker

    since = (_outside.seconds_since_boot() or 0.0) - VirtualTimeLoop.passed
    monkeypatch.setattr(_outside, "seconds_since_boot", lambda: since + VirtualTimeLoop.passed)

    put, stop = Worker.put, Worker.stop

    def wait_for(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        loop = future.get_loop()
        return loop.wait_for_thread(future) if isinstance(loop, VirtualTimeLoop) else future

    def stop_and_wait(worker: Worker) -> None:
        stop(worker)
        wait_for(worker.ended)

    monkeypatch.setattr(Worker, "put", lambda *arguments, **options: wait_for(put(*arguments, **options)))
    monkeypatch.setattr(Worker, "stop", stop_and_wait)
