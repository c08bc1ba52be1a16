"""The example of a web service, on real sockets and a ledger on disk: in virtual time where its answers count, as
processes of its own where workers, deploys and signals do."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import socket
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx
import pytest
import uvicorn

from bide import LedgerError, TaskHandle
from bide.emulator import Emulator
from support.emulated import client_at, truth, video
from support.forked_programs import nursery_for
from support.virtual_time import wait_for_ledgers
from support.waits import A_MINUTE, until
from test_examples import EXAMPLES, environment, loaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from types import ModuleType

    SiteAt: TypeAlias = Callable[..., AbstractAsyncContextManager["Site"]]

BEHIND_THREE = 50


class Site:
    """The app, served in the loop of the test, and a browser that is at it."""

    def __init__(self, module: ModuleType, url: str) -> None:
        self.module = module
        self.state = module.app.state
        self.browser = httpx.AsyncClient(base_url=url, timeout=None)

    async def post(self, prompt: str = "a boat", **headers: str) -> httpx.Response:
        return await self.browser.post("/videos", json={"prompt": prompt}, headers=headers)

    async def state_of(self, ticket: str) -> dict[str, Any]:
        return (await self.browser.get(f"/videos/{ticket}")).json()

    async def ended(self, ticket: str) -> dict[str, Any]:
        while not (state := await self.state_of(ticket))["final"]:
            await asyncio.sleep(1)
        return state

    async def changes(self, ticket: str) -> list[dict[str, Any]]:
        """All that the stream of *ticket* shows until it ends."""
        return [data_of(text) for text in await self.lines(ticket) if text.startswith("data: ")]

    async def lines(self, ticket: str) -> list[str]:
        async with self.browser.stream("GET", f"/videos/{ticket}/events") as stream:
            return [line async for line in stream.aiter_lines()]


def data_of(line: str) -> dict[str, Any]:
    return json.loads(line.removeprefix("data: "))


@pytest.fixture
def site_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SiteAt:
    """Serves the app for an emulator, on a ledger that is the test's own."""

    wait_for_ledgers(monkeypatch)

    @asynccontextmanager
    async def open_site(emulator: Emulator) -> AsyncIterator[Site]:
        for name, value in {**environment(emulator), "LEDGER": str(tmp_path / "videos.db")}.items():
            monkeypatch.setenv(name, value)
        module = loaded("fastapi_app")
        server = uvicorn.Server(uvicorn.Config(module.app, port=0, log_config=None))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.1)
        site = Site(module, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        try:
            async with site.browser:
                yield site
        finally:
            server.should_exit = True
            await serving

    return open_site


def most_in_flight(emulator: Emulator) -> int:
    return max(kinds["video"] for kinds in emulator.stats()["max_in_flight"].values())


# Streams --------------------------------------------------------------------------------------------------


async def test_each_stream_shows_its_video_to_the_end_and_ends_then(site_at: SiteAt) -> None:
    async with Emulator(video_seconds=10) as emulator, site_at(emulator) as site:
        answers = await asyncio.gather(*(site.post(f"boat {n}") for n in range(6)))
        tickets = [answer.json()["ticket"] for answer in answers]
        seen = await asyncio.gather(*(site.changes(ticket) for ticket in tickets))

        assert [answer.status_code for answer in answers] == [202] * 6
        assert [answer.headers["location"] for answer in answers] == [f"/videos/{each}" for each in tickets]
        for ticket, changes in zip(tickets, seen, strict=True):
            assert {state["ticket"] for state in changes} == {ticket}
            assert [state["final"] for state in changes] == [False] * (len(changes) - 1) + [True]
            assert changes[-1]["status"] == "succeeded"
        assert any(changes[0]["status"] == "waiting" for changes in seen)
        assert (emulator.stats()["creates"], most_in_flight(emulator)) == (6, 3)
        assert emulator.stats()["creates_429"] == 0


async def test_a_stream_has_what_proxies_and_browsers_need(site_at: SiteAt) -> None:
    async with Emulator(video_seconds=60, queue_seconds=60) as emulator, site_at(emulator) as site:
        ticket = (await site.post()).json()["ticket"]
        while (await site.state_of(ticket))["status"] != "queued":
            await asyncio.sleep(0.1)
        async with site.browser.stream("GET", f"/videos/{ticket}/events") as stream:
            lines = stream.aiter_lines()
            now = [await anext(lines) for _ in range(4)]
            began = asyncio.get_running_loop().time()
            silence = await anext(lines)
            waited = asyncio.get_running_loop().time() - began

        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        assert (now[:2], data_of(now[2])["status"], now[3]) == (["id: queued", "event: video"], "queued", "")
        assert silence == ": nothing new"
        assert waited == pytest.approx(15, abs=0.5)


async def test_a_browser_comes_back_for_the_state_now_and_not_after_it_has_seen_the_end(
    site_at: SiteAt,
) -> None:
    async with Emulator(video_seconds=10) as emulator, site_at(emulator) as site:
        ticket = (await site.post()).json()["ticket"]
        await site.ended(ticket)
        path = f"/videos/{ticket}/events"

        missed = await site.browser.get(path, headers={"Last-Event-ID": "running"})
        again = await site.browser.get(path, headers={"Last-Event-ID": "succeeded"})

    assert missed.text.startswith("id: succeeded\nevent: video\ndata: {")
    assert missed.text.count("data: ") == 1
    assert (again.status_code, again.content) == (204, b"")


async def test_a_slow_reader_misses_what_was_overtaken_and_not_the_end() -> None:
    streams = loaded("fastapi_app").Streams()
    async with Emulator(video_seconds=10) as emulator, client_at(emulator) as client:
        handle = await client.submit(video())
        stream = streams.of(handle)
        opening = await anext(stream)
        await handle.result()
        rest = [change async for change in stream]

    assert opening.startswith(("id: waiting\n", "id: submitting\n"))
    assert [change.split("\n")[0] for change in rest] == ["id: succeeded"]


async def test_a_stream_goes_on_after_a_fault_and_ends_with_the_client() -> None:
    streams = loaded("fastapi_app").Streams()
    async with Emulator(video_seconds=600) as emulator, client_at(emulator) as client:
        handle = await client.submit(video())
        await handle.accepted()
        stream = streams.of(handle)
        assert (await anext(stream)).startswith("id: queued\n")
        emulator.fault(on="query", status=401)
        while (change := await anext(stream)).startswith(": "):
            pass
        assert change.startswith("id: running\n")
        await client.aclose()

        assert [change async for change in stream] == []


async def test_a_stream_that_has_just_told_of_a_fault_ends_with_the_server() -> None:
    streams = loaded("fastapi_app").Streams()
    async with Emulator(video_seconds=600) as emulator, client_at(emulator) as client:
        handle = await client.submit(video())
        await handle.accepted()
        emulator.fault(on="query", status=401)
        stream = streams.of(handle)
        while not (await anext(stream)).startswith(": "):
            pass
        streams.close()

        assert [change async for change in stream] == []


async def test_all_streams_end_when_the_server_does() -> None:
    streams = loaded("fastapi_app").Streams()
    async with Emulator(video_seconds=600) as emulator, client_at(emulator) as client:
        handle = await client.submit(video())
        await handle.accepted()
        waiting, sending = streams.of(handle), streams.of(handle)
        await anext(waiting)
        await anext(sending)
        rest = asyncio.create_task(anext(waiting, None))
        await asyncio.sleep(1)
        streams.close()

        # The one that waits is told so by a last comment.
        assert (await rest, await anext(waiting, None)) == (": nothing new\n\n", None)
        assert await anext(sending, None) is None
        assert [change async for change in streams.of(handle)] == []


async def test_readers_that_stall_or_vanish_disturb_nobody(
    site_at: SiteAt, caplog: pytest.LogCaptureFixture
) -> None:
    async with Emulator(video_seconds=10) as emulator, site_at(emulator) as site:
        tickets = [(await site.post(f"boat {n}")).json()["ticket"] for n in range(6)]
        port = site.browser.base_url.port
        stalled, vanished = [await reader_that_never_reads(port, tickets[-1]) for _ in range(2)]
        vanished.transport.abort()

        seen = await asyncio.gather(*(site.changes(ticket) for ticket in tickets))
        stalled.transport.abort()

        assert all(changes[-1]["status"] == "succeeded" for changes in seen)
        assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def reader_that_never_reads(port: int | None, ticket: str) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(f"GET /videos/{ticket}/events HTTP/1.1\r\nHost: site\r\n\r\n".encode())
    await reader.readexactly(1)
    return writer


# Orders ---------------------------------------------------------------------------------------------------


async def test_the_same_idempotency_key_gives_the_same_ticket_and_buys_once(site_at: SiteAt) -> None:
    key = {"Idempotency-Key": "order-1042"}
    async with Emulator(video_seconds=10) as emulator, site_at(emulator) as site:
        at_once = await asyncio.gather(*(site.post("a boat", **key) for _ in range(5)))
        other = await site.post("another boat", **key)
        state = await site.ended("order-1042")
        afterwards = await site.post("a boat", **key)

        assert {answer.json()["ticket"] for answer in at_once} == {"order-1042"}
        assert other.status_code == 422
        assert "another request" in other.json()["detail"]
        assert (afterwards.status_code, afterwards.json()) == (202, state)
        assert state["urls"][0].startswith(emulator.asset_url)
        assert emulator.stats()["creates"] == 1


async def test_looking_at_a_video_asks_the_service_nothing(site_at: SiteAt) -> None:
    async with Emulator() as emulator, site_at(emulator) as site:
        ticket = (await site.post()).json()["ticket"]
        states = [await site.state_of(ticket) for _ in range(20)]

        assert {state["ticket"] for state in states} == {ticket}
        assert emulator.stats()["queries"] == 0


async def test_a_video_can_be_cancelled_until_it_runs(site_at: SiteAt) -> None:
    async with Emulator(queue_seconds=30) as emulator, site_at(emulator) as site:
        queued, running, _, waiting = [(await site.post(f"boat {n}")).json()["ticket"] for n in range(4)]
        while (await site.state_of(queued))["status"] != "queued":
            await asyncio.sleep(0.1)
        withdrawn = await site.browser.delete(f"/videos/{waiting}")
        stopped = await site.browser.delete(f"/videos/{queued}")
        while (await site.state_of(running))["status"] != "running":
            await asyncio.sleep(1)
        late = await site.browser.delete(f"/videos/{running}")

        assert (withdrawn.status_code, withdrawn.json()["status"]) == (200, "cancelled")
        assert stopped.status_code == 200
        assert (await site.ended(queued))["status"] == "cancelled"
        assert (late.status_code, late.json()["detail"]) == (409, "too late; last seen running")
        assert emulator.stats()["creates"] == 3


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param({}, {}, id="no prompt"),
        pytest.param({"prompt": ""}, {}, id="an empty prompt"),
        pytest.param({"prompt": "a boat", "seconds": 5}, {}, id="a field that is not known"),
        pytest.param({"prompt": "a boat", "duration": -1}, {}, id="no duration"),
        pytest.param({"prompt": "a boat", "model": "the dearest"}, {}, id="a model that is not offered"),
        pytest.param({"prompt": "x" * 30_000_000}, {}, id="a huge prompt"),
        pytest.param({"prompt": "a \ud83d boat"}, {}, id="a prompt that is no text"),
        pytest.param({"prompt": "a boat", "\ud83d": 1}, {}, id="a field that is no text"),
        pytest.param({"prompt": "a boat"}, {"Idempotency-Key": "../etc"}, id="a key that is no ticket"),
    ],
)
async def test_bad_input_is_refused_and_buys_nothing(
    body: dict[str, object], headers: dict[str, str], site_at: SiteAt
) -> None:
    async with Emulator() as emulator, site_at(emulator) as site:
        typed = {**headers, "Content-Type": "application/json"}
        answer = await site.browser.post("/videos", content=json.dumps(body), headers=typed)

        assert (answer.status_code, bool(answer.json()["detail"])) == (422, True)
        assert len(answer.content) < 2000, "it does not echo what came"
        assert emulator.stats()["creates"] == 0


