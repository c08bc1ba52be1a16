"""`make storm`: histories, one seed after the other, until the time is over or a promise is broken.

python -m simulation.storm --seconds 60          # as many histories as that takes
python -m simulation.storm --histories 300       # so many
python -m simulation.storm --seed 4711           # one, told as a story
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from simulation.history import Report, happen
from simulation.plans import MISFORTUNES, PHASES, draw
from simulation.shrink import as_text, shrink

HASH_SEED = "0"


def main() -> int:
    """Run histories; the exit status is 1 if a promise was broken."""
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:  # the order of sets depends on it
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "simulation.storm", *sys.argv[1:]])
    options = _options()
    if options.seed is not None:
        report = happen(draw(options.seed))
        print(as_text(shrink(report) if report.broken and not options.whole else report))
        return bool(report.broken)
    began = time.monotonic()
    count, turns, broken = 0, 0, []
    met: Counter[tuple[str, str]] = Counter()
    for seed, report in _reports(options):
        count, turns = count + 1, turns + report.turns
        met += report.met
        if report.broken:
            broken.append(seed)
            print(f"\nseed {seed} breaks {len(report.broken)} promises: {report.broken[0]}", flush=True)
            if not options.keep_going:
                print(as_text(shrink(report)))
                print(f"\nAgain: python -m simulation.storm --seed {seed}   (in tests/)")
                break
    seconds = time.monotonic() - began
    print(f"\n{count} histories in {seconds:.0f} s: {count / seconds:.1f} a second; {turns} turns of loops")
    print(_table(met))
    print(f"{len(broken)} of {count} histories broke a promise" + (f": {' '.join(broken)}" if broken else ""))
    return bool(broken)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--histories", type=int, help="how many, in place of --seconds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", help="only this history, told as a story")
    parser.add_argument("--whole", action="store_true", help="with --seed: do not shrink it")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first broken promise")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    return parser.parse_args()


def _one(seed: str) -> tuple[str, Report]:
    return seed, happen(draw(seed))


def _reports(options: argparse.Namespace) -> Iterator[tuple[str, Report]]:
    numbers: Iterable[int] = itertools.count(options.first)
    if options.histories is not None:
        numbers = range(options.first, options.first + options.histories)
    until = time.monotonic() + options.seconds
    seeds = map(str, numbers)
    if options.jobs == 1:
        for seed in seeds:
            yield _one(seed)
            if options.histories is None and time.monotonic() > until:
                return
        return
    with multiprocessing.Pool(options.jobs) as pool:
        while batch := list(itertools.islice(seeds, 20 * options.jobs)):
            yield from pool.imap(_one, batch)
            if options.histories is None and time.monotonic() > until:
                return


def _table(met: Counter[tuple[str, str]]) -> str:
    """How often each misfortune met each phase of a wish. A zero is a hole."""
    width = max(map(len, MISFORTUNES))
    lines = [" " * width + "".join(f"{phase:>12}" for phase in PHASES)]
    lines += [
        f"{kind:<{width}}" + "".join(f"{met[kind, phase]:>12}" for phase in PHASES) for kind in MISFORTUNES
    ]
    holes = [f"{kind} never met {phase}" for kind in MISFORTUNES for phase in PHASES if not met[kind, phase]]
    return "\n".join([*lines, *(f"HOLE: {hole}" for hole in holes)])


if __name__ == "__main__":
    sys.exit(main())
