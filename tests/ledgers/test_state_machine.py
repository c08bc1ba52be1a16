"""Every ledger against a plain model, over all orders of steps that Hypothesis can think of."""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bide import _outside
from bide.ledgers import Held, LaneTerms, Ledger, Record
from bide.ledgers._lanes import Setback
from bide.models import Limits, Output, SavedFile, Task, TaskStatus
from support.ledger_model import CHANCE, Model, Ticket
from support.ledger_worlds import ORIGIN, MemoryWorld, SQLitePairWorld, SQLiteWorld, World, record

pytestmark = pytest.mark.no_cover  # tracing doubles its time, and other tests run the same lines

_T = TypeVar("_T")

Choose = Callable[[Sequence[Any]], Any]

KEYS = ("k1", "k2")
KINDS = ("image", "image", "image", "image", "video")
SETS = (frozenset({"k1"}), frozenset({"k2"}), frozenset(KEYS))
LANES = (["k1", "k2"], ["k2", "k1"], ["k1"], ["k2"])
CAPS, RATES = (None, 1, 2, 3), (None, None, None, 1, 2, 30)
SECONDS = (0.25, 0.937, 2.1, 7.313, 7.313, 23.771, 71.19, 93.377, 93.377, 311.3)
SETBACKS: tuple[Setback, ...] = ("slots", "slots", "rate", "capacity")
ADVICE = (None, 0.0, 3.33, 90.7, 90.7)
WHO = ("owner", "owner", "owner", "owner", "another", "gone")
OPEN = ("submitting", "queued", "running")
ENDS_AT_ONCE = ("succeeded", "failed", "rejected", "unknown", "unknown")
ENDS_LATER = ("succeeded", "failed", "expired", "cancelled")
SLOT_FOR, HOLD = 533.0, 47.0
STEPS = (
    *("add", "add", "add", "add_again", "admit", "admit", "admit", "admit", "accept", "accept", "accept"),
    *(
        "put_back",
        "put_back",
        "take_back",
        "confirm",
        "update",
        "finish",
        "finish",
        "finish",
        "withdraw",
        "cancelling",
        "learn",
    ),
    *("stop_wanting", "add_again"),
    *("follow_and_save", "leave", "adopt", "adopt", "settle", "settle", "forget", "pass_time", "pass_time"),
)


