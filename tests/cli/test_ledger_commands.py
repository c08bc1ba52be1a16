"""`bide ls`, `settle`, `forget` and `doctor`: what is on record, and what the user decides about it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from pathlib import Path

import pytest
from attrs import asdict

from bide import Limits, ModelStatistics, SQLiteLedger
from bide.cli._place import Place
from bide.emulator import Emulator
from support.emulated import client_at, emulator_with, image, video
from support.terminal import IMAGE, KEY, VIDEO, Ended, Terminal, ledger_of, piped, quick, start, timed_out
from support.waits import A_MINUTE

pytestmark = pytest.mark.real_time

DIEYUYUN = {"DIEYUYUN_API_KEY": KEY, "DASHSCOPE_API_KEY": ""}
NO_KEY = {"DASHSCOPE_API_KEY": ""}


async def detached(emulator: Emulator, *prompts: str, words: tuple[str, ...] = VIDEO) -> list[list[str]]:
    """Ticket and task id of each, left running with nobody to watch."""
    ended = await piped(emulator, *words, "--detach", *prompts)
    assert ended.status == 0, ended.err
    return [line.split() for line in ended.lines]


async def with_an_unknown_create(emulator: Emulator) -> tuple[Ended, str]:
    """What the command said, and the ticket. Dieyuyun has no list in which it could be found."""
    emulator.fault(on="create", drop="after")
    ended = await piped(emulator, "image", "--model", "gpt-image-2", "a fox", "--json", **DIEYUYUN)
    return ended, json.loads(ended.out)["task"]["ticket"]


# Where it is -------------------------------------------------------------------------------------------------


def test_the_file_is_the_one_that_is_named_else_the_environment_s_else_the_user_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BIDE_LEDGER", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = tmp_path / ".local" / "state" / "bide" / "ledger.db"

    assert Place.from_option(None).path == usual
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert Place.from_option(None).path == usual
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert Place.from_option(None).path == tmp_path / "state" / "bide" / "ledger.db"
    monkeypatch.setenv("BIDE_LEDGER", "~/mine.db")
    assert Place.from_option(None).path == tmp_path / "mine.db"
    assert Place.from_option(None).command("ls", "--all") == "bide ls --all"
    assert Place.from_option(Path("x.db")).path == Path.cwd() / "x.db"
    assert Place.from_option(Path("my x.db")).command("ls", "--all") == "bide ls --ledger 'my x.db' --all"


def test_without_a_home_a_file_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BIDE_LEDGER", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)

    with pytest.raises(ValueError, match="--ledger"):
        Place.from_option(None)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["ls"], 0),
        (["ls", "--all", "--json"], 0),
        (["doctor"], 0),
        (["resume"], 0),
        (["forget", "x"], 2),
        (["settle", "x", "y"], 2),
        (["watch", "../x"], 2),
    ],
)
async def test_without_a_ledger_that_is_told_and_none_is_made(words: list[str], status: int) -> None:
    async with quick() as emulator:
        ended = await piped(emulator, *words)

        assert (ended.status, ended.out) == (status, "")
        assert "no ledger at" in ended.err or words == ["watch", "../x"]
        assert not ledger_of(emulator).parent.exists()


async def test_folder_and_file_are_for_the_user_alone() -> None:
    async with quick() as emulator:
        await detached(emulator, "a boat")

        path = ledger_of(emulator)
        assert path.stat().st_mode & 0o777 == 0o600
        for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
            assert folder.stat().st_mode & 0o777 == 0o700


async def test_the_named_file_is_used_and_named_in_what_to_do_next(tmp_path: Path) -> None:
    path = str(tmp_path / "my ledger.db")
    async with quick() as emulator:
        made = await piped(emulator, *IMAGE, "a cat", "--detach", "--ledger", path)
        listed = await piped(emulator, "ls", BIDE_LEDGER=path)

        assert f"bide resume --ledger '{path}' --provider dashscope --save DIR" in made.err
        assert made.lines[0].split()[0] in listed.out
        assert not ledger_of(emulator).parent.exists()


# A ledger that cannot be used --------------------------------------------------------------------------------


async def test_nothing_is_sent_without_the_record(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, as long as it may be " * 30)
    async with quick() as emulator:
        for path in (tmp_path / "text.db", tmp_path / "missing" / "x.db"):
            ended = await piped(emulator, *IMAGE, "a cat", "--ledger", str(path))

            assert (ended.status, ended.out) == (1, "")
            assert str(path) in ended.err
            assert "Traceback" not in ended.err
        assert emulator.stats()["creates"] == 0


async def test_a_ledger_that_fails_meanwhile_ends_the_reading_of_prompts() -> None:
    fails = """
