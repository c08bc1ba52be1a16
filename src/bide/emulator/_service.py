"""`Service`: the base of both services, from a call to an answer."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from bide.emulator._answers import Answer, RefusalError
from bide.emulator._files import LONGEST_SIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bide.emulator._answers import Call
    from bide.emulator._assets import Assets
    from bide.emulator._state import Account, ServiceState
    from bide.emulator._tasks import EmulatedTask, Work

Action: TypeAlias = "Callable[[Call, Account], Answer]"


class Reason(Enum):
    """Why a call is refused, where both services refuse for the same reason."""

    NO_KEY = auto()
    BAD_KEY = auto()
    NO_SLOT = auto()
    CREATE_RATE = auto()
    QUERY_RATE = auto()


@dataclass(frozen=True)
class Route:
    """The meaning of a path: its operation, as faults and counters name it, and the function that carries it out."""

    on: str
    action: Action


class Service(ABC):
    """One emulated service. Its answers follow its documents; its state holds the truth."""

    REFUSALS: ClassVar[Mapping[Reason, tuple[int, str, str]]]
    """Status, code and message for each reason."""

    def __init__(self, state: ServiceState, assets: Assets) -> None:
        self.state = state
        self.assets = assets

    @abstractmethod
    def route(self, call: Call) -> Route | None:
        """The route of *call*; None if the service has no such path."""

    @abstractmethod
    def refusal(self, refused: RefusalError) -> Answer:
        """A refusal in the service's own shape."""

    def perform(self, route: Route, call: Call) -> Answer:
        """Carry a call out, or refuse it."""
        try:
            account = self._account_of(call)
            if route.on != "create" and not account.may_query(self.now):
                raise self._refusal_for(Reason.QUERY_RATE)
            return route.action(call, account)
        except RefusalError as refused:
            return self.refusal(refused)

    @property
    def now(self) -> float:
        """The loop's time."""
        return self.state.clock.now

    def _refusal_for(self, reason: Reason, headers: Mapping[str, str] | None = None) -> RefusalError:
        return RefusalError(*self.REFUSALS[reason], headers=headers)

    def _account_of(self, call: Call) -> Account:
        if call.key is None:
            raise self._refusal_for(Reason.NO_KEY)
        account = self.state.settings.keys.account_of(call.key) if call.key else None
        if account is None:
            raise self._refusal_for(Reason.BAD_KEY)
        return self.state.account(account)

    def _open(self, account: Account, work: Work, task_id: str) -> EmulatedTask:
        """Accept *work*, unless a limit of the key forbids that."""
        if not account.may_create(work.kind, self.now):
            raise self._refusal_for(Reason.CREATE_RATE, self._later())
        if not account.has_slot(work.kind, self.now):
            raise self._refusal_for(Reason.NO_SLOT, self._later())
        return self.state.open(account, work, task_id)

    def _later(self) -> dict[str, str]:
        seconds = self.state.settings.retry_after
        return {} if seconds is None else {"Retry-After": f"{seconds:g}"}


def size_of(text: object, default: tuple[int, int]) -> tuple[int, int] | None:
    """Width and height from `1280*720` or `1024x1024`; None if *text* is not a size that the emulator can make."""
    if text is None:
        return default
    match = re.fullmatch(r"(\d{1,5})[*xX](\d{1,5})", text) if isinstance(text, str) else None
    if match is None:
        return None
    width, height = int(match[1]), int(match[2])
    return (width, height) if 0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE else None


def count_of(number: object, default: int, most: int) -> int | None:
    """How many files are ordered; None if *number* is not a whole number from 1 to *most*."""
    if number is None:
        return default
    if isinstance(number, bool) or not isinstance(number, int):
        return None
    return number if 1 <= number <= most else None
