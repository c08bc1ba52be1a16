"""What an adapter is, and the outcomes that it can read from a reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from attrs import field, frozen

from bide.models import Limits, Task

if TYPE_CHECKING:
    from datetime import datetime

    from bide._wire import Call, Reply
    from bide.errors import APIError, BideError
    from bide.models import Request


@frozen
class Profile:
    """What a provider knows of one kind of work. All times in seconds.

    Attributes:
        floor: the least time between two looks at a task.
        typical: the documented range of durations (about the 10 % and 90 % points).
        limits: the documented limits per key.
        lifetime: how long results stay after their end, by the documents; None where they do not say.
        longest: the longest that such a task takes; past it its slot counts as free.
        unknown_hold: how long a create whose outcome nobody knows counts as a slot.
    """

    floor: float
    typical: tuple[float, float]
    longest: float
    unknown_hold: float
    limits: Limits = field(factory=Limits)
    lifetime: float | None = None


# What a create's reply can mean.


@frozen
class Accepted:
    """The service made the task. It has an id, or is final already (a synchronous answer)."""

    task: Task


@frozen
class Refused:
    """The service will not make this task; sending it again cannot help."""

    error: APIError


@frozen
class NotNow:
    """The service made no task and would take the same request later.

    Attributes:
        reason: "slots": too many tasks in flight; "rate": calls came too fast; "capacity": the service is busy.
        certain: True where the code names the reason, False where it is our reading of a bare 429.
    """

    error: APIError
    reason: Literal["slots", "rate", "capacity"]
    certain: bool = True


@frozen
class Unclear:
    """The task may have been made: a 5xx, or a 2xx without a readable id."""

    error: BideError


CreateOutcome: TypeAlias = Accepted | Refused | NotNow | Unclear


# What a query's reply can mean (besides a `Task`).


@frozen
class Gone:
    """The service does not know the task. One such answer proves nothing; repeated, the task has expired."""

    error: APIError


@frozen
class TryAgain:
    """A passing fault: 408, 425, 429, 5xx, or a body that makes no sense."""

    error: BideError


@frozen
class Denied:
    """A lasting fault of ours, such as a key that is no longer valid. It says nothing about the task."""

    error: APIError


QueryOutcome: TypeAlias = Task | Gone | TryAgain | Denied


@frozen
class Stopped:
    """The service has taken the cancel. The task's end is still to be seen."""


@frozen
class TooLate:
    """The service does not cancel a task in this state."""


CancelOutcome: TypeAlias = Stopped | TooLate | Gone | TryAgain | Denied


@frozen
class ListedTask:
    """A task as a list shows it: a snapshot without results, and the prompt where it is echoed."""

    task: Task
    prompt: str | None = None


@frozen
class Page:
    """One page of a list; *number* counts from 1."""

    tasks: tuple[ListedTask, ...]
    number: int
    pages: int


ListOutcome: TypeAlias = Page | TryAgain | Denied


class Provider(Protocol):
    """One service: how a request becomes a call, and what a reply means. No state, no I/O.

    Everything that differs between two services is in here. Two examples: `Dieyuyun` (short) and `DashScope`
    (with a list). Ids in paths go through `quoted`.

    Attributes:
        name: in lower case, for messages and records: "dashscope".
        base_url: origin and path prefix of the API; calls are below it, the key goes to its origin alone.
        key_variables: environment variables that may hold the key, first one first.
        queries_per_second: how many queries, lists and cancels an account may make in any second; None: no limit.
        idempotent: whether the same create sent twice with the same ticket makes one task.
        lists: whether there is a list of recent tasks.
        page_size: how many tasks `list_call` asks for; 0 without a list.
    """

    @property
    def name(self) -> str: ...

    @property
    def base_url(self) -> str: ...

    @property
    def key_variables(self) -> tuple[str, ...]: ...

    @property
    def queries_per_second(self) -> float | None: ...

    @property
    def idempotent(self) -> bool: ...

    @property
    def lists(self) -> bool: ...

    @property
    def page_size(self) -> int: ...

    def profile(self, kind: str) -> Profile:
        """What is known of this kind of work; a kind that the service does not name gets a cautious one."""
        ...

    def create_call(self, request: Request, ticket: str) -> Call:
        """The call that makes the task.

        Raises:
            ValueError: this service cannot do what *request* asks; said before anything is sent.
        """
        ...

    def read_created(self, reply: Reply, request: Request) -> CreateOutcome:
        """What the reply to `create_call` means. Never raises for whatever a service may answer."""
        ...

    def knows(self, word: str) -> bool:
        """Whether *word* is a documented task status. Any other counts as running and is warned about once."""
        ...

    def query_call(self, task_id: str) -> Call:
        """The call that asks for a task."""
        ...

    def read_task(self, reply: Reply, task_id: str) -> QueryOutcome:
        """What the reply to `query_call` means; a `Task` without ticket. Never raises."""
        ...

    def cancel_call(self, task_id: str) -> Call:
        """The call that cancels a task."""
        ...

    def read_cancelled(self, reply: Reply, task_id: str) -> CancelOutcome:
        """What the reply to `cancel_call` means. Never raises."""
        ...

    def list_call(self, since: datetime, until: datetime, page: int, model: str | None = None) -> Call:
        """The call for one page of the tasks that were created from *since* to *until*, by the service's clock."""
        ...

    def read_list(self, reply: Reply) -> ListOutcome:
        """What the reply to `list_call` means. Never raises."""
        ...