class LedgerMachine(RuleBasedStateMachine):
    """Steps of three owners with two keys. `world_of` names what is tested."""

    world_of: type[World] = MemoryWorld

    def __init__(self) -> None:
        super().__init__()
        self._directory = Path(tempfile.mkdtemp())
        self._runner = asyncio.Runner(loop_factory=self.world_of.loop_factory)
        self._patch = pytest.MonkeyPatch()
        boot = _outside.seconds_since_boot()
        self._patch.setattr(
            _outside, "seconds_since_boot", lambda: boot
        )  # a clock that only `pass_time` moves
        self._patch.setattr(_outside.chance, "random", lambda: CHANCE)
        self._finals: dict[str, Record] = {}
        self._numbers = iter(range(1, 10_000))
        self._stale: list[str] = []
        self._learned: dict[str, str] = {}

    @initialize(cap=st.sampled_from(CAPS), rate=st.sampled_from(RATES))
    def begin(self, cap: int | None, rate: int | None) -> None:
        self.model = Model(Limits(cap, rate))
        self.world = self.run(self._open())
        self.owners = [self.run(self._face(number).enter(ORIGIN, KEYS)) for number in range(3)]

    async def _open(self) -> World:
        world = self.world_of(self._directory)
        await world.open()
        return world

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.run(self.world.aclose())
        self._runner.close()
        self._patch.undo()
        shutil.rmtree(self._directory)

    def run(self, step: Awaitable[_T]) -> _T:
        async def take() -> _T:
            return await step

        return self._runner.run(take())

    def _face(self, number: int) -> Ledger:
        """Where there are several ledgers on the same records, each owner has one of them."""
        return self.world.ledgers[number % len(self.world.ledgers)]

    def _timed(self, step: Awaitable[_T]) -> tuple[_T, float]:
        async def take() -> tuple[_T, float]:
            return await step, self.world.ledger.now()

        return self._runner.run(take())

    def _who(self, choose: Choose, ticket: Ticket) -> tuple[str, Ledger]:
        """Who takes a step on *ticket*, and with which ledger."""
        who = choose(WHO)
        if who == "gone" and self._stale:
            return self._stale[-1], self._face(len(self._stale))
        if who == "owner" and ticket.owner in self.owners:
            return ticket.owner, self._face(self.owners.index(ticket.owner))
        return self.owners[0], self._face(0)

    def _pick(self, choose: Choose, *words: str) -> Ticket | None:
        """One of the tickets, mostly one for which the step means something: its status is one of *words*."""
        every = list(self.model.tickets.values())
        fit = [each for each in every if each.status in words]
        choice = every if not fit or choose(range(8)) == 0 else fit
        return choose(choice) if choice else None

    def _any_face(self, choose: Choose) -> Ledger:
        return self._face(choose((0, 1)))

    def _matches(self, got: Record, ticket: Ticket) -> None:
        """*got* tells what the model does."""
        seen = (got.ticket, str(got.task.status), got.owner, got.key, got.task.task_id, got.cancelling)
        known = (ticket.name, ticket.status, ticket.owner, ticket.key, ticket.task_id, ticket.cancelling)
        assert seen == known
        assert (got.wanted_by, got.attempt) == (ticket.wanted_by, ticket.attempt)
        if got.task.status.is_final:
            self._finals.setdefault(got.ticket, got)
            assert got.task == self._finals[got.ticket].task

    # Steps --------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(STEPS), data=st.data())
    def step(self, name: str, data: Any) -> None:
        getattr(self, f"_{name}")(lambda options: data.draw(st.sampled_from(options)))

    @rule(chance=st.randoms(use_true_random=True))
    def many_steps(self, chance: Any) -> None:
        """By chance: Hypothesis, left alone, tries few that go together."""
        for _ in range(20):
            name = chance.choice(STEPS)
            note(name)
            getattr(self, f"_{name}")(chance.choice)
            self.all_agree()

    def _add(self, choose: Choose) -> None:
        kind, keys, can_be_sent = choose(KINDS), choose(SETS), choose((True, True, False))
        for number in choose(((0,), (1,), (2,), (0, 1), (2, 0, 0), (1, 1, 1, 2))):
            name, owner = f"t{next(self._numbers)}", self.owners[number]
            new = record(name, kind=kind, keys=keys, owner=owner)
            got = self.run(self._face(number).add(new if can_be_sent else evolve(new, request=None)))
            ticket = Ticket(name, kind, keys, owner, got.sequence, (owner,), can_be_sent=can_be_sent)
            assert all(got.sequence > each.sequence for each in self.model.tickets.values())
            self.model.tickets[name] = ticket
            self._matches(got, ticket)

    def _add_again(self, choose: Choose) -> None:
        ticket = self._pick(choose)
        if ticket is None or not ticket.can_be_sent:  # that one asks for nothing
            return
        me, again = self.owners[0], choose((False, False, True))
        other = record(ticket.name, kind="video", owner=me)
        got = self.run(self._any_face(choose).add(other, again=again))
        if ticket.is_unsent or (again and ticket.status in ("failed", "cancelled", "expired")):
            self._finals.pop(ticket.name, None)
            del self.model.tickets[ticket.name]
            ticket = self.model.tickets[ticket.name] = Ticket(
                ticket.name, "video", other.keys, me, got.sequence, (me,), ticket.attempt + 1
            )
            assert all(got.sequence >= each.sequence for each in self.model.tickets.values())
        elif ticket.is_open and me not in ticket.wanted_by:
            ticket.wanted_by += (me,)
        self._matches(got, ticket)
        assert got.sequence == ticket.sequence

    def _admit(self, choose: Choose) -> None:
        """Of one owner, or of all as long as there is room."""
        kind, lanes, owner = choose(KINDS), choose(LANES), choose((0, 1, 2, None, None))
        if owner is not None:
            self._admit_one(kind, owner, lanes)
        else:
            while any(self._admit_one(kind, each, lanes) for each in range(3)):
                pass

    def _admit_one(self, kind: str, owner: int, lanes: list[str]) -> bool:
        me, limits = self.owners[owner], self.model.limits
        terms = [LaneTerms(key, limits, SLOT_FOR) for key in lanes]
        got, now = self._timed(self._face(owner).admit(ORIGIN, kind, me, terms))
        turn = self.model.admit(kind, me, lanes, now)
        assert (None if isinstance(got, Held) else (got.ticket, got.key)) == turn
        if isinstance(got, Held):
            return False
        ticket = self.model.tickets[got.ticket]
        ticket.status, ticket.key, ticket.slot_for = "submitting", got.key, SLOT_FOR
        ticket.slot_until, ticket.admitted = now + SLOT_FOR, now
        self._matches(got, ticket)
        return True

    def _accept(self, choose: Choose) -> None:
        ticket = self._pick(choose, "submitting")
        if ticket is None or ticket.status == "waiting":
            return
        me, ledger = self._who(choose, ticket)
        others = [e.task_id for e in self.model.tickets.values() if e.task_id and e is not ticket]
        task_id = others[-1] if others and choose((False, False, True)) else f"x{next(self._numbers)}"
        task = Task(ticket=ticket.name, task_id=ticket.task_id or task_id, status=TaskStatus.QUEUED)
        got, now = self._timed(ledger.accept(ticket.name, task, owner=me))
        is_taken = ticket.task_id is None and self.model.holder(task_id) is not None
        if ticket.is_open and ticket.owner == me and not is_taken:
            if ticket.status == "submitting":
                self.model.answer(ticket, now, accepted=True)
            ticket.status, ticket.task_id = "queued", task.task_id
        self._matches(got, ticket)

    def _put_back(self, choose: Choose) -> None:
        ticket = self._pick(choose, "submitting")
        if ticket is None:
            return
        (me, ledger), limits = self._who(choose, ticket), self.model.limits
        setback, retry_after = choose(SETBACKS), choose(ADVICE)
        what: dict[str, Any] = {"limits": limits, "retry_after": retry_after}
        what["admitted"] = ticket.admitted
        got, now = self._timed(ledger.put_back(ticket.name, setback, owner=me, **what))
        if ticket.status == "submitting" and ticket.owner == me:
            self.model.refuse(ticket, setback, now, retry_after=retry_after)
            self._wait_again(ticket, now)
        self._matches(got, ticket)

    @staticmethod
    def _wait_again(ticket: Ticket, now: float) -> None:
        is_over = ticket.cancelling or not ticket.wanted_by
        ticket.status = "cancelled" if is_over else "waiting"
        ticket.key = ticket.key if is_over else None
        ticket.slot_until = now if is_over else math.inf

    def _take_back(self, choose: Choose) -> None:
        ticket = self._pick(choose, "submitting")
        if ticket is None:
            return
        me, ledger = self._who(choose, ticket)
        admitted, pass_over = ticket.admitted - choose((0.0, 0.0, 0.0, 1.0)), choose((True, False))
        got, now = self._timed(
            ledger.take_back(ticket.name, owner=me, admitted=admitted, pass_over=pass_over)
        )
        if ticket.status == "submitting" and ticket.owner == me and ticket.admitted == admitted:
            if pass_over:
                self.model.offers[ticket.kind, me] = -math.inf
            self._wait_again(ticket, now)
        self._matches(got, ticket)

    def _confirm(self, choose: Choose) -> None:
        ticket = self._pick(choose, "submitting")
        if ticket is None:
            return
        (me, ledger), admitted = self._who(choose, ticket), ticket.admitted - choose((0.0, 0.0, 0.0, 1.0))
        may, now = self._timed(ledger.confirm(ticket.name, owner=me, admitted=admitted))
        is_this = ticket.status == "submitting" and ticket.owner == me and ticket.admitted == admitted
        is_paused = self.model.lane(ticket.kind, ticket.key or "").state.paused_until > now
        assert may == (is_this and not is_paused and not ticket.cancelling and bool(ticket.wanted_by))

    def _update(self, choose: Choose) -> None:
        ticket = self._pick(choose, "queued", "running")
        if ticket is None or ticket.status in ("waiting", "submitting"):
            return
        me, ledger = self._who(choose, ticket)
        moving, progress = TaskStatus.RUNNING, choose(range(101))
        task = Task(ticket=ticket.name, task_id=ticket.task_id, status=moving, progress=progress)
        got = self.run(ledger.update(ticket.name, task, owner=me))
        if ticket.is_open and ticket.owner == me:
            ticket.status = "running"
            assert got.task.progress == progress
        self._matches(got, ticket)

    def _finish(self, choose: Choose) -> None:
        ticket = self._pick(choose, *OPEN)
        if ticket is None or ticket.status == "waiting":
            return
        me, ledger = self._who(choose, ticket)
        word = choose(ENDS_AT_ONCE if ticket.status == "submitting" else ENDS_LATER)
        hold = HOLD if word == "unknown" else 0.0
        outputs = (Output(url="https://h/a.png"),) * (choose((1, 2)) if word == "succeeded" else 0)
        task = Task(ticket=ticket.name, task_id=ticket.task_id, status=TaskStatus(word), outputs=outputs)
        got, now = self._timed(ledger.finish(ticket.name, task, owner=me, hold=hold))
        if ticket.is_open and ticket.owner == me:
            if ticket.status == "submitting":
                self.model.answer(ticket, now, accepted=word in ("succeeded", "failed"))
            elif word != "unknown":
                hold = self.model.end(ticket, now, hold)
            ticket.status, ticket.slot_until, ticket.outputs = word, now + hold, len(outputs)
        self._matches(got, ticket)

    def _withdraw(self, choose: Choose) -> None:
        ticket = self._pick(choose, "waiting")
        if ticket is None:
            return
        gone = Task(ticket=ticket.name, status=TaskStatus.CANCELLED)
        got = self.run(self._any_face(choose).withdraw(ticket.name, gone))
        if ticket.status == "waiting":
            ticket.status = "cancelled"
        self._matches(got, ticket)

    def _stop_wanting(self, choose: Choose) -> None:
        ticket = self._pick(choose, "waiting", "submitting", "submitting", "queued")
        if ticket is None:
            return
        client = choose((*self.owners, *ticket.wanted_by, *ticket.wanted_by))
        gone = Task(ticket=ticket.name, status=TaskStatus.CANCELLED)
        got = self.run(self._any_face(choose).stop_wanting(ticket.name, gone, client=client))
        if ticket.status in ("waiting", "submitting"):
            ticket.wanted_by = tuple(each for each in ticket.wanted_by if each != client)
        if ticket.status == "waiting" and not ticket.wanted_by:
            ticket.status = "cancelled"
        assert got is not None
        self._matches(got, ticket)

    def _cancelling(self, choose: Choose) -> None:
        ticket = self._pick(choose, "submitting")
        if ticket is None:
            return
        got = self.run(self._any_face(choose).request_cancel(ticket.name))
        ticket.cancelling = ticket.cancelling or ticket.status == "submitting"
        self._matches(got, ticket)

    def _follow_and_save(self, choose: Choose) -> None:
        ticket = self._pick(choose, "succeeded")
        if ticket is None:
            return
        me = self.owners[0]
        followed = self.run(self._any_face(choose).follow(ticket.name, client=me))
        if ticket.is_open and me not in ticket.wanted_by:
            ticket.wanted_by += (me,)
        assert followed is not None
        assert followed.followed
        self._matches(followed, ticket)
        if not ticket.is_open:
            places, folder, size = choose(((0,), (1,), (1, 0))), choose(("a", "b")), choose((1, 2))
            saved = {f"{folder}/{ticket.name}-{place}.png": size for place in places}
            files = [SavedFile(*each) for each in saved.items()]
            kept = self.run(self._any_face(choose).record_files(ticket.name, files))
            ticket.files |= saved
            assert kept is not None
            assert [(each.path, each.size) for each in kept.files] == list(ticket.files.items())
            assert kept.unsaved == ticket.unsaved
            self._finals[ticket.name] = kept

    # Owners -------------------------------------------------------------------------------------------------

    def _leave(self, choose: Choose) -> None:
        owner = choose((0, 1, 2))
        me = self.owners[owner]
        mine = [each for each in self.model.tickets.values() if each.is_open and each.owner == me]
        ended = [each for each in mine if each.status == "waiting" and not each.can_be_sent]
        self.model.offers = {where: at for where, at in self.model.offers.items() if where[1] != me}
        for each in mine:
            if each in ended:
                each.status = "cancelled"
            else:
                each.owner = None
        self._keep_finals_of(ended)
        left = self.run(self._face(owner).leave(me))
        assert {each.ticket for each in left} == {each.name for each in mine if each not in ended}
        for each in ended:
            self._heard[each.name]()
        for got in left:
            self._matches(got, self.model.tickets[got.ticket])
        self._stale.append(me)
        self.owners[owner] = self.run(self._face(owner).enter(ORIGIN, KEYS))

    def _keep_finals_of(self, ended: list[Ticket]) -> None:
        """What ends while its owner leaves is only heard of; a memory ledger forgets it when nobody holds it."""
        names = {each.name for each in ended}
        heard: dict[str, Record] = {}

        def hear(news: object) -> None:
            if isinstance(news, Record) and news.ticket in names:
                heard[news.ticket] = news

        ends = [each.subscribe(hear) for each in self.world.ledgers]

        def told(name: str) -> None:
            self._matches(heard[name], self.model.tickets[name])
            for end in ends:
                end()

        self._heard = {name: lambda name=name: told(name) for name in names}
        if not names:
            for end in ends:
                end()

    def _adopt(self, choose: Choose) -> None:
        owner, keys = choose((0, 1, 2)), choose(SETS)
        me = self.owners[owner]
        free = [each for each in self.model.open_of(keys) if each.owner is None]
        for each in free:
            each.owner = me
        got = self.run(self._face(owner).adopt(ORIGIN, keys, me))
        assert {each.ticket for each in got} == {each.name for each in free}
        for each in got:
            self._matches(each, self.model.tickets[each.ticket])

    # What the user settles ----------------------------------------------------------------------------------

    def _settle(self, choose: Choose) -> None:
        ticket = self._pick(choose, "unknown")
        if ticket is None:
            return
        name = ticket.name
        others = [e.task_id for e in self.model.tickets.values() if e.task_id and e.name != name]
        task_id = others[0] if others and choose((False, False, True)) else f"x{next(self._numbers)}"
        step = self._any_face(choose).settle(name, task_id)
        if ticket.status != "unknown" or self.model.holder(task_id) is not None:
            with pytest.raises(ValueError, match=name):
                self.run(step)
            return
        got, now = self._timed(step)
        ticket.status, ticket.task_id, ticket.owner = "queued", task_id, None
        ticket.slot_until = now + ticket.slot_for
        del self._finals[name]
        self._matches(got, ticket)

    def _forget(self, choose: Choose) -> None:
        ticket = self._pick(choose, "succeeded", "unknown", "running")
        if ticket is None:
            return
        step = self._any_face(choose).forget(ticket.name)
        if ticket.status == "waiting":
            self._keep_finals_of([ticket])
            self.run(step)
            ticket.status = "cancelled"
            self._heard[ticket.name]()
            return
        _, now = self._timed(asyncio.sleep(0))
        if ticket.is_open and ticket.holds_slot(now):
            with pytest.raises(ValueError, match=ticket.name):
                self.run(step)
            return
        self._matches(self.run(step), ticket)
        del self.model.tickets[ticket.name]
        self._finals.pop(ticket.name, None)
        for each in self.world.ledgers:
            assert self.run(each.get(ticket.name)) is None

    def _learn(self, choose: Choose) -> None:
        """What two sides learn under one name comes together."""
        names, word = choose((("wan",), ("qwen",), ("wan", "qwen"))), f"{next(self._numbers)} "
        told = self.run(
            self._any_face(choose).learn({name: lambda before: (before or "") + word for name in names})
        )
        self._learned |= {name: self._learned.get(name, "") + word for name in names}
        assert told == {name: self._learned[name] for name in names}
        assert self.run(self._any_face(choose).read_learned()) == self._learned

    # Time, and what always holds ----------------------------------------------------------------------------

    def _pass_time(self, choose: Choose) -> None:
        self.run(self.world.pass_time(choose(SECONDS)))

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def all_agree(self) -> None:
        """What is open, in the order of arrival; slots; what has ended; creates without a known task; what to save."""
        self._agree_on_what_is_open()
        self._agree_on_slots()
        self._agree_on_what_is_unsaved()
        for number, (name, kept) in enumerate(tuple(self._finals.items())[-3:]):
            got = self.run(self._face(number).get(name))
            assert got is not None
            assert evolve(got, version=0) == evolve(kept, version=0)

    def _agree_on_what_is_open(self) -> None:
        for number, keys in enumerate((frozenset({"k1"}), frozenset({"k2"}))):
            told = self.run(self._face(number).open_records(ORIGIN, keys))
            known = self.model.open_of(keys)
            assert [each.ticket for each in told] == [each.name for each in known]
            for got, ticket in zip(told, known, strict=True):
                self._matches(got, ticket)

    def _agree_on_slots(self) -> None:
        views, now = self._timed(self.world.ledger.lanes(ORIGIN, KEYS))
        for view in views:
            records = self.model.of_lane(view.kind, view.key)
            assert view.slots == sum(each.holds_slot(now) for each in records)
        for key in KEYS:
            told, now = self._timed(self.world.ledger.unsettled_records(ORIGIN, key))
            of_key = [each for each in self.model.tickets.values() if each.key == key]
            submitting = {each.name for each in of_key if each.status == "submitting"}
            unknown = [each for each in of_key if each.status == "unknown"]
            held = {each.name for each in unknown if each.holds_slot(now)}
            assert {each.ticket for each in told} == submitting | held

    def _agree_on_what_is_unsaved(self) -> None:
        keys = KEYS[: 1 + len(self._finals) % 2]
        told = self.run(self._face(len(self._finals)).unsaved_records(ORIGIN, keys))
        known = [each for each in self.model.tickets.values() if each.unsaved and each.key in keys]
        known.sort(key=lambda each: each.sequence)
        assert [(each.ticket, each.unsaved) for each in told] == [(each.name, each.unsaved) for each in known]


class MemoryMachine(LedgerMachine):
    """In virtual time."""

    world_of = MemoryWorld


class SQLiteMachine(LedgerMachine):
    """On one file, in one thread."""

    world_of = SQLiteWorld


class SQLitePairMachine(LedgerMachine):
    """On one file from two sides: what one remembers of a record must not outlive what the other writes."""

    world_of = SQLitePairWorld


ALIKE = settings(
    derandomize=True,
    deadline=None,
    stateful_step_count=8,
    suppress_health_check=list(HealthCheck),
    database=None,
    # What is left to chance does not get shorter, though Hypothesis would try for minutes.
    phases=[Phase.generate],
)

TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(ALIKE, max_examples=35)
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = settings(ALIKE, max_examples=10)
TestSQLitePair = SQLitePairMachine.TestCase
TestSQLitePair.settings = settings(ALIKE, max_examples=10)
