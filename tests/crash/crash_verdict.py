"""What the crash test's evidence says: what the workers heard, the ledger holds and the emulator did, held together.

Plain functions over plain data, so that the checker itself can be tested: one that cannot fail proves nothing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crash_callers import is_cut, wish_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crash_misfortunes import Misfortune

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired", "rejected", "unknown"})
ERRORS = frozenset({"failed", "expired", "rejected"})
UNSENT = frozenset({"cancelled", "rejected"})
ANSWERS = frozenset({"delivered", "failed", "unknown", "abandoned"})
"""How a wish may end: with a result, with the failure of its task, untold, or left for good by its caller."""
LEFT_SECONDS = 2.0
"""Seconds after its caller has left, within which a create that was under way may still arrive."""
SILENT_SECONDS = 15.0
NOTICED_IN = 5.0
"""Seconds within which a worker must hear that its ledger's file has gone."""
ROTATED_SECONDS = 5.0
"""Seconds after a rotation, within which a create may still be refused because of it."""
ADOPTED_IN = 2.0
"""Seconds from a death to the moment that another process has the dead one's records: the goal for 99 % of deaths."""


@dataclass(frozen=True)
class Change:
    """One change of a record's status or owner, as the database has witnessed it.

    A new record has no `before`, a removed one no `after`.
    """

    at: float
    ticket: str
    before: str | None
    after: str | None
    owner_before: str | None = None
    owner_after: str | None = None
    task_id: str | None = None
    attempt: int = 1


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
        began: when the run began; this and all other times are seconds since 1970.
        killing, draining: seconds that those two parts of the run took.
        misfortunes: what has happened to workers and ledger. What callers and clients did is in the diaries.
        workers: the process of each worker.
        faults: workers that ended by themselves, or badly.
        diaries: what the workers heard, a line each, in the order of their hearing for each worker.
        tasks, stats: what the emulator has made, and counted.
        refused: when it has refused a create, and the status of its answer.
        cut: creates whose answers it has cut, whatever the answer was.
        records: status, task id and owner by ticket, as they are on the ledger at the end.
        changes: all changes of records, in order.
        pids: of the instances that have opened the ledger.
        owners_left: rows of owners and clients at the end; all have gone by then.
        slots_left: tickets of open records that hold a slot at the end.
        left: locks and sockets of processes that have gone.
    """

    slots: int
    began: float
    killing: float
    draining: float
    deaths: Sequence[Death]
    misfortunes: Sequence[Misfortune]
    workers: Mapping[str, int]
    faults: Sequence[str]
    diaries: Sequence[Mapping[str, Any]]
    tasks: Sequence[Mapping[str, Any]]
    stats: Mapping[str, Any]
    refused: Sequence[tuple[float, int]]
    cut: int
    records: Mapping[str, tuple[str, str | None, str | None]]
    changes: Sequence[Change]
    pids: Mapping[str, int]
    owners_left: int
    slots_left: Sequence[str]
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
    if _has_met(evidence, "deleted"):
        return list(_promises_without_a_ledger(evidence))
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
    kinds = Counter(each.kind for each in evidence.misfortunes)
    yield Line("misfortunes: " + ", ".join(sorted(kinds)), ", ".join(str(kinds[x]) for x in sorted(kinds)))
    ends = Counter(line["how"] for line in evidence.diaries if line["what"] == "ends")
    yield Line("wishes: " + ", ".join(sorted(ends)), ", ".join(str(ends[x]) for x in sorted(ends)))
    told = Counter(str(line.get("bought")) for line in evidence.diaries if line["what"] == "told")
    yield Line(
        "errors with bought False, None, True", ", ".join(str(told[x]) for x in ("False", "None", "True"))
    )
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
    silent = [
        each
        for each in evidence.misfortunes
        if each.kind == "sigstop" and each.until - each.at > SILENT_SECONDS
    ]
    yield Line("workers stopped for more than 15 s", str(len(silent)))
    yield Line("records adopted from stopped workers", str(len(_adopted_from_stopped(evidence))))
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
    yield _counted("wishes paid for more often than their callers decided", _paid_twice(evidence))
    yield _counted("wishes without an answer", _without_answer(evidence))
    yield _counted("results that are not the wish's", _wrong_results(evidence))
    yield _counted("creates sent after the only caller had left", _sent_unwanted(evidence))
    yield _counted("tickets lost after submit returned", _lost(evidence))
    yield _counted("tickets that have not ended", _not_ended(evidence))
    yield _counted("tickets that ended without a cause", _without_cause(evidence))
    yield _counted("tickets created twice", _created_twice(evidence))
    yield _counted("tasks at the emulator that no record has", _nobodys(evidence))
    yield _counted("task ids on record that are not the ticket's task", _wrong_ids(evidence))
    yield _counted("final states recorded twice, or changed", _final_twice(evidence))
    yield _counted("records removed", _removed(evidence))
    yield _counted("things heard that the ledger does not say", _misheard(evidence))
    yield _counted("waits without an end", _waiting_still(evidence))
    most = _most_in_flight(evidence.tasks)
    told = max((max(kinds.values()) for kinds in evidence.stats["max_in_flight"].values()), default=0)
    too_many = [f"{max(most, told)} at once"] if max(most, told) > evidence.slots else []
    yield Line(f"most in flight, of {evidence.slots} allowed", str(max(most, told)), too_many)
    of_rotations = _refused_by_rotation(evidence)
    yield _counter("creates answered 429", evidence.stats["creates_429"] - of_rotations.count(429))
    without_task = evidence.stats["creates"] - evidence.stats["tasks"]
    if (
        of_rotations
    ):  # of the creates that were cut, some were refused: a task of each is certain only without rotations
        without_task -= evidence.cut - sum(bool(task["was_cut"]) for task in evidence.tasks)
    yield _counter("creates that made no task", without_task - len(of_rotations))
    yield _counter("queries answered 429", evidence.stats["queries_429"])
    yield _counted("deaths after which records were adopted too late", _adopted_late(evidence))
    yield _counted("records that a silent owner has kept", _left_with_silent(evidence))
    yield _counted("slots held by records whose owners are gone", evidence.slots_left)
    yield from _tidiness(evidence)


def _tidiness(evidence: Evidence) -> Iterator[Line]:
    yield _counted("workers that failed", evidence.faults)
    yield _counter("owners on record that have gone", evidence.owners_left)
    yield _counted("locks and sockets left behind", evidence.left)
    sound = evidence.integrity == "ok"
    yield Line(
        "integrity of the database", "ok" if sound else "not ok", [] if sound else [evidence.integrity]
    )


def _promises_without_a_ledger(evidence: Evidence) -> Iterator[Line]:
    """What must hold in the run in which the ledger's file goes away."""
    lost = next(each for each in evidence.misfortunes if each.kind == "deleted")
    yield Line("the ledger's file", lost.note)
    yield Line("tasks at the emulator", str(len(evidence.tasks)))
    heard = {
        line["worker"]: line["at"]
        for line in reversed(evidence.diaries)
        if line.get("error") == "LedgerError" and line["at"] >= lost.at
    }
    deaf = [
        f"{worker} heard of it {f'{heard[worker] - lost.at:.1f} s later' if worker in heard else 'never'}"
        for worker in evidence.workers
        if heard.get(worker, float("inf")) - lost.at > NOTICED_IN
    ]
    yield _counted("workers that did not notice", deaf)
    late = [
        f"{_ticket_of(task)} was created {task['created'] - lost.at:.1f} s later"
        for task in evidence.tasks
        if task["created"] > lost.at + LEFT_SECONDS
    ]
    yield _counted("tasks created after the file had gone", late)
    ends = _ends(evidence)
    open_then = [
        task for task in evidence.tasks if task["created"] <= lost.at < task["ended"] and not task["was_cut"]
    ]
    yield Line("tasks that ran when the file went", str(len(open_then)))
    undelivered = [
        f"{_ticket_of(task)} ended as {ends.get(wish_of(_ticket_of(task)), 'nothing')}"
        for task in open_then
        if ends.get(wish_of(_ticket_of(task))) not in ("delivered", "failed", "abandoned")
    ]
    yield _counted("of these: not delivered", undelivered)
    yield _counted("wishes paid for more often than their callers decided", _paid_twice(evidence))
    yield _counted("results that are not the wish's", _wrong_results(evidence))
    yield _counted("workers that failed", evidence.faults)


