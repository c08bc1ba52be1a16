"""The crash test's processes: an emulator, workers that meet misfortunes, and what they all leave behind."""

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crash_misfortunes import LOSSES, Misfortune, Rhythm, Timeline, draw_seconds, lock, lose, rotate, stop
from crash_verdict import Change, Death, Evidence

from bide.ledgers import SQLiteLedger

HERE = Path(__file__).parent
PATIENCE = 120.0
"""Seconds that the workers may take at the end, until nothing is open any more."""
LEAVE_SECONDS = 20.0
"""Seconds that a worker may take to close its client and leave."""
FEWEST_AWAKE = 2
"""So many workers are never stopped."""
SPARED = 0.9
"""The share of kills that meet neither a stopped worker nor the oldest one: so some are stopped for long, and one sees
for how long."""
OTHERS = 0.6
"""The share of kills beside which another misfortune begins."""

# Written by the database itself in the very transaction that makes the change: no process can forget or embellish it.
WITNESS = """
CREATE TABLE seen_changes (
    id INTEGER PRIMARY KEY, at REAL, ticket TEXT, before TEXT, after TEXT, owner_before TEXT, owner_after TEXT,
    task_id TEXT, attempt INTEGER
);
CREATE TABLE seen_owners (instance TEXT, pid INTEGER);
CREATE TRIGGER see_insert AFTER INSERT ON records BEGIN
    INSERT INTO seen_changes (at, ticket, after, owner_after, task_id, attempt)
    VALUES (
        (julianday('now') - 2440587.5) * 86400.0, new.ticket, new.status, new.owner, new.task_id, new.attempt
    );
END;
CREATE TRIGGER see_update AFTER UPDATE OF status, owner, task, task_id ON records
WHEN old.status IS NOT new.status OR old.owner IS NOT new.owner OR (
    old.status IN ('succeeded', 'failed', 'cancelled', 'expired', 'rejected', 'unknown')
    AND old.blanked IS new.blanked  -- what has expired is blanked later; that records no state
) BEGIN
    INSERT INTO seen_changes (at, ticket, before, after, owner_before, owner_after, task_id, attempt)
    VALUES (
        (julianday('now') - 2440587.5) * 86400.0, new.ticket, old.status, new.status, old.owner, new.owner,
        new.task_id, new.attempt
    );
END;
CREATE TRIGGER see_delete AFTER DELETE ON records BEGIN
    INSERT INTO seen_changes (at, ticket, before, owner_before, task_id, attempt)
    VALUES (
        (julianday('now') - 2440587.5) * 86400.0, old.ticket, old.status, old.owner, old.task_id, old.attempt
    );
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
    kinds: tuple[str, ...]
    service: str = "dashscope"
    workers: int = 4
    slots: int = 3
    durability: str = "process"
    rhythm: Rhythm = field(default_factory=Rhythm)

    @property
    def loses_ledger(self) -> bool:
        """Whether it is the run in which the ledger's file goes away."""
        return "deleted" in self.kinds


