"""CPU of `import bide`, beside that of the libraries it uses, each in an interpreter of its own.

bide imports its public names when they are first used: the last rows show what the usual names cost. Everything is
compiled beforehand.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from goals import Row, arguments, show

ROUNDS = 21
STATEMENTS = {
    "libraries": "import httpx, anyio, attrs",
    "bide": "import bide",
    "bide's names": "from bide import Client, DashScope, VideoRequest",
}
TIMED = "import time; before = time.process_time(); {}; print(time.process_time() - before)"


def cpu(statement: str, cache: str) -> float:
    """Milliseconds of CPU for *statement*, with compiled files in *cache*."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "PYTHONPYCACHEPREFIX": cache
    }
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True).stdout) * 1000


def main() -> list[Row]:
    """All of them in turns."""
    spent: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    with tempfile.TemporaryDirectory() as cache:
        for statement in STATEMENTS.values():
            cpu(statement, cache)
        for _ in range(ROUNDS):
            for name, statement in STATEMENTS.items():
                spent[name].append(cpu(statement, cache))
    median = {name: statistics.median(each) for name, each in spent.items()}
    rows = [Row(name, STATEMENTS[name].removeprefix("from bide "), each) for name, each in median.items()]
    ratio = median["bide"] / median["libraries"]
    rows.append(Row("bide", "to the libraries", ratio, "at most 1.15", ratio <= 1.15))
    return [*rows, Row("bide's names", "to the libraries", median["bide's names"] / median["libraries"])]


if __name__ == "__main__":
    options = arguments(__doc__)
    show("CPU of the import, ms", main(), options)
