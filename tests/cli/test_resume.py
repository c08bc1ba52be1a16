"""`bide resume`, `--detach`, and tickets: what one command has begun, another brings home."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bide import Client, Limits, SQLiteLedger
from bide.cli import _tasks
from bide.cli._demo.files import is_readable
from bide.emulator import Emulator
from support.emulated import calls, client_at, emulator_with, image, provider_at, video
from support.terminal import (
    IMAGE,
    KEY,
    VIDEO,
    Terminal,
    finish,
    home_of,
    ledger_of,
    left_ids,
    on_record,
    pass_time,
    piped,
    quick,
    start,
    statuses,
    timed_out,
    watch_command,
)
from support.virtual_time import advance
from support.waits import A_MINUTE, until

pytestmark = pytest.mark.real_time


async def detached(emulator: Emulator, *prompts: str, words: tuple[str, ...] = VIDEO) -> list[list[str]]:
    """Ticket and task id of each, left running with nobody to watch."""
    ended = await piped(emulator, *words, "--detach", *prompts)
    assert ended.status == 0, ended.err
    return [line.split() for line in ended.lines]


def ledger_at(emulator: Emulator) -> SQLiteLedger:
    """The ledger of the commands, for a client of the test's."""
    ledger_of(emulator).parent.mkdir(parents=True, exist_ok=True)
    return SQLiteLedger(ledger_of(emulator))


async def left_behind(emulator: Emulator, *, running: str = "[seconds 60]", waiting: str = "waits") -> str:
    """A task that runs, and a request that waits for its slot, with nobody to drive them; the latter's ticket."""
    async with client_at(emulator, ledger=ledger_at(emulator), limits=Limits(1)) as client:
        await (await client.submit(image(running))).accepted()
        return (await client.submit(image(waiting))).ticket


def is_followed(emulator: Emulator) -> bool:
    """Whether a command waits for what another process drives."""
    with closing(sqlite3.connect(ledger_of(emulator))) as connection:
        return (1,) in connection.execute("SELECT followed FROM records").fetchall()


def polled_again(emulator: Emulator) -> Callable[[], bool]:
    """Whether a query has come since this was called."""
    before = len(calls(emulator, "query"))
    return lambda: len(calls(emulator, "query")) > before


def is_cancelling(emulator: Emulator) -> bool:
    """Whether a command has asked another process for a cancel."""
    with closing(sqlite3.connect(ledger_of(emulator))) as connection:
        return (1,) in connection.execute("SELECT cancelling FROM records").fetchall()


# After a crash -----------------------------------------------------------------------------------------------


async def test_what_a_killed_command_has_left_is_brought_home_and_not_bought_again(tmp_path: Path) -> None:
    async with emulator_with(image_seconds=600, queue_seconds=0) as emulator:
        prompts = [f"number {n}" for n in range(4)]
        process = await start(
            emulator, *IMAGE, "--concurrency", "3", *prompts, "--save", str(tmp_path / "first")
        )
        await until(lambda: emulator.stats()["creates"] >= 3)
        await until(lambda: on_record(emulator) == [*["running"] * 3, "waiting"])
        process.send_signal(signal.SIGKILL)
        await process.communicate()
        advance(600)
        resuming = await start(emulator, "resume", "--save", str(tmp_path / "out"), "--concurrency", "3")
        await until(lambda: emulator.stats()["creates"] == 4)
        advance(600)
        ended = await finish(resuming)

        assert ended.status == 0, ended.err
        assert sorted(ended.lines) == sorted(str(path) for path in (tmp_path / "out").iterdir())
        assert len(ended.lines) == 4
        assert all(is_readable(Path(line)) for line in ended.lines)
        assert emulator.stats()["creates"] == 4, (
            "the one that waited is sent by bide resume; none is sent twice"
        )


async def test_results_that_ended_and_were_never_saved_are_fetched_once(tmp_path: Path) -> None:
    async with quick() as emulator:
        await piped(emulator, *IMAGE, "a cat")
        await piped(emulator, *IMAGE, "[fail InternalError]")
        unsaved = await piped(emulator, "resume")
        first = await piped(emulator, "resume", "--save", str(tmp_path))
        second = await piped(emulator, "resume", "--save", str(tmp_path))

    assert (unsaved.status, unsaved.out) == (0, "")
    assert "nothing is open for this key" in unsaved.err
    assert first.status == 0
    assert first.lines == [str(path) for path in tmp_path.iterdir()]
    assert (second.status, second.out) == (0, "")


