"""Kill workers of one ledger again and again, and show that nothing is lost, bought twice or told wrongly.

Four processes share a SQLite ledger and a key that allows three tasks at a time; the service is emulated in a process
of its own, and cuts 5 % of the creates that it has accepted. Every 0.8 to 2 s one worker is killed (SIGKILL) and
replaced. In the end each worker's diary, the ledger, a witness inside the database and the service's own books are
held against each other. Exits with 1 if one promise does not hold.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from crash_run import Plan, run
from crash_verdict import table, verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--seed", type=int, default=None, help="of the kills and of the service; default: the time"
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--service", choices=("dashscope", "dieyuyun"), default="dashscope")
    parser.add_argument("--durability", choices=("process", "power"), default="process")
    parser.add_argument("--keep", type=Path, help="a new folder for ledger and diaries, which stay there")
    options = parser.parse_args()
    plan = Plan(
        kills=options.kills,
        seed=int(time.time()) % 10**6 if options.seed is None else options.seed,
        service=options.service,
        workers=options.workers,
        durability=options.durability,
    )
    if options.keep is not None:
        options.keep.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process stays behind
    with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory() as folder:
        lines = verdict(run(plan, Path(folder).absolute(), told=sys.stderr.isatty()))
    print(f"Crash test: {plan.service}, {plan.workers} workers, seed {plan.seed}")
    print(table(lines))
    return 0 if all(line.is_ok for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
