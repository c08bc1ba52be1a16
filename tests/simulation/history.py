"""One history: a plan happens, and what must hold afterwards is checked."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import shutil
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bide import _outside
from bide.ledgers import MemoryLedger
from bide.ledgers.sqlite import session as session_module
from bide.ledgers.sqlite.processes import Presence
from bide.models import TaskStatus
from simulation import world as world_module
from simulation.callers import Caller, Outcome
from simulation.hosts import Host
from simulation.ledger import LedgerFate, SimulatedWorker, Steps, patched_presence
from simulation.service import ALL_OPS, KEYS, Exchange, Fate, Service
from simulation.world import START, EndlessError, HostLoop, OrderedTask, World

if TYPE_CHECKING:
    from bide.ledgers import Record
    from simulation.plans import Misfortune, Moment, Plan

CALM = 90.0
"""Seconds after which nothing goes wrong any more."""
PATIENCE = 420.0
"""Seconds of calm within which each caller must have its answer."""
SAMPLE_SECONDS = 0.5
ROOT = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


@dataclass
class Report:
    """What one history has shown.

    Attributes:
        broken: the promises that were broken, a line each.
        met: how often each misfortune met each phase of a wish.
    """

    plan: Plan
    broken: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    met: Counter[tuple[str, str]] = field(default_factory=Counter)
    turns: int = 0
    seconds: float = 0.0


@contextmanager
def _replaced(world: World, steps: Steps) -> Iterator[None]:
    """Clock, chance, ids, and the thread of a ledger are the world's."""
    numbers = itertools.count(1)

    def new_bytes(count: int) -> bytes:
        return next(numbers).to_bytes(count, "big")

    listen, wake = patched_presence(steps)
    changes: list[tuple[Any, str, Any]] = [
        (_outside, "wall_time", world.wall_time),
        (_outside, "seconds_since_boot", lambda: world.now + world_module.BOOTED),
        (_outside, "new_bytes", new_bytes),
        (session_module, "Worker", type("Worker", (SimulatedWorker,), {"steps": steps})),
        (Presence, "listen", listen),
        (Presence, "wake", wake),
    ]
    before = [(place, name, place.__dict__[name]) for place, name, _ in changes]
    state = _outside.chance.getstate()
    for place, name, value in changes:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
        _outside.chance.setstate(state)


