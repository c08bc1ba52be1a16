"""The crash test in its short form, and its checker on forged evidence: no lie may pass."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crash_verdict import Change, Death, Evidence, table, verdict

STATS = {
    "creates": 2,
    "tasks": 2,
    "creates_429": 0,
    "queries": 4,
    "queries_429": 0,
    "lists": 0,
    "max_in_flight": {"a": {"video": 2}},
}


@pytest.mark.slow
@pytest.mark.parametrize(("service", "kills"), [("dashscope", 10), ("dieyuyun", 4)])
def test_workers_that_are_killed_at_any_moment_lose_nothing_and_buy_nothing_twice(
    service: str, kills: int
) -> None:
    # Without measuring coverage: a process that is killed could not tell it anyway, and start-up takes its time.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    program = [sys.executable, str(Path(__file__).with_name("crash.py"))]

    done = subprocess.run(
        [*program, "--kills", str(kills), "--service", service],
        capture_output=True,
        text=True,
        env=plain,
        timeout=200,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def task(ticket: str, task_id: str, **more: Any) -> dict[str, Any]:
    fate = {"created": 0.0, "ended": 1.0, "failed": False, "was_cut": False, **more}
    return {"id": task_id, "prompt": f"ticket {ticket}, lot 3, a kitten", **fate}


def said(what: str, ticket: str = "w1-1", worker: str = "w1", **more: Any) -> dict[str, Any]:
    return {"worker": worker, "what": what, "ticket": ticket, **more}


def honest() -> Evidence:
    """A worker with two tickets was killed, and another one brought both home."""
    return Evidence(
        slots=3,
        killing=10.0,
        draining=1.0,
        deaths=[Death("w1", 11, 100.0)],
        faults=[],
        diaries=[
            said("returned"),
            said("returned", "w1-2"),
            said("followed", worker="w2"),
            said("final", worker="w2", status="succeeded", task_id="t1"),
            said("result", worker="w2", task_id="t1"),
            said("ended", "", worker="w2"),
        ],
        tasks=[task("w1-1", "t1"), task("w1-2", "t2", was_cut=True)],
        stats=STATS,
        records={"w1-1": ("succeeded", "t1", "b.1"), "w1-2": ("unknown", None, "b.1")},
        changes=[
            Change(99.0, "w1-1", "submitting", "queued", "a.1", "a.1"),
            Change(100.2, "w1-1", "queued", "queued", "a.1", None),
            Change(100.3, "w1-1", "queued", "queued", None, "b.1"),
            Change(101.0, "w1-1", "queued", "succeeded", "b.1", "b.1"),
            Change(101.0, "w1-2", "submitting", "unknown", "b.1", "b.1"),
        ],
        pids={"a": 11, "b": 12},
        owners_left=0,
        integrity="ok",
        left=[],
    )


def failed(evidence: Evidence) -> list[str]:
    return [line.figure for line in verdict(evidence) if not line.is_ok]


def test_honest_evidence_passes() -> None:
    lines = verdict(honest())

    assert failed(honest()) == []
    assert "FAILED" not in table(lines)
    assert [line.value for line in lines if line.figure.startswith("adopted after")] == ["0.30, 0.30, 0.30"]


@pytest.mark.parametrize(
    ("forged", "told"),
    [
        ({"records": {"w1-2": ("unknown", None, None)}}, "tickets lost after submit returned"),
        (
            {"records": {**honest().records, "w1-1": ("running", "t1", "b.1")}},
            "tickets that have not ended",
        ),
        (
            {"records": {**honest().records, "w1-1": ("failed", "t1", "b.1")}},
            "tickets that ended without a cause in the service",
        ),
        (
            {"tasks": [*honest().tasks[:1], task("w1-2", "t2")]},
            "tickets that ended without a cause in the service",
        ),
        ({"tasks": [*honest().tasks, task("w1-1", "t3")]}, "tickets created twice"),
        ({"tasks": [*honest().tasks, task("w9-9", "t3")]}, "tasks at the emulator that are nobody's"),
        (
            {"records": {**honest().records, "w1-2": ("unknown", "t1", None)}},
            "task ids on record that are not the ticket's task",
        ),
        (
            {"changes": [*honest().changes, Change(102.0, "w1-1", "succeeded", "succeeded")]},
            "final states recorded twice, or changed",
        ),
        (
            {"changes": [*honest().changes, Change(102.0, "w1-1", "running", "succeeded")]},
            "final states recorded twice, or changed",
        ),
        ({"changes": [*honest().changes, Change(102.0, "w1-1", "waiting", None)]}, "records removed"),
        (
            {"diaries": [*honest().diaries, said("submitted", task_id="t9")]},
            "things heard that the ledger does not say",
        ),
        (
            {"diaries": [*honest().diaries, said("final", "w1-2", status="failed")]},
            "things heard that the ledger does not say",
        ),
        ({"diaries": [*honest().diaries, said("followed", "w1-2", "w2")]}, "waits without an end"),
        (
            {"tasks": [task("w1-1", "t1"), task("w1-2", "t2"), *[task(f"w{n}", f"x{n}") for n in "345"]]},
            "most in flight, of 3 allowed",
        ),
        ({"stats": {**STATS, "creates_429": 1}}, "creates answered 429"),
        ({"stats": {**STATS, "creates": 3}}, "creates that made no task"),
        ({"stats": {**STATS, "queries_429": 1}}, "queries answered 429"),
        ({"deaths": [Death("w1", 11, 98.0)]}, "deaths after which records were adopted too late"),
        ({"faults": ["w2 ended by itself with 1"]}, "workers that failed"),
        ({"owners_left": 1}, "owners on record that have gone"),
        ({"left": ["a.lock"]}, "locks and sockets left behind"),
        ({"integrity": "row 3 missing from index"}, "integrity of the database"),
    ],
)
def test_the_checker_catches(forged: dict[str, Any], told: str) -> None:
    evidence = replace(honest(), **forged)

    assert told in failed(evidence)
    assert "FAILED" in table(verdict(evidence))
