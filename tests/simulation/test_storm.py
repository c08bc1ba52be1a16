"""The promises hold in a storm: histories full of misfortunes, each checked to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
HISTORIES = 75


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_promise_holds_in_a_storm(part: int) -> None:
    command = [sys.executable, "-m", "simulation.storm", "--histories", str(HISTORIES), "--first"]
    # Untraced: coverage makes it four times as long.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment = {**outer, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*command, str(part * HISTORIES)],
        check=False,
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"0 of {HISTORIES} histories broke a promise" in done.stdout
