"""Let workers of one ledger meet one misfortune after the other, and show that the promises hold.

Four processes share a SQLite ledger and a key that allows three tasks at a time; the service is emulated in a process
of its own, and cuts 5 % of the creates that it has accepted. Their callers submit anew exactly when `bought` is False.
Every 0.8 to 2 s one worker is killed (SIGKILL) and replaced; meanwhile workers are stopped for a while, another program
locks the ledger, callers are cancelled, clients are closed and opened again, and the account's key is rotated. In the
end each worker's diary, the ledger, a witness inside the database and the service's own books are held against each
other. Exits with 1 if one promise does not hold, and prints what has happened to the tickets concerned.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from crash_misfortunes import KINDS, QUICK, USUAL, Rhythm
from crash_run import Plan, run
from crash_story import meetings_table, stories
from crash_verdict import table, verdict


def main() -> int:
    options = _options()
    plan = Plan(
        kills=options.kills,
        seed=int(time.time()) % 10**6 if options.seed is None else options.seed,
        kinds=options.only,
        service=options.service,
        workers=options.workers,
        durability=options.durability,
        rhythm=QUICK if options.quick else Rhythm(),
    )
    if options.keep is not None:
        options.keep.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process stays behind
    with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory() as folder:
        evidence = run(plan, Path(folder).absolute(), told=sys.stderr.isatty())
    lines = verdict(evidence)
    print(f"Crash test: {plan.service}, {plan.workers} workers, {', '.join(plan.kinds)}, seed {plan.seed}")
    print(table(lines))
    if not plan.loses_ledger:
        print(meetings_table(evidence, plan.kinds))
    if all(line.is_ok for line in lines):
        return 0
    print(stories(evidence, lines))
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Misfortunes: " + "; ".join(f"{kind}: {what}" for kind, what in KINDS.items()) + ".",
    )
    parser.add_argument(
        "--kills", type=int, default=200, help="steps: in each, one worker is killed, if workers are killed"
    )
    parser.add_argument(
        "--only", type=_kinds, default=USUAL, metavar="KIND,...", help=f"by default {','.join(USUAL)}"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of the misfortunes and of the service; default: the time"
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--service", choices=("dashscope", "dieyuyun"), default="dashscope")
    parser.add_argument("--durability", choices=("process", "power"), default="process")
    parser.add_argument(
        "--quick", action="store_true", help="short misfortunes in fast succession, as in the tests"
    )
    parser.add_argument("--keep", type=Path, help="a new folder for ledger and diaries, which stay there")
    options = parser.parse_args()
    if "deleted" in options.only and len(options.only) > 1:
        parser.error("without its file no ledger can be checked: --only deleted is a run of its own")
    return options


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(filter(None, text.split(",")))
    unknown = [each for each in kinds if each not in KINDS]
    if unknown or not kinds:
        raise argparse.ArgumentTypeError(f"{text!r} names no misfortunes; expected some of {','.join(KINDS)}")
    return kinds


if __name__ == "__main__":
    sys.exit(main())