def _has_met(evidence: Evidence, kind: str) -> bool:
    return any(each.kind == kind for each in evidence.misfortunes)


def _counted(figure: str, offenders: Sequence[str]) -> Line:
    return Line(figure, str(len(offenders)), offenders)


def _counter(figure: str, count: int) -> Line:
    return Line(figure, str(count), [f"{count} of them"] if count else [])


def _returned(evidence: Evidence) -> set[str]:
    return {line["ticket"] for line in evidence.diaries if line["what"] == "returned"}


def _ticket_of(task: Mapping[str, Any]) -> str:
    match = re.match(r"ticket (\S+),", task["prompt"])
    return match[1] if match else ""


def _ends(evidence: Evidence) -> dict[str, str]:
    """How each wish has ended."""
    return {wish_of(line["ticket"]): line["how"] for line in evidence.diaries if line["what"] == "ends"}


def _paid_twice(evidence: Evidence) -> list[str]:
    """A caller may pay again only for what nobody can say (`bought` is None), and notes that decision before."""
    allowed = Counter(
        wish_of(line["ticket"])
        for line in evidence.diaries
        if line["what"] == "decides" and line["how"] == "again"
    )
    made: defaultdict[str, list[str]] = defaultdict(list)
    for task in evidence.tasks:
        made[wish_of(_ticket_of(task))].append(_ticket_of(task))
    return [
        f"{wish}: {len(tickets)} tasks ({', '.join(tickets)}), {1 + allowed[wish]} allowed"
        for wish, tickets in made.items()
        if len(tickets) > 1 + allowed[wish]
    ]


