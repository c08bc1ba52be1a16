"""The SQLite ledger: how many tasks it takes, how long its steps are, and how well it keeps four processes busy.

*Lives*: all that one task writes (recorded, admitted, accepted, running, ended with a result), with one process and
with four on one file, each with 50 lives under way. The floor does the same by hand, one transaction a step, in one
thread. Each of the four has its own kind of work: they share the file, and none waits for a slot of another.
*Admission*: tasks arrive at random, 50 a second in each of four processes, in one lane without a cap. Each is then
accepted and ended at once.
*Slots*: ten requests wait in each of four processes for three slots that are held for 30 ms. The processes wake each
other and never poll. Busy is measured from the records' own times; a hand-over lasts from the call that ends one hold
until the next holder has the slot.
*Adoption*: a process with 20 accepted tasks is killed with SIGKILL, and the client of another process takes them over.
No other process is there to notice.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crew import Crew, arrivals, bare, holders, lives
from goals import Row, arguments, percentile, show
from victims import adoptions

if TYPE_CHECKING:
    from crew import Use

PROCESSES = 4
ROUNDS, LIVES = 5, 1600
RATE, SECONDS = 50.0, 5.0
WAITERS, CAP, HOLD, HELD_SECONDS = 10, 3, 0.03, 8.0
KILLS, TASKS = 30, 20
MARGIN = 0.5
"""Seconds at either end of the hold that do not count: beginning and ending are not what is measured."""


def life_rows(crew: Crew, folder: Path) -> list[Row]:
    """Lives a second; floor and ledger take turns, each on a file of its own."""
    rates: dict[str, list[float]] = {"bare": [], "one": [], "four": []}
    for number in range(ROUNDS):
        path = folder / f"bare-{number}.db"
        rates["bare"].append(rate(crew.run(bare, [{"path": path, "count": LIVES}])))
        for name, processes in (("one", 1), ("four", PROCESSES)):
            orders = [
                {
                    "path": folder / f"{name}-{number}.db",
                    "process": process,
                    "count": LIVES // processes,
                    "kind": f"image {process}",
                }
                for process in range(processes)
            ]
            rates[name].append(rate(crew.run(lives, orders)))
    median = {name: statistics.median(each) for name, each in rates.items()}
    rows = [
        Row("bare sqlite3", "lives a second", median["bare"]),
        Row("bare sqlite3", "lowest and", min(rates["bare"])),
        Row("bare sqlite3", f"highest of {ROUNDS} rounds", max(rates["bare"])),
    ]
    for case, name in (("bide, 1 process", "one"), ("bide, 4 processes", "four")):
        ratio = statistics.median(
            ours / floor for ours, floor in zip(rates[name], rates["bare"], strict=True)
        )
        rows += [
            Row(case, "lives a second", median[name], "at least 2,000", median[name] >= 2000),
            Row(case, "lowest and", min(rates[name])),
            Row(case, f"highest of {ROUNDS} rounds", max(rates[name])),
            Row(case, "to the floor", ratio, "at least 0.50", ratio >= 0.5),
        ]
    return rows


def rate(times: list[tuple[float, float]]) -> float:
    """Lives a second of processes that began and ended then."""
    return LIVES / (max(ended for _, ended in times) - min(began for began, _ in times))


def admission_rows(crew: Crew, folder: Path) -> list[Row]:
    """How long it takes to be admitted."""
    path = folder / "arrivals.db"
    orders = [
        {"path": path, "process": process, "rate": RATE, "seconds": SECONDS} for process in range(PROCESSES)
    ]
    times = [each for of_process in crew.run(arrivals, orders) for each in of_process]
    whole, alone = ([each[which] * 1e3 for each in times] for which in (0, 1))
    case = "4 x 50 a second"
    return [
        Row(case, "admitted, from arrival, p50 ms", percentile(whole, 50)),
        Row(case, "admitted, from arrival, p99 ms", percentile(whole, 99)),
        Row(case, "the admitting call, p50 ms", percentile(alone, 50)),
        Row(case, "the admitting call, p99 ms", percentile(alone, 99)),
    ]


def slot_rows(crew: Crew, folder: Path) -> list[Row]:
    """How well three slots are used, and by whom."""
    path = folder / "slots.db"
    orders = [
        {
            "path": path,
            "process": process,
            "waiters": WAITERS,
            "cap": CAP,
            "hold": HOLD,
            "seconds": HELD_SECONDS,
        }
        for process in range(PROCESSES)
    ]
    of_process: list[list[Use]] = crew.run(holders, orders)
    uses = sorted((use for each in of_process for use in each), key=lambda use: use.began)
    first = uses[0].began + MARGIN
    last = first + HELD_SECONDS - 2 * MARGIN
    busy = sum(max(0.0, min(use.ended, last) - max(use.began, first)) for use in uses)
    share = busy / CAP / (last - first)
    served = [sum(first <= use.began < last for use in each) for each in of_process]
    fairness = max(served) / max(1, min(served))
    most = max(sum(other.began <= use.began < other.ended for other in uses) for use in uses)
    # The slots are full throughout: the first hold that ends makes place for the fourth that begins, and so on.
    freed = sorted(uses, key=lambda use: use.ended)
    waits = [
        (after.known - before.given) * 1e3
        for before, after in zip(freed, uses[CAP:], strict=False)
        if first <= after.began < last
    ]
    case = "4 x 10 wait for 3 slots"
    return [
        Row(case, "slots in use at most", most, "3", most == CAP),
        Row(case, "slot use, %", share * 100, "at least 90", share >= 0.9),
        Row(case, "most to least served process", fairness, "at most 1.20", fairness <= 1.2),
        Row(case, "hand-over, p50 ms", percentile(waits, 50), "at most 5", percentile(waits, 50) <= 5),
        Row(case, "hand-over, p99 ms", percentile(waits, 99)),
    ]


def adoption_rows(folder: Path) -> list[Row]:
    """How long open tasks of a killed process have no owner."""
    seconds = asyncio.run(adoptions(folder / "adoptions.db", KILLS, TASKS))
    worst = percentile(seconds, 99)
    case = f"{KILLS} kills, {TASKS} tasks each"
    return [
        Row(case, "until adopted, p50 s", percentile(seconds, 50)),
        Row(case, "until adopted, p99 s", worst, "at most 2", worst <= 2),
    ]


def main() -> list[Row]:
    """One after the other: each has the machine for itself."""
    crew = Crew(PROCESSES)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            return [
                *life_rows(crew, folder),
                *admission_rows(crew, folder),
                *slot_rows(crew, folder),
                *adoption_rows(folder),
            ]
    finally:
        crew.end()


if __name__ == "__main__":
    options = arguments(__doc__)
    show("The SQLite ledger", main(), options)
