"""The commands, as a shell sees them: output, errors, exit statuses."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import signal
import subprocess
import sys

import httpx
import pytest

from bide import __version__
from bide.cli import _app, _emulator, main
from support.waits import A_MINUTE


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0

    assert capsys.readouterr().out == f"{__version__}\n"


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    shown = capsys.readouterr().out
    assert "demo" in shown
    assert "emulator" in shown


def test_without_arguments_the_program_s_own_are_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bide", "--version"])

    assert main() == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "nothing"),
        (["demo", "--speed", "fast"], "fast"),
        (["emulator", "--image-seconds", "soon"], "not a duration: 'soon'"),
        (["emulator", "--speed", "0"], "speed must be above 0"),
        (["emulator", "--video-concurrency", "0"], "a limit must be at least 1"),
    ],
)
def test_what_cannot_be_run_ends_with_2_and_says_why(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2

    assert told in capsys.readouterr().err


def test_a_port_that_is_taken_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["emulator", "--host", "192.0.2.1"]) == 1

    error = capsys.readouterr().err
    assert error.startswith("bide: ")
    assert error.count("\n") == 1


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("library", "command"),
    [("cyclopts", "--version"), ("rich", "demo"), ("aiohttp", "demo"), ("aiohttp", "emulator")],
)
def test_without_an_extra_one_line_names_it(library: str, command: str) -> None:
    extras = "cli,emulator" if library == "aiohttp" else "cli"
    program = f"import sys; sys.modules[{library!r}] = None; from bide.cli import main; sys.exit(main([{command!r}]))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        f"bide: this command needs {library}, which is not installed: pip install 'bide[{extras}]'\n",
    )


@pytest.mark.parametrize(
    ("missing", "told"), [("aiohttp", True), ("rich.table", True), (_app.__name__, False)]
)
def test_only_a_missing_extra_is_told_as_one(
    missing: str, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_arguments: object) -> int:
        raise ImportError("in other words") from ModuleNotFoundError(
            f"No module named {missing!r}", name=missing
        )

    monkeypatch.setattr(_app, "run", run)

    if told:
        assert main(["demo"]) == 2
        assert f"needs {missing.partition('.')[0]}" in capsys.readouterr().err
    else:
        with pytest.raises(ImportError, match="in other words"):
            main(["demo"])


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_app, "run", interrupted)

    assert main(["demo"]) == 130


def test_the_package_runs_as_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bide", "--version"])

    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bide", run_name="__main__")

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.real_time
async def test_a_signal_ends_the_emulator_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    serving = asyncio.create_task(_emulator.serve(port=0))
    while "_emulator/stats" not in (shown := capsys.readouterr().out):
        await asyncio.sleep(0.01)
    (url,) = re.findall(r"DIEYUYUN_BASE_URL=(\S+)", shown)

    signal.raise_signal(signal.SIGTERM)

    assert await asyncio.wait_for(serving, A_MINUTE) == 0
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/_emulator/stats")


@pytest.mark.real_time
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_emulator_tells_its_urls_answers_and_ends_on_a_signal(number: signal.Signals) -> None:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bide", "emulator", "--image-concurrency", "1", "--retry-after", "7"),
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert program.stdout is not None
    shown = (await asyncio.wait_for(program.stdout.readuntil(b"/_emulator/stats\n"), A_MINUTE)).decode()
    urls = dict(re.findall(r"(\w+_BASE_URL)=(\S+)", shown))
    async with httpx.AsyncClient(trust_env=False, headers={"Authorization": "Bearer any"}) as client:
        answers = [
            await client.post(
                f"{urls['DIEYUYUN_BASE_URL']}/v1/images/generations",
                json={"model": "gpt-image-2", "prompt": "a cat", "async": True},
            )
            for _ in range(2)
        ]
        listed = await client.get(f"{urls['DASHSCOPE_BASE_URL']}/tasks")

    program.send_signal(number)
    _, error = await asyncio.wait_for(program.communicate(), A_MINUTE)

    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].headers["retry-after"] == "7"
    assert listed.json()["total"] == 0
    assert (program.returncode, error) == (0, b"")
