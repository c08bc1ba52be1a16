"""What the shell gives `bide`, and what becomes of prompts whose time runs out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from support.emulated import calls, emulator_with
from support.terminal import (
    HALF_A_MINUTE,
    IMAGE,
    left_ids,
    on_record,
    pass_time,
    piped,
    quick,
    start,
    timed_out,
)
from support.virtual_time import advance
from support.waits import A_MINUTE, until

pytestmark = pytest.mark.real_time


# Out of time -------------------------------------------------------------------------------------------------


async def test_what_got_no_slot_in_time_is_not_bought_later_unseen() -> None:
    async with emulator_with(image_seconds=600, queue_seconds=0) as emulator:
        words = [*IMAGE, "--concurrency", "1", "--timeout", str(HALF_A_MINUTE), "--json"]
        process = await start(emulator, *words)
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"first\nsecond\n")
        await process.stdin.drain()
        await until(lambda: on_record(emulator) == ["running", "waiting"])

        def is_withdrawn() -> bool:
            pass_time(process)  # once more where a wait began only after the last time
            return on_record(emulator) == ["running", "cancelled"]

        await until(is_withdrawn)
        advance(600)
        async with asyncio.timeout(
            A_MINUTE
        ):  # the first ends while the command still reads, and its slot is free
            while b"succeeded" not in await process.stderr.readline():
                pass
        out, err = await asyncio.wait_for(process.communicate(b""), A_MINUTE)

        told = {each["input"]: each for each in map(json.loads, out.decode().splitlines())}
        assert process.returncode == 5
        assert told["second"]["task"]["status"] == "cancelled"
        assert told["second"]["error"]["type"] == "WaitTimeoutError"
        assert b"1 not sent" in err
        assert emulator.stats()["creates"] == 1


async def test_a_create_that_is_answered_after_the_timeout_is_named_to_watch_on() -> None:
    async with emulator_with(image_seconds=60) as emulator:
        emulator.fault(on="create", delay=1.0)
        ended = await timed_out(emulator, *IMAGE, "a cat", when=emulator.tasks)

        assert ended.status == 5
        assert left_ids(ended.err) == [emulator.tasks()[0].id]


async def test_a_create_that_is_refused_after_the_timeout_is_told_as_that() -> None:
    async with quick() as emulator:
        emulator.fault(on="create", delay=1.0, status=400, body={"code": "InvalidParameter", "message": "no"})
        ended = await timed_out(emulator, *IMAGE, "a cat", when=lambda: calls(emulator, "create"))

    assert ended.status == 1
    assert "InvalidParameter" in ended.err


async def test_a_create_that_is_put_off_after_the_timeout_is_not_sent_again() -> None:
    async with quick() as emulator:
        emulator.fault(on="create", delay=1.0, status=429, headers={"retry-after": "2"})
        ended = await timed_out(emulator, *IMAGE, "a cat", when=lambda: calls(emulator, "create"))

        assert ended.status == 5
        assert "1 not sent" in ended.err
        assert emulator.tasks() == []


# What the shell gives ----------------------------------------------------------------------------------------


async def test_files_that_could_not_be_written_are_not_paid_for(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file", encoding="utf-8")
    async with quick() as emulator:
        ended = await piped(emulator, *IMAGE, "a cat", "--save", str(taken))

        assert (ended.status, ended.out) == (2, "")
        assert "taken" in ended.err
        assert emulator.stats()["creates"] == 0


async def test_a_command_without_standard_input_says_what_is_missing() -> None:
    async with quick() as emulator:
        process = await start(emulator, *IMAGE, before="import sys; sys.stdin = None\n")
        _, err = await asyncio.wait_for(process.communicate(), A_MINUTE)

    assert process.returncode == 2
    assert err.startswith(b"bide: no prompts")


async def test_results_come_though_nobody_reads_the_errors() -> None:
    async with quick() as emulator:
        process = await start(emulator, *IMAGE, "[fail InternalError]", "[seconds 1.5]")
        assert process.stderr is not None
        assert process.stdout is not None
        process.stderr._transport.close()  # type: ignore[attr-defined]
        out = await asyncio.wait_for(process.stdout.read(), A_MINUTE)
        await process.wait()

    assert process.returncode == 1
    assert len(out.splitlines()) == 1


async def test_a_prompt_is_a_line_whatever_else_separates_words(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa cat\r\na dog\u2028at noon\r\n", encoding="utf-8", newline="")
    async with quick() as emulator:
        from_file = await piped(emulator, *IMAGE, "--file", str(prompts), "--json")
        from_pipe = await piped(emulator, *IMAGE, "--json", given="\ufeffa cat\r\na dog\u2028at noon\r\n")

    for ended in (from_file, from_pipe):
        assert sorted(json.loads(line)["input"] for line in ended.lines) == ["a cat", "a dog\u2028at noon"]


async def test_a_file_of_prompts_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_bytes(b"\xff\xfe\n")
    async with quick() as emulator:
        ended = await piped(emulator, *IMAGE, "--file", str(tmp_path / "prompts"))

    assert ended.status == 2
    assert str(tmp_path / "prompts") in ended.err


async def test_cancel_says_each_thing_once() -> None:
    async with quick() as emulator:
        ended = await piped(emulator, "cancel", "11111111-2222-3333-4444-555555555555")

    assert ended.status == 1
    assert ended.err.startswith("bide: ")
    assert ended.err.count("\n") == 1


async def test_a_request_that_times_out_before_it_was_sent_is_not_bought_later() -> None:
    async with emulator_with(image_seconds=600, queue_seconds=0, concurrency=1) as emulator:
        words = ("--concurrency", "1", "one", "two")
        both = ["running", "waiting"]
        ended = await timed_out(emulator, *IMAGE, *words, when=lambda: on_record(emulator) == both)
        advance(600)

        assert ended.status == 5
        assert emulator.stats()["creates"] == 1
        assert left_ids(ended.err) == [emulator.tasks()[0].id]
        assert "got no slot within 30 s: withdrawn" in ended.err
        assert "1 not sent" in ended.err


async def test_a_request_that_times_out_while_it_is_sent_is_named_all_the_same() -> None:
    async with emulator_with(image_seconds=60) as emulator:
        emulator.fault(on="create", delay=2)
        ended = await timed_out(emulator, *IMAGE, "a cat", when=emulator.tasks)

        assert ended.status == 5
        assert left_ids(ended.err) == [emulator.tasks()[0].id]