def _without_answer(evidence: Evidence) -> list[str]:
    ends = _ends(evidence)
    wrong = []
    for wish in sorted({wish_of(line["ticket"]) for line in evidence.diaries if line["what"] == "asks"}):
        how = ends.get(wish, "nothing")
        if how not in ANSWERS:
            wrong.append(f"{wish} ended as {how}")
    return wrong


def _wrong_results(evidence: Evidence) -> list[str]:
    wishes = {task["id"]: wish_of(_ticket_of(task)) for task in evidence.tasks}
    return [
        f"{line['worker']} got {line['task_id']} for {line['ticket']}: it is {wishes.get(line['task_id'], 'no task')}"
        for line in evidence.diaries
        if line["what"] in ("result", "got") and wishes.get(line["task_id"]) != wish_of(line["ticket"])
    ]


def _sent_unwanted(evidence: Evidence) -> list[str]:
    """A caller has left for good, its worker lived and was not stopped, no other process wanted the ticket."""
    gone = {line["ticket"]: line for line in evidence.diaries if line["what"] == "gone"}
    for line in evidence.diaries:
        if line["what"] in ("followed", "inherits"):
            gone.pop(line["ticket"], None)
    ends = {death.worker: death.at for death in evidence.deaths}
    wrong = []
    for task in evidence.tasks:
        line = gone.get(_ticket_of(task))
        if line is None or task["created"] < line["at"] + LEFT_SECONDS:
            continue
        disturbed = any(
            each.worker == line["worker"] and line["at"] <= each.until and each.at <= task["created"]
            for each in evidence.misfortunes
        )
        if not disturbed and ends.get(line["worker"], float("inf")) > task["created"]:
            wrong.append(
                f"{line['ticket']}: created {task['created'] - line['at']:.1f} s after its caller had left"
            )
    return wrong


def _lost(evidence: Evidence) -> list[str]:
    return sorted(_returned(evidence) - set(evidence.records))


def _not_ended(evidence: Evidence) -> list[str]:
    return [
        f"{ticket} is {status}" for ticket, (status, _, _) in evidence.records.items() if status not in FINAL
    ]


def _lost_answers(evidence: Evidence) -> set[str]:
    """Tickets whose create went out and whose answer nobody got: cut, or the worker died before it was on record."""
    lost = {_ticket_of(task) for task in evidence.tasks if task["was_cut"]}
    if _has_met(evidence, "rotated"):  # a create with the refused key is cut, too, and makes no task
        lost |= {each.ticket for each in evidence.changes if is_cut(each.ticket)}
    lost |= {
        each.ticket
        for each in evidence.changes
        if each.after == each.before == "submitting" and each.owner_after != each.owner_before
    }
    return lost