async def test_a_burst_opens_no_more_videos_than_there_is_room_for(
    site_at: SiteAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Emulator() as emulator, site_at(emulator) as site:
        monkeypatch.setattr(site.module, "MAX_OPEN", 5)

        answers = await asyncio.gather(*(site.post() for _ in range(60)))

        assert sorted({answer.status_code for answer in answers}) == [202, 503]
        assert sum(answer.status_code == 202 for answer in answers) <= 5


@pytest.mark.parametrize("ticket", ["order-8", "%00", "..%2Fetc", "%ED%A0%BD", "x" * 5000])
async def test_an_unknown_ticket_is_not_found(ticket: str, site_at: SiteAt) -> None:
    async with Emulator() as emulator, site_at(emulator) as site:
        path = f"/videos/{ticket}"
        answers = [
            await site.browser.get(path),
            await site.browser.delete(path),
            await site.browser.get(f"{path}/events"),
        ]

        assert [answer.status_code for answer in answers] == [404] * 3


async def test_a_ticket_of_another_key_is_not_shown_nor_taken(
    site_at: SiteAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"Idempotency-Key": "order-1"}
    async with Emulator() as emulator:
        async with site_at(emulator) as site:
            await site.post(**key)
        monkeypatch.setattr("test_fastapi_app.environment", lambda _: {"DASHSCOPE_API_KEY": "another"})
        async with site_at(emulator) as site:
            shown = await site.browser.get("/videos/order-1")
            posted = await site.post(**key)

    assert (shown.status_code, posted.status_code) == (404, 422)


async def test_what_cannot_be_done_now_may_be_tried_again(
    site_at: SiteAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full_disk(*_: object, **__: object) -> None:
        raise LedgerError("the disk is full")

    async with Emulator() as emulator, site_at(emulator) as site:
        with monkeypatch.context() as patch:
            patch.setattr(site.state.client, "submit", full_disk)
            unwritten = await site.post()
        monkeypatch.setattr(site.module, "MAX_OPEN", 1)
        await site.post(**{"Idempotency-Key": "order-1"})
        crowded = await site.post()
        known = await site.post(**{"Idempotency-Key": "order-1"})
        await site.state.client.aclose()
        closed = await site.post()

        for refused in (unwritten, crowded, closed):
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "disk" not in unwritten.text
        assert known.status_code == 202


async def test_what_has_ended_takes_no_memory_and_is_still_answered(site_at: SiteAt) -> None:
    async with Emulator(video_seconds=10) as emulator, site_at(emulator) as site:
        tickets = [(await site.post(f"boat {n}")).json()["ticket"] for n in range(4)]
        for ticket in tickets:
            await site.ended(ticket)
        gc.collect()
        held = [each for each in gc.get_objects() if isinstance(each, TaskHandle) and each.ticket in tickets]
        states = [await site.state_of(ticket) for ticket in tickets]

        assert held == []
        assert [state["status"] for state in states] == ["succeeded"] * 4
        assert all(state["urls"] for state in states)


# As processes of their own --------------------------------------------------------------------------------

FLOOR = 0.2  # seconds between two looks: those of the pace are for services that take minutes
HURRIED = f"""
from functools import partial
import fastapi_app
from bide import Pace
fastapi_app.DashScope = partial(fastapi_app.DashScope, video_floor={FLOOR})
fastapi_app.Client = partial(fastapi_app.Client, pace=Pace.fixed({FLOOR}))
app = fastapi_app.app
"""
IMPORTS = """
import os, sys
import fastapi, uvicorn.lifespan.on, uvicorn.logging, uvicorn.loops.auto, uvicorn.main, uvicorn.protocols.http.auto
import bide.ledgers.sqlite
from bide import Client, DashScope, Pace, SQLiteLedger
"""
UVICORN = """
sys.path[:0] = [os.environ["PYTHONPATH"]]
uvicorn.main.main()
"""
SERVED = "http://127\\.0\\.0\\.1:(\\d+)"


class Worker:
    """A server process, and a browser that is at it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        # `uvicorn --workers` names its address before anybody listens there.
        patient = httpx.AsyncHTTPTransport(retries=5)
        self.browser = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=A_MINUTE, transport=patient
        )

    async def post(self, prompt: str = "a boat", **headers: str) -> str:
        answer = await self.browser.post("/videos", json={"prompt": prompt}, headers=headers)
        assert answer.status_code == 202, answer.text
        return answer.json()["ticket"]

    async def state_of(self, ticket: str) -> dict[str, Any]:
        answer = await self.browser.get(f"/videos/{ticket}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ended(self, ticket: str) -> dict[str, Any]:
        """The last state that the stream of *ticket* shows."""
        answer = await self.browser.get(f"/videos/{ticket}/events", timeout=2 * A_MINUTE)
        return data_of([line for line in answer.text.splitlines() if line.startswith("data: ")][-1])

    async def end(self, number: int = signal.SIGTERM) -> str:
        """Send it a signal; what it has said since it began, once it is gone."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        said = (await self.process.stderr.read()).decode()
        await self.process.wait()
        await self.browser.aclose()
        return said


class Service:
    """Server processes on one ledger and one key."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        (folder / "hurried.py").write_text(HURRIED)
        self.folder = folder
        # Without measuring coverage: that of the workers tells nothing new, and start-up takes its time.
        plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        self._environment = {
            **plain,
            **environment(emulator),
            "LEDGER": str(folder / "videos.db"),
            "PORT": "0",
            "PYTHONPATH": str(EXAMPLES),
        }
        self._workers: list[Worker] = []

    async def worker(self, *options: str) -> Worker:
        """A new one, with uvicorn's *options*; without any it is forked from one that has imported everything."""
        words = ("--app-dir", str(self.folder), "hurried:app", "--port", "0", *options)
        if options:
            return await self.process(sys.executable, "-m", "uvicorn", *words)
        outer = ((name, os.environ[name]) for name in ("PATH", "LANG") if name in os.environ)
        return await self.process(*nursery_for(IMPORTS, UVICORN, *outer).command(*words))

    async def workers(self, count: int) -> list[Worker]:
        return await asyncio.gather(*(self.worker() for _ in range(count)))

    async def process(self, *command: str) -> Worker:
        """What *command* serves."""
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # so that all it has started can be ended with it
        )
        assert process.stderr is not None
        try:
            shown = (await process.stderr.readuntil(b"Press CTRL+C")).decode()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        port = re.search(SERVED, shown)
        assert port is not None
        self._workers.append(Worker(process, int(port[1])))
        return self._workers[-1]

    async def aclose(self) -> None:
        for worker in self._workers:
            if worker.process.returncode is None:
                os.killpg(worker.process.pid, signal.SIGKILL)
                await worker.end(signal.SIGKILL)


@asynccontextmanager
async def service_at(emulator: Emulator, folder: Path) -> AsyncIterator[Service]:
    service = Service(emulator, folder)
    try:
        yield service
    finally:
        await service.aclose()


@pytest.mark.real_time
async def test_any_worker_answers_for_any_ticket(tmp_path: Path) -> None:
    async with (
        Emulator(video_seconds=1, queue_seconds=0.5) as emulator,
        service_at(emulator, tmp_path) as service,
    ):
        one, two = workers = await service.workers(2)
        ticket = await one.post("a boat")
        queued = await one.post("a fox [seconds 60] [queue 50]")
        at_once = [(await worker.state_of(ticket))["ticket"] for worker in workers]
        seen = await asyncio.gather(*(worker.ended(ticket) for worker in workers))
        cancelled = await two.browser.delete(f"/videos/{queued}")
        stopped = await asyncio.gather(*(worker.ended(queued) for worker in workers))
        states = [await worker.state_of(ticket) for worker in workers]

        assert at_once == [ticket] * 2
        assert [state["status"] for state in seen] == ["succeeded"] * 2
        assert (cancelled.status_code, [state["status"] for state in stopped]) == (200, ["cancelled"] * 2)
        assert states[0]["urls"]
        assert states[0] == states[1]
        assert emulator.stats()["creates"] == 2


@pytest.mark.real_time
async def test_twelve_videos_over_three_workers_keep_within_the_three_that_the_key_allows(
    tmp_path: Path,
) -> None:
    async with Emulator(video_seconds=0.3) as emulator, service_at(emulator, tmp_path) as service:
        workers = await service.workers(3)
        tickets = await asyncio.gather(*(workers[n % 3].post(f"boat {n}") for n in range(12)))
        states = await asyncio.gather(
            *(workers[(n + 1) % 3].ended(ticket) for n, ticket in enumerate(tickets))
        )

        assert Counter(state["status"] for state in states) == {"succeeded": 12}
        assert len({state["task_id"] for state in states}) == 12
        assert (emulator.stats()["creates"], emulator.stats()["creates_429"]) == (12, 0)
        assert most_in_flight(emulator) == 3


@pytest.mark.real_time
async def test_the_same_idempotency_key_sent_to_two_workers_at_once_buys_once(tmp_path: Path) -> None:
    async with Emulator(video_seconds=0.3) as emulator, service_at(emulator, tmp_path) as service:
        workers = await service.workers(2)
        keys = [f"order-{n}" for n in range(5)]
        tickets = await asyncio.gather(
            *(worker.post("a boat", **{"Idempotency-Key": key}) for key in keys for worker in workers * 2)
        )
        states = await asyncio.gather(*(workers[0].ended(key) for key in keys))
        afterwards = [await worker.post("a boat", **{"Idempotency-Key": keys[0]}) for worker in workers]

        assert Counter(tickets) == dict.fromkeys(keys, 4)
        assert [state["status"] for state in states] == ["succeeded"] * 5
        assert afterwards == [keys[0]] * 2
        assert emulator.stats()["creates"] == 5


@pytest.mark.real_time
async def test_a_rolling_deploy_loses_nothing_and_buys_nothing_twice(tmp_path: Path) -> None:
    """One worker ends before its successor begins, one after it, while some videos wait, some creates are not answered
    yet, and some videos are being made."""
    async with Emulator(video_seconds=0.8) as emulator, service_at(emulator, tmp_path) as service:
        emulator.fault(on="create", times=4, delay=0.5)
        old = await service.workers(2)
        tickets = await asyncio.gather(*(old[n % 2].post(f"boat {n}") for n in range(8)))
        await until(lambda: emulator.stats()["creates"] >= 1)
        states = await asyncio.gather(*(old[0].state_of(ticket) for ticket in tickets))
        statuses = {state["status"] for state in states}
        said = await old[0].end()
        tickets.append(await old[1].post("boat 8"))
        new = await service.workers(2)
        tickets.append(await new[0].post("boat 9"))
        said += await old[1].end()
        states = await asyncio.gather(*(new[n % 2].ended(ticket) for n, ticket in enumerate(tickets)))

        assert statuses >= {"waiting", "submitting"}
        assert "Traceback" not in said
        assert Counter(state["status"] for state in states) == {"succeeded": 10}
        assert (emulator.stats()["creates"], emulator.stats()["creates_429"]) == (10, 0)
        assert {state["task_id"] for state in states} == {task.id for task in emulator.tasks()}
        assert most_in_flight(emulator) == 3


@pytest.mark.real_time
async def test_the_others_answer_for_a_worker_that_was_killed_and_go_on_with_its_videos(
    tmp_path: Path,
) -> None:
    """One of its creates has arrived and was not answered yet: it is found at the service, not sent again."""
    async with Emulator(video_seconds=1) as emulator, service_at(emulator, tmp_path) as service:
        emulator.fault(on="create", delay=60, match="an owl")
        doomed, *others = await service.workers(3)
        prompts = ["a boat", "a fox", "an owl", "a tram"]
        tickets = [await doomed.post(prompt) for prompt in prompts]
        await until(lambda: emulator.stats()["creates"] >= 3)
        await doomed.end(signal.SIGKILL)
        at_once = [(await others[0].state_of(ticket))["ticket"] for ticket in tickets]
        states = await asyncio.gather(*(others[n % 2].ended(ticket) for n, ticket in enumerate(tickets)))

        assert at_once == tickets
        assert [state["status"] for state in states] == ["succeeded"] * 4
        assert {state["task_id"] for state in states} == {task.id for task in emulator.tasks()}
        assert (emulator.stats()["creates"], emulator.stats()["creates_429"]) == (4, 0)
        assert most_in_flight(emulator) == 3


@pytest.mark.real_time
async def test_the_workers_of_one_uvicorn_share_all_and_results_stay_after_a_restart(tmp_path: Path) -> None:
    async with Emulator(video_seconds=0.3) as emulator, service_at(emulator, tmp_path) as service:
        before = await service.worker("--workers", "2", "--port", str(free_port()))
        for _ in range(2):
            await before.process.stderr.readuntil(b"startup complete")
        # A connection of its own each time: whichever worker takes it answers.
        before.browser.headers["Connection"] = "close"
        tickets = [await before.post(f"boat {n}", **{"Idempotency-Key": f"order-{n}"}) for n in range(4)]
        states = await asyncio.gather(*(before.ended(ticket) for ticket in tickets))
        said = await before.end()
        after = await service.worker()
        again = [await after.post(f"boat {n}", **{"Idempotency-Key": f"order-{n}"}) for n in range(4)]
        kept = [await after.state_of(ticket) for ticket in tickets]

        assert "Traceback" not in said
        assert again == tickets
        assert kept == states
        assert [state["status"] for state in kept] == ["succeeded"] * 4
        assert (emulator.stats()["creates"], most_in_flight(emulator)) == (4, 3)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.real_time
async def test_fifty_posts_at_once_wait_for_none_of_the_three_slots_that_are_busy(tmp_path: Path) -> None:
    """No slot comes free: who waited for one would get no answer. `benchmarks/web_service.py` has the figure."""
    async with Emulator(video_seconds=600) as emulator, service_at(emulator, tmp_path) as service:
        worker = await service.worker()
        tickets = await asyncio.gather(*(worker.post(f"boat {n}") for n in range(BEHIND_THREE)))
        states = Counter([(await worker.state_of(ticket))["status"] for ticket in tickets])

        assert len(set(tickets)) == BEHIND_THREE
        assert states["waiting"] >= BEHIND_THREE - 3
        assert emulator.stats()["creates"] <= 3
        assert emulator.stats()["creates_429"] == 0


@pytest.mark.real_time
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            (sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_app:app", "--port", "0"),
            id="uvicorn",
        ),
        pytest.param((sys.executable, str(EXAMPLES / "fastapi_app.py")), id="program"),
    ],
)
async def test_sigterm_ends_the_server_with_streams_open_and_leaves_the_tasks_alone(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    async with Emulator(video_seconds=600) as emulator, service_at(emulator, tmp_path) as service:
        worker = await service.process(*command)
        tickets = [await worker.post(f"boat {n}") for n in range(5)]
        paths = [f"/videos/{ticket}/events" for ticket in (tickets[0], tickets[-1])]
        async with (
            worker.browser.stream("GET", paths[0]) as one,
            worker.browser.stream("GET", paths[1]) as two,
        ):
            await until(lambda: emulator.stats()["creates"] >= 3)
            worker.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(A_MINUTE):  # the videos would take ten
                rests = await asyncio.gather(one.aread(), two.aread())
                said = await worker.end()

        assert all(rest.endswith(b"\n\n") for rest in rests)
        assert {truth(emulator, task.id).status for task in emulator.tasks()} <= {"PENDING", "RUNNING"}
        assert emulator.stats()["creates"] == 3
        assert "Traceback" not in said
