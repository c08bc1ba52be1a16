"""The examples run as a user would run them."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bide.emulator import DieyuyunStyle, Emulator

if TYPE_CHECKING:
    from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


def environment(emulator: Emulator) -> dict[str, str]:
    return {
        "DIEYUYUN_BASE_URL": emulator.dieyuyun_url,
        "DASHSCOPE_BASE_URL": emulator.dashscope_url,
        "DIEYUYUN_API_KEY": "any",
        "DASHSCOPE_API_KEY": "any",
        "NO_PROXY": "127.0.0.1",
    }


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    def point(emulator: Emulator) -> None:
        for name, value in environment(emulator).items():
            monkeypatch.setenv(name, value)

    return point


async def test_gather_saves_what_succeeds_and_counts_what_does_not(
    tmp_path: Path, point_at: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Emulator() as emulator:
        point_at(emulator)
        failed = await loaded("gather").main(
            ["a fox", "a tram [fail content_policy]", "a boat", "a teapot"], tmp_path
        )

    shown = capsys.readouterr()
    assert failed == 1
    assert "content_policy" in shown.err
    assert sorted(shown.out.split()) == sorted(str(path) for path in tmp_path.glob("*.png"))
    assert len(shown.out.split()) == 3


async def test_progress_shows_every_change_and_saves_the_video(
    tmp_path: Path, point_at: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Emulator() as emulator:
        point_at(emulator)
        await loaded("progress").main("a kitten", tmp_path)

    *changes, saved = capsys.readouterr().out.splitlines()
    assert [change.split()[0] for change in changes][-2:] == ["running", "succeeded"]
    assert saved.startswith(str(next(tmp_path.glob("*.mp4"))))


async def test_progress_cancels_its_task_when_it_is_interrupted(
    tmp_path: Path, point_at: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Emulator(queue_seconds=60) as emulator:
        point_at(emulator)
        running = asyncio.create_task(loaded("progress").main("a kitten", tmp_path))
        await asyncio.sleep(10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert emulator.stats()["statuses"] == {"CANCELED": 1}
    assert capsys.readouterr().err == "cancelled\n"


@pytest.mark.real_time
async def test_an_example_runs_as_a_program(tmp_path: Path) -> None:
    # With the results in the answers to the creates there is nothing to poll, and the test is short.
    async with Emulator(image_seconds=0.1, dieyuyun=DieyuyunStyle(always_sync=True)) as emulator:
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLES / "gather.py"),
            "a fox",
            "a tram",
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
                **environment(emulator),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await program.communicate()

    assert (program.returncode, err) == (0, b"")
    assert sorted(out.decode().split()) == sorted(f"out/{path.name}" for path in (tmp_path / "out").iterdir())
    assert len(out.split()) == 2
