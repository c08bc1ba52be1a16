"""`client.statistics()`: what a client does and has done, as numbers; and what a ledger has learned of durations."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Self

from attrs import frozen

from bide._polling.durations import duration_of, durations_from
from bide._text import excerpt
from bide.ledgers._lanes import cap
from bide.models import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from bide._runtime.engine import Engine
    from bide.ledgers import LaneView, Ledger
    from bide.models import Limits


@frozen
class LaneStatistics:
    """How one key is used for one kind of work at this moment.

    Attributes:
        key: the key's fingerprint, never the key itself.
        kind: the kind of work, such as "image" or "video".
        slots: how many tasks in flight count against the limit.
        cap: how many may be in flight now; None is no limit.
        learned: whether a 429 of the service has lowered `cap` below the limit that was set.
        paused_for: seconds until the next create may be sent; 0 if it may be sent now.
    """

    key: str
    kind: str
    slots: int
    cap: int | None
    learned: bool
    paused_for: float


@frozen
class Statistics:
    """What a client is doing at one moment, and what it has done since it was made.

    Attributes:
        lanes: how each key is used for each kind of work.
        open: submissions that have not ended: the sum of `waiting`, `submitting`, `queued` and `running`.
        succeeded: submissions that have ended with this status; likewise `failed`, `cancelled`, `expired`, `rejected`
            and `unknown`.
        saved: files that were written.
        creates: create calls sent; the service answered `creates_429` of them with "too many".
        queries: queries sent. Queries, lists and cancels count against the query rate; the service answered
            `queries_429` of all three with "too many".
        lists: list calls sent; `cancels`: cancel calls sent.
        pauses: how often "too many", or a connection that failed, has delayed creates or queries.
        queries_paused_for: seconds until the next query may be sent after a 429; 0 if it may be sent now.
        polls_due: tasks that would be polled now if the query rate and the connections allowed it.
        connections: open connections to the API. `connections_busy` of them carry a request. `connections_opened`
            counts all that were ever opened (through a proxy: not those that replaced one closed by the server). All
            three are 0 if the client was given a transport or an HTTP client.
    """

    lanes: tuple[LaneStatistics, ...]
    open: int
    waiting: int
    submitting: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    rejected: int
    unknown: int
    saved: int
    creates: int
    creates_429: int
    queries: int
    queries_429: int
    lists: int
    cancels: int
    pauses: int
    queries_paused_for: float
    polls_due: int
    connections: int
    connections_busy: int
    connections_opened: int


@frozen
class ModelStatistics:
    """What was learned about the tasks of a model, or of one variant of its requests.

    Attributes:
        name: provider and origin, kind and model, and what distinguishes the variant, such as "duration=5". Two spaces
            separate the parts, and "-" stands for an unknown part.
        tasks: how many have ended.
        median: seconds after the create within which half of the latest tasks have ended; None if no task has ended.
        p90: the same for nine tasks out of ten.
        lag: the detection delay: seconds from a task's end to the poll that found it, as an average that changes
            slowly; None if no task has ended.
        problem: why the stored durations cannot be read, or None. They are then learned again from the start.
    """

    name: str
    tasks: int = 0
    median: float | None = None
    p90: float | None = None
    lag: float | None = None
    problem: str | None = None

    @classmethod
    async def of(cls, ledger: Ledger) -> list[Self]:
        """What *ledger* has learned of each model, sorted by name. It must be open, or in use by a client.

            for model in await ModelStatistics.of(ledger):
                print(model.name, model.median)

        Raises:
            LedgerError: the ledger could not be read.
        """
        return [cls._read(name, text) for name, text in sorted((await ledger.read_learned()).items())]

    @classmethod
    def _read(cls, name: str, text: str) -> Self:
        try:
            learned = durations_from(text)
        except ValueError as fault:
            return cls(name, problem=excerpt(str(fault), 300))
        return cls(
            name=name,
            tasks=learned.seen,
            median=duration_of(learned, 0.5),
            p90=duration_of(learned, 0.9),
            lag=learned.lag if learned.seen else None,
        )


async def statistics_of(engine: Engine, limits: Callable[[str], Limits]) -> Statistics:
    """The statistics of *engine* at this moment; *limits* returns the limits of a kind of work."""
    counts = Counter(each.task.status for each in engine.submissions.open())
    account, announcer = engine.account, engine.submissions.announcer
    counters, ended, now = account.counters, announcer.ended, account.ledger.now()
    lanes = await account.ledger.lanes(account.origin, account.keys)
    connections = account.transport.connections
    return Statistics(
        lanes=tuple(_lane(view, limits(view.kind), now) for view in lanes),
        open=counts.total(),
        waiting=counts[TaskStatus.WAITING],
        submitting=counts[TaskStatus.SUBMITTING],
        queued=counts[TaskStatus.QUEUED],
        running=counts[TaskStatus.RUNNING],
        succeeded=ended[TaskStatus.SUCCEEDED],
        failed=ended[TaskStatus.FAILED],
        cancelled=ended[TaskStatus.CANCELLED],
        expired=ended[TaskStatus.EXPIRED],
        rejected=ended[TaskStatus.REJECTED],
        unknown=ended[TaskStatus.UNKNOWN],
        saved=announcer.files,
        creates=counters.creates,
        creates_429=counters.creates_429,
        queries=counters.queries,
        queries_429=counters.queries_429,
        lists=counters.lists,
        cancels=counters.cancels,
        pauses=counters.pauses,
        queries_paused_for=account.query_limiter.window.paused_for(engine.background.clock()),
        polls_due=engine.poller.backlog,
        connections=connections.busy + connections.idle,
        connections_busy=connections.busy,
        connections_opened=connections.opened,
    )


def _lane(view: LaneView, limits: Limits, now: float) -> LaneStatistics:
    return LaneStatistics(
        key=view.key,
        kind=view.kind,
        slots=view.slots,
        cap=cap(view.state, limits, now),
        learned=view.state.learned is not None,
        paused_for=max(0.0, view.state.paused_until - now),
    )
