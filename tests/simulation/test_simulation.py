"""The simulation itself: it replays, tells apart what holds from what does not, and shortens what fails."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simulation.history import happen
from simulation.plans import draw

pytestmark = pytest.mark.no_cover  # tracing makes a history four times as long
TESTS = Path(__file__).parents[1]


def stories_of(*seeds: str) -> str:
    """The histories of *seeds* as a process of its own tells them."""
    program = (
        "import sys\nfrom simulation.history import happen\nfrom simulation.plans import draw\n"
        "for seed in sys.argv[1:]:\n    print('\\n'.join(happen(draw(seed)).story))\n"
    )
    outer = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment = {**outer, "PYTHONHASHSEED": "0", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-c", program, *seeds], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_a_seed_replays_exactly_in_another_process_and_after_other_histories() -> None:
    seeds = [str(number) for number in range(6)]

    forwards = [stories_of(seed) for seed in seeds]
    together = stories_of(*reversed(seeds))

    assert together == "".join(reversed(forwards))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_promise_holds_where_nothing_goes_wrong(part: int) -> None:
    for number in range(part, 24, 4):
        report = happen(replace(draw(str(number)), misfortunes=()))

        assert not report.broken, "\n".join([f"seed {number}", *report.broken])
