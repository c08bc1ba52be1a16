"""The crash test's processes: an emulator, workers that are killed and replaced, and what they all leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash_verdict import Change, Death, Evidence

from bide.ledgers import SQLiteLedger

HERE = Path(__file__).parent
BETWEEN_KILLS = (0.8, 2.0)
PATIENCE = 120.0
"""Seconds that the workers may take at the end, until nothing is open any more."""

# Written by the database itself in the very transaction that makes the change: no process can forget or embellish it.
WITNESS = """
CREATE TABLE seen_changes (
    id INTEGER PRIMARY KEY, at REAL, ticket TEXT, before TEXT, after TEXT, owner_before TEXT, owner_after TEXT
);
CREATE TABLE seen_owners (instance TEXT, pid INTEGER);
CREATE TRIGGER see_insert AFTER INSERT ON records BEGIN
    INSERT INTO seen_changes (at, ticket, after, owner_after)
    VALUES ((julianday('now') - 2440587.5) * 86400.0, new.ticket, new.status, new.owner);
END;
CREATE TRIGGER see_update AFTER UPDATE OF status, owner, task, task_id ON records
WHEN old.status IS NOT new.status OR old.owner IS NOT new.owner OR (
    old.status IN ('succeeded', 'failed', 'cancelled', 'expired', 'rejected', 'unknown')
    AND old.blanked IS new.blanked  -- what has expired is blanked later; that records no state
) BEGIN
    INSERT INTO seen_changes (at, ticket, before, after, owner_before, owner_after)
    VALUES (
        (julianday('now') - 2440587.5) * 86400.0, new.ticket, old.status, new.status, old.owner, new.owner
    );
END;
CREATE TRIGGER see_delete AFTER DELETE ON records BEGIN
    INSERT INTO seen_changes (at, ticket, before, owner_before)
    VALUES ((julianday('now') - 2440587.5) * 86400.0, old.ticket, old.status, old.owner);
END;
CREATE TRIGGER see_owner AFTER INSERT ON owners BEGIN
    INSERT INTO seen_owners VALUES (new.instance, new.pid);
END;
"""


@dataclass(frozen=True)
class Plan:
    """What is asked for on the command line."""

    kills: int
    seed: int
    service: str = "dashscope"
    workers: int = 4
    slots: int = 3
    durability: str = "process"


@dataclass
class _Process:
    name: str
    popen: subprocess.Popen[str]


@dataclass
class _Crew:
    """The workers that live now, and how those before them have ended."""

    plan: Plan
    folder: Path
    url: str
    alive: list[_Process] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    started: int = 0

    def start_one(self) -> None:
        self.started += 1
        name = f"w{self.started:03}"
        arguments = [name, "--service", self.plan.service, "--url", self.url]
        arguments += [
            "--ledger",
            str(self.folder / "tasks.db"),
            "--diary",
            str(self.folder / f"{name}.jsonl"),
        ]
        arguments += ["--durability", self.plan.durability, "--slots", str(self.plan.slots)]
        arguments += ["--patience", str(PATIENCE)]
        with (self.folder / f"{name}.err").open("w") as errors:
            self.alive.append(_Process(name, _start("crash_worker.py", arguments, errors=errors)))

    def replace_fallen(self) -> None:
        """A worker that has ended by itself is a fault of the test's subject; the others go on."""
        for each in [each for each in self.alive if each.popen.poll() is not None]:
            self.faults.append(f"{each.name} ended by itself with {each.popen.returncode}")
            self.alive.remove(each)
            self.start_one()

    def kill(self, victim: _Process) -> None:
        self.alive.remove(victim)
        at = time.time()
        victim.popen.send_signal(signal.SIGKILL)
        self.start_one()
        victim.popen.wait()
        self.deaths.append(Death(victim.name, victim.popen.pid, at))

    def drain(self) -> None:
        """No new submissions: each waits until nothing is open, and ends."""
        for each in self.alive:
            assert each.popen.stdin is not None
            each.popen.stdin.close()
        until = time.monotonic() + PATIENCE + 30
        for each in self.alive:
            try:
                status = each.popen.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.faults.append(f"{each.name} did not end")
                continue
            if status != 0:
                self.faults.append(f"{each.name} ended with {status}")

    def stop(self) -> None:
        for each in self.alive:
            each.popen.kill()
            each.popen.wait()