async def test_what_has_expired_is_left(tmp_path: Path) -> None:
    async with quick() as emulator:
        await piped(emulator, *IMAGE, "a cat")
        connection = sqlite3.connect(ledger_of(emulator))
        (text,) = connection.execute("SELECT task FROM records").fetchone()
        task = json.loads(text)
        task["outputs"][0]["expires_at"] = task["finished_at"] = "2020-01-01T00:00:00+00:00"
        connection.execute("UPDATE records SET task = ?", (json.dumps(task),))
        connection.commit()
        connection.close()
        late = await piped(emulator, "resume", "--save", str(tmp_path))

    assert (late.status, late.out) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert f"1 expired unsaved: {emulator.tasks()[0].id}" in late.err


# Resuming ----------------------------------------------------------------------------------------------------


async def test_bars_stand_at_once_and_the_results_stay() -> None:
    async with emulator_with(video_seconds=600, queue_seconds=0) as emulator:
        await detached(emulator, "a paper boat", "a tram")
        terminal = Terminal(emulator, "resume")
        try:
            await terminal.shows("a paper boat")
            await terminal.shows("a tram")
            await terminal.shows("running")
            advance(600)
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert terminal.shown.count(f"{emulator.asset_url}/") == 2


async def test_json_is_one_object_for_each_that_was_open(tmp_path: Path) -> None:
    async with emulator_with(video_seconds=1, queue_seconds=0) as emulator:
        ((ticket, task_id),) = await detached(emulator, "a boat")
        ended = await piped(emulator, "resume", "--json", "--save", str(tmp_path))

    (told,) = map(json.loads, ended.lines)
    assert (told["input"], told["task"]["ticket"], told["task"]["task_id"]) == ("a boat", ticket, task_id)
    assert told["files"][0]["path"] == str(next(tmp_path.iterdir()))


async def test_a_timeout_leaves_what_goes_on(tmp_path: Path) -> None:
    async with emulator_with(image_seconds=60, queue_seconds=0) as emulator:
        waiting = await left_behind(emulator)
        words = ("resume", "--concurrency", "1", "--json")
        ended = await timed_out(emulator, *words, when=polled_again(emulator))
        listed = await piped(emulator, "ls", "--json")

        assert ended.status == 5
        assert left_ids(ended.err) == [emulator.tasks()[0].id]
        assert f"1 stay on record: {waiting}" in ended.err
        assert watch_command(ended.err) == ["bide", "resume", "--provider", "dashscope", "--json"]
        assert [json.loads(line)["status"] for line in listed.lines] == ["running", "waiting"]
        assert emulator.stats()["creates"] == 1


async def test_ctrl_c_leaves_the_tasks_and_what_waits_on_record() -> None:
    async with emulator_with(image_seconds=60, queue_seconds=0) as emulator:
        waiting = await left_behind(emulator)
        terminal = Terminal(emulator, "resume", "--concurrency", "1")
        try:
            await terminal.shows("[seconds 60]")  # its row has this name once both are followed
            terminal.press_ctrl_c()
            assert await terminal.ends() == 130
        finally:
            terminal.kill()
        listed = await piped(emulator, "ls", "--json")

        assert waiting in terminal.shown
        assert "to continue: bide resume --provider dashscope" in terminal.shown
        assert [json.loads(line)["status"] for line in listed.lines] == ["running", "waiting"]
        assert statuses(emulator) == ["RUNNING"]


async def test_an_unknown_create_is_no_task_to_resume() -> None:
    key = {"DIEYUYUN_API_KEY": KEY, "DASHSCOPE_API_KEY": ""}
    async with quick() as emulator:
        emulator.fault(on="create", drop="after")
        await piped(emulator, "image", "--model", "gpt-image-2", "a fox", **key)
        ended = await piped(emulator, "resume", **key)

    assert (ended.status, ended.out) == (0, "")


async def test_resume_needs_a_key() -> None:
    async with quick() as emulator:
        ended = await piped(emulator, "resume", DASHSCOPE_API_KEY="")

    assert ended.status == 3


# Detaching ---------------------------------------------------------------------------------------------------


async def test_detach_ends_when_all_are_accepted() -> None:
    async with emulator_with(video_seconds=60, queue_seconds=0) as emulator:
        ended = await piped(emulator, *VIDEO, "--detach", "a boat", "a tram")

        assert ended.status == 0
        assert {line.split()[1] for line in ended.lines} == {task.id for task in emulator.tasks()}
        assert (
            "2 still running; to get their results: bide resume --provider dashscope --save DIR" in ended.err
        )
        assert statuses(emulator) == ["RUNNING", "RUNNING"]


