"""`Ledger`: each operation once, with its words, its signature and its step of the state machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from bide.ledgers._lanes import Setback
    from bide.ledgers._records import Held, Hint, LaneTerms, LaneView, Record
    from bide.ledgers._state_machine import StateMachine
    from bide.models import Limits, SavedFile, Task

_T = TypeVar("_T")


class Ledger(ABC):
    """Records and lanes. Each method is one atomic step, and safe to repeat.

    A record that is final does not change any more, and an open one is driven by its owner alone: `accept`, `put_back`,
    `update` and `finish` return it as it stands if it is final or *owner* is not its owner. A ledger is hashable and
    can be weakly referenced, as plain classes are.

    A further ledger is a `Store` for the state machine, and a subclass that says how `_step` takes one step of it,
    whole or not at all.

    Raises:
        LedgerError: (each method) it could not read or write; nothing has changed then.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[[Record | Hint], None]] = []

    @property
    @abstractmethod
    def durable(self) -> bool:
        """Whether records outlive the process, so that another can go on with them."""

    @abstractmethod
    def now(self) -> float:
        """Seconds by the ledger's clock, which all its processes share."""

    @abstractmethod
    async def salt(self) -> bytes:
        """16 bytes that a key is salted with before its digest names it in records. The ledger never sees the key."""

    @abstractmethod
    async def enter(self, origin: str, keys: Collection[str]) -> str:
        """A client with these keys begins. Returns its name as an owner, in use until `leave` or its process ends."""

    @abstractmethod
    async def leave(self, owner: str, *, waiting: bool = False) -> list[Record]:
        """*owner* ends: its open records belong to nobody. Returns them. With *waiting* only what waits does.

        What waits and could not be sent by anybody else (its request was not stored) ends as `cancelled`.
        """

    @abstractmethod
    async def newer_records(self, versions: Mapping[str, int]) -> list[Record]:
        """Those records of these tickets that have changed since the version given: what was not heard, if anything."""

    @abstractmethod
    async def share(self, owner: str, rate: float) -> float:
        """The part of the account's *rate* (queries in a second) that this process may use now.

        The clients of the account divide it by their open tasks; all that one process has count as one.
        """

    def subscribe(self, heard: Callable[[Record | Hint], None]) -> Callable[[], None]:
        """Call *heard*, in the loop, with each record that is changed here, with those changed elsewhere that an owner
        of this process drives or somebody here follows, and with hints. Returns what ends that."""
        self._listeners.append(heard)

        def end() -> None:
            if heard in self._listeners:
                self._listeners.remove(heard)

        return end

    async def add(self, record: Record) -> Record:
        """Put *record* on record. If its ticket is there already, that one is returned and nothing changes."""
        return await self._step(lambda machine: machine.add(record), vital=True)

    async def get(self, ticket: str) -> Record | None:
        """The record of *ticket*."""
        return await self._step(lambda machine: machine.get(ticket), writes=False)

    async def follow(self, ticket: str) -> Record | None:
        """The record of *ticket*, whose changes are heard from now on whoever makes them."""
        return await self._step(lambda machine: machine.follow(ticket))

    async def find(self, origin: str, task_id: str) -> Record | None:
        """The open record of the service's *task_id*."""
        return await self._step(lambda machine: machine.find(origin, task_id), writes=False)

    async def known_task_ids(self, origin: str, task_ids: Collection[str]) -> frozenset[str]:
        """Those of *task_ids* that some record has, or has had of late."""
        return await self._step(lambda machine: machine.known_task_ids(origin, task_ids), writes=False)

    async def admit(self, origin: str, kind: str, owner: str, lanes: Sequence[LaneTerms]) -> Record | Held:
        """Admit the first record of the queue that *owner* has and that a lane can take: it is `submitting` then.

        Gate, slots, learned cap, create rate and the queue are looked at together. An older record of another
        owner that could use the same lane goes first; what nobody owns is in nobody's way.
        """
        return await self._step(lambda machine: machine.admit(origin, kind, owner, lanes), vital=True)

    async def accept(self, ticket: str, task: Task, *, owner: str, admitted: float | None = None) -> Record:
        """The create was answered with a task that goes on.

        The answer to the create that was *admitted* then counts whoever drives the record by now, and even if it has
        been called `unknown` meanwhile: the id of what was bought is not to be lost. A task id that another record of
        the service has already cannot be this one's too: the record is returned as it stands, still `submitting`.
        """
        return await self._step(lambda machine: machine.accept(ticket, task, owner, admitted), vital=True)

    async def put_back(
        self,
        ticket: str,
        setback: Setback,
        *,
        owner: str,
        limits: Limits,
        certain: bool,
        retry_after: float | None,
    ) -> Record:
        """The create made no task, for now: back to the head of the queue, and the lane pauses.

        If a cancel was asked for meanwhile, the record ends as `cancelled` instead.
        """
        return await self._step(
            lambda machine: machine.put_back(
                ticket, setback, owner=owner, limits=limits, certain=certain, retry_after=retry_after
            )
        )

    async def update(self, ticket: str, task: Task, *, owner: str) -> Record:
        """The service tells a new state that is not final."""
        return await self._step(lambda machine: machine.update(ticket, task, owner))

    async def finish(self, ticket: str, task: Task, *, owner: str, hold: float = 0.0) -> Record:
        """Record a final state. The slot is free now, or *hold* seconds from now."""
        return await self._step(lambda machine: machine.finish(ticket, task, owner, hold))

    async def record_files(self, ticket: str, files: Sequence[SavedFile]) -> Record | None:
        """Note what was saved of a result, beside what was saved of it before; None if the ticket is on no record.

        A file at the same path takes the place of the one before.
        """
        return await self._step(lambda machine: machine.record_files(ticket, files))

    async def unsaved_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        """Records of these keys with results that were not saved and that can be fetched yet, as far as is known: the
        most urgent first, and at most `MOST_UNSAVED_RECORDS` of them."""
        return await self._step(lambda machine: machine.unsaved_records(origin, keys), writes=False)

    async def withdraw(self, ticket: str, task: Task) -> Record:
        """End a record that waits, whoever owns it; one that does not is returned as it stands."""
        return await self._step(lambda machine: machine.withdraw(ticket, task))

    async def request_cancel(self, ticket: str) -> Record:
        """Remember that a cancel was asked for while the record is `submitting`."""
        return await self._step(lambda machine: machine.request_cancel(ticket))

    async def record_cancel_answer(self, ticket: str, *, taken: bool) -> Record:
        """The service has taken the cancel that was asked for meanwhile, or it was too late."""
        return await self._step(lambda machine: machine.record_cancel_answer(ticket, taken=taken))

    async def settle(self, ticket: str, task_id: str) -> Record:
        """An `unknown` submission is found to be *task_id*: it is open again, for anybody to adopt.

        Raises:
            ValueError: the record is not `unknown`, or *task_id* belongs to another one.
            LookupError: *ticket* is on no record.
        """
        return await self._step(lambda machine: machine.settle(ticket, task_id), vital=True)

    async def forget(self, ticket: str) -> Record:
        """Remove a record that has ended (an `unknown` one too: its slot is free) or is overdue; withdraw one that
        waits. Returns it as it was.

        Raises:
            ValueError: its task goes on at the service.
            LookupError: *ticket* is on no record.
        """
        return await self._step(lambda machine: machine.forget(ticket))

    async def unsettled_records(self, origin: str, key: str) -> list[Record]:
        """Records of the key whose create has no known task: `submitting`, or `unknown` and still held."""
        return await self._step(lambda machine: machine.unsettled_records(origin, key), writes=False)

    async def adopt(
        self,
        origin: str,
        keys: Collection[str],
        owner: str,
        *,
        tickets: Collection[str] | None = None,
        waiting: bool = True,
    ) -> list[Record]:
        """*owner* takes over the open records that belong to nobody and that it holds the key of. Returns them.

        Args:
            tickets: only these.
            waiting: what waits, too, and so is sent by the new owner.
        """
        return await self._step(
            lambda machine: machine.adopt(origin, keys, owner, tickets=tickets, waiting=waiting)
        )

    async def open_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        """The open records of these keys, whoever drives them, in the order of their arrival."""
        return await self._step(lambda machine: machine.open_records(origin, keys), writes=False)

    async def lanes(self, origin: str, keys: Collection[str]) -> list[LaneView]:
        """The lanes of these keys that have been used."""
        return await self._step(lambda machine: machine.lanes(origin, keys), writes=False)

    async def read_learned(self, names: Collection[str] | None = None) -> dict[str, str]:
        """What was learned under these names (all of them with None): JSON text that only `_learned` reads."""
        return await self._step(lambda machine: machine.read_learned(names), writes=False)

    async def learn(self, changes: Mapping[str, Callable[[str | None], str]]) -> dict[str, str]:
        """Change what was learned under each name, in one atomic step. Returns what stands there now.

        A change gets the text on record, or None. It is a pure function: it may be called in another thread, and again.
        What it raises is raised here, and nothing has changed then. At most `MOST_LEARNED_NAMES` names are kept.
        """
        learned = await self._step(lambda machine: machine.learn(changes))
        if isinstance(learned, Exception):
            raise learned
        return learned

    # What a ledger implements ------------------------------------------------------------------------------

    @abstractmethod
    async def _step(
        self, step: Callable[[StateMachine], _T], *, writes: bool = True, vital: bool = False
    ) -> _T:
        """Take one step.

        Args:
            writes: whether it may change something.
            vital: whether it must outlive a loss of power: the intent to buy, and the id of what was bought.
        """

    def _notify(self, news: Record | Hint) -> None:
        for heard in tuple(self._listeners):
            heard(news)
