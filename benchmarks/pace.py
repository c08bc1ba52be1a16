"""How late an end is known and how many polls that costs: the learned pace beside fixed ones, in virtual time.

Each run takes a workload of `workloads.py` through the whole client, from an empty ledger; only the wire is simulated.
Beside the pace of bide there are polls at fixed and at exponential intervals, and the schedules of the official SDKs.
Lag is the time from the end at the service until the waiter knows it; polls are queries a task, failed ones included.

The gains are over one poll at once and then one every 3 s: how much less lag with as many polls, and how many fewer
polls with as much lag, read (in logarithms) between the two nearest of a row of prices. Figures are means over seeds;
± is half of a 95 % interval. `--check` runs only workloads with a goal, about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import verdicts
from decision import microseconds
from draws import TermError
from goals import show
from paces import EVERY_3, OTHERS, PRICE, SDKS, Job, Policy, measured, ours
from picture import draw
from workloads import HOSTILE, WORKLOADS, Workload, parse, read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from goals import Row
    from verdicts import Runs

TITLE = "The pace: polls, and the lag from an end until it is known"
SEEDS = 2
SLOTS = 3
SATURATED = ("I1", "V2")
"""Workloads that are run behind three slots too, all their tasks submitted at once."""
PLOTTED = tuple(ours(price) for price in (0.0064, 0.016, 0.04, PRICE, 0.25, 0.625, 1.5625))


def saturated(name: str) -> Workload:
    """The workload with all its tasks submitted at once behind three slots."""
    return parse(
        {**WORKLOADS[name].terms, "name": f"{name}, {SLOTS} slots", "arrivals": "at once", "slots": SLOTS}
    )


def jobs_for(chosen: Sequence[Workload], options: argparse.Namespace) -> list[Job]:
    """What has to be run."""
    wanted: list[tuple[Workload, tuple[Policy, ...], bool]] = []
    for workload in chosen:
        policies = (ours(), EVERY_3) if options.check else (ours(), *OTHERS)
        if options.plot and not is_hostile(workload):
            policies = tuple(dict.fromkeys((*policies, *OTHERS, *PLOTTED)))
        wanted.append((workload, policies, not is_hostile(workload)))
        if workload.name in SATURATED:
            wanted.append((saturated(workload.name), (ours(), EVERY_3, *SDKS), False))
    return [Job(each[0], seed, each[1], each[2]) for each in wanted for seed in range(options.seeds)]


def is_hostile(workload: Workload) -> bool:
    """Whether it is one of ours that has bounds instead of gains."""
    return any(terms["name"] == workload.name for terms in HOSTILE)


def rows_of(chosen: Sequence[Workload], found: Mapping[str, Runs]) -> list[Row]:
    """Every figure that has a goal, and those beside it."""
    rows = []
    for workload in chosen:
        make = verdicts.bound_rows if is_hostile(workload) else verdicts.gain_rows
        rows += make(workload.name, found[workload.name])
    for workload in chosen:
        if workload.name in SATURATED:
            rows += verdicts.slot_rows(saturated(workload.name).name, found[saturated(workload.name).name])
        if workload.slots is not None:
            rows += verdicts.slot_rows(workload.name, found[workload.name])
    return [*rows, verdicts.floor_row(found.values()), *verdicts.decision_rows(microseconds())]


def title(workload: Workload) -> str:
    """What it is, in a few words."""
    progress = workload.terms["progress"]
    shown = progress if isinstance(progress, str) else next(iter(progress))
    return f"{workload.kind}s, {'no' if shown == 'none' else shown} progress"


def table(workload: Workload, runs: Runs) -> str:
    """Polls and lags of each pace on one workload."""
    low, high = workload.documented
    lines = [
        f"{workload.name}: {workload.kind}s, documented {low:g} to {high:g} s, {workload.count} tasks",
        f"  {'':<16} {'polls':>14} {'mean lag, s':>14} {'p50':>14} {'p95':>14}",
    ]
    # A price that the search tried in some seeds alone would show their figures beside those of all.
    whole = [policy for policy, seeds in runs.items() if len(seeds) == len(runs[EVERY_3])]
    for policy in sorted(whole, key=lambda policy: math.inf if policy.price is None else policy.price):
        seeds = runs[policy]
        cells = [
            str(verdicts.spread(getattr(each, figure) for each in seeds.values()))
            for figure in ("polls", "lag", "p50", "p95")
        ]
        lines.append(f"  {policy.name:<16} " + " ".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def as_json(found: Mapping[str, Runs], rows: Sequence[Row], options: argparse.Namespace) -> str:
    """One object: every seed's figures, and the rows."""
    figures = [
        {"workload": name, "pace": policy.name, "price": policy.price, "gaps": policy.gaps, "seed": seed}
        | asdict(each)
        for name, runs in found.items()
        for policy, seeds in runs.items()
        for seed, each in sorted(seeds.items())
    ]
    whole = {
        "benchmark": TITLE,
        "seeds": options.seeds,
        "figures": figures,
        "rows": [asdict(row) for row in rows],
    }
    return json.dumps(_plain(whole), indent=2)


def _plain(value: object) -> object:
    """*value* with null for what is no number."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def arguments() -> argparse.Namespace:
    """What to run and how to show it."""
    logging.getLogger("bide").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help="only these, such as I1 V2 A8")
    parser.add_argument(
        "--check", action="store_true", help="only what has a goal; exit with 1 if one is missed"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, with every seed's figures"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"runs of each (default {SEEDS})")
    parser.add_argument(
        "--workloads", type=Path, metavar="FILE", help="further workloads, as JSON (see README.md)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw lag against polls (needs matplotlib)"
    )
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if options.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    try:
        options.chosen = chosen(options)
    except (TermError, OSError) as error:
        parser.error(str(error))
    if options.plot and all(map(is_hostile, options.chosen)):
        parser.error("--plot draws no adversaries: name another workload")
    return options


def chosen(options: argparse.Namespace) -> list[Workload]:
    """The workloads by their names; without names those of the file, or all of ours.

    Raises:
        TermError: the file is wrong, or no workload or pace has that name.
    """
    theirs = {each.name: each for each in (read(options.workloads) if options.workloads else [])}
    if taken := sorted(set(theirs) & set(WORKLOADS)):
        raise TermError(str(options.workloads), taken[0], "a name that none of ours has")
    known = WORKLOADS | theirs
    if unknown := [name for name in options.names if name not in known]:
        raise TermError("workload", unknown[0], f"one of {', '.join(known)}")
    return [known[name] for name in options.names or theirs or known]


def main(options: argparse.Namespace) -> None:
    """Run, draw, show."""
    found = measured(jobs_for(options.chosen, options))
    rows = rows_of(options.chosen, found)
    if options.plot:
        drawn = [each for each in options.chosen if not is_hostile(each)]
        titles = {each.name: title(each) for each in drawn}
        draw(options.plot, {each.name: found[each.name] for each in drawn}, titles)
    if options.json:
        print(as_json(found, rows, options))
        if options.check and any(row.met is False for row in rows):
            sys.exit(1)
        return
    if not options.check:
        print(*(table(each, found[each.name]) for each in options.chosen), sep="\n\n", end="\n\n")
    show(TITLE, rows, options)


if __name__ == "__main__":
    main(arguments())