async def test_detach_waits_for_slots_and_tells_what_was_refused() -> None:
    async with emulator_with(image_seconds=0.5, queue_seconds=0) as emulator:
        words = ("one", "two", "[refuse InvalidParameter]")
        ended = await piped(emulator, *IMAGE, "--detach", "--json", "--concurrency", "1", *words)

        told = {each["input"]: each for each in map(json.loads, ended.lines)}
        assert ended.status == 1
        assert set(told) == set(words)
        assert told["two"]["task"]["task_id"]
        assert told["[refuse InvalidParameter]"]["error"]["code"] == "InvalidParameter"


async def test_detach_in_a_terminal_prints_the_tickets() -> None:
    async with emulator_with(video_seconds=60) as emulator:
        terminal = Terminal(emulator, *VIDEO, "--detach", "a boat")
        try:
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

        assert emulator.tasks()[0].id in terminal.shown


async def test_what_times_out_before_it_is_accepted_is_withdrawn_and_what_is_after_is_detached() -> None:
    async with emulator_with(image_seconds=60, queue_seconds=0) as emulator:
        words = (*IMAGE, "--detach", "--concurrency", "1", "one", "two")
        both = ["running", "waiting"]
        late = await timed_out(emulator, *words, when=lambda: on_record(emulator) == both)
        emulator.fault(on="create", delay=1.0)
        words = (*IMAGE, "--detach", "three")
        answered = await timed_out(emulator, *words, when=lambda: len(emulator.tasks()) == 2)

        assert late.status == 5
        assert len(late.lines) == 1
        assert "1 not sent" in late.err
        assert (answered.status, len(answered.lines)) == (0, 1)
        assert emulator.stats()["creates"] == 2


async def test_detach_saves_nothing() -> None:
    async with quick() as emulator:
        ended = await piped(emulator, *IMAGE, "--detach", "--save", "out", "a cat")

        assert ended.status == 2
        assert "bide resume --save DIR" in ended.err
        assert emulator.stats()["creates"] == 0


# Slots of tasks that nobody watches --------------------------------------------------------------------------


async def test_tasks_that_were_detached_give_their_slots_back_to_the_next_command() -> None:
    """Else it would wait for hours: until their slots count as free with nobody having looked."""
    async with emulator_with(video_seconds=0.3, queue_seconds=0, concurrency=3) as emulator:
        earlier = await detached(emulator, "one", "two", "three")
        ended = await piped(emulator, *VIDEO, "four")

        assert ended.status == 0
        assert len(ended.lines) == 1
        assert not any(task_id in ended.err for _, task_id in earlier)


async def test_what_others_have_not_sent_is_left_to_bide_resume() -> None:
    async with emulator_with(image_seconds=60, queue_seconds=0) as emulator:
        waiting = await left_behind(emulator)
        words = (*IMAGE, "mine", "--concurrency", "1")
        all_three = ["running", "waiting", "waiting"]
        ended = await timed_out(emulator, *words, when=lambda: on_record(emulator) == all_three)
        listed = await piped(emulator, "ls", "--json")

        assert ended.status == 5
        assert emulator.stats()["creates"] == 1
        assert waiting in listed.out


# Tickets -----------------------------------------------------------------------------------------------------


async def test_a_ticket_is_watched_whoever_drives_it(tmp_path: Path) -> None:
    async with emulator_with(video_seconds=0.5, queue_seconds=0) as emulator:
        ((ticket, _),) = await detached(emulator, "a boat")
        nobodys = await piped(emulator, "watch", ticket)
        ended_long_ago = await piped(emulator, "watch", ticket, "--save", str(tmp_path))
        looks_often = provider_at(emulator, "dashscope", video_floor=0.1)
        async with Client(looks_often, api_key=KEY, ledger=ledger_at(emulator)) as client:
            handle = await client.submit(video())
            await handle.accepted()
            somebodys = await piped(emulator, "watch", handle.ticket, str(handle.task_id))

    assert (nobodys.status, len(nobodys.lines)) == (0, 1)
    assert ended_long_ago.out == f"{tmp_path / ticket}-0.mp4\n"
    assert (somebodys.status, len(somebodys.lines)) == (0, 2)


