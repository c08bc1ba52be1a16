"""The README's code runs as it stands, and what it names is there."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from bide import errors
from bide.emulator import Emulator
from support.virtual_time import wait_for_ledgers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def heading(block: str) -> str:
    """The heading that *block* stands under, as a name for its test."""
    return re.findall(r"^#+ (.*)$", README[: README.index(block)], flags=re.MULTILINE)[-1]


PYTHON = [pytest.param(block, id=heading(block)) for block in blocks("python")]


class Awaited(ast.NodeTransformer):
    """`asyncio.run(x)` becomes `await x`: the test has a loop already, and it is in virtual time."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        return ast.Await(node.args[0]) if ast.unparse(node.func) == "asyncio.run" else node


async def executed(block: str) -> dict[str, Any]:
    """Run *block*, `await` at its top level allowed; returns the names that it leaves."""
    tree = ast.fix_missing_locations(Awaited().visit(ast.parse(block)))
    code = compile(tree, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "__main__"}
    running = eval(code, names)
    if inspect.isawaitable(running):
        await running
    return names


@pytest.fixture
async def emulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Emulator]:
    """An emulator that the environment points at, in a directory that is empty."""
    monkeypatch.chdir(tmp_path)
    wait_for_ledgers(monkeypatch)
    async with Emulator() as emulator:
        monkeypatch.setenv("DIEYUYUN_BASE_URL", emulator.dieyuyun_url)
        monkeypatch.setenv("DASHSCOPE_BASE_URL", emulator.dashscope_url)
        monkeypatch.setenv("DIEYUYUN_API_KEY", "any")
        monkeypatch.setenv("DASHSCOPE_API_KEY", "any")
        yield emulator


@pytest.mark.parametrize("block", PYTHON)
async def test_each_python_block_runs_against_the_emulator(block: str, emulator: Emulator) -> None:
    names = await executed(block)

    assert names
    assert emulator.stats()["creates_429"] == 0
    # No snippet leaves a task behind without having asked for it.
    assert {task.status for task in emulator.tasks()} <= {"completed", "SUCCEEDED", "CANCELED"}


async def test_the_first_block_saves_a_video(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await executed(blocks("python")[0])

    (saved,) = (tmp_path / "out").iterdir()
    assert saved.suffix == ".mp4"
    assert capsys.readouterr().out.splitlines()[-1] == f"out/{saved.name}"


async def test_the_web_service_answers(emulator: Emulator) -> None:
    """Its calls go through the app itself, with its lifespan round them."""
    (block,) = (block for block in blocks("python") if "FastAPI" in block)
    names = await executed(block)
    app = names["app"]

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://web.test") as browser,
    ):
        key = {"Idempotency-Key": "order-7"}
        first = await browser.post("/videos", json={"prompt": "a boat"}, headers=key)
        again = await browser.post("/videos", json={"prompt": "a boat"}, headers=key)
        await (await app.state.client.attach(ticket="order-7")).result()
        done = (await browser.get("/videos/order-7")).json()
        missing = await browser.get("/videos/order-8")

    assert first.status_code == again.status_code == 202
    assert done["status"] == "succeeded"
    assert done["urls"][0].startswith(emulator.asset_url)
    assert missing.status_code == 404
    assert emulator.stats()["creates"] == 1


def test_every_make_target_that_is_named_exists() -> None:
    named = set(re.findall(r"^make (\w+)", "\n".join(blocks("bash")), flags=re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    assert named >= {"demo", "test"}
    assert named <= targets


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"python ([\w/]+\.py)|\]\(([\w/]+\.\w+)\)", README)

    assert named
    assert [name for pair in named for name in pair if name and not (ROOT / name).exists()] == []


def test_the_table_of_errors_leaves_none_out() -> None:
    told = set(re.findall(r"`(\w+Error)`", README))
    roots = {"APIError", "TaskError"}  # what is raised are their children

    assert set(errors.__all__) - roots == told & set(errors.__all__)
