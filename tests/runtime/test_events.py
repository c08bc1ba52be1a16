"""What a client reports: the hook, the log, the statistics, and the command for a support ticket."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import attrs
import httpx
import pytest

from bide import (
    BideError,
    Client,
    Dieyuyun,
    Event,
    EventName,
    ImageRequest,
    LedgerError,
    Limits,
    MemoryLedger,
    RateLimitError,
    ServerError,
    TaskFailedError,
    TaskStatus,
    VideoRequest,
)
from support.emulated import KEY, THREE, client_at, emulator_with, image, now, video
from support.toy import Toy, ToyService

RUNNING, DONE = {"status": "running"}, {"status": "succeeded"}


def names(events: list[Event]) -> list[str]:
    return [str(event.name) for event in events]


# The hook ----------------------------------------------------------------------------------------------------


async def test_the_hook_gets_each_step_of_a_task_once() -> None:
    events: list[Event] = []
    service = ToyService(queries=[RUNNING, RUNNING, {"status": "running", "progress": 40}, DONE])
    async with service.client(on_event=events.append) as client:
        handle = await client.submit(image(), ticket="mine")
        await handle.result()

    assert names(events) == [
        *("waiting", "submitting", "submitted"),
        *("polled", "changed"),
        "polled",
        *("polled", "changed"),
        *("polled", "final"),
    ]
    assert {event.ticket for event in events} == {"mine"}
    assert [event.task_id for event in events[:3]] == [None, None, "toy-1"]
    assert {(event.provider, event.kind) for event in events} == {("toy", "image")}
    assert events[0].key is None
    assert events[1].key == events[-1].key is not None
    assert [event.task.status for event in events[:3]] == ["waiting", "submitting", "queued"]
    assert events[-3].task.progress == 40
    assert events[-1].task is handle.task


async def test_the_hook_gets_a_frozen_record_that_pickles_and_names_no_key() -> None:
    events: list[Event] = []
    async with ToyService(queries=[DONE]).client(on_event=events.append, api_key=KEY) as client:
        await client.run(image())

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        events[0].name = EventName.FINAL  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(events)) == events
    assert KEY not in repr(events) + "".join(map(str, events))
    assert all(event.at.tzinfo is UTC and event.at <= datetime.now(UTC) for event in events)


async def test_a_429_on_create_is_a_pause_that_says_for_how_long() -> None:
    events: list[Event] = []
    busy = httpx.Response(429, headers={"retry-after": "7"}, json={})
    async with ToyService(creates=[busy, {"status": "queued"}], queries=[DONE]).client(
        on_event=events.append
    ) as client:
        await client.run(image())

        statistics = await client.statistics()

    paused = next(event for event in events if event.name is EventName.PAUSED)
    assert names(events)[:5] == ["waiting", "submitting", "waiting", "paused", "submitting"]
    assert 7 <= (paused.seconds or 0) <= 9
    assert isinstance(paused.error, ServerError)
    assert paused.key is not None
    assert statistics.pauses == 1


async def test_a_service_that_cannot_be_reached_is_a_pause_too() -> None:
    events: list[Event] = []
    async with ToyService(
        creates=[httpx.ConnectError("no route"), {"status": "queued"}], queries=[DONE]
    ).client(on_event=events.append) as client:
        await client.run(image())

    (paused,) = [event for event in events if event.name is EventName.PAUSED]
    assert paused.seconds
    assert "no route" in str(paused)


async def test_a_429_on_a_query_is_a_failed_poll_and_a_pause_of_the_queries() -> None:
    events: list[Event] = []
    async with emulator_with(video_seconds=12) as emulator:
        emulator.fault(on="query", status=429, headers={"retry-after": "9"})
        async with client_at(emulator, on_event=events.append) as client:
            handle = await client.submit(video())
            while "paused" not in names(events):
                await asyncio.sleep(0.1)
            assert 0 < (await client.statistics()).queries_paused_for <= 10
            await handle.result()

    polled, paused = [event for event in events if event.error is not None]
    assert (polled.name, paused.name) == (EventName.POLLED, EventName.PAUSED)
    assert isinstance(polled.error, RateLimitError)
    assert 9 <= (paused.seconds or 0) <= 10
    assert paused.task_id == handle.task_id


async def test_saved_files_are_an_event(tmp_path: Path) -> None:
    events: list[Event] = []
    async with emulator_with(image_seconds=1) as emulator:
        async with client_at(emulator, on_event=events.append) as client:
            handle = await client.submit(image(n=2))
            files = await handle.save(tmp_path)
            statistics = await client.statistics()

    assert events[-1].name is EventName.SAVED
    assert events[-1].files == tuple(files)
    assert events[-1].kind == "image"
    assert (events[-1].seconds or 0) >= 0
    assert (statistics.saved, statistics.succeeded) == (2, 1)


async def test_a_hook_that_raises_stops_nothing_and_is_logged_once_in_full(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(event: Event) -> None:
        raise KeyError("mine")

    with caplog.at_level(logging.ERROR, logger="bide"):
        async with ToyService(queries=[DONE]).client(on_event=broken) as client:
            await client.run(image())

    (line,) = caplog.records
    assert "on_event raised" in line.getMessage()
    assert line.exc_info is not None


def test_a_hook_that_would_have_to_be_awaited_is_refused() -> None:
    async def hook(event: Event) -> None: ...

    for wrong in (hook, "print"):
        with pytest.raises(TypeError, match="on_event must be a plain function"):
            Client(Toy(), api_key="sk", on_event=wrong)  # type: ignore[arg-type]


# The log -----------------------------------------------------------------------------------------------------


def run_with(tmp_path: Path, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *program* on an emulator of its own, in a process of its own."""
    whole = f"""
import asyncio
from bide import Client, DashScope, ImageRequest
from bide.emulator import Emulator
{program}
async def main():
    async with Emulator(image_seconds=0.1) as emulator:
        async with Client(DashScope(base_url=emulator.dashscope_url, image_floor=0.2), api_key={KEY!r}) as client:
            handle = await client.submit(ImageRequest("a cat", model="wan2.5-t2i-preview"))
            await handle.save({str(tmp_path)!r})
asyncio.run(main())
"""
    return subprocess.run(  # noqa: PLW1510 - the caller checks it
        [sys.executable, "-c", whole], capture_output=True, text=True, env=environment, timeout=60
    )