async def test_what_is_watched_is_taken_over_when_its_driver_ends() -> None:
    async with emulator_with(video_seconds=600, queue_seconds=0) as emulator:
        client = client_at(emulator, ledger=ledger_at(emulator))
        handle = await client.submit(video())
        await handle.accepted()
        process = await start(emulator, "watch", handle.ticket)
        assert process.stderr is not None
        await until(lambda: is_followed(emulator))
        await client.aclose()
        advance(600)
        out, _ = await asyncio.wait_for(process.communicate(), A_MINUTE)

        assert process.returncode == 0
        assert len(out.splitlines()) == 1


async def test_an_interrupted_watch_names_the_ticket_again() -> None:
    async with emulator_with(video_seconds=60, queue_seconds=0) as emulator:
        ((ticket, task_id),) = await detached(emulator, "a boat")
        path = str(ledger_of(emulator))
        words = ("watch", ticket, "--ledger", path)
        ended = await timed_out(emulator, *words, when=polled_again(emulator))

    assert ended.status == 5
    assert watch_command(ended.err) == [
        *("bide", "watch", "--ledger", path, "--provider", "dashscope", task_id)
    ]


async def test_the_address_of_a_result_may_have_expired() -> None:
    async with quick() as emulator:
        made = await piped(emulator, *IMAGE, "a cat", "--json")
        ticket = json.loads(made.out)["task"]["ticket"]
        connection = sqlite3.connect(ledger_of(emulator))
        (text,) = connection.execute("SELECT task FROM records").fetchone()
        task = json.loads(text)
        task["outputs"][0]["url"] = None
        connection.execute("UPDATE records SET task = ?", (json.dumps(task),))
        connection.commit()
        connection.close()
        ended = await piped(emulator, "watch", ticket)

    assert (ended.status, ended.out) == (0, "")
    assert "has expired" in ended.err


async def test_a_ticket_is_cancelled_wherever_it_is() -> None:
    async with emulator_with(image_seconds=60, queue_seconds=60) as emulator:
        waiting = await left_behind(emulator, running="[queue 60]")
        done = await piped(emulator, *IMAGE, "[queue 0] [seconds 0.1]", "--json")
        ended_one = json.loads(done.out)["task"]["ticket"]
        listed = await piped(emulator, "ls", "--json")
        queued = json.loads(listed.lines[0])["ticket"]
        cancelled = await piped(emulator, "cancel", waiting, queued)
        late = await piped(emulator, "cancel", ended_one)
        after = await piped(emulator, "ls", "--json")

        assert (cancelled.status, cancelled.lines) == (0, [waiting, queued])
        assert late.status == 1
        assert f"{ended_one} is succeeded: too late" in late.err
        assert "CANCELED" in statuses(emulator)
        assert waiting not in after.out
        assert emulator.stats()["creates"] == 2


async def test_what_is_being_submitted_is_cancelled_once_its_create_is_answered() -> None:
    hasty = f"import {_tasks.__name__} as tasks; tasks.CANCEL_SECONDS = 0.5\n"
    async with emulator_with(image_seconds=60, queue_seconds=60) as emulator:
        async with client_at(emulator, ledger=ledger_at(emulator)) as client:
            emulator.fault(on="create", delay=40)
            handle = await client.submit(image())
            await until(emulator.tasks)
            process = await start(emulator, "cancel", handle.ticket, before=hasty)
            await until(lambda: is_cancelling(emulator))
            await asyncio.sleep(
                1.0
            )  # its patience is over, and its grace has begun; if not, it takes that long
            pass_time(process)
            out, err = await asyncio.wait_for(process.communicate(), A_MINUTE)
            advance(40)
            await until(lambda: statuses(emulator) == ["CANCELED"])

    assert (process.returncode, out) == (1, b"")
    assert b"is being submitted: the process that drives it cancels it once" in err


# Without a ledger --------------------------------------------------------------------------------------------


async def test_a_system_that_can_have_no_ledger_goes_on_without_one() -> None:
    blocked = "import sys; sys.modules['fcntl'] = None\n"
    async with emulator_with(image_seconds=60) as emulator:
        ended = await timed_out(emulator, *IMAGE, "a cat", when=emulator.tasks, before=blocked)
        process = await start(emulator, *IMAGE, "a cat", "--detach", before=blocked)
        _, refused = await asyncio.wait_for(process.communicate(), A_MINUTE)

        assert "needs Python's module fcntl" in ended.err
        assert watch_command(ended.err)[1] == "watch"
        assert b"--detach needs a ledger" in refused
        assert process.returncode == 2
        assert not list(home_of(emulator).rglob("ledger.db"))