def _without_cause(evidence: Evidence) -> list[str]:
    """Success and failure are the service's to say; unknown needs a lost answer. A request is withdrawn when its caller
    leaves, or its client is closed so; it is refused when its key is."""
    fates = {_ticket_of(task): "failed" if task["failed"] else "succeeded" for task in evidence.tasks}
    unanswered = _lost_answers(evidence)
    left = {line["ticket"] for line in evidence.diaries if line["what"] in ("left", "may leave")}
    withdrawn = any(line["what"] == "closes" and line["how"] == "withdraw" for line in evidence.diaries)
    rotated = _has_met(evidence, "rotated")
    wrong = []
    for ticket, (status, _, _) in evidence.records.items():
        fate = fates.get(ticket, "never made")
        fits = {
            "unknown": ticket in unanswered,
            "cancelled": fate == "never made" and (ticket in left or withdrawn),
            "rejected": fate == "never made" and rotated,
        }.get(status, status == fate)
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


def _histories(evidence: Evidence) -> dict[str, list[Change]]:
    """The changes of each ticket, in order."""
    found: defaultdict[str, list[Change]] = defaultdict(list)
    for each in evidence.changes:
        found[each.ticket].append(each)
    return found


def _final_twice(evidence: Evidence) -> list[str]:
    """What has ended has ended. Two things may follow: nothing was bought, and the ticket is submitted again; or it was
    unknown, and the answer of its create has come after all."""
    wrong = []
    for each in evidence.changes:
        is_again = each.after is None and each.before in UNSENT and each.task_id is None
        is_found = each.before == "unknown" and each.after != "unknown" and each.task_id is not None
        if each.before in FINAL and each.after is not None and not is_found:
            wrong.append(f"{each.ticket} was {each.before}, then {each.after}")
        elif each.before in FINAL and each.after is None and not is_again:
            wrong.append(f"{each.ticket} was {each.before}, and was submitted again")
    return wrong


def _removed(evidence: Evidence) -> list[str]:
    """A ticket of which nothing was bought is removed only to be submitted again, as its next attempt."""
    wrong = []
    for ticket, changes in _histories(evidence).items():
        for place, each in enumerate(changes):
            after = changes[place + 1] if place + 1 < len(changes) else None
            if each.after is None and (after is None or after.attempt != each.attempt + 1):
                wrong.append(ticket)
    return wrong


_RAISED = {
    "TaskFailedError": "failed",
    "TaskCancelledError": "cancelled",
    "SubmissionUnknownError": "unknown",
}


def _misheard(evidence: Evidence) -> list[str]:
    """What was heard of an id or an end has been on record, whatever happened to the worker a moment later."""
    histories = _histories(evidence)
    wrong = []
    for line in evidence.diaries:
        history = histories.get(line["ticket"])
        if history is None:
            continue
        states = {each.after for each in history}
        ids = {each.task_id for each in history}
        ended = {"result": "succeeded", "got": "succeeded", "final": line.get("status")}.get(line["what"])
        if line["what"] in ("raised", "told"):
            ended = _RAISED.get(line["error"])
        heard_id = line.get("task_id")
        if (ended is not None and ended not in states) or (heard_id is not None and heard_id not in ids):
            what = " ".join(str(line.get(name)) for name in ("what", "status", "error", "task_id"))
            wrong.append(
                f"{line['worker']} heard of {line['ticket']}: {what}; on record: {sorted(map(str, states))}"
            )
    return wrong


def _waiting_still(evidence: Evidence) -> list[str]:
    """Of workers that left in order: each wait for a result has heard one thing."""
    heard: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    left_in_order = {line["worker"] for line in evidence.diaries if line["what"] == "ended"}
    for line in evidence.diaries:
        if line["worker"] in left_in_order and line["what"] in ("followed", "got", "raised", "parted"):
            heard[line["worker"], line["ticket"]][line["what"]] += 1
    return [
        f"{worker} waited for {ticket}: {dict(counts)}"
        for (worker, ticket), counts in heard.items()
        if counts["got"] + counts["raised"] + counts["parted"] != counts["followed"]
    ]


