"""A SQLite ledger without its thread: the world takes each step when it likes, and may fail it."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bide.errors import LedgerError
from bide.ledgers.sqlite.processes import Presence, close_descriptor
from bide.ledgers.sqlite.worker import Worker, _Step

if TYPE_CHECKING:
    from simulation.world import HostLoop, World


@dataclass
class LedgerFate:
    """What befalls the next steps of a host's ledger.

    Attributes:
        kind: "locked" fails them without effect, "failed after" fails them although they took effect, "slow" delays
            them.
        host: only of this host; None is all.
        times: so many steps at most.
        until: no step that begins later.
        seconds: how long they take.
        writes: only steps that write.
    """

    kind: str
    host: str | None
    times: int = 1_000_000
    until: float = float("inf")
    seconds: float = 0.0
    writes: bool = True


class Steps:
    """The steps of all ledgers of a history, and what is to befall them."""

    def __init__(self, world: World, hosts: Callable[[HostLoop], str]) -> None:
        self.world = world
        self.host_of = hosts
        self.fates: list[LedgerFate] = []
        self.sockets: dict[str, _Socket] = {}
        self.numbers = iter(range(10_000, 10_000_000))
        self.workers: list[SimulatedWorker] = []

    def fate_of(self, host: str, step: _Step) -> LedgerFate | None:
        """What befalls a step that begins now."""
        now = self.world.now
        self.fates = [fate for fate in self.fates if fate.times > 0 and fate.until > now]
        for fate in self.fates:
            if fate.host in (None, host) and (step.writes or not fate.writes):
                fate.times -= 1
                return fate
        return None


STEP_SECONDS = 0.001


class SimulatedWorker(Worker[Any]):
    """The same steps in the same transactions, taken by the world."""

    steps: Steps

    def __init__(
        self, make: Callable[[], Any], on_change: Callable[[list[Any]], None], on_fault: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._on_fault = on_fault
        self._steps = queue.SimpleQueue()
        self._is_stopped = False
        self._is_ending = False
        self._deferred = None
        self.ended = self._loop.create_future()
        self._make = make
        self._backend: Any = None
        self._broken: Exception | None = None
        self._is_planned = False
        self._is_dead = False
        self.host = self.steps.host_of(self._loop)
        self.steps.workers.append(self)

    def put(self, run: Any, *, writes: bool, vital: bool = False) -> Any:
        future = super().put(run, writes=writes, vital=vital)
        self._plan(STEP_SECONDS)
        return future

    def stop(self) -> None:
        super().stop()
        self._plan(STEP_SECONDS)

    def die(self) -> None:
        """The process dies: the kernel frees its lock and its socket."""
        self._is_dead = True
        if self._backend is not None:
            presence = self._backend.presence
            self.steps.sockets.pop(presence.instance, None)
            self._backend.database.connection.close()
            self._backend.database._close_lock()
            for number in (presence._lock, presence._directory):
                close_descriptor(number)

    def _plan(self, seconds: float) -> None:
        if not self._is_planned:
            self._is_planned = True
            self.steps.world.after(seconds, self._work_once)

    def _work_once(self) -> None:
        self._is_planned = False
        if self._is_dead or self.ended.done():
            return
        if self.steps.world.are_threads_stopped(self._loop):  # its thread is stopped, too
            self._plan(0.1)
            return
        if self._backend is None and self._broken is None:
            try:
                self._backend = self._make()
                if self._backend.presence.socket is not None:
                    self._backend.presence.socket.loop = self._loop
            except Exception as fault:  # noqa: BLE001 - as the thread has it
                self._broken = fault
        step = self._next(wait=False)
        if step is None:
            if self._is_ending:
                if self._backend is not None:
                    self.steps.sockets.pop(self._backend.presence.instance, None)
                    self._backend.close()
                self._call(self._end)
            return
        fate = self.steps.fate_of(self.host, step)
        if fate is not None and fate.seconds:
            self._is_planned = True
            self.steps.world.after(fate.seconds, partial(self._finish, step, fate))
            return
        self._finish(step, fate)

    def _finish(self, step: _Step, fate: LedgerFate | None) -> None:
        self._is_planned = False
        if self._is_dead:
            return
        if fate is not None and fate.kind == "locked":
            step.fault = LedgerError("the ledger has been locked by another process; nothing was recorded")
            steps = [step]
        elif self._broken is not None:
            step.fault = self._broken
            steps = [step]
        else:
            steps = self._take(self._backend, step)
            if fate is not None and fate.kind == "failed after":
                for each in steps:
                    each.fault, each.changed = (
                        LedgerError("the disk does not work: the step may be recorded"),
                        [],
                    )
        if fate is not None:
            self.steps.world.tell(f"{self.host}: a step of the ledger: {fate.kind}")
        self._call(partial(self._deliver, steps))
        self._plan(STEP_SECONDS)

    def _call(self, back: Callable[[], None]) -> None:
        if not self._is_dead and not self._loop.is_closed():
            self._loop.arrive(back)  # type: ignore[attr-defined]


class _Socket:
    """The socket of one process: what others send is there at once."""

    def __init__(self, steps: Steps, instance: str) -> None:
        self._number = next(steps.numbers)
        self.messages: deque[bytes] = deque()
        self.loop: Any = None

    def fileno(self) -> int:
        return self._number

    def recv(self, size: int) -> bytes:
        if not self.messages:
            raise BlockingIOError
        return self.messages.popleft()

    def close(self) -> None:
        self.messages.clear()


def patched_presence(steps: Steps) -> tuple[Any, Any]:
    """`listen` and `wake` of a presence, without sockets of the system."""

    def listen(presence: Presence) -> None:
        presence.socket = steps.sockets[presence.instance] = _Socket(steps, presence.instance)  # type: ignore[assignment]

    def wake(presence: Presence, instance: str, message: bytes) -> None:
        peer = steps.sockets.get(instance)
        if peer is not None:
            peer.messages.append(message)
            if peer.loop is not None:
                peer.loop.read(peer.fileno())

    return listen, wake
