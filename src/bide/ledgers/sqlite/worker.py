"""One thread that takes the steps of a ledger: many that wait are one transaction, and one hop there and back."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field

from bide.errors import LedgerError
from bide.ledgers.sqlite.processes import no_fork

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from bide.ledgers._records import Record

log = logging.getLogger("bide")

STEPS_PER_TRANSACTION = 200
"""Steps in one transaction at most: other processes want to write, too."""


class Backend(Protocol):
    """What the thread works with: it is made, used and closed there."""

    def transaction(self, *, writes: bool, vital: bool) -> AbstractContextManager[object]:
        """All that is done inside happens, or nothing."""
        ...

    def take_changed(self) -> list[Record]:
        """The records that were changed since this was asked last."""
        ...

    def undone(self) -> None:
        """The transaction was rolled back."""
        ...

    def done(self) -> None:
        """The transaction is through: wake whom it concerns."""
        ...

    def explained(self, fault: Exception) -> Exception:
        """*fault* in words for the user."""
        ...

    def close(self) -> None:
        """The thread ends."""
        ...


@define(eq=False)
class _Step:
    """One step on its way through the thread."""

    take: Callable[[Any], Any]
    writes: bool
    vital: bool
    future: asyncio.Future[Any]
    changed: list[Record] = field(factory=list)
    result: Any = None
    fault: Exception | None = None


class Worker:
    """The thread. It belongs to one event loop.

    Args:
        make: makes the backend, in the thread; what it raises is raised by every step.
        heard: called in the loop with the records that a step has changed, before whoever waits for it goes on.
    """

    def __init__(self, make: Callable[[], Backend], heard: Callable[[list[Record]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard = heard
        self._steps: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()
        self._is_stopped = False
        self._is_ending = False
        self._put_off: _Step | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._run, args=(make,), name="bide ledger", daemon=True).start()

    def put(self, take: Callable[[Any], Any], *, writes: bool, vital: bool = False) -> asyncio.Future[Any]:
        """Take a step with the backend; the future is its result. It is taken even if the future is cancelled."""
        step = _Step(take, writes, vital, self._loop.create_future())
        if self._is_stopped:
            step.future.set_exception(LedgerError("the ledger was closed meanwhile; nothing was recorded"))
        else:
            self._steps.put(step)
        return step.future

    def stop(self) -> None:
        """End the thread when it has taken the steps before this."""
        self._is_stopped = True
        self._steps.put(None)

    def _run(self, make: Callable[[], Backend]) -> None:
        with no_fork() as inside:
            self._work(make, inside)

    def _work(self, make: Callable[[], Backend], inside: AbstractContextManager[object]) -> None:
        # Only this frame refers to the backend: a forked child can never reach it, and so never closes it.
        backend: Backend | None = None
        broken: Exception | None = None
        try:
            with inside:
                backend = make()
        except Exception as fault:  # noqa: BLE001 - it is raised where a step is waited for
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
        """The next step that waits; None if there is none, or the end has come."""
        step, self._put_off = self._put_off, None
        if step is None and not self._is_ending:
            try:
                step = self._steps.get(wait)
            except queue.Empty:
                return None
            self._is_ending = step is None
        return step

    def _take(self, backend: Backend, first: _Step) -> list[_Step]:
        """Take *first*, and what waits by now, in one transaction; where one step breaks it, each in one of its own.

        What has come while other processes wrote is in it, too: the more there is to do, the less each step costs.
        """
        steps = [first]
        has_begun = False
        try:
            with backend.transaction(writes=first.writes, vital=first.vital):
                has_begun = True
                _take_one(backend, first)
                while len(steps) < STEPS_PER_TRANSACTION and (step := self._next(wait=False)) is not None:
                    if step.writes > first.writes or step.vital > first.vital:
                        self._put_off = step
                        break
                    steps.append(step)
                    _take_one(backend, step)
        except Exception as fault:  # noqa: BLE001 - it is raised where the step is waited for
            backend.undone()
            for step in steps:
                step.fault, step.result, step.changed = backend.explained(fault), None, []
            if has_begun and len(steps) > 1:
                _take_singly(backend, steps)
            elif not has_begun:
                steps += self._refuse_waiting(backend, fault)
            return steps
        with suppress(Exception):  # it is done, and a lost wake-up is made up for by a timer
            backend.done()
        return steps

    def _refuse_waiting(self, backend: Backend, fault: Exception) -> list[_Step]:
        """What waits behind a transaction that could not begin would fare no better, and have waited longer."""
        steps = []
        while (step := self._next(wait=False)) is not None:
            steps.append(step)
            if step.writes:
                step.fault = backend.explained(fault)
        _take_singly(backend, [step for step in steps if not step.writes])
        return steps

    def _call(self, back: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(back)

    def _deliver(self, steps: list[_Step]) -> None:
        for step in steps:
            if step.changed:
                try:
                    self._heard(step.changed)
                except Exception as fault:  # noqa: BLE001 - whoever hears badly must not keep others from their results
                    log.error("a change could not be told: %s", type(fault).__name__)
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
        step.result = step.take(backend)
    except (LedgerError, ValueError, LookupError) as refusal:  # raised before anything was changed
        step.fault = refusal
    step.changed = backend.take_changed()


def _take_singly(backend: Backend, steps: list[_Step]) -> None:
    """Take each of *steps* in a transaction of its own: only the one to blame fails."""
    for step in steps:
        step.fault = None
        try:
            with backend.transaction(writes=step.writes, vital=step.vital):
                _take_one(backend, step)
        except Exception as fault:  # noqa: BLE001 - it is raised where the step is waited for
            backend.undone()
            step.fault, step.result, step.changed = backend.explained(fault), None, []
        with suppress(Exception):
            backend.done()
