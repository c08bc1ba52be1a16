"""An interrupt of `bide image` and the like: nothing is lost, and nothing more is bought."""

from __future__ import annotations

import asyncio
import fcntl
import json
import signal
import termios
from array import array
from pathlib import Path

import pytest

from support.emulated import emulator_with
from support.terminal import IMAGE, VIDEO, left_ids, quick, start, statuses, watch_command
from support.waits import A_MINUTE, until

pytestmark = pytest.mark.real_time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_leaves_the_tasks_alone_and_names_them(number: signal.Signals) -> None:
    async with emulator_with(image_seconds=60, concurrency=3) as emulator:
        process = await start(
            emulator, *IMAGE, "--json", "--concurrency", "3", *(f"number {n}" for n in range(5))
        )
        await until(lambda: emulator.stats()["creates"] >= 3)
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), A_MINUTE)

        ids = {task.id for task in emulator.tasks()}
        told = [json.loads(line) for line in out.decode().splitlines()]
        assert process.returncode == 130
        assert len(told) == 5
        assert {each["task"]["task_id"] for each in told} == {*ids, None}
        command = watch_command(err.decode())
        assert command == ["bide", "resume", "--provider", "dashscope", "--json"]
        assert set(left_ids(err.decode())) == ids
        assert "2 not sent" in err.decode()
        assert set(statuses(emulator)) <= {"PENDING", "RUNNING"}
        assert "Traceback" not in err.decode()


async def test_an_interrupt_waits_for_the_answer_of_a_create_under_way() -> None:
    """Else its task would be paid for, and nobody knew its id."""
    async with emulator_with(image_seconds=60) as emulator:
        emulator.fault(on="create", delay=1.0)
        process = await start(emulator, *IMAGE, "a cat")
        await until(emulator.tasks)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), A_MINUTE)

        assert process.returncode == 130
        assert emulator.tasks()[0].id in err.decode()


def unread(process: asyncio.subprocess.Process) -> int:
    """Bytes in the pipe of a process's output."""
    pipe = process._transport.get_pipe_transport(1).get_extra_info("pipe")  # type: ignore[attr-defined]
    size = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, size)
    return size[0]


async def test_a_reader_that_stalls_holds_up_nothing() -> None:
    async with quick() as emulator:
        prompts = [f"{number} " + "x" * 1400 for number in range(300)]
        process = await start(emulator, *VIDEO, "--json", "--concurrency", "100", *prompts)
        await until(lambda: emulator.stats()["creates"] >= 100)
        await until(lambda: unread(process) > 30_000)  # the pipe is full, since nobody reads
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        await asyncio.wait_for(process.stderr.readuntil(b"stopping"), A_MINUTE)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(A_MINUTE):
            while process.returncode is None:
                await asyncio.sleep(0.02)
        process._transport.close()  # type: ignore[attr-defined]

    assert process.returncode == 130


async def test_all_ids_are_watched_and_named_however_many(tmp_path: Path) -> None:
    async with emulator_with(image_seconds=600) as emulator:
        ids = [f"00000000-0000-4000-8000-{n:012}" for n in range(150)]
        process = await start(emulator, "watch", *ids)
        await until(lambda: emulator.stats()["queries"] >= 20)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), A_MINUTE)

    assert set(watch_command(err.decode())[4:]) == set(ids)
    assert "not sent" not in err.decode()