@pytest.mark.real_time
async def test_the_environment_turns_on_the_log(tmp_path: Path) -> None:
    ended = run_with(tmp_path, "", BIDE_LOG="debug")

    assert ended.returncode == 0
    words = [
        line.split(" bide: ")[1].split()[3]
        for line in ended.stderr.splitlines()
        if " bide: dashscope" in line
    ]
    assert words[:3] == ["waiting", "submitting", "submitted"]
    assert [word for word in words if word != "saving"][-2:] == ["final", "saved"]
    assert "polled" in words
    assert "GET http://127.0.0.1" in ended.stderr, "each call is a line"
    assert KEY not in ended.stderr
    assert "?" not in ended.stderr.replace("?…", ""), "no query string, which may be a signature"


@pytest.mark.real_time
async def test_an_application_with_a_log_of_its_own_gets_each_line_once(tmp_path: Path) -> None:
    own = "import logging, sys; logging.basicConfig(stream=sys.stdout, format='own %(message)s')"

    ended = run_with(tmp_path, own, BIDE_LOG="info")

    assert ended.stderr == ""
    lines = [line for line in ended.stdout.splitlines() if line.startswith("own dashscope")]
    assert [line.split()[4] for line in lines][:3] == ["waiting", "submitting", "submitted"]
    assert " polled " not in ended.stdout


@pytest.mark.real_time
async def test_without_the_environment_nothing_is_printed(tmp_path: Path) -> None:
    ended = run_with(tmp_path, "")

    assert (ended.stdout, ended.stderr) == ("", "")


def test_an_invalid_level_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BIDE_LOG", "loud")

    Client(Toy(), api_key="sk")

    assert "expected one of debug, info, warning, error" in caplog.text


