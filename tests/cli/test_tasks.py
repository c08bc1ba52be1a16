"""`bide image`, `video`, `watch` and `cancel` against the emulator, piped and in a pseudo-terminal."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path

import pytest

from support.emulated import calls, emulator_with
from support.terminal import (
    IMAGE,
    KEY,
    VIDEO,
    Terminal,
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


# Results -----------------------------------------------------------------------------------------------------


async def test_addresses_are_all_that_stands_on_stdout() -> None:
    async with quick() as emulator:
        ended = await piped(emulator, *IMAGE, "-n", "2", "--size", "1024x1024", "a cat")

    assert ended.status == 0
    assert len(ended.lines) == 2
    assert all(line.startswith(emulator.asset_url) for line in ended.lines)
    assert re.fullmatch(r"\S+ accepted\n\S+ succeeded\n", ended.err)


async def test_saved_files_are_named_on_stdout(tmp_path: Path) -> None:
    async with quick() as emulator:
        ended = await piped(emulator, *VIDEO, "a boat", "a tram", "-n", "2", "--save", str(tmp_path / "out"))

        assert emulator.stats()["creates"] == 4, "a video is a task of its own"
    assert ended.status == 0
    assert sorted(ended.lines) == sorted(map(str, (tmp_path / "out").iterdir()))
    assert len(ended.lines) == 4


async def test_json_is_one_object_for_each_task_whatever_became_of_it() -> None:
    async with quick() as emulator:
        words = ["fine", "[fail InternalError]", "[refuse InvalidParameter]"]
        ended = await piped(emulator, *IMAGE, *words, "--json")

    told = {each["input"]: each for each in map(json.loads, ended.lines)}
    assert ended.status == 1
    assert set(told) == set(words)
    assert told["fine"]["error"] is None
    assert told["fine"]["task"]["outputs"][0]["url"].startswith(emulator.asset_url)
    assert told["[fail InternalError]"]["error"]["type"] == "TaskFailedError"
    assert told["[fail InternalError]"]["error"]["code"] == "InternalError"
    assert told["[refuse InvalidParameter]"]["task"]["status"] == "rejected"
    assert told["[refuse InvalidParameter]"]["error"]["exit_status"] == 1


async def test_json_names_the_files_that_were_saved(tmp_path: Path) -> None:
    async with quick() as emulator:
        ended = await piped(emulator, *IMAGE, "a cat", "--json", "--save", str(tmp_path))

    (file,) = json.loads(ended.out)["files"]
    assert Path(file["path"]).stat().st_size == file["size"]
    assert file["media_type"] == "image/png"


async def test_any_terminal_can_show_the_results(tmp_path: Path) -> None:
    async with quick() as emulator:
        words = (*IMAGE, "一只猫 😀", "--save", str(tmp_path / "猫"))
        as_json = await piped(emulator, *words, "--json", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
        as_text = await piped(emulator, *words, PYTHONIOENCODING="ascii", PYTHONUTF8="1")

    assert json.loads(as_json.out)["input"] == "一只猫 😀"
    assert (as_json.status, as_text.status) == (0, 0)
    assert "\\u732b" in as_text.out


async def test_what_is_for_a_closed_stderr_does_not_go_to_stdout() -> None:
    async with quick() as emulator:
        process = await start(emulator, *IMAGE, "a cat", before="import sys; sys.stderr = None\n")
        out, _ = await asyncio.wait_for(process.communicate(), A_MINUTE)

    assert process.returncode == 0
    assert len(out.splitlines()) == 1
    assert out.startswith(emulator.asset_url.encode())


async def test_a_full_disk_ends_it_and_names_what_goes_on() -> None:
    async with emulator_with(image_seconds=0.3, queue_seconds=0) as emulator:
        redirect = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        process = await start(emulator, *IMAGE, "a cat", "[seconds 60]", before=redirect)
        _, err = await asyncio.wait_for(process.communicate(), A_MINUTE)

        assert process.returncode == 1
        assert "standard output cannot be written" in err.decode()
        assert "Traceback" not in err.decode()
        assert next(task.id for task in emulator.tasks() if task.status == "RUNNING") in err.decode()


async def test_a_part_that_failed_is_told_beside_the_others() -> None:
    async with quick() as emulator:
        ended = await piped(emulator, *IMAGE, "-n", "2", "[part]")

    assert (ended.status, len(ended.lines)) == (0, 1)
    assert "a part failed" in ended.err


async def test_a_pause_is_told() -> None:
    async with quick() as emulator:
        emulator.fault(on="create", status=429, headers={"retry-after": "1"})
        ended = await piped(emulator, *IMAGE, "a cat")
        emulator.fault(on="create", status=429, headers={"retry-after": "1"})
        terminal = Terminal(emulator, *IMAGE, "a dog")
        try:
            await terminal.shows("paused for 1 s")
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert ended.status == 0
    assert "paused for 1 s: DashScope refused the create" in ended.err


async def test_a_create_that_may_have_arrived_is_told_when_interrupted() -> None:
    async with emulator_with() as emulator:
        emulator.fault(on="create", delay=600.0)
        process = await start(emulator, *IMAGE, "a cat")
        await until(emulator.tasks)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        await asyncio.wait_for(process.stderr.readuntil(b"stopping"), A_MINUTE)
        await asyncio.sleep(0.2)  # its grace has begun; if it has not, it takes ten seconds by the clock
        pass_time(process)
        _, err = await asyncio.wait_for(process.communicate(), A_MINUTE)

    assert process.returncode == 130
    assert "a cat: its create may have arrived" in err.decode()


async def test_what_others_say_cannot_drive_the_terminal() -> None:
    async with quick() as emulator:
        emulator.fault(on="create", status=400, body={"code": "Bad\x1b[2J", "message": "[red]no\x07"})
        ended = await piped(emulator, *IMAGE, "a \x1b[31mcat")

    assert ended.status == 1
    assert "\x1b" not in ended.err + ended.out
    assert "\x07" not in ended.err


# Many prompts ------------------------------------------------------------------------------------------------


async def test_prompts_come_from_a_file_or_standard_input(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    async with quick() as emulator:
        from_file = await piped(emulator, *IMAGE, "--file", str(prompts), "--json")
        from_dash = await piped(emulator, *IMAGE, "--file", "-", "--json", given=prompts.read_text())
        from_pipe = await piped(emulator, *IMAGE, "--json", given=prompts.read_text())

    for ended in (from_file, from_dash, from_pipe):
        assert ended.status == 0
        assert sorted(json.loads(line)["input"] for line in ended.lines) == ["a cat", "a dog"]


async def test_standard_input_that_is_no_text_is_told_and_what_was_begun_ends() -> None:
    async with quick() as emulator:
        process = await start(emulator, *IMAGE, PYTHONIOENCODING="utf-8:strict")
        _, err = await asyncio.wait_for(process.communicate(b"a cat\n\xff\xfe\n"), A_MINUTE)

    assert process.returncode == 2
    assert b"cannot be read as text" in err
    assert b"Traceback" not in err


async def test_without_the_emulator_extra_everything_else_works() -> None:
    async with quick() as emulator:
        blocked = "import sys; sys.modules['aiohttp'] = None\n"
        process = await start(emulator, *IMAGE, "a cat", before=blocked)
        await asyncio.wait_for(process.communicate(), A_MINUTE)

    assert process.returncode == 0


async def test_an_endless_input_is_read_no_faster_than_tasks_end() -> None:
    async with emulator_with(image_seconds=60) as emulator:
        process = await start(emulator, *VIDEO, "--concurrency", "200")
        assert process.stdin is not None
        process.stdin.write(b"a cat\n" * 100_000)
        await until(lambda: emulator.stats()["creates"] >= 50)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), A_MINUTE)

        assert process.returncode == 130
        assert emulator.stats()["creates"] <= 100
        assert set(left_ids(err.decode())) == {task.id for task in emulator.tasks()}


async def test_a_reader_that_leaves_early_buys_nothing_more() -> None:
    async with quick(concurrency=1) as emulator:
        process = await start(emulator, *IMAGE, "--concurrency", "1", *(f"number {n}" for n in range(30)))
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        err = await asyncio.wait_for(process.stderr.read(), A_MINUTE)
        await process.wait()

        assert process.returncode == 1
        assert b"Traceback" not in err
        assert b"not sent" in err
        assert len(emulator.tasks()) < 10


# Exit codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["image", "a cat"], 2, "name the model"),
        (["video", "a cat", "--provider", "dieyuyun", "--model", "m"], 3, "set $DIEYUYUN_API_KEY"),
        ([*IMAGE, "--file", "/nowhere/prompts"], 2, "No such file"),
        ([*IMAGE, "a cat", "--file", "x"], 2, "not both"),
        ([*IMAGE, " "], 2, "blank"),
        ([*IMAGE], 2, "standard input has no prompts"),
        ([*IMAGE, "a cat", "-n", "0"], 2, "from 1 to 100"),
        ([*VIDEO, "a cat", "-n", "0"], 2, "-n must be from 1 to 100"),
        ([*IMAGE, "a cat", "--concurrency", "0"], 2, "concurrency"),
        ([*IMAGE, "a cat", "--timeout", "-1"], 2, "timeout"),
        (["image", "--nonsense"], 2, ""),
        (["watch"], 2, "at least one task id"),
        (["cancel"], 2, "at least one task id"),
        (["watch", "../x"], 2, "not a task id"),
        ([*IMAGE, "[fail InternalError]"], 1, "InternalError"),
        ([*IMAGE, "[refuse InvalidParameter]"], 1, "InvalidParameter"),
        ([*IMAGE, "[refuse InvalidApiKey]"], 3, "InvalidApiKey"),
        ([*IMAGE, "[refuse Arrearage]"], 4, "Arrearage"),
    ],
)
async def test_the_exit_status_says_what_was_wrong(words: list[str], status: int, says: str) -> None:
    async with quick() as emulator:
        ended = await piped(emulator, *words)

        if status == 2:
            assert emulator.stats()["creates"] == 0, "usage is told before anything is sent"
    assert (ended.status, ended.out) == (status, "")
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert KEY not in ended.err


@pytest.mark.parametrize(
    ("words", "asked", "says"),
    [
        ([*IMAGE, "[seconds 60]"], 1, "bide resume --provider dashscope"),
        (["watch", "11111111-2222-3333-4444-555555555555"], 1, "it continues"),
        ([*IMAGE, "[seconds 60]", "[fail InternalError]"], 2, "InternalError"),
    ],
)
async def test_the_exit_status_of_what_has_run_out_of_time_is_5(
    words: list[str], asked: int, says: str
) -> None:
    def polled() -> bool:
        """Each task has been, and none goes on that is to fail."""
        known = {each.path for each in calls(emulator, "query")}
        return len(known) == asked and (asked == 1 or "failed" in on_record(emulator))

    async with quick() as emulator:
        ended = await timed_out(emulator, *words, when=polled)

    assert (ended.status, ended.out) == (5, "")
    assert says in ended.err
    assert "Traceback" not in ended.err


async def test_with_keys_of_both_services_one_has_to_be_named() -> None:
    async with quick() as emulator:
        unsaid = await piped(emulator, *IMAGE, "a cat", DIEYUYUN_API_KEY=KEY)
        said = await piped(emulator, *IMAGE, "a cat", "--provider", "dieyuyun", DIEYUYUN_API_KEY=KEY)
        neither = await piped(emulator, *IMAGE, "a cat", DASHSCOPE_API_KEY="")

    assert (unsaid.status, said.status, neither.status) == (2, 0, 3)
    assert "--provider" in unsaid.err
    assert [task.service for task in emulator.tasks()] == ["dieyuyun"]


async def test_a_refused_key_ends_the_reading_of_further_prompts() -> None:
    async with quick(api_keys=["sk-another-key"]) as emulator:
        ended = await piped(emulator, *IMAGE, "--json", given="a cat\n" * 500)

        assert ended.status == 3
        assert emulator.stats()["creates"] <= 60
        assert len(ended.lines) <= 100
        assert "not sent" in ended.err


# Watching and cancelling -------------------------------------------------------------------------------------


async def test_what_timed_out_is_watched_on_by_the_command_that_was_printed(tmp_path: Path) -> None:
    async with emulator_with(image_seconds=600) as emulator:
        words = (*IMAGE, "a cat", "--save", str(tmp_path / "my files"))
        first = await timed_out(emulator, *words, when=emulator.tasks)
        advance(600)
        command = watch_command(first.err)
        second = await piped(emulator, *command[1:])

        assert (first.status, second.status) == (5, 0)
        assert command[0] == "bide"
        assert Path(second.out.strip()).parent == tmp_path / "my files"
        assert emulator.stats()["creates"] == 1


async def test_cancel_stops_what_can_be_stopped_and_says_what_cannot() -> None:
    async with emulator_with(image_seconds=60, queue_seconds=60) as emulator:
        await piped(emulator, *IMAGE, "[queue 60]", "[queue 0] [seconds 60]", "--detach")
        queued, running = sorted(emulator.tasks(), key=lambda task: task.status)
        ended = await piped(emulator, "cancel", queued.id, running.id)

        assert (queued.status, running.status) == ("PENDING", "RUNNING")
        assert ended.status == 1
        assert ended.lines == [queued.id]
        assert f"{running.id} is running: too late" in ended.err
        assert sorted(statuses(emulator)) == ["CANCELED", "RUNNING"]


async def test_cancel_tells_of_a_task_that_nobody_knows() -> None:
    async with quick() as emulator:
        ended = await piped(emulator, "cancel", "11111111-2222-3333-4444-555555555555", "../x")

    assert ended.status == 2
    assert "not a task id" in ended.err


async def test_the_directory_is_tried_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with quick() as emulator:
        ended = await piped(emulator, *IMAGE, "a cat", "--save", str(tmp_path / "file" / "x"))

        assert ended.status == 2
        assert "Not a directory" in ended.err
        assert emulator.stats()["creates"] == 0


async def test_a_line_is_a_prompt_by_whatever_way_it_comes(tmp_path: Path) -> None:
    text = "\ufeffa cat\u2028by the sea\x0cat night\n\u3000\n"
    (tmp_path / "prompts").write_text(text, encoding="utf-8")
    async with quick() as emulator:
        by_file = await piped(emulator, *IMAGE, "--json", "--file", str(tmp_path / "prompts"))
        by_pipe = await piped(emulator, *IMAGE, "--json", given=text, PYTHONUTF8="1")

    assert json.loads(by_file.out)["input"] == "a cat\u2028by the sea\x0cat night"
    assert json.loads(by_pipe.out)["input"] == "a cat\u2028by the sea\x0cat night"


async def test_a_refused_key_ends_it_though_standard_input_stays_open() -> None:
    async with quick(api_keys=["sk-another-key"]) as emulator:
        process = await start(emulator, *IMAGE)
        assert process.stdin is not None
        process.stdin.write(b"a cat\n")

        assert await asyncio.wait_for(process.wait(), A_MINUTE) == 3
        process._transport.close()  # type: ignore[attr-defined]


# Completion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_the_shell_completes_commands_and_options(shell: str, tmp_path: Path) -> None:
    async with quick() as emulator:
        ended = await piped(
            emulator, "--install-completion", "--shell", shell, HOME=str(tmp_path), SHELL=f"/bin/{shell}"
        )

    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert ended.status == 0
    assert "watch" in written
    assert "--provider" in written or "-l provider" in written
