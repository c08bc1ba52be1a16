"""The one thread that takes the steps of a ledger: steps that wait share one transaction and one hop there and back."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from attrs import define, field

from bide.errors import LedgerError
from bide.ledgers.sqlite.processes import prevent_forks

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from bide.ledgers._records import Record

_log = logging.getLogger("bide")

STEPS_PER_TRANSACTION = 200
"""The most steps in one transaction: other processes want to write, too."""


class Backend(Protocol):
    """What the thread works with. It is made, used and closed in the thread."""

    def transaction(self, *, writes: bool, vital: bool) -> AbstractContextManager[object]:
        """Everything done inside takes effect, or nothing does."""
        ...

    def take_changed(self) -> list[Record]:
        """Hand over the records changed since the last call."""
        ...

    def on_rollback(self) -> None:
        """Forget what was noted of the transaction: it was rolled back."""
        ...

    def on_commit(self) -> None:
        """Wake the processes that the committed transaction concerns."""
        ...

    def explain(self, fault: Exception) -> Exception:
        """*fault* as an error that a user understands."""
        ...

    def close(self) -> None:
        """Release everything: the thread ends."""
        ...


_BackendT = TypeVar("_BackendT", bound=Backend)
_T = TypeVar("_T")


@define(eq=False)
class _Step:
    """One step on its way through the thread."""

    run: Callable[[Any], Any]
    writes: bool
    vital: bool
    future: asyncio.Future[Any]
    changed: list[Record] = field(factory=list)
    result: Any = None
    fault: Exception | None = None
    is_refused: bool = False


class Worker(Generic[_BackendT]):
    """The thread. It belongs to one event loop.

    Args:
        make: makes the backend, in the thread. If it raises, every step raises the same.
        on_change: called in the loop with the records that a step has changed, before the step's future is done.
        on_fault: called in the loop after a writing step has failed, not knowing whether it took effect.
    """

    def __init__(
        self,
        make: Callable[[], _BackendT],
        on_change: Callable[[list[Record]], None],
        on_fault: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._on_fault = on_fault
        self._steps: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()
        self._is_stopped = False
        self._is_ending = False
        self._deferred: _Step | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._run, args=(make,), name="bide ledger", daemon=True).start()

    def put(self, run: Callable[[_BackendT], _T], *, writes: bool, vital: bool = False) -> asyncio.Future[_T]:
        """Run a step with the backend; the future is its result. It runs even if the future is cancelled."""
        future: asyncio.Future[_T] = self._loop.create_future()
        if self._is_stopped:
            future.set_exception(LedgerError("the ledger was closed meanwhile; nothing was recorded"))
        else:
            self._steps.put(_Step(run, writes, vital, future))
        return future

    def stop(self) -> None:
        """End the thread after the steps that were put before this call."""
        self._is_stopped = True
        self._steps.put(None)

    def _run(self, make: Callable[[], _BackendT]) -> None:
        with prevent_forks() as inside:
            self._work(make, inside)

    def _work(self, make: Callable[[], _BackendT], inside: AbstractContextManager[object]) -> None:
        # Only this frame refers to the backend: a forked child can never reach it, and so never closes it.
        backend: _BackendT | None = None
        broken: Exception | None = None
        try:
            with inside:
                backend = make()
        except Exception as fault:  # noqa: BLE001 - the caller that awaits a step raises it
            broken = fault
        while (step := self._next(wait=True)) is not None:
            if backend is None:
                step.fault = broken
                steps = [step]
            else:
                with inside:
                    steps = self._take(backend, step)
            self._call(partial(self._deliver, steps))
        if backend is not None:
            with suppress(Exception), inside:
                backend.close()
        self._call(self._end)

    def _next(self, *, wait: bool) -> _Step | None:
        """The next step that waits; None if there is none, or the thread is to end."""
        step, self._deferred = self._deferred, None
        if step is None and not self._is_ending:
            try:
                step = self._steps.get(wait)
            except queue.Empty:
                return None
            self._is_ending = step is None
        return step

    def _take(self, backend: Backend, first: _Step) -> list[_Step]:
        """Take *first* and the steps that wait now in one transaction. If a step breaks it, take each in its own.

        Steps that arrive while other processes write join the transaction, too: the more there is to do, the less each
        step costs. A transaction that only reads takes one step: a later one must see what was written meanwhile.
        """
        steps = [first]
        has_begun = False
        try:
            with backend.transaction(writes=first.writes, vital=first.vital):
                has_begun = True
                _take_one(backend, first)
                most = STEPS_PER_TRANSACTION if first.writes else 1
                while len(steps) < most and (step := self._next(wait=False)) is not None:
                    if step.vital > first.vital:
                        self._deferred = step
                        break
                    steps.append(step)
                    _take_one(backend, step)
        except Exception as fault:  # noqa: BLE001 - the caller that awaits the step raises it
            backend.on_rollback()
            for step in steps:
                step.fault, step.result, step.changed = backend.explain(fault), None, []
                step.is_refused = False
            if has_begun and len(steps) > 1:
                _take_singly(backend, steps)
            elif not has_begun:
                steps += self._refuse_waiting(backend, fault)
            return steps
        with suppress(Exception):  # the step is recorded; a timer makes up for a lost wake-up
            backend.on_commit()
        return steps

    def _refuse_waiting(self, backend: Backend, fault: Exception) -> list[_Step]:
        """Fail the writing steps that wait after a transaction that could not start: they would fail too, and later."""
        steps = []
        while (step := self._next(wait=False)) is not None:
            steps.append(step)
            if step.writes:
                step.fault = backend.explain(fault)
        _take_singly(backend, [step for step in steps if not step.writes])
        return steps

    def _call(self, back: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nothing waits any more
            self._loop.call_soon_threadsafe(back)

    def _deliver(self, steps: list[_Step]) -> None:
        for step in steps:
            if step.changed:
                try:
                    self._on_change(step.changed)
                except Exception as fault:  # noqa: BLE001 - a callback that raises must not block other results
                    _log.error("a changed record could not be reported: %s", type(fault).__name__)
            if step.writes and step.fault is not None and not step.is_refused:
                self._loop.call_soon(self._on_fault)
            if step.future.done():
                continue
            if step.fault is not None:
                step.future.set_exception(step.fault)
            else:
                step.future.set_result(step.result)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _take_one(backend: Backend, step: _Step) -> None:
    try:
        step.result = step.run(backend)
    except (LedgerError, ValueError, LookupError) as refusal:  # raised before anything was changed
        step.fault, step.is_refused = refusal, True
    step.changed = backend.take_changed()


def _take_singly(backend: Backend, steps: list[_Step]) -> None:
    """Take each of *steps* in its own transaction: only the step that causes the fault fails."""
    for step in steps:
        step.fault = None
        try:
            with backend.transaction(writes=step.writes, vital=step.vital):
                _take_one(backend, step)
        except Exception as fault:  # noqa: BLE001 - the caller that awaits the step raises it
            backend.on_rollback()
            step.fault, step.result, step.changed = backend.explain(fault), None, []
        with suppress(Exception):
            backend.on_commit()