async def test_what_waiters_get_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with ToyService(queries=[403]).client() as client:
        handle = await client.submit(image())
        with pytest.raises(BideError):
            await handle.result()

    assert f"{handle.ticket}: denied" in caplog.text


async def test_an_event_reads_as_a_line() -> None:
    events: list[Event] = []
    async with emulator_with(image_seconds=5) as emulator:
        async with client_at(emulator, on_event=events.append) as client:
            handle = await client.submit(
                ImageRequest("[fail DataInspectionFailed]", model="any"), ticket="t-1"
            )
            with pytest.raises(TaskFailedError):
                await handle.result()

    assert str(events[0]) == "dashscope t-1 - waiting waiting"
    assert str(events[-1]).startswith(f"dashscope t-1 {handle.task_id} final failed (DataInspectionFailed: ")


# The statistics ----------------------------------------------------------------------------------------------


async def test_the_statistics_show_how_submissions_have_ended() -> None:
    async with emulator_with(concurrency=3, image_seconds=2) as emulator:
        async with client_at(emulator, limits=THREE) as client:
            prompts = ["one", "two", "[fail InternalError]", "[refuse InvalidParameter]"]
            await client.gather(*map(image, prompts), return_exceptions=True)
            handle = await client.submit(image("[queue 60]"))
            await handle.accepted()
            await handle.cancel()
            with pytest.raises(BideError):
                await handle.result()
            statistics = await client.statistics()

    ends = (statistics.succeeded, statistics.failed, statistics.rejected, statistics.cancelled)
    assert ends == (2, 1, 1, 1)
    assert (statistics.expired, statistics.unknown, statistics.open) == (0, 0, 0)
    assert (statistics.creates, statistics.cancels) == (5, 1)
    assert statistics.connections_opened >= statistics.connections >= 1
    assert (statistics.connections_busy, statistics.polls_due) == (0, 0)


async def test_the_statistics_count_the_polls_that_have_to_wait() -> None:
    async with emulator_with(image_seconds=60) as emulator:
        async with client_at(emulator, service="dieyuyun", queries_per_second=1) as client:
            handles = [await client.submit(image(str(number))) for number in range(30)]
            async for task in handles[4].events():
                if task.status is TaskStatus.RUNNING:
                    break
            assert (await client.statistics()).polls_due > 5


async def test_no_budget_of_queries_is_no_limit() -> None:
    async with ToyService(queries=[DONE]).client(queries_per_second=float("inf")) as client:
        handles = [await client.attach(f"task-{number}") for number in range(200)]
        before = now()
        for handle in handles:
            await handle.result()

        assert now() - before < 1


# For a support ticket ----------------------------------------------------------------------------------------


async def test_the_curl_command_polls_the_task_and_has_no_key(capfd: pytest.CaptureFixture[str]) -> None:
    async with emulator_with(image_seconds=1) as emulator:
        async with client_at(emulator) as client:
            handle = await client.submit(image())
            await handle.result()
        command = handle.as_curl()

    words = shlex.split(command)
    assert words[:4] == ["curl", "-g", "-sS", "-X"]
    assert f"{emulator.dashscope_url}/tasks/{handle.task_id}" in words
    assert "Authorization: Bearer $DASHSCOPE_API_KEY" in words
    assert KEY not in command


@pytest.mark.real_time
async def test_the_curl_command_runs() -> None:
    async with emulator_with(image_seconds=0.1) as emulator:
        async with client_at(emulator, "dieyuyun") as client:
            handle = await client.submit(image())
            await handle.accepted()
            process = await asyncio.create_subprocess_shell(
                handle.as_curl(), stdout=subprocess.PIPE, env={**os.environ, "DIEYUYUN_API_KEY": KEY}
            )
            out, _ = await process.communicate()

    assert str(handle.task_id) in json.loads(out).values()