def run(plan: Plan, folder: Path, *, told: bool = False) -> Evidence:
    """Start all, kill as planned, let the rest drain, and gather what is left. *told*: show how far it is."""
    asyncio.run(_prepare(folder / "tasks.db", plan))
    chance = random.Random(plan.seed)
    service = _start(
        "crash_emulator.py", [plan.service, "--seed", str(plan.seed), "--slots", str(plan.slots)], errors=None
    )
    try:
        assert service.stdout is not None
        crew = _Crew(plan, folder, json.loads(service.stdout.readline())["url"])
        began = time.time()
        try:
            for _ in range(plan.workers):
                crew.start_one()
            for number in range(1, plan.kills + 1):
                time.sleep(chance.uniform(*BETWEEN_KILLS))
                crew.replace_fallen()
                crew.kill(chance.choice(crew.alive))
                if told and number % 20 == 0:
                    print(f"{number} of {plan.kills} killed", file=sys.stderr, flush=True)
            last_kill = time.time()
            crew.drain()
            drained = time.time()
        finally:
            crew.stop()
        truth, _ = service.communicate(timeout=60)
    finally:
        service.kill()
        service.wait()
    return Evidence(
        slots=plan.slots,
        killing=last_kill - began,
        draining=drained - last_kill,
        deaths=crew.deaths,
        faults=[*crew.faults, *_errors(folder)],
        diaries=_diaries(folder),
        **json.loads(truth),
        **_ledger(folder / "tasks.db"),
        left=sorted(each.name for each in (folder / "tasks.db-bide").iterdir() if each.name != "write.lock"),
    )


async def _prepare(path: Path, plan: Plan) -> None:
    """Let the ledger make its file, and set the witness in it while nobody else has it open."""
    async with SQLiteLedger(path, durability="power" if plan.durability == "power" else "process"):
        pass
    connection = sqlite3.connect(path)
    connection.executescript(WITNESS)
    connection.close()


def _start(program: str, arguments: list[str], *, errors: Any) -> subprocess.Popen[str]:
    # In a session of its own: Ctrl-C is for the checker alone, whose end closes their standard inputs.
    return subprocess.Popen(
        [sys.executable, str(HERE / program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if errors is None else subprocess.DEVNULL,
        stderr=errors,
        text=True,
        start_new_session=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
    )


def _diaries(folder: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for path in sorted(folder.glob("w*.jsonl")):
        whole = path.read_text().rpartition("\n")[0]
        lines += [{"worker": path.stem, **json.loads(line)} for line in whole.splitlines()]
    return lines


def _errors(folder: Path) -> list[str]:
    """What workers have printed as their last words; each is meant to have none."""
    texts = {path.stem: path.read_text().strip() for path in sorted(folder.glob("w*.err"))}
    return [f"{name} said: {text.splitlines()[-1]}" for name, text in texts.items() if text]


def _ledger(path: Path) -> dict[str, Any]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT ticket, status, task_id, owner FROM records ORDER BY sequence")
        records = {ticket: (status, task_id, owner) for ticket, status, task_id, owner in rows}
        changes = [
            Change(*row)
            for row in connection.execute(
                "SELECT at, ticket, before, after, owner_before, owner_after FROM seen_changes ORDER BY id"
            )
        ]
        pids = dict(connection.execute("SELECT instance, pid FROM seen_owners").fetchall())
        (owners,) = connection.execute(
            "SELECT (SELECT count(*) FROM owners) + (SELECT count(*) FROM clients)"
        ).fetchone()
        integrity = [text for (text,) in connection.execute("PRAGMA integrity_check")]
    finally:
        connection.close()
    return {
        "records": records,
        "changes": changes,
        "pids": pids,
        "owners_left": owners,
        "integrity": ", ".join(integrity),
    }
