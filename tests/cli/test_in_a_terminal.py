"""Each command in a real pseudo-terminal: bars, Ctrl-C, and results that stay whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.emulated import emulator_with
from support.terminal import IMAGE, VIDEO, Terminal, piped, quick, statuses
from support.virtual_time import advance
from support.waits import until

pytestmark = pytest.mark.real_time


async def test_bars_are_shown_in_a_terminal_and_leave_the_results() -> None:
    async with emulator_with(image_seconds=1.5, queue_seconds=0) as emulator:
        terminal = Terminal(emulator, *IMAGE, "a paper boat", "a [red]tram[/red]")
        try:
            await terminal.shows("a paper boat")
            await terminal.shows("a [red]tram[/red]")
            await terminal.shows("running")
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert len(re.findall(rf"{emulator.asset_url}\S+", terminal.shown)) == 2
    assert "accepted" not in terminal.shown
    assert re.search(r"running +~\d+ %, about \d+ s left", terminal.shown)


@pytest.mark.parametrize("words", [(), ("--json",)])
async def test_results_go_to_the_file_that_stdout_is_while_bars_are_shown(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    async with quick() as emulator:
        terminal = Terminal(emulator, *IMAGE, "a cat", *words, stdout=tmp_path / "urls.txt")
        try:
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    (line,) = (tmp_path / "urls.txt").read_text().splitlines()
    assert emulator.asset_url in line
    assert emulator.asset_url not in terminal.shown


async def test_an_address_is_one_line_in_a_narrow_terminal() -> None:
    async with quick() as emulator:
        terminal = Terminal(emulator, *IMAGE, "a cat", columns=40)
        try:
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert re.search(rf"{emulator.asset_url}\S+Signature=[0-9a-f]{{32}}", terminal.shown)


async def test_markup_in_what_the_service_says_is_shown_as_it_is() -> None:
    async with quick() as emulator:
        error = {"code": "Throttling.Concurrency", "message": "[/nope] [link=http://evil]click[/link]"}
        emulator.fault(on="create", status=429, headers={"retry-after": "1"}, body=error)
        terminal = Terminal(emulator, *IMAGE, "a [/] cat")
        try:
            await terminal.shows("paused for 1 s")
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert "[/nope] [link=http://evil]click[/link]" in terminal.shown


async def test_the_first_ctrl_c_names_at_once_what_is_known() -> None:
    """Whoever presses it twice has seen the ids."""
    async with emulator_with(image_seconds=60, queue_seconds=0) as emulator:
        terminal = Terminal(emulator, *IMAGE, "fast", "slow")
        try:
            await terminal.shows("running")
            terminal.press_ctrl_c()
            await terminal.shows("to continue: bide resume --provider dashscope")
            terminal.press_ctrl_c()
            await terminal.ends()
        finally:
            terminal.kill()

        assert any(task.id in terminal.shown for task in emulator.tasks())


async def test_a_lost_terminal_stops_the_buying() -> None:
    async with emulator_with(image_seconds=60, concurrency=1) as emulator:
        terminal = Terminal(emulator, *IMAGE, "--concurrency", "1", "one", "two")
        try:
            await terminal.shows("one")
            await until(emulator.tasks)
            terminal.hang_up()
            assert await terminal.ends() == 130
        finally:
            terminal.kill()

        assert emulator.stats()["creates"] == 1


async def test_ctrl_c_in_a_terminal_prints_the_ids_and_the_command_that_watches_on() -> None:
    async with emulator_with(image_seconds=60, queue_seconds=0) as emulator:
        terminal = Terminal(emulator, *IMAGE, "a paper boat", "a tram")
        try:
            await terminal.shows("running")
            await until(lambda: len(emulator.tasks()) >= 2)
            terminal.press_ctrl_c()
            assert await terminal.ends() == 130
        finally:
            terminal.kill()

        for task in emulator.tasks():
            assert task.id in terminal.shown.replace("\r\n", "").partition("left at the service: ")[2]
        assert statuses(emulator) == ["RUNNING", "RUNNING"]


async def test_a_second_ctrl_c_ends_at_once() -> None:
    async with emulator_with(image_seconds=60) as emulator:
        emulator.fault(on="create", delay=600.0)
        terminal = Terminal(emulator, *IMAGE, "a cat")
        try:
            await until(emulator.tasks)
            terminal.press_ctrl_c()
            await terminal.shows("stopping")
            terminal.press_ctrl_c()
            assert await terminal.ends() == 130
        finally:
            terminal.kill()

        assert "may have arrived" not in terminal.shown, "it does not wait for the answer of the create"


async def test_a_video_is_made_and_saved_in_a_terminal(tmp_path: Path) -> None:
    async with quick() as emulator:
        terminal = Terminal(emulator, *VIDEO, "a boat", "--save", str(tmp_path))
        try:
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert str(next(tmp_path.glob("*.mp4"))) in terminal.shown


async def test_the_emulator_serves_in_a_terminal_until_ctrl_c() -> None:
    async with quick() as emulator:
        terminal = Terminal(emulator, "emulator")
        try:
            await terminal.shows("export DASHSCOPE_BASE_URL=")
            terminal.press_ctrl_c()
            assert await terminal.ends() == 0
        finally:
            terminal.kill()


async def test_the_demo_shows_its_bars_in_a_terminal(tmp_path: Path) -> None:
    async with quick() as emulator:
        terminal = Terminal(emulator, "demo", "--speed", "10", "--output", str(tmp_path))
        try:
            await terminal.shows("image-01")
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert "18 creates, 0 refused; 18 files" in terminal.shown


@pytest.mark.parametrize("words", [("watch",), ("cancel",)])
async def test_watch_and_cancel_work_in_a_terminal(words: tuple[str, ...]) -> None:
    async with emulator_with(image_seconds=600, queue_seconds=600) as emulator:
        await piped(emulator, *IMAGE, "a cat", "--detach")
        (task,) = emulator.tasks()
        terminal = Terminal(emulator, *words, task.id)
        try:
            if words == ("watch",):
                await until(lambda: emulator.stats()["queries"])
                advance(1200)
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert (task.id if words == ("cancel",) else emulator.asset_url) in terminal.shown


async def test_without_prompts_a_terminal_is_not_read_from() -> None:
    async with quick() as emulator:
        terminal = Terminal(emulator, *IMAGE)
        try:
            assert await terminal.ends() == 2
        finally:
            terminal.kill()

    assert "no prompts" in terminal.shown


async def test_the_log_and_the_bars_do_not_mix() -> None:
    async with quick() as emulator:
        terminal = Terminal(emulator, *IMAGE, "a cat", BIDE_LOG="info")
        try:
            assert await terminal.ends() == 0
        finally:
            terminal.kill()

    assert "INFO bide: dashscope" in terminal.shown
    assert "━" not in terminal.shown