@dataclass
class _Process:
    name: str
    key: str
    popen: subprocess.Popen[str]
    ancestors: tuple[str, ...] = ()
    is_stopped: bool = False

    def order(self, word: str) -> None:
        """Write an order to its standard input."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(f"{word}\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended by itself; that is noticed elsewhere

    def go_on(self) -> None:
        """Let it go on, if it was stopped."""
        self.is_stopped = False
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)


@dataclass
class _Crew:
    """The workers that live now, and how those before them have ended."""

    plan: Plan
    folder: Path
    url: str
    chance: random.Random
    timeline: Timeline = field(default_factory=Timeline)
    alive: list[_Process] = field(default_factory=list)
    pids: dict[str, int] = field(default_factory=dict)
    deaths: list[Death] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    keys: int = 1

    @property
    def ledger(self) -> Path:
        return self.folder / "tasks.db"

    @property
    def key(self) -> str:
        """The key that the account has now."""
        return f"sk-crash-{self.keys}"

    def start_one(self, before: _Process | None = None) -> None:
        """Start a worker, in the place of the one *before*: it goes on with what that one's callers wanted."""
        name = f"w{len(self.pids) + 1:03}"
        ancestors = (*before.ancestors, before.name) if before else ()
        arguments = [name, "--folder", str(self.folder), "--service", self.plan.service, "--url", self.url]
        arguments += [
            "--key",
            self.key,
            "--durability",
            self.plan.durability,
            "--slots",
            str(self.plan.slots),
        ]
        arguments += ["--open", str(self.plan.rhythm.open), "--patience", str(PATIENCE)]
        arguments += ["--after", *(f"{each}.jsonl" for each in ancestors)]
        arguments += ["--leavers"] if "cancelled" in self.plan.kinds else []
        has_old_key = any(each.key != self.key for each in self.alive)
        arguments += ["--moves"] if "rotated" in self.plan.kinds and not has_old_key else []
        arguments += ["--loses-ledger"] if self.plan.loses_ledger else []
        with (self.folder / f"{name}.err").open("w") as errors:
            process = _start("crash_worker.py", arguments, errors=errors)
        self.alive.append(_Process(name, self.key, process, ancestors))
        self.pids[name] = process.pid

    def replace_fallen(self) -> None:
        """A worker that has ended by itself is a fault of the test's subject; the others go on."""
        for each in [each for each in self.alive if each.popen.poll() is not None]:
            self.faults.append(f"{each.name} ended by itself with {each.popen.returncode}")
            self.alive.remove(each)
            self.start_one(each)

    # Misfortunes -------------------------------------------------------------------------------------------

    def meet(self, number: int) -> None:
        """Let the misfortunes of one step happen."""
        kinds = [each for each in self.plan.kinds if each in ("sigstop", "locked", "closed")]
        kills = "sigkill" in self.plan.kinds
        thirds = {self.plan.kills // 3 + 1, 2 * self.plan.kills // 3 + 1}
        if "rotated" in self.plan.kinds and number in thirds:
            self.rotate()
        if kills:
            awake = [each for each in self.alive if not each.is_stopped]
            usual = awake[1:] if self.chance.random() < SPARED else []
            self.kill(self.chance.choice(usual or self.alive))
        if kinds and (not kills or self.chance.random() < OTHERS):
            getattr(self, f"do_{self.chance.choice(kinds)}")()

    def kill(self, victim: _Process) -> None:
        self.alive.remove(victim)
        at = time.time()
        victim.popen.send_signal(signal.SIGKILL)
        victim.popen.wait()
        victim.is_stopped = False
        self.start_one(victim)
        self.deaths.append(Death(victim.name, victim.popen.pid, at))
        self.timeline.add(Misfortune("sigkill", at, at, victim.name))

    def do_sigstop(self) -> None:
        awake = [each for each in self.alive if not each.is_stopped]
        if len(awake) <= FEWEST_AWAKE:
            return
        victim, seconds = self.chance.choice(awake), draw_seconds(self.chance, self.plan.rhythm.stops)
        at = time.time()
        has_writer = stop(victim.popen.pid, self.ledger)
        victim.is_stopped = True
        note = "it held the lock of the writers" if has_writer else ""
        self.timeline.add(
            Misfortune("sigstop", at, at + seconds, victim.name, note, has_writer), victim.go_on
        )

    def do_locked(self) -> None:
        seconds = draw_seconds(self.chance, self.plan.rhythm.locks)
        word = self.chance.choice(("IMMEDIATE", "EXCLUSIVE"))
        unlock = lock(self.ledger, word)
        at = time.time()
        if unlock is not None:
            self.timeline.add(Misfortune("locked", at, at + seconds, note=word), unlock)

    def do_closed(self) -> None:
        victim, word = self.chance.choice(self.alive), self.chance.choice(("close", "withdraw"))
        victim.order(word)
        at = time.time()
        self.timeline.add(Misfortune("closed", at, at, victim.name, word))

    def rotate(self) -> None:
        """The account gets a new key; then each worker is replaced, as in a deploy."""
        at, old = time.time(), self.key
        self.keys += 1
        rotate(self.url, old, self.key)
        for each in [each for each in self.alive if each.key == old]:
            self.timeline.sleep(self.chance.uniform(*self.plan.rhythm.handovers))
            if each.is_stopped:
                self.kill(each)
            else:
                self._replace_in_order(each)
        self.timeline.add(Misfortune("rotated", at, time.time()))

    def _replace_in_order(self, each: _Process) -> None:
        self.alive.remove(each)
        each.order("leave")
        until = time.time() + LEAVE_SECONDS
        while each.popen.poll() is None and time.time() < until:
            self.timeline.sleep(0.05)
        if each.popen.poll() != 0:
            self.faults.append(f"{each.name} was to leave, and ended with {each.popen.poll()}")
            each.popen.kill()
            each.popen.wait()
        self.start_one(each)

    # The end -----------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """No new submissions: each waits until nothing is open, and ends."""
        self.timeline.undo_all()
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
        self.timeline.undo_all()
        for each in self.alive:
            each.popen.kill()
            each.popen.wait()


def run(plan: Plan, folder: Path, *, told: bool = False) -> Evidence:
    """Start all, let the planned misfortunes happen, let the rest drain, and gather what is left.

    Args:
        told: show how far it is.
    """
    asyncio.run(_prepare(folder / "tasks.db", plan))
    chance = random.Random(plan.seed)
    seconds = [str(each) for each in plan.rhythm.tasks]
    arguments = [plan.service, "--seed", str(plan.seed), "--slots", str(plan.slots), "--seconds", *seconds]
    service = _start("crash_emulator.py", arguments, errors=None)
    try:
        assert service.stdout is not None
        crew = _Crew(plan, folder, json.loads(service.stdout.readline())["url"], chance)
        began = time.time()
        ledger: dict[str, Any] = {}
        try:
            for _ in range(plan.workers):
                crew.start_one()
            for number in range(1, plan.kills + 1):
                crew.timeline.sleep(chance.uniform(*plan.rhythm.between))
                crew.replace_fallen()
                crew.meet(number)
                if told and number % 20 == 0:
                    print(f"{number} of {plan.kills}", file=sys.stderr, flush=True)
            if plan.loses_ledger:
                ledger = _lose_ledger(crew)
            last = time.time()
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
        began=began,
        killing=last - began,
        draining=drained - last,
        deaths=crew.deaths,
        misfortunes=_until_death(crew),
        workers=crew.pids,
        faults=[*crew.faults, *_errors(folder)],
        diaries=_diaries(folder),
        **json.loads(truth),
        **(ledger or _ledger(folder / "tasks.db")),
        left=[] if ledger else _left(folder),
    )