import bide
async def add(self, record, **more):
    raise bide.LedgerError("the disk is full")
bide.SQLiteLedger.add = add
"""
    async with quick() as emulator:
        process = await start(emulator, *IMAGE, before=fails)
        _, err = await asyncio.wait_for(process.communicate(b"a cat\n" * 1000), A_MINUTE)

        assert process.returncode == 1
        assert b"bide: the disk is full" in err
        assert b"not sent" in err
        assert len(err.splitlines()) < 150
        assert emulator.stats()["creates"] == 0


async def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with quick() as emulator:
        ended = await piped(emulator, *IMAGE, "a cat", XDG_STATE_HOME=str(tmp_path / "file"))

        assert ended.status == 1
        assert "--ledger or $BIDE_LEDGER" in ended.err
        assert emulator.stats()["creates"] == 0


async def test_ids_are_watched_though_the_ledger_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, as long as it may be " * 30)
    async with quick() as emulator:
        ((_, task_id),) = await detached(emulator, "a boat")
        ended = await piped(emulator, "watch", task_id, "--ledger", str(tmp_path / "text.db"))

    assert ended.status == 0
    assert "continuing without it" in ended.err
    assert len(ended.lines) == 1


@pytest.mark.parametrize("command", ["ls", "doctor", "resume"])
async def test_a_file_that_is_no_ledger_ends_it_with_1(command: str, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    async with quick() as emulator:
        ended = await piped(emulator, command, "--ledger", str(tmp_path / "other.db"))

    assert (ended.status, ended.out) == (1, "")
    assert "a database of another program" in ended.err


# ls ----------------------------------------------------------------------------------------------------------


async def test_what_is_open_is_listed_without_a_key() -> None:
    async with emulator_with(video_seconds=60, queue_seconds=0) as emulator:
        ((ticket, task_id),) = await detached(emulator, "一只纸船 on a very long river that does not end")
        ended = await piped(emulator, "ls", **NO_KEY)

    heading, line = ended.lines
    assert ended.status == 0
    assert heading.split() == [
        "TICKET",
        "STATUS",
        "KIND",
        "MODEL",
        "TASK",
        "AGE",
        "DRIVEN",
        "BY",
        "SAVED",
        "PROMPT",
    ]
    assert line.split()[:5] == [ticket, line.split()[1], "video", "wan2.6-t2v", task_id]
    assert "none" in line
    assert "一只纸船" in line


async def test_json_is_one_object_for_each_record() -> None:
    async with emulator_with(video_seconds=60, queue_seconds=0) as emulator:
        ((ticket, task_id),) = await detached(emulator, "a boat")
        ended = await piped(emulator, "ls", "--json", **NO_KEY)

    (told,) = map(json.loads, ended.lines)
    assert (told["ticket"], told["task_id"], told["prompt"]) == (ticket, task_id, "a boat")
    assert told["driven_by"] is None
    assert told["files"] == []
    assert told["overdue"] is False


async def test_who_drives_it_is_told() -> None:
    async with emulator_with(video_seconds=60, queue_seconds=0) as emulator:
        ledger_of(emulator).parent.mkdir(parents=True)
        async with client_at(emulator, ledger=SQLiteLedger(ledger_of(emulator))) as client:
            handle = await client.submit(video())
            await handle.accepted()
            as_table = await piped(emulator, "ls")
            as_json = await piped(emulator, "ls", "--json")

    assert f"pid {os.getpid()}" in as_table.out
    assert json.loads(as_json.out)["driven_by"]["pid"] == os.getpid()


async def test_all_lists_what_has_ended_and_what_was_saved(tmp_path: Path) -> None:
    async with quick() as emulator:
        made = await piped(emulator, *IMAGE, "a cat", "--save", str(tmp_path))
        is_open = await piped(emulator, "ls")
        everything = await piped(emulator, "ls", "--all")
        as_json = await piped(emulator, "ls", "--all", "--json")

    assert (is_open.status, is_open.out) == (0, "")
    assert "nothing open in" in is_open.err
    assert "succeeded" in everything.out
    assert " 1 file " in everything.out
    assert json.loads(as_json.out)["files"] == made.lines


async def test_a_reader_of_the_list_may_leave() -> None:
    async with emulator_with(video_seconds=60) as emulator:
        await detached(emulator, "a boat")
        nobody_reads = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
        process = await start(emulator, "ls", before=nobody_reads)
        _, err = await asyncio.wait_for(process.communicate(), A_MINUTE)

    assert (process.returncode, err) == (0, b"")


async def test_the_list_fits_a_terminal() -> None:
    async with emulator_with(video_seconds=60) as emulator:
        await detached(emulator, "a [red]boat[/red] \x1b[31m" + "x" * 200)
        terminal = Terminal(emulator, "ls", columns=170)
        try:
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert "a [red]boat[/red] \\x1b" in terminal.shown
    assert "…" in terminal.shown
    assert all(len(line) <= 170 for line in terminal.shown.splitlines())


# settle and forget -------------------------------------------------------------------------------------------


async def test_an_unknown_create_is_settled_and_watched_on(tmp_path: Path) -> None:
    async with quick() as emulator:
        made, ticket = await with_an_unknown_create(emulator)
        (task,) = emulator.tasks()
        listed = await piped(emulator, "ls", **NO_KEY)
        settled = await piped(emulator, "settle", ticket, task.id, **NO_KEY)
        resumed = await piped(emulator, "resume", "--save", str(tmp_path), **DIEYUYUN)

        assert made.status == 1
        assert f"bide settle {ticket} ITS_ID" in made.err
        assert f"bide forget {ticket}" in made.err
        assert "unknown" in listed.out
        assert (settled.status, settled.out) == (0, f"{ticket} {task.id}\n")
        assert "bide resume watches it" in settled.err
        assert resumed.status == 0
        assert Path(resumed.out.strip()).name.startswith(ticket)
        assert emulator.stats()["creates"] == 1


async def test_what_cannot_be_settled_or_forgotten_says_why() -> None:
    async with emulator_with(video_seconds=60, queue_seconds=0) as emulator:
        ((ticket, task_id),) = await detached(emulator, "a boat")
        strange = await piped(emulator, "settle", ticket, "../x")
        running = await piped(emulator, "settle", ticket, "another-id")
        missing = await piped(emulator, "settle", "nobodys", "an-id")
        bought = await piped(emulator, "forget", ticket)
        several = await piped(emulator, "forget", "nobodys", ticket)
        none = await piped(emulator, "forget")

    assert (strange.status, running.status, missing.status) == (2, 1, 2)
    assert "not a task id" in strange.err
    assert "only one whose create is unknown can be settled" in running.err
    assert missing.err == "bide: no record of ticket 'nobodys'\n"
    assert bought.status == 1
    assert f"{task_id} goes on at the service" in bought.err
    assert (several.status, several.out) == (2, "")
    assert none.status == 2
    assert all("Traceback" not in each.err for each in (strange, running, missing, bought, several, none))


async def test_what_is_forgotten_is_gone() -> None:
    async with quick() as emulator:
        _, ticket = await with_an_unknown_create(emulator)
        ended = await piped(emulator, "forget", ticket, ticket, **NO_KEY)
        listed = await piped(emulator, "ls", "--all", **NO_KEY)

    assert (ended.status, ended.out) == (0, f"{ticket}\n")
    assert listed.out == ""


async def test_what_waits_is_withdrawn_when_it_is_forgotten() -> None:
    async with emulator_with(image_seconds=60) as emulator:
        ledger_of(emulator).parent.mkdir(parents=True)
        ledger = SQLiteLedger(ledger_of(emulator))
        async with client_at(emulator, ledger=ledger, limits=Limits(1)) as client:
            await (await client.submit(image("first"))).accepted()
            second = await client.submit(image("second"))
        ended = await piped(emulator, "forget", second.ticket)
        listed = await piped(emulator, "ls")

        assert ended.status == 0
        assert second.ticket not in listed.out
        assert emulator.stats()["creates"] == 1


# doctor ------------------------------------------------------------------------------------------------------


async def test_the_doctor_tells_how_everything_is() -> None:
    async with emulator_with(video_seconds=60, queue_seconds=0, concurrency=1) as emulator:
        await detached(emulator, "a boat")
        emulator.fault(on="create", status=429, headers={"retry-after": "60"})
        words = (*VIDEO, "another")
        await timed_out(emulator, *words, when=lambda: emulator.stats()["creates_429"])
        made, ticket = await with_an_unknown_create(emulator)
        ledger_of(emulator).chmod(0o644)
        async with SQLiteLedger(ledger_of(emulator)):
            text = await piped(emulator, "doctor", **NO_KEY)
            as_json = await piped(emulator, "doctor", "--json", **NO_KEY)

    told = json.loads(as_json.out)
    assert (text.status, as_json.status, made.status) == (0, 0, 1)
    assert sqlite3.sqlite_version in text.out
    assert "journal mode wal" in text.out
    assert "mode 644" in text.out
    assert f"chmod 600 {ledger_of(emulator)}" in text.out
    assert "no damage found" in text.out
    assert f"pid {os.getpid()}" in text.out
    assert "1 open that no process drives: bide resume" in text.out
    assert "video, key" in text.out
    assert "1 slots in use, paused for" in text.out
    assert f"bide settle {ticket} ITS_ID" in text.out
    assert told["mode"] == "644"
    assert [owner["pid"] for owner in told["owners"]] == [os.getpid()]
    assert told["unowned"] == 1
    assert {lane["kind"] for lane in told["lanes"]} == {"image", "video"}
    assert next(lane for lane in told["lanes"] if lane["kind"] == "video")["paused_for"] > 30
    assert [each["ticket"] for each in told["unknown"]] == [ticket]
    assert told["records"]["unknown"] == 1
    assert KEY not in text.out + as_json.out


async def test_the_doctor_tells_what_was_learned_of_each_model() -> None:
    async with quick() as emulator:
        await piped(emulator, *IMAGE, "a cat", "a tram", "--size", "1280*1280")
        async with SQLiteLedger(ledger_of(emulator)) as ledger:
            await ledger.learn({"toy \x1b[31m image": lambda _: '{"form": "of another"}'})
            models = await ModelStatistics.of(ledger)
        text = await piped(emulator, "doctor", **NO_KEY)
        as_json = await piped(emulator, "doctor", "--json", **NO_KEY)

    told = json.loads(as_json.out)["models"]
    whole, variant, toy = told
    origin = emulator.dashscope_url.removesuffix("/api/v1")
    assert whole["name"].split() == [f"dashscope@{origin}", "image", "wan2.5-t2i-preview"]
    assert variant["name"].split() == [*whole["name"].split(), "size=1280*1280"]
    assert (whole["tasks"], variant["tasks"], whole["problem"]) == (2, 2, None)
    assert 0.2 < whole["median"] <= whole["p90"] < 3
    assert 0 <= whole["lag"] < 3
    assert (toy["tasks"], toy["median"], toy["lag"]) == (0, None, None)
    assert "not a learned pace" in toy["problem"] or "another form" in toy["problem"]
    assert [asdict(model) for model in models] == told
    assert (
        f"learned  {' '.join(whole['name'].split())}: 2 tasks, half within {whole['median']:.1f} s, 90 % within"
        in text.out
    )
    assert f"detection delay {whole['lag']:.1f} s on average" in text.out
    assert "toy \\x1b[31m image: cannot be read, and is learned again: " in text.out
    assert "\x1b" not in text.out
    assert (text.status, text.err) == (0, "")


async def test_a_damaged_file_is_told_with_what_to_do() -> None:
    async with quick() as emulator:
        await piped(emulator, *IMAGE, *(f"number {n}" for n in range(20)))
        path = ledger_of(emulator)
        connection = sqlite3.connect(path)
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'records_of_task'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        data = bytearray(path.read_bytes())
        # An index whose entries are gone: every record is still there, and nothing fails but the check.
        data[(page - 1) * size + 3 : (page - 1) * size + 5] = b"\x00\x00"
        path.write_bytes(data)
        ended = await piped(emulator, "doctor")

    assert ended.status == 1
    assert ".recover" in ended.out
    assert "Traceback" not in ended.err
