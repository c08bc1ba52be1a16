"""What the evidence of a crash test shows besides: which misfortune met which state, and the stories of tickets."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from crash_callers import wish_of
from crash_misfortunes import KINDS
from crash_verdict import FINAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crash_verdict import Evidence, Line

STATES = ("asked", "waiting", "submitting", "queued", "running")
"""The states of a record that is open; "asked": a caller has asked, and nothing is on record yet."""
MOST_STORIES = 5

Meetings = Counter[tuple[str, str]]
Span = tuple[float, float, str, str]
"""From when until when a ticket was in a state, the state, and the worker that drove it."""


def meetings(evidence: Evidence) -> Meetings:
    """How often each misfortune met each state of a record."""
    spans = _spans(evidence)
    met: Meetings = Counter()
    for each in evidence.misfortunes:
        if each.kind == "closed":
            continue  # the diary says when the worker has obeyed
        for of_ticket in spans.values():
            for begin, end, state, worker in of_ticket:
                if begin <= each.until and each.at < end and each.worker in ("", worker):
                    met[each.kind, state] += 1
    for line in evidence.diaries:
        is_timeout = line["what"] == "told" and line["error"] == "WaitTimeoutError"
        if line["what"] == "left" or is_timeout:
            _meet(met, "cancelled", spans[line["ticket"]], line["at"])
        elif line["what"] == "closes":
            for of_ticket in spans.values():
                _meet(met, "closed", [each for each in of_ticket if each[3] == line["worker"]], line["at"])
    return met


def _meet(met: Meetings, kind: str, spans: Sequence[Span], at: float) -> None:
    for begin, end, state, _ in spans:
        if begin <= at < end:
            met[kind, state] += 1


def _spans(evidence: Evidence) -> defaultdict[str, list[Span]]:
    names = {pid: name for name, pid in evidence.workers.items()}
    instances = {instance: names.get(pid, "") for instance, pid in evidence.pids.items()}
    spans: defaultdict[str, list[Span]] = defaultdict(list)
    changes: defaultdict[str, list[tuple[float, str, str]]] = defaultdict(list)
    for change in evidence.changes:
        worker = instances.get((change.owner_after or "").partition(".")[0], "")
        changes[change.ticket].append((change.at, change.after or "removed", worker))
    for ticket, steps in changes.items():
        for place, (at, state, worker) in enumerate(steps):
            end = steps[place + 1][0] if place + 1 < len(steps) else float("inf")
            if state in STATES:
                spans[ticket].append((at, end, state, worker))
    for line in evidence.diaries:
        if line["what"] == "asks":
            later = [at for at, _, _ in changes[line["ticket"]] if at >= line["at"]]
            if not any(begin <= line["at"] < end for begin, end, _, _ in spans[line["ticket"]]):
                end = min(later, default=_next_word(evidence, line))
                spans[line["ticket"]].append((line["at"], end, "asked", line["worker"]))
    return spans


def _next_word(evidence: Evidence, line: dict[str, Any]) -> float:
    """When the worker next noted something of a ticket that never came on record."""
    later = [
        each["at"]
        for each in evidence.diaries
        if each["worker"] == line["worker"] and each["ticket"] == line["ticket"] and each["at"] > line["at"]
    ]
    return min(later, default=line["at"] + 1.0)


def meetings_table(evidence: Evidence, kinds: Sequence[str]) -> str:
    """The meetings as text, and which of them never happened."""
    met = meetings(evidence)
    rows = [each for each in KINDS if each in kinds]
    text = ["  " + "".join(f"{state:>12}" for state in ("met", *STATES))]
    text += ["  " + f"{kind:>12}" + "".join(f"{met[kind, state]:>12}" for state in STATES) for kind in rows]
    never = [f"{kind} and {state}" for kind in rows for state in STATES if not met[kind, state]]
    text.append(f"  never met: {', '.join(never) or 'none'}")
    return "\n".join(text)


def stories(evidence: Evidence, lines: Sequence[Line]) -> str:
    """What has happened: all misfortunes in order, and the histories of the tickets that the failed lines name."""
    wishes: dict[str, None] = {}
    for line in lines:
        for offender in line.offenders or ():
            wishes |= dict.fromkeys(wish_of(each) for each in re.findall(r"w\d+-\d+(?:\.\d+)?", offender))
    text = ["Misfortunes, in order:"]
    text += [
        f"  {each.at - evidence.began:8.3f}  {each}"
        for each in sorted(evidence.misfortunes, key=lambda x: x.at)
    ]
    for wish in list(wishes)[:MOST_STORIES]:
        text += [f"The story of {wish}:", *_story(evidence, wish)]
    return "\n".join(text)


def _story(evidence: Evidence, wish: str) -> Iterator[str]:
    steps = sorted({*_on_record(evidence, wish), *_heard(evidence, wish), *_at_the_service(evidence, wish)})
    workers = {who for _, who, _ in steps}
    first, last = (steps[0][0], steps[-1][0]) if steps else (0.0, 0.0)
    steps += [
        (each.at, "MISFORTUNE", str(each))
        for each in evidence.misfortunes
        if each.worker in ("", *workers) and each.until >= first and each.at <= last
    ]
    steps += [
        (line["at"], line["worker"], f"{line['what']} its client ({line.get('how', '')})".removesuffix(" ()"))
        for line in evidence.diaries
        if line["what"] in ("closes", "closed", "opened")
        and line["worker"] in workers
        and first <= line["at"] <= last
    ]
    for at, who, what in sorted(steps):
        yield f"  {at - evidence.began:8.3f}  {who:<10}  {what}"


def _on_record(evidence: Evidence, wish: str) -> Iterator[tuple[float, str, str]]:
    names = {pid: name for name, pid in evidence.workers.items()}
    instances = {instance: names.get(pid, "?") for instance, pid in evidence.pids.items()}
    for each in evidence.changes:
        if wish_of(each.ticket) == wish:
            before, after = (
                instances.get((owner or "").partition(".")[0], "no owner")
                for owner in (each.owner_before, each.owner_after)
            )
            owners = after if before == after or each.before is None else f"{before} -> {after}"
            states = f"{each.before or 'nothing'} -> {each.after or 'removed'}"
            again = f", attempt {each.attempt}" if each.attempt > 1 else ""
            end = " (final)" if each.after in FINAL else ""
            yield each.at, "record", f"{each.ticket}: {states}{end}, {owners}{again}, task {each.task_id}"


def _heard(evidence: Evidence, wish: str) -> Iterator[tuple[float, str, str]]:
    for line in evidence.diaries:
        if line["ticket"] and wish_of(line["ticket"]) == wish and line["what"] != "polled":
            more = {
                name: value
                for name, value in line.items()
                if name not in ("at", "worker", "what", "ticket") and value is not None
            }
            details = ", ".join(f"{name} {value}" for name, value in more.items())
            yield (
                line["at"],
                line["worker"],
                f"{line['what']} {line['ticket']}{f': {details}' if details else ''}",
            )


def _at_the_service(evidence: Evidence, wish: str) -> Iterator[tuple[float, str, str]]:
    for task in evidence.tasks:
        ticket = task["prompt"].split(",")[0].removeprefix("ticket ")
        if wish_of(ticket) == wish:
            cut = ", and cuts the answer" if task["was_cut"] else ""
            yield task["created"], "service", f"makes task {task['id']} for {ticket}{cut}"
            yield task["ended"], "service", f"{'fails' if task['failed'] else 'finishes'} task {task['id']}"