class History:
    """A plan that happens."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        OrderedTask.numbers = itertools.count()
        self.plan = plan
        self.report = Report(plan)
        self.world = World(plan.seed)
        self.report.story = self.world.story
        _outside.chance.seed(f"library {plan.seed}")
        self.steps = Steps(self.world, lambda loop: loop.name)  # type: ignore[attr-defined]
        self.phases: dict[str, str] = {wish.name: "asked" for wish in plan.wishes}
        self._triggers: defaultdict[tuple[str, str], list[Misfortune]] = defaultdict(list)
        self._countdowns: list[list[Any]] = []
        self.service = Service(
            self.world,
            plan.service,
            slots=plan.slots,
            seconds=plan.seconds,
            seed=self.world.chance.randrange(10**6),
            retry_after=plan.retry_after,
            on_phase=self.note_phase,
        )
        self.hosts = [
            Host(number, plan, self.world, self.service, self.steps, folder / "ledger.db", self._note_event)
            for number in range(plan.hosts)
        ]
        self.outcomes = {wish.name: Outcome(wish) for wish in plan.wishes}
        self.callers: list[Caller] = []
        self.idle = self.busy = 0.0
        self._last_trouble = START
        self.closings: list[tuple[str, float]] = []

    # What happens ------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Let the plan happen, and check what came of it."""
        with _replaced(self.world, self.steps):
            try:
                self._run()
            except EndlessError as error:
                self.report.broken.append(str(error))
        self.report.turns = self.world.turns
        self.report.seconds = self.world.now - START
        return self.report

    def _run(self) -> None:
        world = self.world
        world.after_turn.append(self._count_down)
        for host in self.hosts:
            host.start()
        groups: defaultdict[int, list[Outcome]] = defaultdict(list)
        for wish in self.plan.wishes:
            groups[wish.group].append(self.outcomes[wish.name])
        for outcomes in groups.values():
            world.at(START + outcomes[0].wish.at, lambda outcomes=outcomes: self._ask(outcomes))  # type: ignore[misc]
        for misfortune in self.plan.misfortunes:
            when = misfortune.when
            if when.at is not None:
                world.at(START + when.at, lambda each=misfortune: self._happen(each))  # type: ignore[misc]
            else:
                self._triggers[when.wish, when.phase].append(misfortune)
        world.after(SAMPLE_SECONDS, self._sample)
        world.run(START + CALM)
        self._calm()
        world.run(START + CALM + PATIENCE, is_done=self._is_over)
        world.run(world.now + 15.0)
        self._check_open()
        for host in self.hosts:
            if host.is_alive:
                host.close_for_good()
        world.run(world.now + 60.0, is_done=self._are_closed)
        world.run(world.now + 1.0)
        self._check_leftovers()
        self._check_truth()

    def _ask(self, outcomes: list[Outcome]) -> None:
        host = self.hosts[outcomes[0].wish.host]
        for outcome in outcomes:
            self.note_phase(outcome.wish.name, "asked")
        if not host.is_alive:
            for outcome in outcomes:
                outcome.end("left", "its host is dead")
            return
        caller = Caller(host, outcomes)
        self.callers.append(caller)
        host.loop.arrive(caller.start)
        host.tell(f"asks for {', '.join(o.wish.name for o in outcomes)} by {outcomes[0].wish.way}")

    def _is_over(self) -> bool:
        return all(outcome.ends is not None for outcome in self.outcomes.values())

    def _are_closed(self) -> bool:
        closings = [host.closing for host in self.hosts if host.is_alive and host.closing is not None]
        return all(closing.done() for closing in closings)

    # Phases and misfortunes --------------------------------------------------------------------------------

    def note_phase(self, prompt: str, phase: str) -> None:
        """The wish has reached a phase: what waits for that happens."""
        if prompt not in self.phases:
            return
        self.phases[prompt] = phase
        for misfortune in self._triggers.pop((prompt, phase), ()):
            self._plan_soon(misfortune, misfortune.when)

    def _note_event(self, prompt: str, name: str) -> None:
        if name in ("waiting", "submitting", "submitted", "changed", "final"):
            self.note_phase(prompt, name)

    def _plan_soon(self, misfortune: Misfortune, when: Moment) -> None:
        if when.seconds:
            self.world.after(when.seconds, lambda: self._happen(misfortune))
        elif when.turns:
            host = self.hosts[next(w.host for w in self.plan.wishes if w.name == when.wish)]
            self._countdowns.append([when.turns, host, misfortune])
        else:
            self._happen(misfortune)

    def _count_down(self, loop: HostLoop) -> None:
        if not self._countdowns:
            return
        for countdown in list(self._countdowns):
            if countdown[1].is_alive and countdown[1].loop is loop:
                countdown[0] -= 1
                if countdown[0] <= 0:
                    self._countdowns.remove(countdown)
                    self._happen(countdown[2])

    def _happen(self, misfortune: Misfortune) -> None:
        if self.world.now >= START + CALM:
            return
        self._last_trouble = self.world.now
        self.world.tell(f"MISFORTUNE: {misfortune}")
        self._note_met(misfortune)
        getattr(self, f"_do_{misfortune.kind}")(misfortune)

    def _note_met(self, misfortune: Misfortune) -> None:
        kind = misfortune.kind
        details = dict(misfortune.details)
        if kind in ("exchange", "ledger"):
            kind = f"{kind}: {details['fate']}"
        names = [details["wish"]] if "wish" in details else list(self.phases)
        for name in names:
            if self.outcomes[name].ends is None:
                self.report.met[kind, self.phases[name]] += 1

    def _do_exchange(self, misfortune: Misfortune) -> None:
        details = dict(misfortune.details)
        op = details["op"]
        self.service.fates.append(
            Fate(
                details["fate"],
                ALL_OPS if op == "any" else frozenset({op}),
                times=details["times"],
                until=self.world.now + details["lasts"] if "lasts" in details else START + CALM,
                seconds=details.get("seconds", 0.0),
                status=details.get("status", 503),
                retry_after=details.get("retry_after"),
                code=details.get("code", ""),
            )
        )

    def _do_outage(self, misfortune: Misfortune) -> None:
        host = misfortune["host"]
        self.service.fates.insert(
            0,
            Fate(
                misfortune["how"],
                ALL_OPS,
                host=None if host is None else f"host {host}",
                until=self.world.now + misfortune["seconds"],
                status=502,
            ),
        )
        self._trouble_until(self.world.now + misfortune["seconds"])

    def _do_restart(self, misfortune: Misfortune) -> None:
        self.service.restart(misfortune["seconds"])
        self._trouble_until(self.world.now + misfortune["seconds"])

    def _do_foreign(self, misfortune: Misfortune) -> None:
        taken = self.service.take_slots(misfortune["slots"], misfortune["seconds"])
        self.world.tell(f"the other user takes {taken} slots")
        self._trouble_until(self.world.now + misfortune["seconds"])

    def _do_wall(self, misfortune: Misfortune) -> None:
        self.world.wall_jump += misfortune["seconds"]

    def _do_rotate(self, misfortune: Misfortune) -> None:
        """The account gets a new key, and the old one is refused: each host opens a new client with it."""
        self.service.accepted_keys = {KEYS[1]}
        for host in self.hosts:
            host.key = KEYS[1]
            if host.is_alive:
                host.close_client(grace=1.0, withdraw=False, again_after=0.0)

    def _do_close(self, misfortune: Misfortune) -> None:
        host = self.hosts[misfortune["host"]]
        if host.is_alive:
            self.closings.append((host.name, self.world.now))
            host.close_client(
                grace=misfortune["grace"], withdraw=misfortune["withdraw"], again_after=misfortune["seconds"]
            )

    def _do_kill(self, misfortune: Misfortune) -> None:
        host = self.hosts[misfortune["host"]]
        if not host.is_alive:
            return
        for caller in self.callers:
            if caller.host is host:
                for outcome in caller.outcomes:
                    outcome.end("killed")
        self.world.go_on(host.loop)
        host.kill()
        self.world.after(misfortune["seconds"], host.start)

    def _do_stop(self, misfortune: Misfortune, *, threads: bool = True) -> None:
        host = self.hosts[misfortune["host"]]
        if not host.is_alive:
            return
        loop = host.loop
        self.world.stop(loop, threads=threads)
        self.world.after(misfortune["seconds"], lambda: self.world.go_on(loop))

    def _do_block(self, misfortune: Misfortune) -> None:
        self._do_stop(misfortune, threads=False)

    def _do_ledger(self, misfortune: Misfortune) -> None:
        details = dict(misfortune.details)
        host = details["host"]
        self.steps.fates.append(
            LedgerFate(
                details["fate"],
                None if host is None else f"host {host}",
                times=details["times"],
                until=self.world.now + details["lasts"],
                seconds=details["seconds"] or (1.0 if details["fate"] == "slow" else 0.0),
                writes=details["writes"],
            )
        )
        self._trouble_until(self.world.now + details["lasts"])

    def _do_cancel(self, misfortune: Misfortune) -> None:
        name = misfortune["wish"]
        for caller in self.callers:
            task = caller.task
            is_asked = any(outcome.wish.name == name for outcome in caller.outcomes)
            if is_asked and task is not None and not task.done() and caller.host.is_alive:
                for outcome in caller.outcomes:
                    outcome.was_cancelled = True
                caller.host.loop.arrive(task.cancel)

    def _trouble_until(self, moment: float) -> None:
        self._last_trouble = max(self._last_trouble, moment)

    def _calm(self) -> None:
        self.world.tell("calm")
        self.service.fates.clear()
        self.steps.fates.clear()
        self._countdowns.clear()
        self._triggers.clear()
        for host in self.hosts:
            if not host.is_alive:
                host.start()
            self.world.go_on(host.loop)
            if host.client is None and (host.closing is None or host.closing.done()):
                host.loop.create_task(host._open())

    # What is seen ------------------------------------------------------------------------------------------

    def _slots_in_use(self, record: Record) -> int:
        """By the ledger: a create of which nobody knows whether it arrived holds its slot for a while."""
        store = self.store()
        loads = [store.load(record.origin, record.kind, key, store.now()) for key in record.keys]
        return sum(load.slots for load in loads)

    def store(self) -> Any:
        """The store of a living ledger."""
        for host in self.hosts:
            if host.is_alive and host.client is not None and host.client._engine is not None:
                ledger = host.client._engine.account.ledger
                if isinstance(ledger, MemoryLedger):
                    return ledger._machine.store
                session = ledger._session  # type: ignore[attr-defined]
                if (
                    session is not None
                    and session.worker._backend is not None
                    and not session.worker._is_dead
                ):
                    return session.worker._backend.store
        return None

    def open_records(self) -> list[Record]:
        store = self.store()
        if store is None:
            return []
        if hasattr(store, "list_records"):
            return [each for each in store.list_records(is_open=True) if not each.task.status.is_final]
        return list(store._open.values())

    def _sample(self) -> None:
        self.world.after(SAMPLE_SECONDS, self._sample)

    # What must hold ----------------------------------------------------------------------------------------

    def _break(self, text: str) -> None:
        self.report.broken.append(text)
        self.world.tell(f"BROKEN: {text}")

    def _check_open(self) -> None:
        """Every caller has its answer, and what is open is watched by a client that lives."""
        for outcome in self.outcomes.values():
            if outcome.ends is None:
                self._break(f"{outcome.wish.name}: its caller waits still; last: {outcome.errors[-1:]}")
            elif outcome.ends == "lost" or (outcome.ends == "gave up" and outcome.wish.timeout is None):
                self._break(f"{outcome.wish.name}: {outcome.ends}: {outcome.why[:200]}")
        engines = {
            host.client._engine.owner: host.client._engine
            for host in self.hosts
            if host.client is not None and host.client._engine is not None
        }
        now = self.world.now
        for record in self.open_records():
            name = f"{getattr(record.request, 'prompt', '?')} ({record.ticket}, {record.task.status})"
            engine = engines.get(record.owner or "")
            # What a key that was replaced has not finished sending moves only on order.
            is_lost = is_of_lost_key(record, [each.account for each in engines.values()])
            if engine is None:
                if not is_lost:
                    self._break(f"{name}: nobody who lives owns it ({record.owner})")
            elif record.task.status.is_accepted and record.ticket not in engine.poller._schedule:
                self._break(f"{name}: its owner does not watch it")
            elif record.task.status is TaskStatus.SUBMITTING and not any(
                each.ticket == record.ticket for each in engine._submitter._posts.values()
            ):
                self._break(f"{name}: its owner does not send it")
            task = self.service.find(record.task.task_id or "")
            if task is not None and not task.phase(now).is_open and now - task.ended > 60:
                self._break(f"{name}: its end {now - task.ended:.0f} s ago was not seen")
            if record.task.status is TaskStatus.WAITING and not is_lost and not self._slots_in_use(record):
                self._break(f"{name}: it waits still, and no slot is in use")

    def _check_leftovers(self) -> None:
        for host in self.hosts:
            if not host.is_alive:
                continue
            if host.closing is not None and not host.closing.done():
                self._break(f"{host.name}: its client does not close")
                continue
            left = [task for task in asyncio.all_tasks(host.loop) if not task.done()]
            if left:
                self._break(f"{host.name}: tasks are left over: {[_name(task) for task in left]}")
            for fault in host.loop.faults:
                self._break(f"{host.name}: {fault}")
        for exchange in self.service.thrown_away:
            began, limit = exchange.began, 60.0 if exchange.op == "create" else 20.0
            if (
                exchange.answered is not None
                and exchange.answered - began < limit
                and not self._was_closing(exchange)
            ):
                self._break(
                    f"{exchange.host}: the answer to its {exchange.op} had arrived and was thrown away"
                )
        if self.service.open:
            self._break(f"exchanges are open still: {sorted(self.service.open)}")

    def _check_left(self, outcome: Outcome) -> None:
        """What a caller has left is not sent later. (A handle, a closed client or a dead host keeps it wanted.)"""
        wish, left_at = outcome.wish, outcome.left_at
        is_kept = (
            wish.way in ("run with ticket", "submit", "cancel") or bool(outcome.errors) or bool(self.closings)
        )
        if left_at is None or is_kept or any(host.lives > 1 for host in self.hosts):
            return
        margin = 5.1 if wish.way == "as_completed" else 0.1
        for exchange in self.service.exchanges:
            if exchange.op == "create" and exchange.prompt == wish.name and exchange.began > left_at + margin:
                self._break(
                    f"{wish.name}: it was sent {exchange.began - left_at:.1f} s after its caller had left"
                )

    def _was_closing(self, exchange: Exchange) -> bool:
        """Whether the host closed its client about then: a closing client gives up what takes longer than its grace."""
        return any(
            name == exchange.host and began <= (exchange.ended or 0.0) for name, began in self.closings
        )

    def _check_truth(self) -> None:
        """No wish was paid twice, and each caller got what was made for it."""
        for outcome in self.outcomes.values():
            wish = outcome.wish
            made = self.service.made_for(wish.name)
            bought = [task for task in made if not (task.cancelled and task.ended <= task.started)]
            if len(bought) > outcome.allowed:
                ids = ", ".join(task.id[:8] for task in bought)
                self._break(f"{wish.name}: paid {len(bought)} times ({ids}), {outcome.allowed} allowed")
            if outcome.task is not None:
                truth = self.service.find(outcome.task.task_id or "")
                if truth is None or truth.prompt != wish.name:
                    self._break(f"{wish.name}: got the picture of {truth.prompt if truth else 'nobody'!r}")
                elif not outcome.task.outputs:
                    self._break(f"{wish.name}: got a success without outputs")
            self._check_left(outcome)
            if outcome.ends == "refused" and made:
                self._break(f"{wish.name}: told as refused, but {len(made)} were made")


def is_of_lost_key(record: Record, accounts: list[Any]) -> bool:
    """Whether it was not sent, as far as is known, and no open client can send it or find out."""
    if record.task.status is TaskStatus.WAITING:
        return all(record.keys.isdisjoint(account.keys) for account in accounts)
    is_submitting = record.task.status is TaskStatus.SUBMITTING
    return is_submitting and all(record.key not in account.watchable_keys for account in accounts)


def _name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return f"{task.get_name()} {getattr(coroutine, '__qualname__', coroutine)}"


def happen(plan: Plan) -> Report:
    """Let *plan* happen in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="bide-storm-", dir=ROOT))
    logging.getLogger("bide").setLevel(logging.CRITICAL)
    gc_was_on = gc.isenabled()
    gc.disable()
    hook = sys.unraisablehook
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return History(plan, folder).run()
            finally:
                sys.unraisablehook = lambda _: None  # what a killed host leaves is taken apart here
                gc.collect()
    finally:
        sys.unraisablehook = hook
        if gc_was_on:
            gc.enable()
        shutil.rmtree(folder, ignore_errors=True)


Observer = Callable[[Report], object]
