"""One accepted task that is polled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bide._polling.pace import Observed

if TYPE_CHECKING:
    import asyncio
    from datetime import datetime

    from bide._polling.duration_models import DurationModel
    from bide.errors import BideError
    from bide.models import Request, Task
    from bide.providers import Profile


@dataclass(slots=True, eq=False, kw_only=True)
class WatchedTask(Observed):
    """What is known of the task, and when it is polled next. Moments are by the loop's clock, ages count from the
    create.

    Attributes:
        zero: when it was created, as well as the client knows.
        is_dated: whether that is known. If not, no list can show the task, and its end teaches nothing.
        is_named: whether its model is known.
        poll_at: when to poll it next.
        is_paced: whether the pace has set that moment: no fault has delayed it, and no caller has asked for it.
        polled_at: when its last poll has ended.
        wish: for the callers that want a poll soon: the fault of that poll, or None.
        is_asked_again: whether a caller has asked for a poll while one was under way.
        deadline: when the waiters get the error that the task takes too long.
        in_heap_at: the moment of its valid place in the heap of the schedule.
        is_due: whether it stands in the queue of tasks that are due.
        poll: the poll under way.
        failing_since: when the first poll got no answer, of the last polls in a row.
        gone_since: when the service first answered "no such task", of its last answers in a row.
        denied_since: when the service first answered "not allowed", of its last answers in a row.
        empty_since: when the service first reported a success without any output.
        needs_poll: whether its next poll must not be a list: a list has shown its end, or lacks the task.
        missing_lists: lists in a row that lacked it.
        guessed_for: the request for which it was found by model and time alone: it may be another program's task.
    """

    task: Task
    key: str
    kind: str
    profile: Profile
    model: DurationModel
    zero: float
    poll_at: float
    slot_until: float = math.inf
    is_dated: bool = True
    is_named: bool = True
    is_paced: bool = False
    polled_at: float = -math.inf
    wish: asyncio.Future[BideError | None] | None = None
    is_asked_again: bool = False
    deadline: float = math.inf
    in_heap_at: float = math.inf
    is_due: bool = False
    poll: asyncio.Task[BideError | None] | None = None
    failing_since: float | None = None
    gone_since: float | None = None
    denied_since: float | None = None
    empty_since: float | None = None
    needs_poll: bool = False
    missing_lists: int = 0
    guessed_for: Request | None = None
    is_closed: bool = False

    @property
    def ticket(self) -> str:
        """Our id of the submission."""
        return self.task.ticket

    @property
    def task_id(self) -> str:
        """The service's id: an accepted task has one."""
        return self.task.task_id or ""

    def grant_wish(self, error: BideError | None) -> None:
        """Report the fault of the poll, or None, to the callers that wanted it."""
        wish, self.wish = self.wish, None
        if wish is not None and not wish.done():
            wish.set_result(error)

    def age(self, moment: float) -> float:
        """Its age at a *moment*."""
        return max(0.0, moment - self.zero)

    @staticmethod
    def reported_age(task: Task, moment: datetime | None) -> float | None:
        """The age at a *moment* that the service reports: from two times of its own clock, so that ours does not
        matter."""
        if moment is None or task.created_at is None:
            return None
        return (moment - task.created_at).total_seconds()
