"""A failing history, made as short as it can be while it still breaks the same promise."""

from __future__ import annotations

import re
from dataclasses import replace

from simulation.history import Report, happen
from simulation.plans import Plan


def kind_of(broken: str) -> str:
    """A broken promise without its names and numbers."""
    return re.sub(r"task_\w+|wish \d+|host \d+|[0-9a-f-]{8,}|\d+", "#", broken)[:80]


def shrink(report: Report) -> Report:
    """The report of the shortest plan found that breaks the first promise that *report* breaks."""
    wanted = kind_of(report.broken[0])

    def breaks(plan: Plan) -> Report | None:
        found = happen(plan)
        return found if any(kind_of(each) == wanted for each in found.broken) else None

    plan, best = report.plan, report
    is_shorter = True
    while is_shorter:
        is_shorter = False
        for part in (*plan.misfortunes, *plan.wishes):
            smaller = plan.without(part)
            found = breaks(smaller) if smaller.wishes else None
            if found is not None:
                plan, best, is_shorter = smaller, found, True
    for wish in plan.wishes:
        simpler = replace(
            plan, wishes=tuple(replace(each, timeout=None) if each is wish else each for each in plan.wishes)
        )
        found = breaks(simpler) if wish.timeout is not None else None
        if found is not None:
            plan, best = simpler, found
    return best


def as_text(report: Report) -> str:
    """The history of *report* as a story."""
    plan = report.plan
    ledger = "a SQLite ledger" if plan.durable else "a ledger in memory"
    slots = "as many as it likes" if plan.slots is None else plan.slots
    scene = (
        f"{plan.hosts} host(s) with {ledger} at {plan.service}; at most {plan.cap} tasks at once, the service takes "
        f"{slots}; a task takes {plan.seconds[0]:g} to {plan.seconds[1]:g} s"
    )
    lines = [
        scene,
        *(f"  wish: {wish}" for wish in plan.wishes),
        *(f"  misfortune: {misfortune}" for misfortune in plan.misfortunes),
        "",
        *report.story,
    ]
    return "\n".join(lines)
