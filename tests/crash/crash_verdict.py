"""What the crash test's evidence says: what the workers heard, the ledger holds and the emulator did, held together.

Plain functions over plain data, so that the checker itself can be tested: one that cannot fail proves nothing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired", "rejected", "unknown"})
ERRORS = frozenset({"failed", "expired", "rejected"})
ADOPTED_IN = 2.0
"""Seconds from a death to the moment that another process has the dead one's records: the goal for 99 % of deaths."""


@dataclass(frozen=True)
class Change:
    """One change of a record's status or owner, as the database has witnessed it."""

    at: float
    ticket: str
    before: str | None
    after: str | None
    owner_before: str | None = None
    owner_after: str | None = None


@dataclass(frozen=True)
class Death:
    """A worker was killed."""

    worker: str
    pid: int
    at: float


@dataclass(frozen=True)
class Evidence:
    """What a run has left behind.

    Attributes:
        killing, draining: seconds that those two parts of the run took.
        faults: workers that ended by themselves, or badly.
        diaries: what the workers heard, a line each, in the order of their hearing for each worker.
        tasks, stats: what the emulator has made, and counted.
        records: status, task id and owner by ticket, as they are on the ledger at the end.
        changes: all changes of records, in order.
        pids: of the instances that have opened the ledger.
        owners_left: rows of owners and clients at the end; all have gone by then.
        left: locks and sockets of processes that have gone.
    """

    slots: int
    killing: float
    draining: float
    deaths: Sequence[Death]
    faults: Sequence[str]
    diaries: Sequence[Mapping[str, Any]]
    tasks: Sequence[Mapping[str, Any]]
    stats: Mapping[str, Any]
    records: Mapping[str, tuple[str, str | None, str | None]]
    changes: Sequence[Change]
    pids: Mapping[str, int]
    owners_left: int
    integrity: str
    left: Sequence[str]


@dataclass(frozen=True)
class Line:
    """One line of the table. *offenders* are what makes it fail; None is a figure without a verdict."""

    figure: str
    value: str
    offenders: Sequence[str] | None = None

    @property
    def is_ok(self) -> bool:
        return not self.offenders


def verdict(evidence: Evidence) -> list[Line]:
    """The whole table: figures first, then what must hold."""
    return [*_figures(evidence), *_promises(evidence)]


def table(lines: Sequence[Line], *, named: int = 8) -> str:
    """*lines* as text, with a few offenders below each that fails."""
    widest, longest = (
        max(map(len, column)) for column in ([x.figure for x in lines], [x.value for x in lines])
    )
    text: list[str] = []
    for line in lines:
        word = "" if line.offenders is None else "ok" if line.is_ok else "FAILED"
        text.append(f"  {line.figure:<{widest}}  {line.value:>{longest}}  {word}".rstrip())
        offenders = list(line.offenders or ())
        text += [f"      {each}" for each in offenders[:named]]
        if len(offenders) > named:
            text.append(f"      and {len(offenders) - named} more")
    return "\n".join(text)


# Figures -------------------------------------------------------------------------------------------------------


def _figures(evidence: Evidence) -> Iterator[Line]:
    statuses = Counter(status for status, _, _ in evidence.records.values())
    cut = sum(bool(task["was_cut"]) for task in evidence.tasks)
    lost = _lost_answers(evidence)
    found = sum(evidence.records[each][1] is not None for each in lost if each in evidence.records)
    wall = evidence.killing + evidence.draining
    yield Line("workers killed", str(len(evidence.deaths)))
    yield Line("seconds of killing, of draining", f"{evidence.killing:.1f}, {evidence.draining:.1f}")
    yield Line("tickets whose submit returned", str(len(_returned(evidence))))
    yield Line(
        "tasks at the emulator, a minute", f"{len(evidence.tasks)}, {60 * len(evidence.tasks) / wall:.0f}"
    )
    yield Line("use of the slots, per cent", f"{100 * _use(evidence):.0f}")
    yield Line("ended: " + ", ".join(sorted(statuses)), ", ".join(str(statuses[x]) for x in sorted(statuses)))
    yield Line("creates cut after acceptance", str(cut))
    yield Line("workers killed between sending and answer", str(len(lost) - cut))
    yield Line("of these two: task found, left unknown", f"{found}, {len(lost) - found}")
    settled = sorted(_settled(evidence, lost))
    if settled:
        yield Line("settled after p50, at most, s", f"{_share(settled, 0.5):.1f}, {settled[-1]:.1f}")
    yield Line("queries, lists", f"{evidence.stats['queries']}, {evidence.stats['lists']}")
    adopted = sorted(_adoptions(evidence).values())
    if adopted:
        yield Line("deaths that left open records", str(len(adopted)))
        yield Line(
            "adopted after p50, p99, at most, s",
            f"{_share(adopted, 0.5):.2f}, {_share(adopted, 0.99):.2f}, {adopted[-1]:.2f}",
        )