def _refused_by_rotation(evidence: Evidence) -> list[int]:
    """The status of each create that was refused while the key was rotated, and shortly after: the old key is refused,
    and tasks of the old key use slots of which a client with the new one learns by a refusal."""
    times = [
        (each.at, each.until + ROTATED_SECONDS) for each in evidence.misfortunes if each.kind == "rotated"
    ]
    return [status for at, status in evidence.refused if any(begin <= at <= end for begin, end in times)]


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
        if before in killed and after != before and each.at >= killed[before].at:
            orphans[each.ticket] = killed[before]
        if each.ticket in orphans and after is not None:
            death = orphans.pop(each.ticket)
            took[death.worker] = max(took.get(death.worker, 0.0), each.at - death.at)
    return took


def _instance(owner: str | None) -> str | None:
    return None if owner is None else owner.partition(".")[0]


def _adopted_late(evidence: Evidence) -> list[str]:
    """All of them, if more than one in a hundred comes too late. While the file is locked, no process can adopt."""
    at = {death.worker: death.at for death in evidence.deaths}
    late = {
        worker: took
        for worker, took in _adoptions(evidence).items()
        if took > ADOPTED_IN and not _was_locked(evidence, at[worker] - ADOPTED_IN, at[worker] + took)
    }
    all_of_them = len(_adoptions(evidence))
    if len(late) <= all_of_them // 100:
        return []
    return [f"{worker}: {took:.2f} s" for worker, took in late.items()]


def _was_locked(evidence: Evidence, since: float, until: float) -> bool:
    return any(each.blocks_ledger and each.at < until and since < each.until for each in evidence.misfortunes)


def _stops(evidence: Evidence) -> defaultdict[int, list[Misfortune]]:
    """By process: when it was stopped."""
    stops: defaultdict[int, list[Misfortune]] = defaultdict(list)
    for each in evidence.misfortunes:
        if each.kind == "sigstop":
            stops[evidence.workers[each.worker]].append(each)
    return stops


def _adopted_from_stopped(evidence: Evidence) -> list[str]:
    """The tickets whose owner was stopped when another one became their owner."""
    stops = _stops(evidence)
    found = []
    for change in evidence.changes:
        before, after = (_instance(owner) for owner in (change.owner_before, change.owner_after))
        stopped = stops[evidence.pids.get(before or "", 0)]
        if before != after and any(each.at <= change.at < each.until for each in stopped):
            found.append(change.ticket)
    return found


def _left_with_silent(evidence: Evidence) -> list[str]:
    """The tickets that an owner had still some seconds after it had been stopped for 15 s. It keeps the creates that it
    has under way for longer: only it can get their answers."""
    found = []
    for pid, stops in _stops(evidence).items():
        for each in stops:
            due = each.at + SILENT_SECONDS + 2 * ADOPTED_IN
            is_locked = _was_locked(evidence, due - 2 * ADOPTED_IN, due)
            if due < each.until and not is_locked and _was_watched(evidence, each.at, due):
                found += [
                    f"{ticket} at {due - evidence.began:.1f} s"
                    for ticket, owner in _owners_at(evidence, due).items()
                    if evidence.pids.get(_instance(owner) or "") == pid
                ]
    return found


def _was_watched(evidence: Evidence, since: float, until: float) -> bool:
    """Whether a worker lived all the time with one client: only such a one knows for how long another is silent."""
    began = {line["worker"] for line in evidence.diaries if line["what"] == "began" and line["at"] <= since}
    gone = {death.worker for death in evidence.deaths if death.at <= until}
    gone |= {
        each.worker
        for each in evidence.misfortunes
        if each.kind == "sigstop" and since < each.until and each.at < until
    }
    for line in evidence.diaries:
        is_change = line["what"] in ("closes", "opened", "left", "ended") and not line["ticket"]
        if is_change and since <= line["at"] <= until:
            gone.add(line["worker"])
    return bool(began - gone)


def _owners_at(evidence: Evidence, moment: float) -> dict[str, str | None]:
    """The owners of the tickets that waited or ran at *moment*."""
    owners: dict[str, str | None] = {}
    for each in evidence.changes:
        if each.at <= moment:
            owners.pop(each.ticket, None)
            if each.after not in (None, "submitting", *FINAL):
                owners[each.ticket] = each.owner_after
    return owners