async def test_the_curl_command_of_a_create_shows_no_signature_no_file_and_nothing_a_terminal_obeys() -> None:
    prompt = "it's a cat\x7f\x9b $(date) \U000e0001 see HTTPS://files.example/b?Signature=hush"
    request = VideoRequest(prompt, model="wan2.6-i2v", image="https://files.example/a.png?Signature=hush")
    answer = httpx.Response(400, json={"error": {"message": "no", "code": "bad"}})
    transport = httpx.MockTransport(lambda _: answer)
    async with Client(Dieyuyun(), api_key=KEY, transport=transport) as client:
        handle = await client.submit(request)
        with pytest.raises(BideError):
            await handle.result()

    with pytest.raises(ValueError, match="makes, and bills, a new task"):
        handle.as_curl()
    command = handle.as_curl(create=True)
    body = json.loads(shlex.split(command)[-1])
    assert body["prompt"] == "it's a cat\x7f\x9b $(date) \U000e0001 see HTTPS://files.example/b?…"
    assert command.replace("\n", "").isprintable()
    assert "https://files.example/a.png?…" in command
    assert "hush" not in command
    assert "$DIEYUYUN_API_KEY" in command


async def test_an_inline_file_is_not_in_the_curl_command() -> None:
    request = VideoRequest("a cat", model="m", image="data:image/png;base64," + "iVBORw0KGgo" * 500)
    async with Client(
        Dieyuyun(), api_key=KEY, transport=httpx.MockTransport(ToyService(creates=[400]))
    ) as client:
        handle = await client.submit(request)
        with pytest.raises(BideError):
            await handle.result()

    assert "data:image/png;base64,… (" in handle.as_curl(create=True)
    assert len(handle.as_curl(create=True)) < 500


async def test_the_create_of_a_task_made_elsewhere_is_not_known() -> None:
    async with ToyService().client() as client:
        handle = await client.attach("task-1")

        assert "/tasks/task-1" in handle.as_curl()
        with pytest.raises(ValueError, match="made elsewhere"):
            handle.as_curl(create=True)


async def test_each_way_of_ending_is_one_event() -> None:
    events: list[Event] = []
    at_once = ToyService(creates=[{"id": None, "status": "succeeded"}])
    lost = ToyService(creates=[httpx.ReadError("cut")])
    async with at_once.client(on_event=events.append) as client:
        await client.run(image())
    async with lost.client(on_event=events.append) as client:
        with pytest.raises(BideError):
            await client.run(image())
    async with ToyService(queries=[RUNNING, DONE]).client(on_event=events.append) as client:
        await (await client.attach("task-1")).result()
    open_end = ToyService(creates=[{"id": "other-1", "status": "queued"}])
    async with open_end.client(on_event=events.append, limits=Limits(concurrency=1)) as client:
        await (await client.submit(image())).accepted()
        waiting = await client.submit(image())
        await waiting.cancel()

    by_ticket: dict[str, list[str]] = {}
    for event in events:
        by_ticket.setdefault(event.ticket, []).append(f"{event.name} {event.task.status}")
    assert list(by_ticket.values()) == [
        ["waiting waiting", "submitting submitting", "final succeeded"],
        ["waiting waiting", "submitting submitting", "final unknown"],
        ["polled queued", "changed running", "polled running", "final succeeded"],
        ["waiting waiting", "submitting submitting", "submitted queued"],
        ["waiting waiting", "final cancelled"],
    ]


async def test_a_cancel_while_submitting_ends_in_one_final_event() -> None:
    events: list[Event] = []
    service = ToyService(queries=[{"status": "cancelled"}])
    service.delay["POST"] = 2
    async with service.client(on_event=events.append) as client:
        handle = await client.submit(image())
        await asyncio.sleep(1)
        assert await handle.cancel()
        with pytest.raises(BideError):
            await handle.result()

    assert names(events) == ["waiting", "submitting", "submitted", "polled", "final"]


