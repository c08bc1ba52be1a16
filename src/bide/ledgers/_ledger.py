"""The asynchronous face of a `Book`: the same for every ledger; only how a step is taken differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from bide.ledgers._records import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from bide.ledgers._lanes import Setback
    from bide.ledgers._records import Held, Hint, LaneTerms, LaneView, Record
    from bide.ledgers._state_machine import Book
    from bide.models import Limits, SavedFile, Task

_T = TypeVar("_T")


class Face(Ledger):
    """The methods of `Ledger` as steps of a `Book`, which `_step` takes one by one, each whole or not at all.

    It is a `Ledger` by name, too: so `help()` on a method of a ledger tells what the protocol says of it.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[[Record | Hint], None]] = []

    async def _step(self, step: Callable[[Book], _T], *, writes: bool = True, vital: bool = False) -> _T:
        """Take one step.

        Args:
            writes: whether it may change something.
            vital: whether it must outlive a loss of power: the intent to buy, and the id of what was bought.
        """
        raise NotImplementedError

    def subscribe(self, heard: Callable[[Record | Hint], None]) -> Callable[[], None]:
        self._listeners.append(heard)

        def end() -> None:
            if heard in self._listeners:
                self._listeners.remove(heard)

        return end

    def _tell(self, news: Record | Hint) -> None:
        for heard in tuple(self._listeners):
            heard(news)

    async def add(self, record: Record) -> Record:
        return await self._step(lambda book: book.add(record), vital=True)

    async def get(self, ticket: str) -> Record | None:
        return await self._step(lambda book: book.get(ticket), writes=False)

    async def follow(self, ticket: str) -> Record | None:
        return await self._step(lambda book: book.follow(ticket))

    async def find(self, origin: str, task_id: str) -> Record | None:
        return await self._step(lambda book: book.find(origin, task_id), writes=False)

    async def known(self, origin: str, task_ids: Collection[str]) -> frozenset[str]:
        return await self._step(lambda book: book.known(origin, task_ids), writes=False)

    async def admit(self, origin: str, kind: str, owner: str, lanes: Sequence[LaneTerms]) -> Record | Held:
        return await self._step(lambda book: book.admit(origin, kind, owner, lanes), vital=True)

    async def accept(self, ticket: str, task: Task, *, owner: str, admitted: float | None = None) -> Record:
        return await self._step(lambda book: book.accept(ticket, task, owner, admitted), vital=True)

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
        return await self._step(
            lambda book: book.put_back(
                ticket, setback, owner=owner, limits=limits, certain=certain, retry_after=retry_after
            )
        )

    async def update(self, ticket: str, task: Task, *, owner: str) -> Record:
        return await self._step(lambda book: book.update(ticket, task, owner))

    async def finish(self, ticket: str, task: Task, *, owner: str, hold: float = 0.0) -> Record:
        return await self._step(lambda book: book.finish(ticket, task, owner, hold))

    async def saved(self, ticket: str, files: Sequence[SavedFile]) -> Record | None:
        return await self._step(lambda book: book.saved(ticket, files))

    async def unsaved(self, origin: str, keys: Collection[str]) -> list[Record]:
        return await self._step(lambda book: book.unsaved(origin, keys), writes=False)

    async def withdraw(self, ticket: str, task: Task) -> Record:
        return await self._step(lambda book: book.withdraw(ticket, task))

    async def cancelling(self, ticket: str) -> Record:
        return await self._step(lambda book: book.cancelling(ticket))

    async def cancel_answered(self, ticket: str, *, taken: bool) -> Record:
        return await self._step(lambda book: book.cancel_answered(ticket, taken=taken))

    async def settle(self, ticket: str, task_id: str) -> Record:
        return await self._step(lambda book: book.settle(ticket, task_id), vital=True)

    async def forget(self, ticket: str) -> Record:
        return await self._step(lambda book: book.forget(ticket))

    async def unsettled(self, origin: str, lane: str) -> list[Record]:
        return await self._step(lambda book: book.unsettled(origin, lane), writes=False)

    async def adopt(
        self,
        origin: str,
        keys: Collection[str],
        owner: str,
        *,
        tickets: Collection[str] | None = None,
        waiting: bool = True,
    ) -> list[Record]:
        return await self._step(
            lambda book: book.adopt(origin, keys, owner, tickets=tickets, waiting=waiting)
        )

    async def open_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        return await self._step(lambda book: book.open_records(origin, keys), writes=False)

    async def lanes(self, origin: str, keys: Collection[str]) -> list[LaneView]:
        return await self._step(lambda book: book.lanes(origin, keys), writes=False)

    async def learned(self, names: Collection[str] | None = None) -> dict[str, str]:
        return await self._step(lambda book: book.learned(names), writes=False)

    async def learn(self, changes: Mapping[str, Callable[[str | None], str]]) -> dict[str, str]:
        learned = await self._step(lambda book: book.learn(changes))
        if isinstance(learned, Exception):
            raise learned
        return learned
