"""`Provider`, the protocol of an adapter, and the outcomes that it reads from replies."""

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
    """What a provider knows about one kind of work. All times are in seconds.

    Attributes:
        floor: the shortest time between two polls of a task.
        typical: the documented range of durations (about the 10 % and 90 % points).
        longest: the longest time that such a task takes; after that time the task's slot counts as free.
        unknown_hold: how long a create with an unknown outcome occupies a slot.
        limits: the documented limits of a key; None where no limit is documented.
        lifetime: how long the service keeps results after a task's end; None if its documents do not say.
    """

    floor: float
    typical: tuple[float, float]
    longest: float
    unknown_hold: float
    limits: Limits = field(factory=Limits)
    lifetime: float | None = None


# What the reply to a create can mean.


@frozen
class Accepted:
    """The service made the task. The task has an id, or it is already final (a synchronous answer)."""

    task: Task


@frozen
class Refused:
    """The service itself refuses to make this task. Sending the request again cannot help."""

    error: APIError


@frozen
class NotNow:
    """The service made no task, but may accept the same request later.

    Attributes:
        reason: "slots": too many tasks in flight; "rate": too many calls in a short time; "capacity": the service is
            busy.
    """

    error: APIError
    reason: Literal["slots", "rate", "capacity"]


@frozen
class Unclear:
    """The service may have made the task: it answered 5xx, or 2xx without a readable id; or the answer is no answer of
    the service, such as the page of a proxy."""

    error: BideError


CreateOutcome: TypeAlias = Accepted | Refused | NotNow | Unclear


# What the reply to a query can mean, if it is not a `Task`.


@frozen
class Gone:
    """The service itself says that it does not know the task. One such answer proves nothing; if it repeats for 60 s,
    the task has expired."""

    error: APIError


@frozen
class TryAgain:
    """A temporary fault: HTTP 408, 425, 429 or 5xx, a body that cannot be read, or the page of a proxy."""

    error: BideError


@frozen
class Denied:
    """The service itself says that the call is not allowed, as with an invalid key. It says nothing about the task. The
    waiters get the error if such answers repeat for 30 s."""

    error: APIError


QueryOutcome: TypeAlias = Task | Gone | TryAgain | Denied


@frozen
class Stopped:
    """The service has accepted the cancel. A later poll shows how the task ended."""


@frozen
class TooLate:
    """The service does not cancel a task in its present state."""


CancelOutcome: TypeAlias = Stopped | TooLate | Gone | TryAgain | Denied


@frozen
class ListedTask:
    """A task in a list: a snapshot without results, and the prompt if the list shows it."""

    task: Task
    prompt: str | None = None


@frozen
class Page:
    """One page of a list: `number` of `pages`, counted from 1."""

    tasks: tuple[ListedTask, ...]
    number: int
    pages: int


ListOutcome: TypeAlias = Page | TryAgain | Denied


class Provider(Protocol):
    """One service: how a request becomes a call, and what a reply means.

    Everything that differs between two services is here. An implementation sends nothing and keeps no state. Read
    `Dieyuyun` (short) and `DashScope` (with a list) as examples. Put a task id into a path with `quote_id`.

    The `read_...` methods never raise, whatever the service answers.

    Attributes:
        name: the service's name in lower case, for messages and records: "dashscope".
        base_url: origin and path prefix of the API. All calls go below it, and the key is sent to its origin only.
        key_variables: environment variables that may hold the key; the client uses the first one that is set.
        queries_per_second: how many queries, lists and cancels an account may make in any second; None means no limit.
        idempotent: whether the same create, sent twice with the same ticket, makes one task.
        lists: whether the service has a list of recent tasks.
        page_size: how many tasks `list_call` requests; 0 without a list.
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
        """What is known about this *kind* of work. For a kind that the service does not name: a cautious profile."""
        ...

    def create_call(self, request: Request, ticket: str) -> Call:
        """The call that makes the task; *ticket* is our id of the submission.

        Raises:
            ValueError: the service cannot do what *request* asks for. Nothing has been sent.
        """
        ...

    def read_created(self, reply: Reply, request: Request) -> CreateOutcome:
        """What the reply to `create_call` means."""
        ...

    def knows(self, word: str) -> bool:
        """Whether *word* is a documented task status. The client treats any other word as running and warns once."""
        ...

    def query_call(self, task_id: str) -> Call:
        """The call that polls a task."""
        ...

    def read_task(self, reply: Reply, task_id: str) -> QueryOutcome:
        """What the reply to `query_call` means. A `Task` comes without a ticket."""
        ...

    def contradicts(self, task: Task, request: Request) -> bool:
        """Whether *task*, as `read_task` has read it, shows a prompt that is not the prompt of *request*.

        False if the service does not show the prompt of a task. `is_other_prompt` compares two prompts.
        """
        ...

    def cancel_call(self, task_id: str) -> Call:
        """The call that cancels a task."""
        ...

    def read_cancelled(self, reply: Reply, task_id: str) -> CancelOutcome:
        """What the reply to `cancel_call` means."""
        ...

    def list_call(self, since: datetime, until: datetime, page: int, model: str | None = None) -> Call:
        """The call for one page of the tasks created from *since* to *until*, by the service's clock."""
        ...

    def read_list(self, reply: Reply) -> ListOutcome:
        """What the reply to `list_call` means."""
        ...