@pytest.mark.parametrize("fault", [asyncio.CancelledError(), KeyError("mine"), BaseException("any")])
@pytest.mark.parametrize("moment", list(EventName)[:-1])
async def test_a_hook_that_raises_at_any_moment_loses_no_task_and_no_slot(
    moment: EventName, fault: BaseException
) -> None:
    def broken(event: Event) -> None:
        if event.name is moment:
            raise fault

    busy = httpx.Response(429, headers={"retry-after": "1"}, json={})
    service = ToyService(creates=[busy, {"status": "queued"}], queries=[RUNNING, DONE])
    async with service.client(on_event=broken, limits=Limits(concurrency=1)) as client:
        for task in await client.gather(image("one"), image("two")):
            assert task.status is TaskStatus.SUCCEEDED
        assert [lane.slots for lane in (await client.statistics()).lanes] == [0]
    assert service.count("POST") == 3
    assert service.count("GET") <= 4


async def test_a_log_handler_that_raises_loses_no_task() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("disk full")

    handler, log = Broken(), logging.getLogger("bide")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        async with ToyService(queries=[RUNNING, DONE]).client() as client:
            assert (await client.run(image())).status is TaskStatus.SUCCEEDED
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


async def test_a_pause_that_cannot_be_reported_loses_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger may fail where the pause is read from it: the create goes on all the same."""
    ledger = MemoryLedger()

    async def failing(*_: object) -> None:
        await asyncio.sleep(2.5)
        raise LedgerError("gone for a moment")

    monkeypatch.setattr(ledger, "lanes", failing)
    busy = httpx.Response(429, headers={"retry-after": "0.5"}, json={})
    service = ToyService(creates=[busy, {"status": "queued"}], queries=[DONE])
    service.delay["POST"] = 2
    async with service.client(ledger=ledger) as client:
        task = await client.run(image())

    assert (task.status, task.task_id) == (TaskStatus.SUCCEEDED, "toy-2")


async def test_a_signature_in_what_the_service_says_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = {"code": "Bad", "message": "Download https://files.example/a.png?Signature=hush timed out"}
    async with emulator_with() as emulator:
        emulator.fault(on="create", status=400, body=error)
        with caplog.at_level(logging.DEBUG, logger="bide"):
            async with client_at(emulator) as client:
                with pytest.raises(BideError):
                    await client.run(image())

    assert "https://files.example/a.png?…" in caplog.text
    assert "hush" not in caplog.text


async def test_a_pause_of_queries_counts_for_each_kind_of_call() -> None:
    events: list[Event] = []
    async with emulator_with(image_seconds=60, queue_seconds=60) as emulator:
        async with client_at(emulator, on_event=events.append) as client:
            handle = await client.submit(image())
            await handle.accepted()
            emulator.fault(on="cancel", status=429, headers={"retry-after": "6"})
            assert await handle.cancel()
            assert (await client.statistics()).pauses == 1

    (pause,) = [event.seconds for event in events if event.name is EventName.PAUSED]
    assert pause is not None
    assert 6 - 0.01 <= pause <= 6.6, "the service's Retry-After and a tenth of jitter at most"


async def test_repeated_warnings_of_one_kind_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with ToyService(queries=[403]).client() as client:
        await client.submit(image())
        await asyncio.sleep(600)

    assert sum("denied" in record.getMessage() for record in caplog.records) == 1


async def test_a_log_that_is_set_up_later_gets_each_line_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, root = logging.getLogger("bide"), logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", log.level)
    monkeypatch.setenv("BIDE_LOG", "info")
    lines: list[str] = []

    class Own(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    async with ToyService(queries=[DONE]).client() as client:
        await client.run(image())
        printed = len(capsys.readouterr().err.splitlines())
        root.addHandler(Own())
        await client.run(image())

    assert printed == len(lines) == 4
    assert capsys.readouterr().err == ""


async def test_an_object_whose_call_is_async_is_no_hook(caplog: pytest.LogCaptureFixture) -> None:
    class Hook:
        async def __call__(self, event: Event) -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        Client(Toy(), api_key="sk-toy", on_event=Hook())
    hook = Hook()
    async with ToyService(queries=[DONE]).client(on_event=lambda event: hook(event)) as client:  # noqa: PLW0108 - it hides the coroutine function
        await client.run(image())
    assert "never awaited" in caplog.text
