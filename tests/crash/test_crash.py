"""The crash test in its short form, and its checker on forged evidence: no lie may pass."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crash_misfortunes import KINDS, USUAL, Misfortune
from crash_story import STATES, meetings, meetings_table, stories
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
@pytest.mark.parametrize(
    ("service", "kills", "only"),
    [
        ("dashscope", 3, "sigkill,sigstop,locked,cancelled,closed"),
        ("dieyuyun", 1, "sigkill,cancelled,rotated"),
    ],
)
def test_workers_that_meet_misfortunes_lose_nothing_and_buy_nothing_twice(
    service: str, kills: int, only: str
) -> None:
    # Without measuring coverage: a process that is killed could not tell it anyway, and start-up takes its time.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    program = [sys.executable, str(Path(__file__).with_name("crash.py"))]

    done = subprocess.run(
        [*program, "--quick", "--kills", str(kills), "--service", service, "--only", only],
        capture_output=True,
        text=True,
        env=plain,
        timeout=200,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize(
    ("only", "error"),
    [
        ("sigstop,flood", "names no misfortunes"),
        ("", "names no misfortunes"),
        ("deleted,locked", "a run of its own"),
    ],
)
def test_a_misfortune_that_cannot_be_is_an_error_that_says_so(only: str, error: str) -> None:
    program = [sys.executable, str(Path(__file__).with_name("crash.py")), "--only", only]

    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert error in " ".join(done.stderr.split())


def task(ticket: str, task_id: str, **more: Any) -> dict[str, Any]:
    fate = {"created": 0.0, "ended": 1.0, "failed": False, "was_cut": False, **more}
    return {"id": task_id, "prompt": f"ticket {ticket}, lot 3, a kitten", **fate}


def said(what: str, ticket: str = "w1-1", worker: str = "w1", **more: Any) -> dict[str, Any]:
    return {"at": 101.0, "worker": worker, "what": what, "ticket": ticket, **more}


def honest() -> Evidence:
    """A worker with two tickets was killed, and another one brought both home. A caller of its own has left."""
    return Evidence(
        slots=3,
        began=90.0,
        killing=10.0,
        draining=1.0,
        deaths=[Death("w1", 11, 100.0)],
        misfortunes=[Misfortune("sigkill", 100.0, 100.0, "w1")],
        workers={"w1": 11, "w2": 12},
        faults=[],
        diaries=[
            said("asks", at=98.0),
            said("returned"),
            said("asks", "w1-2", at=98.0),
            said("returned", "w1-2"),
            said("followed", worker="w2"),
            said("final", worker="w2", status="succeeded", task_id="t1"),
            said("got", worker="w2", task_id="t1"),
            said("result", worker="w2", task_id="t1"),
            said("ends", worker="w2", how="delivered"),
            said("told", "w1-2", "w2", error="SubmissionUnknownError", bought=None),
            said("ends", "w1-2", worker="w2", how="unknown"),
            said("asks", "w2-1", "w2", at=99.0),
            said("left", "w2-1", "w2", at=99.5, how="cancelled"),
            said("gone", "w2-1", "w2", at=99.5),
            said("ends", "w2-1", "w2", how="abandoned"),
            said("ended", "", worker="w2"),
        ],
        tasks=[task("w1-1", "t1"), task("w1-2", "t2", was_cut=True)],
        stats=STATS,
        refused=[],
        cut=1,
        records={
            "w1-1": ("succeeded", "t1", "b.1"),
            "w1-2": ("unknown", None, "b.1"),
            "w2-1": ("cancelled", None, "b.1"),
        },
        changes=[
            Change(98.5, "w1-1", None, "submitting", None, "a.1"),
            Change(99.0, "w1-1", "submitting", "queued", "a.1", "a.1", "t1"),
            Change(99.1, "w2-1", None, "waiting", None, "b.1"),
            Change(99.6, "w2-1", "waiting", "cancelled", "b.1", "b.1"),
            Change(100.2, "w1-1", "queued", "queued", "a.1", None, "t1"),
            Change(100.3, "w1-1", "queued", "queued", None, "b.1", "t1"),
            Change(101.0, "w1-1", "queued", "succeeded", "b.1", "b.1", "t1"),
            Change(101.0, "w1-2", "submitting", "unknown", "b.1", "b.1"),
        ],
        pids={"a": 11, "b": 12},
        owners_left=0,
        slots_left=[],
        integrity="ok",
        left=[],
    )


RUNNING = [Change(101.0, "w1-1", "queued", "running", "b.1", "b.1", "t1")]


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
        (
            {"tasks": [*honest().tasks, task("w1-2.2", "t3")]},
            "wishes paid for more often than their callers decided",
        ),
        ({"diaries": [*honest().diaries, said("asks", "w1-3")]}, "wishes without an answer"),
        (
            {"diaries": [*honest().diaries, said("ends", how="left without an answer: LedgerError")]},
            "wishes without an answer",
        ),
        ({"diaries": [*honest().diaries, said("ends", how="foreign")]}, "wishes without an answer"),
        (
            {"diaries": [*honest().diaries, said("result", "w1-2", "w2", task_id="t1")]},
            "results that are not the wish's",
        ),
        (
            {"tasks": [*honest().tasks, task("w2-1", "t3", created=105.0, ended=106.0)]},
            "creates sent after the only caller had left",
        ),
        ({"records": {"w1-2": ("unknown", None, None)}}, "tickets lost after submit returned"),
        (
            {"records": {**honest().records, "w1-1": ("running", "t1", "b.1")}},
            "tickets that have not ended",
        ),
        (
            {"records": {**honest().records, "w1-1": ("failed", "t1", "b.1")}},
            "tickets that ended without a cause",
        ),
        (
            {"tasks": [*honest().tasks[:1], task("w1-2", "t2")]},
            "tickets that ended without a cause",
        ),
        (
            {"records": {**honest().records, "w1-3": ("cancelled", None, "b.1")}},
            "tickets that ended without a cause",
        ),
        (
            {"records": {**honest().records, "w1-3": ("rejected", None, "b.1")}},
            "tickets that ended without a cause",
        ),
        ({"tasks": [*honest().tasks, task("w1-1", "t3")]}, "tickets created twice"),
        ({"tasks": [*honest().tasks, task("w9-9", "t3")]}, "tasks at the emulator that no record has"),
        (
            {"records": {**honest().records, "w1-2": ("unknown", "t1", None)}},
            "task ids on record that are not the ticket's task",
        ),
        (
            {"changes": [*honest().changes, Change(102.0, "w1-1", "succeeded", "succeeded")]},
            "final states recorded twice, or changed",
        ),
        (
            {
                "changes": [
                    *honest().changes,
                    Change(102.0, "w1-1", "succeeded", "running", "b.1", "b.1", "t1"),
                ]
            },
            "final states recorded twice, or changed",
        ),
        (
            {"changes": [*honest().changes, Change(102.0, "w1-1", "succeeded", None, "b.1", None, "t1")]},
            "final states recorded twice, or changed",
        ),
        ({"changes": [*honest().changes, Change(102.0, "w1-1", "waiting", None)]}, "records removed"),
        (
            {
                "changes": [
                    *honest().changes,
                    Change(102.0, "w2-1", "cancelled", None),
                    Change(102.0, "w2-1", None, "waiting"),
                ]
            },
            "records removed",
        ),
        (
            {"diaries": [*honest().diaries, said("submitted", task_id="t9")]},
            "things heard that the ledger does not say",
        ),
        (
            {"diaries": [*honest().diaries, said("final", "w1-2", status="failed")]},
            "things heard that the ledger does not say",
        ),
        (
            {"diaries": [*honest().diaries, said("told", error="TaskFailedError")]},
            "things heard that the ledger does not say",
        ),
        ({"diaries": [*honest().diaries, said("followed", "w1-2", "w2")]}, "waits without an end"),
        (
            {"tasks": [task("w1-1", "t1"), task("w1-2", "t2"), *[task(f"w{n}", f"x{n}") for n in "345"]]},
            "most in flight, of 3 allowed",
        ),
        ({"stats": {**STATS, "creates_429": 1}}, "creates answered 429"),
        (
            {
                "stats": {**STATS, "creates": 3, "creates_429": 1},
                "refused": [(120.0, 429)],
                "misfortunes": [Misfortune("rotated", 100.0, 103.0)],
            },
            "creates answered 429",
        ),
        ({"stats": {**STATS, "creates": 3}}, "creates that made no task"),
        ({"stats": {**STATS, "queries_429": 1}}, "queries answered 429"),
        (
            {
                "misfortunes": [Misfortune("sigstop", 101.5, 130.0, "w2")],
                "changes": RUNNING,
                "diaries": [*honest().diaries, said("began", "", "w3", at=90.0)],
            },
            "records that a silent owner has kept",
        ),
        ({"slots_left": ["w1-1"]}, "slots held by records whose owners are gone"),
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


def again(*changes: Change) -> Evidence:
    """The caller of `w2-1` has come back, and the ticket was submitted again."""
    return replace(honest(), changes=[*honest().changes, *changes])


@pytest.mark.parametrize(
    "fair",
    [
        again(
            Change(102.0, "w2-1", "cancelled", None, "b.1", None),
            Change(102.0, "w2-1", None, "waiting", None, "b.1", None, 2),
            Change(102.1, "w2-1", "waiting", "cancelled", "b.1", "b.1", None, 2),
        ),
        again(Change(102.0, "w1-2", "unknown", "queued", "b.1", None, "t2")),
        replace(
            honest(),
            tasks=[*honest().tasks, task("w1-2.2", "t3")],
            records={**honest().records, "w1-2.2": ("succeeded", "t3", "b.1")},
            diaries=[*honest().diaries, said("decides", "w1-2.2", "w2", how="again")],
        ),
        replace(
            honest(),
            deaths=[Death("w1", 11, 98.0)],
            misfortunes=[Misfortune("sigstop", 98.5, 100.1, "w2", has_writer=True)],
        ),
        replace(
            honest(),
            misfortunes=[Misfortune("rotated", 100.0, 103.0)],
            stats={**STATS, "creates": 4, "creates_429": 1},
            refused=[(101.0, 401), (104.0, 429)],
            records={**honest().records, "w1-3": ("rejected", None, "b.1")},
        ),
    ],
    ids=[
        "submitted again",
        "found after all",
        "paid again by decision",
        "nothing could be written",
        "rotated",
    ],
)
def test_the_checker_allows_what_the_promises_allow(fair: Evidence) -> None:
    assert failed(fair) == []


def without_a_ledger(**forged: Any) -> Evidence:
    """The file went away at 100; one task ran then, and both workers heard of it."""
    fair: dict[str, Any] = {
        "misfortunes": [Misfortune("deleted", 100.0, 100.0, note="unlinked")],
        "tasks": [task("w1-1", "t1", created=99.0, ended=101.0)],
        "diaries": [
            said("result", task_id="t1"),
            said("ends", how="delivered"),
            said("told", "w1-2", error="LedgerError", at=101.0),
            said("fault", "", "w2", error="LedgerError", at=102.0),
        ],
    }
    return replace(honest(), **{**fair, **forged})


def test_the_checker_of_a_lost_ledger_lets_an_honest_run_pass() -> None:
    assert failed(without_a_ledger()) == []


@pytest.mark.parametrize(
    ("forged", "told"),
    [
        ({"diaries": without_a_ledger().diaries[:3]}, "workers that did not notice"),
        (
            {
                "diaries": [
                    *without_a_ledger().diaries[:3],
                    said("fault", "", "w2", error="LedgerError", at=109.0),
                ]
            },
            "workers that did not notice",
        ),
        ({"diaries": without_a_ledger().diaries[2:]}, "of these: not delivered"),
        (
            {"tasks": [*without_a_ledger().tasks, task("w1-2", "t2", created=103.0, ended=104.0)]},
            "tasks created after the file had gone",
        ),
        ({"faults": ["w2 ended with 1"]}, "workers that failed"),
    ],
)
def test_the_checker_of_a_lost_ledger_catches(forged: dict[str, Any], told: str) -> None:
    assert told in failed(without_a_ledger(**forged))


def test_meetings_count_which_misfortune_met_which_state() -> None:
    evidence = replace(
        honest(),
        misfortunes=[
            Misfortune("sigkill", 98.7, 98.7, "w1"),
            Misfortune("sigkill", 98.7, 98.7, "w2"),
            Misfortune("locked", 98.2, 98.6),
        ],
        diaries=[*honest().diaries, said("closes", "", "w1", at=99.05, how="close")],
    )

    met = meetings(evidence)

    assert met == {
        ("sigkill", "submitting"): 1,
        ("sigkill", "asked"): 1,
        ("locked", "asked"): 2,
        ("locked", "submitting"): 1,
        ("cancelled", "waiting"): 1,
        ("closed", "queued"): 1,
        ("closed", "asked"): 1,
    }
    text = meetings_table(evidence, USUAL)
    assert "sigstop and asked" in text
    assert "cancelled and waiting" not in text
    assert set(USUAL) < set(KINDS)
    assert all(state in text for state in STATES)


def test_a_failed_line_is_told_as_the_story_of_its_tickets() -> None:
    evidence = replace(honest(), tasks=[*honest().tasks, task("w1-1", "t3", created=101.5, ended=103.0)])

    text = stories(evidence, verdict(evidence))

    assert "sigkill w1" in text
    assert "The story of w1-1:" in text
    assert "makes task t3 for w1-1" in text
    assert "w1-1: queued -> queued, w1 -> no owner, task t1" in text
    assert "The story of w2-1:" not in text


@pytest.mark.parametrize(
    ("owner_then", "until", "figures"),
    [
        ("a.1", 130.0, ("0", "1")),
        ("b.1", 130.0, ("1", "0")),
        ("b.1", 115.0, ("0", "0")),
        ("a.1", 118.0, ("0", "0")),
    ],
    ids=["kept by the silent owner", "adopted meanwhile", "adopted later", "stopped too short"],
)
def test_the_checker_counts_what_a_stopped_owner_keeps(
    owner_then: str, until: float, figures: tuple[str, str]
) -> None:
    evidence = replace(
        honest(),
        misfortunes=[Misfortune("sigstop", 100.0, until, "w1")],
        deaths=[],
        diaries=[said("began", "", "w2", at=90.0)],
        changes=[
            Change(99.0, "w1-1", "submitting", "queued", "a.1", "a.1", "t1"),
            Change(117.0, "w1-1", "queued", "running", "a.1", owner_then, "t1"),
        ],
    )

    values = {line.figure: line.value for line in verdict(evidence)}

    names = ("records adopted from stopped workers", "records that a silent owner has kept")
    assert tuple(values[name] for name in names) == figures