def _until_death(crew: _Crew) -> list[Misfortune]:
    """What has happened. A worker that was killed was not stopped any longer."""
    deaths = {death.worker: death.at for death in crew.deaths}
    return [
        replace(each, until=max(each.at, min(each.until, deaths.get(each.worker, each.until))))
        for each in crew.timeline.happened
    ]


def _lose_ledger(crew: _Crew) -> dict[str, Any]:
    """Take the ledger's file away, and wait until each worker has noticed. Returns what the ledger held before."""
    how = crew.chance.choice(LOSSES)
    before = _ledger(crew.ledger)
    at = time.time()
    lose(crew.ledger, how)
    crew.timeline.add(Misfortune("deleted", at, at, note=how))
    crew.timeline.sleep(10.0)
    return before


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


def _left(folder: Path) -> list[str]:
    """The locks and sockets beside the ledger."""
    return sorted(each.name for each in (folder / "tasks.db-bide").iterdir() if each.name != "write.lock")


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
                "SELECT at, ticket, before, after, owner_before, owner_after, task_id, attempt FROM seen_changes "
                "ORDER BY id"
            )
        ]
        pids = dict(connection.execute("SELECT instance, pid FROM seen_owners").fetchall())
        (owners,) = connection.execute(
            "SELECT (SELECT count(*) FROM owners) + (SELECT count(*) FROM clients)"
        ).fetchone()
        held = connection.execute("SELECT ticket FROM records WHERE held = 1 AND is_open = 1")
        slots_left = [ticket for (ticket,) in held]
        integrity = [text for (text,) in connection.execute("PRAGMA integrity_check")]
    finally:
        connection.close()
    return {
        "records": records,
        "changes": changes,
        "pids": pids,
        "owners_left": owners,
        "slots_left": slots_left,
        "integrity": ", ".join(integrity),
    }
