"""One accepted task that is looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bide._polling.pace import Sight

if TYPE_CHECKING:
    import asyncio
    from datetime import datetime

    from bide._polling.duration_models import Model
    from bide.errors import BideError
    from bide.models import Task
    from bide.providers import Profile


@dataclass(slots=True, eq=False, kw_only=True)
class Watch(Sight):
    """What is known of the task, and when it is its turn. Moments are by the loop's clock, ages count from the create.

    Attributes:
        zero: when it was created, as well as we know.
        is_dated: whether that is known: else no list can show it, and its end teaches nothing.
        is_named: whether its model is known.
        look_at: when to look at it next.
        paced: it is the pace that wants that look: no fault has put it off, and nobody has asked for it.
        again: somebody has asked for a look while one was under way.
        deadline: when whoever waits must hear that it takes long.
        in_heap_at: the moment of its valid place in the heap.
        due: it waits for a look, in the queue of those.
        singly: the next look at it is no list: one has shown its end, or lacks it.
        unlisted: lists in a row that lacked it.
    """

    ticket: str
    task_id: str
    key: str
    kind: str
    zero: float
    is_dated: bool
    is_named: bool
    slot_until: float
    profile: Profile
    model: Model
    task: Task
    look_at: float
    paced: bool = False
    again: bool = False
    deadline: float = math.inf
    in_heap_at: float = math.inf
    due: bool = False
    look: asyncio.Task[BideError | None] | None = None
    failures: int = 0
    gone_since: float | None = None
    singly: bool = False
    unlisted: int = 0
    closed: bool = False

    def age(self, moment: float) -> float:
        """Its age at a *moment*."""
        return max(0.0, moment - self.zero)

    @staticmethod
    def told_age(task: Task, moment: datetime | None) -> float | None:
        """The age at a *moment* that the service tells: by two times of its own clock, so that ours does not matter."""
        if moment is None or task.created_at is None:
            return None
        return (moment - task.created_at).total_seconds()