def _use(evidence: Evidence) -> float:
    """The share of the slots that was in use at the service, from the first create to the last."""
    created = [task["created"] for task in evidence.tasks]
    first, last = min(created, default=0.0), max(created, default=0.0)
    if first == last:
        return 0.0
    busy = sum(min(task["ended"], last) - task["created"] for task in evidence.tasks)
    return float(busy / (evidence.slots * (last - first)))


def _settled(evidence: Evidence, lost: set[str]) -> Iterator[float]:
    """Seconds from the sending of each create whose answer was lost until it is known, or known to be unknown."""
    sent: dict[str, float] = {}
    for each in evidence.changes:
        if each.ticket in lost and each.after == "submitting" and each.before != "submitting":
            sent[each.ticket] = each.at
        elif each.ticket in sent and each.after != "submitting":
            yield each.at - sent.pop(each.ticket)


def _share(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# Promises ------------------------------------------------------------------------------------------------------


def _promises(evidence: Evidence) -> Iterator[Line]:
    yield _counted("tickets lost after submit returned", _lost(evidence))
    yield _counted("tickets that have not ended", _not_ended(evidence))
    yield _counted("tickets that ended without a cause in the service", _without_cause(evidence))
    yield _counted("tickets created twice", _created_twice(evidence))
    yield _counted("tasks at the emulator that are nobody's", _nobodys(evidence))
    yield _counted("task ids on record that are not the ticket's task", _wrong_ids(evidence))
    yield _counted("final states recorded twice, or changed", _final_twice(evidence))
    yield _counted("records removed", [each.ticket for each in evidence.changes if each.after is None])
    yield _counted("things heard that the ledger does not say", _misheard(evidence))
    yield _counted("waits without an end", _waiting_still(evidence))
    most = _most_in_flight(evidence.tasks)
    told = max((max(kinds.values()) for kinds in evidence.stats["max_in_flight"].values()), default=0)
    too_many = [f"{max(most, told)} at once"] if max(most, told) > evidence.slots else []
    yield Line(f"most in flight, of {evidence.slots} allowed", str(max(most, told)), too_many)
    yield _counter("creates answered 429", evidence.stats["creates_429"])
    yield _counter("creates that made no task", evidence.stats["creates"] - evidence.stats["tasks"])
    yield _counter("queries answered 429", evidence.stats["queries_429"])
    yield _counted("deaths after which records were adopted too late", _adopted_late(evidence))
    yield _counted("workers that failed", evidence.faults)
    yield _counter("owners on record that have gone", evidence.owners_left)
    yield _counted("locks and sockets left behind", evidence.left)
    sound = evidence.integrity == "ok"
    yield Line(
        "integrity of the database", "ok" if sound else "not ok", [] if sound else [evidence.integrity]
    )


def _counted(figure: str, offenders: Sequence[str]) -> Line:
    return Line(figure, str(len(offenders)), offenders)


def _counter(figure: str, count: int) -> Line:
    return Line(figure, str(count), [f"{count} of them"] if count else [])


def _returned(evidence: Evidence) -> set[str]:
    return {line["ticket"] for line in evidence.diaries if line["what"] == "returned"}


def _ticket_of(task: Mapping[str, Any]) -> str:
    match = re.match(r"ticket (\S+),", task["prompt"])
    return match[1] if match else ""


def _lost(evidence: Evidence) -> list[str]:
    return sorted(_returned(evidence) - set(evidence.records))


def _not_ended(evidence: Evidence) -> list[str]:
    return [
        f"{ticket} is {status}" for ticket, (status, _, _) in evidence.records.items() if status not in FINAL
    ]


def _lost_answers(evidence: Evidence) -> set[str]:
    """Tickets whose create went out and whose answer nobody got: cut, or the worker died before it was on record."""
    lost = {_ticket_of(task) for task in evidence.tasks if task["was_cut"]}
    lost |= {
        each.ticket for each in evidence.changes if each.after == "submitting" and each.owner_after is None
    }
    return lost


def _without_cause(evidence: Evidence) -> list[str]:
    """Success and failure are the service's to say; unknown needs a lost answer; nothing here cancels or refuses."""
    fates = {_ticket_of(task): "failed" if task["failed"] else "succeeded" for task in evidence.tasks}
    unanswered = _lost_answers(evidence)
    wrong = []
    for ticket, (status, _, _) in evidence.records.items():
        fate = fates.get(ticket, "never made")
        fits = ticket in unanswered if status == "unknown" else status == fate
        if status in FINAL and not fits:
            wrong.append(f"{ticket} ended as {status}; its task: {fate}")
    return wrong


def _created_twice(evidence: Evidence) -> list[str]:
    made = Counter(_ticket_of(task) for task in evidence.tasks)
    return [f"{ticket or '(no ticket)'}: {count} tasks" for ticket, count in made.items() if count > 1]


def _nobodys(evidence: Evidence) -> list[str]:
    """Each task is the task of exactly one ticket, or its create was answered to nobody and its ticket is unknown."""
    owners = Counter(task_id for _, task_id, _ in evidence.records.values() if task_id is not None)
    wrong = []
    for task in evidence.tasks:
        status = evidence.records.get(_ticket_of(task), ("on no record", None, None))[0]
        if owners[task["id"]] > 1 or (owners[task["id"]] == 0 and status != "unknown"):
            wrong.append(f"{task['id']} of {_ticket_of(task)} ({status}) is on {owners[task['id']]} records")
    return wrong


def _wrong_ids(evidence: Evidence) -> list[str]:
    tickets = {task["id"]: _ticket_of(task) for task in evidence.tasks}
    return [
        f"{ticket} has {task_id}, which is {tickets.get(task_id, 'no task')}"
        for ticket, (_, task_id, _) in evidence.records.items()
        if task_id is not None and tickets.get(task_id) != ticket
    ]


def _final_twice(evidence: Evidence) -> list[str]:
    ended = Counter(each.ticket for each in evidence.changes if each.after in FINAL)
    again = [f"{ticket} {count} times" for ticket, count in ended.items() if count > 1]
    undone = [f"{each.ticket} was {each.before}" for each in evidence.changes if each.before in FINAL]
    return [*again, *undone]


def _misheard(evidence: Evidence) -> list[str]:
    """Whoever has heard of an id or an end has heard what is on record, whatever happened to it a moment later."""
    wrong = []
    for line in evidence.diaries:
        record = evidence.records.get(line["ticket"])
        if record is None:
            continue
        status, task_id, _ = record
        heard_id, heard = line.get("task_id"), line.get("status")
        expected = {
            "result": status == "succeeded",
            "raised": status != "succeeded",
            "final": heard == status,
        }.get(line["what"], True)
        if not expected or (heard_id is not None and heard_id != task_id):
            what = " ".join(str(line.get(name)) for name in ("what", "status", "error", "task_id"))
            wrong.append(f"{line['worker']} heard of {line['ticket']}: {what}; on record: {status} {task_id}")
    return wrong


def _waiting_still(evidence: Evidence) -> list[str]:
    """Of workers that left in order: each wait for a result has heard one thing."""
    heard: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    left_in_order = {line["worker"] for line in evidence.diaries if line["what"] == "ended"}
    for line in evidence.diaries:
        if line["worker"] in left_in_order and line["what"] in ("followed", "result", "raised"):
            heard[line["worker"], line["ticket"]][line["what"]] += 1
    return [
        f"{worker} waited for {ticket}: {dict(counts)}"
        for (worker, ticket), counts in heard.items()
        if counts["result"] + counts["raised"] != counts["followed"]
    ]


def _most_in_flight(tasks: Sequence[Mapping[str, Any]]) -> int:
    """Counted from the tasks' own times: the emulator's counter only tells what it has let through."""
    steps = sorted([(task["created"], 1) for task in tasks] + [(task["ended"], -1) for task in tasks])
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def _adoptions(evidence: Evidence) -> dict[str, float]:
    """By worker that was killed: seconds until the last of its open records was another one's."""
    dead = {death.pid: death for death in evidence.deaths}
    killed = {instance: dead[pid] for instance, pid in evidence.pids.items() if pid in dead}
    orphans: dict[str, Death] = {}
    took: dict[str, float] = {}
    for each in evidence.changes:
        before, after = (_instance(owner) for owner in (each.owner_before, each.owner_after))
        if before in killed and after != before:
            orphans[each.ticket] = killed[before]
        if each.ticket in orphans and after is not None:
            death = orphans.pop(each.ticket)
            took[death.worker] = max(took.get(death.worker, 0.0), each.at - death.at)
    return took


def _instance(owner: str | None) -> str | None:
    return None if owner is None else owner.partition(".")[0]


def _adopted_late(evidence: Evidence) -> list[str]:
    """All of them, if more than one in a hundred comes too late."""
    late = {worker: took for worker, took in _adoptions(evidence).items() if took > ADOPTED_IN}
    all_of_them = len(_adoptions(evidence))
    if len(late) <= all_of_them // 100:
        return []
    return [f"{worker}: {took:.2f} s" for worker, took in late.items()]
