"""`Ledger`: every operation on records and lanes, with its description and its step of the state machine."""

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
    """Records and lanes. Each method is one atomic step, and can be repeated safely.

    A final record does not change any more, and only its owner drives an open one: `accept`, `put_back`, `update` and
    `finish` return the record unchanged if it is final or *owner* is not its owner. A ledger is hashable and can be
    weakly referenced, as plain classes are.

    To write a further ledger, implement `Store` of `_store.py`, and subclass this class with the abstract
    methods. `_step` runs a step of a `StateMachine` over that store, as a whole or not at all, and `_notify` reports
    each record that the store has written. `memory.py` is the short model; a row in the `WORLDS` of the tests runs the
    common tests over the new ledger.

    Raises:
        LedgerError: (each method) the ledger could not be read or written. Nothing has changed then.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[[Record | Hint], None]] = []

    @property
    @abstractmethod
    def durable(self) -> bool:
        """Whether records outlive the process, so that another process can take over."""

    @abstractmethod
    def now(self) -> float:
        """Seconds by the ledger's clock, which all its processes share."""

    @abstractmethod
    async def salt(self) -> bytes:
        """16 bytes that salt a key before it is digested. Records name the key by that digest, never the key itself."""

    @abstractmethod
    async def enter(self, origin: str, keys: Collection[str]) -> str:
        """Register a client with these keys. Returns its name as an owner, in use until `leave` or its process ends."""

    @abstractmethod
    async def leave(self, owner: str, *, waiting: bool = False) -> list[Record]:
        """Release the open records of *owner*, which ends. Returns them. With *waiting*, release only waiting records.

        A waiting record whose request was not stored cannot be sent by another client; it ends as `cancelled`.
        """

    @abstractmethod
    async def newer_records(self, versions: Mapping[str, int]) -> list[Record]:
        """The records of these tickets that are newer than the given version: changes that the client has missed."""

    @abstractmethod
    async def share(self, owner: str, rate: float) -> float:
        """The part of the account's *rate* (queries a second) that this process may use now.

        The processes of the account divide it by their open tasks; all clients of a process count as one.
        """

    def subscribe(self, callback: Callable[[Record | Hint], None]) -> Callable[[], None]:
        """Call *callback*, in the loop, with changed records and hints. Returns a function that ends the subscription.

        The records are those that this process changes, and those that another process changes and that a client of
        this process drives or follows.
        """
        self._listeners.append(callback)

        def unsubscribe() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return unsubscribe

    async def add(self, record: Record, *, again: bool = False) -> Record:
        """Add *record*. If its ticket is on record already, return that record, wanted by the clients of both.

        If no task was made for the ticket and none will be (`Record.bought` is False), *record* becomes its next
        attempt. A record of another request is returned unchanged.

        Args:
            again: also make the next attempt of a task that has failed, was cancelled or has expired.
        """
        return await self._step(lambda machine: machine.add(record, again=again), vital=True)

    async def get(self, ticket: str) -> Record | None:
        """The record of *ticket*."""
        return await self._step(lambda machine: machine.get(ticket), writes=False)

    async def follow(self, ticket: str, *, client: str) -> Record | None:
        """The record of *ticket*, which *client* wants too. From now on its changes are reported to listeners,
        whichever process makes them."""
        return await self._step(lambda machine: machine.follow(ticket, client))

    async def find(self, origin: str, task_id: str) -> Record | None:
        """The open record of the service's *task_id*."""
        return await self._step(lambda machine: machine.find(origin, task_id), writes=False)

    async def ticket_of_task(self, origin: str, task_id: str) -> str | None:
        """The ticket of the record that has, or had recently, the service's *task_id*."""
        return await self._step(lambda machine: machine.store.ticket_of_task(origin, task_id), writes=False)

    async def known_task_ids(self, origin: str, task_ids: Collection[str]) -> frozenset[str]:
        """Those of *task_ids* that a record has, or had recently."""
        return await self._step(lambda machine: machine.known_task_ids(origin, task_ids), writes=False)

    async def admit(self, origin: str, kind: str, owner: str, lanes: Sequence[LaneTerms]) -> Record | Held:
        """Admit the first record of *owner* in the queue that a lane can take. The record is `submitting` then.

        One step checks pauses, slots, the learned cap, the create rate and the queue. An older record of another owner
        that could use the same lane goes first. But an owner that does not take a free slot within 2 s is passed over
        until it calls this again; its records keep their places. Records without an owner block no other record.
        """
        return await self._step(lambda machine: machine.admit(origin, kind, owner, lanes), vital=True)

    async def confirm(self, ticket: str, *, owner: str, admitted: float | None) -> bool:
        """Whether the create that was admitted at *admitted* may still be sent: called when its connection stands.

        It may not if its lane has paused since, if no client wants it any more, or if another client drives the record
        now. `take_back` records that it was not sent.
        """
        return await self._step(lambda machine: machine.confirm(ticket, owner, admitted), writes=False)

    async def accept(
        self, ticket: str, task: Task, *, owner: str, admitted: float | None = None, guessed: bool = False
    ) -> Record:
        """Record that the create was answered with a task that goes on.

        The answer to the create that was admitted at *admitted* counts even if another owner drives the record now, or
        if the record has become `unknown` meanwhile: the id of what was bought must not be lost. If another record of
        the service has the same task id, the record is returned unchanged, still `submitting`.

        Args:
            guessed: the task was found by model and time alone. The answer to the create replaces it, if it comes.
        """
        return await self._step(
            lambda machine: machine.accept(ticket, task, owner, admitted, guessed=guessed), vital=True
        )

    async def undo_match(self, ticket: str, task: Task, *, owner: str, hold: float) -> Record:
        """Record that the guessed task of the record is not its own: the record ends as *task*, which is `unknown`.

        It keeps its slot for *hold* seconds. The task's id is free for another record.
        """
        return await self._step(lambda machine: machine.undo_match(ticket, task, owner, hold), vital=True)

    async def put_back(
        self,
        ticket: str,
        setback: Setback,
        *,
        owner: str,
        admitted: float | None,
        limits: Limits,
        retry_after: float | None,
    ) -> Record:
        """Put the record back at the head of the queue: the create of *admitted* made no task, for now.

        Its lane learns from that, and may pause.

        If a cancel was requested meanwhile, or no client wants the record any more, it ends as `cancelled` instead.
        """
        return await self._step(
            lambda machine: machine.put_back(
                ticket,
                setback,
                owner=owner,
                admitted=admitted,
                limits=limits,
                retry_after=retry_after,
            )
        )

    async def take_back(
        self, ticket: str, *, owner: str, admitted: float | None, pass_over: bool = False
    ) -> Record:
        """Put the record back at the head of the queue: the create that was admitted at *admitted* was not sent.

        The lane does not pause. If no client wants the record any more, it ends as `cancelled` instead.

        Args:
            pass_over: *owner* has no connection: it is passed over until it calls `admit` again.
        """
        return await self._step(
            lambda machine: machine.take_back(ticket, owner, admitted, pass_over=pass_over)
        )

    async def update(self, ticket: str, task: Task, *, owner: str) -> Record:
        """Record a new state that is not final. A task that awaits its outputs has ended: its slot is free now."""
        return await self._step(lambda machine: machine.update(ticket, task, owner))

    async def finish(self, ticket: str, task: Task, *, owner: str, hold: float = 0.0) -> Record:
        """Record a final state. The slot is free now, or *hold* seconds from now."""
        return await self._step(lambda machine: machine.finish(ticket, task, owner, hold))

    async def record_files(self, ticket: str, files: Sequence[SavedFile]) -> Record | None:
        """Add saved files of a result to the record; None if there is no record of *ticket*.

        A file replaces an earlier one at the same path.
        """
        return await self._step(lambda machine: machine.record_files(ticket, files))

    async def unsaved_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        """Records of these keys with unsaved results that have not expired, as far as is known.

        Those that expire first come first, at most `MOST_UNSAVED_RECORDS` of them.
        """
        return await self._step(lambda machine: machine.unsaved_records(origin, keys), writes=False)

    async def stop_wanting(self, ticket: str, task: Task, *, client: str) -> Record | None:
        """Record that no caller of *client* wants the submission any more. None if there is no record of *ticket*.

        If that was the last client, a waiting record ends as *task*. One whose create is under way ends as `cancelled`
        if the create makes no task for now. A task that was accepted goes on.
        """
        return await self._step(lambda machine: machine.stop_wanting(ticket, task, client))

    async def withdraw(self, ticket: str, task: Task) -> Record:
        """End a waiting record of any owner. A record that does not wait is returned unchanged."""
        return await self._step(lambda machine: machine.withdraw(ticket, task))

    async def request_cancel(self, ticket: str) -> Record:
        """Record that a cancel was requested while the record is `submitting`."""
        return await self._step(lambda machine: machine.request_cancel(ticket))

    async def record_cancel_answer(self, ticket: str, *, taken: bool) -> Record:
        """Record whether the service has accepted the requested cancel, or it came too late."""
        return await self._step(lambda machine: machine.record_cancel_answer(ticket, taken=taken))

    async def settle(self, ticket: str, task_id: str) -> Record:
        """Record that an `unknown` submission is the task *task_id*. It is open again, without an owner.

        Raises:
            ValueError: the record is not `unknown`, or *task_id* belongs to another record.
            LookupError: there is no record of *ticket*.
        """
        return await self._step(lambda machine: machine.settle(ticket, task_id), vital=True)

    async def forget(self, ticket: str) -> Record:
        """Remove a record that has ended or is overdue, or withdraw a waiting one. Returns the record before that.

        An `unknown` record can be removed too. That frees its slot.

        Raises:
            ValueError: its task goes on at the service.
            LookupError: there is no record of *ticket*.
        """
        return await self._step(lambda machine: machine.forget(ticket))

    async def unsettled_records(self, origin: str, key: str) -> list[Record]:
        """Records of the key whose create has no known task: `submitting`, or `unknown` and still using a slot."""
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
        """Make *owner* the owner of open records of these keys that have none. Returns them.

        Args:
            tickets: only the records of these tickets.
            waiting: adopt waiting records, too. The new owner sends them.
        """
        return await self._step(
            lambda machine: machine.adopt(origin, keys, owner, tickets=tickets, waiting=waiting)
        )

    async def lost_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        """The open records without an owner that belong to none of *keys* and to no key of an open client."""
        return await self._step(lambda machine: machine.lost_records(origin, keys), writes=False)

    async def move_waiting(
        self, tickets: Collection[str], keys: Collection[str], *, owner: str
    ) -> list[Record]:
        """Move those of *tickets* that wait and have no owner to *keys*. *owner* sends them. Returns them."""
        return await self._step(lambda machine: machine.move_waiting(tickets, keys, owner))

    async def records_of(self, owner: str) -> list[Record]:
        """The open records of *owner*."""
        return await self._step(lambda machine: machine.records_of(owner), writes=False)

    async def open_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        """The open records of these keys, of all owners, in the order of arrival."""
        return await self._step(lambda machine: machine.open_records(origin, keys), writes=False)

    async def lanes(self, origin: str, keys: Collection[str]) -> list[LaneView]:
        """The lanes of these keys that have been used."""
        return await self._step(lambda machine: machine.lanes(origin, keys), writes=False)

    async def read_learned(self, names: Collection[str] | None = None) -> dict[str, str]:
        """What was learned under these names, or under all names with None: JSON text, which only its writer reads."""
        return await self._step(lambda machine: machine.read_learned(names), writes=False)

    async def learn(self, changes: Mapping[str, Callable[[str | None], str]]) -> dict[str, str]:
        """Change what was learned under each name, in one atomic step. Returns the new texts.

        A change gets the recorded text, or None. It must be a pure function: it can be called in another thread, and
        more than once. If it raises, the error is raised here, and nothing has changed. At most `MOST_LEARNED_NAMES`
        names are kept.
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
        """Run one step of the state machine, as a whole or not at all.

        Args:
            writes: whether the step can change something.
            vital: whether the change must outlive a loss of power: the intent to buy, and the id of what was bought.
        """

    def _notify(self, news: Record | Hint) -> None:
        for callback in tuple(self._listeners):
            callback(news)
