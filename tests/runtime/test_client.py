"""The client: arguments, many at once, attaching, statistics, the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from attrs import evolve, field, frozen

from bide import (
    BideError,
    Client,
    ClientClosedError,
    Dieyuyun,
    ImageRequest,
    InvalidRequestError,
    Limits,
    MemoryLedger,
    NotFoundError,
    RawRequest,
    SubmissionUnknownError,
    Task,
    TaskStatus,
    WaitTimeoutError,
)
from support.emulated import KEY, THREE, UNLIMITED, calls, client_at, emulator_with, image, now, video
from support.toy import Toy, ToyService
from support.waits import A_MINUTE

if TYPE_CHECKING:
    from bide import Request
    from bide._wire import Call

DONE = {"status": "succeeded"}
RUNNING = {"status": "running"}


# Arguments ---------------------------------------------------------------------------------------------------


def test_without_a_key_the_error_names_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOY_KEY", raising=False)
    with pytest.raises(ValueError, match=r"pass api_key=, or set \$TOY_KEY or \$TOY_TOKEN"):
        Client(Toy())


async def test_the_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_TOKEN", "sk-from-env")
    seen = []

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={"id": "x", **DONE})

    async with Client(Toy(), transport=httpx.MockTransport(answer)) as client:
        await client.run(image())

    assert set(seen) == {"Bearer sk-from-env"}


@pytest.mark.parametrize("key", ["", "sk with space", "sk-line\n", "sk-schlüssel", 7, [], ["ok", ""]])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        Client(Toy(), api_key=key)

    assert "schl" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limits": {"image": 3}}, TypeError),
        ({"queries_per_second": 0}, ValueError),
        ({"queries_per_second": -1.0}, ValueError),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Client(Toy(), api_key="k", **options)


@pytest.mark.parametrize("request_", ["a cat", None, {"prompt": "a cat"}, 7])
async def test_what_is_no_request_is_refused_before_anything_is_sent(request_: Any) -> None:
    service = ToyService()
    async with service.client() as client:
        with pytest.raises(TypeError, match="ImageRequest, VideoRequest or RawRequest"):
            await client.submit(request_)

    assert service.seen == []


@pytest.mark.parametrize("ticket", ["", "../x", "a b", ".hidden", "x" * 129, "a/b", 7, "ä"])
async def test_a_ticket_that_could_not_name_a_file_is_refused(ticket: Any) -> None:
    async with ToyService().client() as client:
        with pytest.raises(ValueError, match="not a ticket"):
            await client.submit(image(), ticket=ticket)


async def test_what_the_provider_cannot_do_is_refused_before_it_is_on_record() -> None:
    service = ToyService()
    async with service.client() as client:
        with pytest.raises(ValueError, match="no model 'impossible'"):
            await client.submit(image(model="impossible"))
        with pytest.raises(ValueError, match="no model 'impossible'"):
            await client.gather(image(), image(model="impossible"))

        assert (await client.statistics()).open == 0
    assert service.seen == []


@frozen
class Misled(Toy):
    """An adapter whose creates cannot be sent."""

    bad: Mapping[str, Any] = field(factory=dict)

    def create_call(self, request: Request, ticket: str) -> Call:
        return evolve(super().create_call(request, ticket), **self.bad)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        *(
            ({"path": path}, "a call's path must")
            for path in ("//evil.example", "/../x", "https://evil.example")
        ),
        ({"body": {"prompt": {1, 2}}}, "not JSON serializable"),
        ({"body": {"prompt": float("nan")}}, "not JSON compliant"),
    ],
)
async def test_a_create_that_cannot_be_sent_is_refused_before_it_is_on_record(
    bad: dict[str, Any], words: str
) -> None:
    service, ledger = ToyService(), MemoryLedger()
    async with service.client(Misled(bad=bad), ledger=ledger) as client:
        with pytest.raises((TypeError, ValueError), match=words):
            await client.submit(image(), ticket="order-1")

        assert await ledger.get("order-1") is None
    assert service.seen == []


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("images", "image"),
        ("Image", "image"),
        (" image", "image"),
        ("img", "image"),
        ("imgae", "image"),
        ("videos", "video"),
        ("VIDEO", "video"),
        ("vedio", "video"),
    ],
)
async def test_a_misspelled_kind_is_an_error_that_names_the_kinds(word: str, kind: str) -> None:
    """Its limits would never be used, and a request of it would have none of the documented limits."""
    words = f"{word!r} is not a kind of work; did you mean {kind!r}.*'image' and 'video'"
    with pytest.raises(ValueError, match=rf"limits\['{word}'\]: {words}"):
        ToyService().client(limits={word: Limits(1)})

    service = ToyService()
    async with service.client() as client:
        with pytest.raises(ValueError, match=words):
            await client.submit(RawRequest("/tasks", {"prompt": "a cat"}, kind=word))
        with pytest.raises(ValueError, match=words):
            await client.attach("toy-1", kind=word)
        assert (await client.statistics()).open == 0
    assert service.seen == []


@pytest.mark.parametrize("word", ["voice", "movie", "image-hd", "image2", "3d"])
async def test_a_kind_of_ones_own_has_its_limits(word: str) -> None:
    service = ToyService(queries=[{"status": "running"}])
    async with service.client(limits={word: Limits(1)}) as client:
        for number in range(2):
            await client.submit(RawRequest("/tasks", {"prompt": f"number {number}"}, kind=word))
        await asyncio.sleep(5)

        assert service.count("POST") == 1


def test_limits_of_a_kind_that_is_no_text_are_an_error() -> None:
    with pytest.raises(TypeError, match="a kind of work is a str such as 'image' or 'video', not 3"):
        ToyService().client(limits={3: Limits(1)})


async def test_limits_may_be_given_for_each_kind_and_the_rest_is_the_providers() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(Toy(limits=Limits(2)), limits={"image": Limits(1)}) as client:
        for number in range(4):
            await client.submit(image(str(number)))
            await client.submit(video(str(number)))
        await asyncio.sleep(1)

        lanes = {lane.kind: (lane.slots, lane.cap) for lane in (await client.statistics()).lanes}
        assert lanes == {"image": (1, 1), "video": (2, 2)}


async def test_any_endpoint_is_reached_with_a_raw_request() -> None:
    async with emulator_with(image_seconds=5) as emulator, client_at(emulator, "dieyuyun") as client:
        body = {"model": "gpt-image-2", "prompt": "a cat", "n": 1}

        task = await client.run(RawRequest("/v1/images/generations", body, "image"))

        assert task.status is TaskStatus.SUCCEEDED
        assert emulator.tasks()[0].body["async"] is True


# Many at once ------------------------------------------------------------------------------------------------


async def test_gather_gives_the_tasks_in_the_order_of_the_requests() -> None:
    async with (
        emulator_with(image_seconds=(3, 30)) as emulator,
        client_at(emulator, limits=UNLIMITED) as client,
    ):
        tasks = await client.gather(*(image(f"number {number}") for number in range(20)))

        prompts = {task.id: task.prompt for task in emulator.tasks()}
        assert [prompts[str(task.task_id)] for task in tasks] == [f"number {number}" for number in range(20)]
        assert await client.gather() == []


async def test_gather_can_return_errors_in_their_places() -> None:
    service = ToyService(
        creates=[{"status": "queued"}, 422, httpx.ReadError("cut"), {"status": "queued"}], queries=[DONE]
    )
    async with service.client(limits=Limits(1)) as client:
        results = await client.gather(*(image(str(number)) for number in range(4)), return_exceptions=True)

    kinds = [type(each) for each in results]
    assert kinds == [Task, InvalidRequestError, SubmissionUnknownError, Task]


async def test_the_first_error_of_a_gather_withdraws_what_was_not_sent_and_names_what_goes_on() -> None:
    service = ToyService(creates=[{"status": "queued"}, 422, {"status": "queued"}], queries=[RUNNING])
    service.delay["POST"] = 1
    async with service.client(limits=Limits(2)) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.gather(*(image(str(number)) for number in range(5)))
        await asyncio.sleep(5)

        assert "other tasks of this gather go on: toy-" in caught.value.__notes__[0]
        assert (await client.statistics()).waiting == 0
    assert service.count("POST") <= 3


async def test_cancelling_a_gather_withdraws_what_was_not_sent() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(limits=Limits(1)) as client:
        gather = asyncio.create_task(client.gather(*(image(str(number)) for number in range(5))))
        await asyncio.sleep(1)
        gather.cancel()
        await asyncio.wait([gather])
        await asyncio.sleep(0.1)

        statistics = await client.statistics()
        assert gather.cancelled()
        assert (statistics.open, statistics.waiting) == (1, 0)


async def test_run_out_of_time_withdraws_what_was_not_sent_and_leaves_what_was() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(limits=Limits(1)) as client:
        for _ in range(2):
            with pytest.raises(WaitTimeoutError):
                await client.run(image(), timeout=5)
        await asyncio.sleep(0.1)

        statistics = await client.statistics()
        assert (statistics.open, statistics.waiting) == (1, 0)
        assert service.count("POST") == 1


async def test_as_completed_yields_each_handle_once_it_has_ended_the_quickest_first() -> None:
    async with emulator_with() as emulator, client_at(emulator, limits=UNLIMITED) as client:
        requests = [image(f"[seconds {seconds}] a cat") for seconds in (40, 5, 20)]
        seen = [handle.request async for handle in client.as_completed(requests)]

    assert seen == [requests[1], requests[2], requests[0]]


async def test_as_completed_pulls_no_more_than_its_window_and_only_while_it_is_awaited() -> None:
    pulled = 0

    def endless() -> Iterator[ImageRequest]:
        nonlocal pulled
        while True:
            pulled += 1
            yield image(str(pulled))

    async with ToyService(queries=[DONE]).client() as client:
        completed = client.as_completed(endless(), window=10)
        assert pulled == 0
        await anext(completed)
        assert pulled == 10
        await asyncio.sleep(100)
        assert pulled == 10
        for _ in range(25):
            await anext(completed)
        assert pulled <= 36


async def test_as_completed_takes_an_async_source_and_does_not_wait_for_it_where_one_has_ended() -> None:
    async def slow() -> AsyncIterator[ImageRequest]:
        yield image("one")
        await asyncio.sleep(1000)
        yield image("two")

    async with ToyService(queries=[DONE]).client() as client:
        before = now()
        completed = client.as_completed(slow())

        first = await anext(completed)
        assert now() - before < 20
        second = await anext(completed)

        assert [first.request, second.request] == [image("one"), image("two")]
        with pytest.raises(StopAsyncIteration):
            await anext(completed)


async def test_as_completed_yields_failures_too_and_raises_what_waiters_are_told() -> None:
    service = ToyService(creates=[422, {"status": "queued"}], queries=[*[401] * 4, DONE])
    async with service.client(limits=Limits(1)) as client:
        completed = client.as_completed([image("one"), image("two")])

        assert (await anext(completed)).task.status is TaskStatus.REJECTED
        with pytest.raises(InvalidRequestError, match="denied"):
            await anext(completed)
        assert (await anext(completed)).task.status is TaskStatus.SUCCEEDED


async def test_an_empty_source_completes_at_once_and_a_window_below_one_is_refused() -> None:
    async with ToyService().client() as client:
        assert [handle async for handle in client.as_completed([])] == []
        with pytest.raises(ValueError, match="window"):
            client.as_completed([image()], window=0)


async def test_a_source_that_raises_is_heard() -> None:
    def broken() -> Iterator[ImageRequest]:
        yield image()
        raise LookupError("no more rows")

    async with ToyService(queries=[DONE]).client() as client:
        with pytest.raises(LookupError, match="no more rows"):
            async for _ in client.as_completed(broken()):
                pass


# Attaching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["dieyuyun", "dashscope"])
async def test_a_task_that_was_made_elsewhere_can_be_followed(service: str) -> None:
    async with emulator_with(video_seconds=20) as emulator:
        async with client_at(emulator, service) as first:
            task_id = (await (await first.submit(video())).accepted()).task_id
        async with client_at(emulator, service) as second:
            handle = await second.attach(str(task_id))
            same = await second.attach(str(task_id))

            task = await handle.result()

    assert same is handle
    assert task.status is TaskStatus.SUCCEEDED
    assert task.task_id == task_id


async def test_an_attached_task_of_a_kind_counts_as_a_slot_of_it() -> None:
    service = ToyService(queries=[RUNNING, RUNNING, RUNNING, DONE])
    async with service.client(limits=Limits(1)) as client:
        attached = await client.attach("made-elsewhere", kind="image")
        handle = await client.submit(image())
        await asyncio.sleep(3)
        assert handle.task.status is TaskStatus.WAITING

        await attached.result()
        await handle.result()


async def test_an_attached_task_is_asked_for_with_the_key_that_can_see_it() -> None:
    async with emulator_with(video_seconds=20) as emulator:
        async with client_at(emulator, api_key="sk-two") as owner:
            task_id = str((await (await owner.submit(video())).accepted()).task_id)
        async with client_at(emulator, api_key=["sk-one", "sk-two"]) as client:
            assert (await (await client.attach(task_id)).result()).status is TaskStatus.SUCCEEDED
            with pytest.raises(NotFoundError, match="none of the 2 keys"):
                await client.attach("11111111-2222-3333-4444-555555555555")
            emulator.fault(on="query", status=500)
            with pytest.raises(BideError):
                await client.attach(task_id)


@pytest.mark.parametrize("task_id", ["", "../admin", "a b", "x" * 300, "a\nb", "a?b=c"])
async def test_an_id_that_cannot_be_one_is_not_asked_for(task_id: str) -> None:
    service = ToyService()
    async with service.client() as client:
        with pytest.raises(ValueError, match="not a task id"):
            await client.attach(task_id)

    assert service.seen == []


# Seeing inside -----------------------------------------------------------------------------------------------


async def test_the_statistics_add_up() -> None:
    async with emulator_with(concurrency=3, video_seconds=30) as emulator:
        async with client_at(emulator, limits=THREE) as client:
            handles = [await client.submit(video(str(number))) for number in range(8)]
            await asyncio.sleep(15)
            statistics = await client.statistics()

            assert (statistics.open, statistics.waiting, statistics.running) == (8, 5, 3)
            assert (statistics.creates, statistics.creates_429, statistics.queries_429) == (3, 0, 0)
            assert statistics.queries + statistics.lists >= 3
            (lane,) = statistics.lanes
            assert (lane.kind, lane.slots, lane.cap, lane.learned, lane.paused_for) == (
                "video",
                3,
                3,
                False,
                0,
            )
            assert KEY not in repr(statistics)
            await asyncio.gather(*(handle.result() for handle in handles))
            assert (await client.statistics()).open == 0


async def test_each_change_of_state_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with ToyService(queries=[RUNNING, DONE]).client(api_key=KEY) as client:
            await client.run(image())

    records = [record for record in caplog.records if record.name == "bide"]
    ticket = records[0].getMessage().split()[1]
    assert [record.getMessage() for record in records if record.levelno == logging.INFO] == [
        f"toy {ticket} - waiting waiting",
        f"toy {ticket} - submitting submitting",
        f"toy {ticket} toy-1 submitted queued",
        f"toy {ticket} toy-1 changed running",
        f"toy {ticket} toy-1 final succeeded",
    ]
    assert KEY not in caplog.text


# The end -----------------------------------------------------------------------------------------------------


async def test_closing_fails_the_waits_and_names_the_ids_of_tasks_left_running(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = ToyService().client()
    handle = await client.submit(image())
    await handle.accepted()
    wait = asyncio.create_task(handle.result())
    await asyncio.sleep(1)

    with caplog.at_level(logging.WARNING, logger="bide"):
        await client.aclose()

    with pytest.raises(ClientClosedError, match=r"attach\('toy-1'\) follows it") as caught:
        await wait
    assert caught.value.task_id == "toy-1"
    assert "1 tasks left running: toy-1" in caplog.text


async def test_after_a_cancel_that_the_service_took_closing_says_nothing_of_tasks_left_running(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = ToyService()
    client = service.client()
    stopped, other = await client.submit(image()), await client.submit(image())
    await asyncio.gather(stopped.accepted(), other.accepted())
    assert await stopped.cancel()

    with caplog.at_level(logging.INFO, logger="bide"):
        await client.aclose()

    assert f"1 tasks left running: {other.task_id}" in caplog.text
    assert f"the service has taken the cancels of 1 tasks: {stopped.task_id}" in caplog.text


async def test_after_a_cancel_that_came_too_late_closing_names_the_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = ToyService(cancels=[409])
    client = service.client()
    handle = await client.submit(image())
    await handle.accepted()
    assert not await handle.cancel()

    await client.aclose()

    assert "1 tasks left running: toy-1" in caplog.text


async def test_a_client_that_is_dropped_without_aclose_warns_and_names_what_it_leaves_open(
    recwarn: pytest.WarningsRecorder,
) -> None:
    service = ToyService()
    client = service.client(limits=Limits(1))
    sent, waits = await client.submit(image()), await client.submit(image())
    await sent.accepted()
    engine = client._engine

    del client
    gc.collect()

    (warning,) = recwarn
    assert warning.category is ResourceWarning
    assert str(warning.message) == (
        "unclosed <Client toy at https://toy.example, 1 key(s)>; use `async with`, or await client.aclose(). By task "
        f"id or ticket, 2 submissions are still open: toy-1, {waits.ticket}"
    )
    assert engine is not None
    await engine.aclose(0)


async def test_a_dropped_client_with_nothing_open_warns_too(recwarn: pytest.WarningsRecorder) -> None:
    client = ToyService(queries=[DONE]).client()
    await client.run(image())
    engine = client._engine

    del client
    gc.collect()

    (warning,) = recwarn
    assert "nothing is open" in str(warning.message)
    assert engine is not None
    await engine.aclose(0)


async def test_a_client_that_was_closed_or_never_opened_or_never_made_does_not_warn(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOY_KEY", raising=False)
    closed = ToyService().client()
    await (await closed.submit(image())).accepted()
    await closed.aclose()
    never_opened = ToyService().client()
    with pytest.raises(ValueError, match="no API key"):
        Client(Toy())

    del closed, never_opened
    gc.collect()

    assert list(recwarn) == []


DROPS_A_CLIENT = """
    import asyncio, os, sys
    sys.path.insert(0, {tests!r})
    from bide import ImageRequest
    from support.toy import ToyService

    async def main():
        global client
        client = ToyService().client()
        await (await client.submit(ImageRequest("a cat", model="m"))).accepted()

    asyncio.run(main())
    if sys.argv[1:] == ["fork"]:
        if os.fork() == 0:
            sys.exit()
        os.wait()
        os._exit(0)
"""


@pytest.mark.parametrize(("way", "expected"), [([], True), (["fork"], False)])
def test_at_the_end_of_the_interpreter_a_dropped_client_warns_in_its_own_process(
    way: list[str], expected: bool
) -> None:
    program = textwrap.dedent(DROPS_A_CLIENT.format(tests=str(Path(__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "-W", "default::ResourceWarning:__main__", "-W", "default", "-c", program, *way],
        capture_output=True,
        text=True,
        timeout=A_MINUTE,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert ("unclosed <Client toy" in done.stderr) is expected, done.stderr
    assert ("1 submissions are still open: toy-1" in done.stderr) is expected
    assert "Exception ignored" not in done.stderr


async def test_closing_lets_creates_under_way_finish_and_records_their_ids() -> None:
    service = ToyService()
    service.delay["POST"] = 5
    client = service.client()
    handle = await client.submit(image())
    await asyncio.sleep(1)
    before = now()

    await client.aclose(grace=10)

    assert now() - before == pytest.approx(4, abs=0.1)
    assert handle.task_id == "toy-1"
    assert handle.task.status is TaskStatus.QUEUED


async def test_a_create_that_outlasts_the_grace_ends_as_unknown() -> None:
    service = ToyService()
    service.delay["POST"] = 50
    client = service.client()
    handle = await client.submit(image())
    await asyncio.sleep(1)

    await client.aclose(grace=2)

    assert handle.task.status is TaskStatus.UNKNOWN
    with pytest.raises(SubmissionUnknownError, match="closed before the create was answered"):
        await handle.result()


async def test_what_was_never_sent_is_withdrawn_at_the_end_and_said_so() -> None:
    service = ToyService()
    client = service.client(limits=Limits(1))
    await (await client.submit(image())).accepted()
    waiting = await client.submit(image())

    await client.aclose()

    with pytest.raises(ClientClosedError, match="nothing was made, submit it again"):
        await waiting.result()
    assert service.count("POST") == 1


async def test_a_closed_client_refuses_everything_with_a_clear_error() -> None:
    client = ToyService().client()
    handle = await client.submit(image())
    await handle.accepted()
    await client.aclose()
    await client.aclose()

    for call in (
        lambda: client.submit(image()),
        lambda: client.attach("x1"),
        lambda: client.run(image()),
        client.statistics,
        lambda: client.gather(image()),
        handle.refresh,
        handle.cancel,
        handle.result,
    ):
        with pytest.raises(ClientClosedError):
            await call()


async def test_a_client_that_was_never_used_can_be_closed_and_stays_so() -> None:
    client = ToyService().client()
    await client.aclose()

    with pytest.raises(ClientClosedError):
        await client.submit(image())


async def test_closing_goes_on_though_whoever_closes_is_cancelled() -> None:
    service = ToyService()
    service.delay["POST"] = 5
    client = service.client()
    handle = await client.submit(image())
    await asyncio.sleep(1)

    with anyio.move_on_after(1):
        await client.aclose()

    assert handle.task_id == "toy-1", "an anyio scope cannot cut it short"

    other = service.client()
    second = await other.submit(image())
    await asyncio.sleep(1)
    closing = asyncio.create_task(other.aclose())
    await asyncio.sleep(1)
    closing.cancel()
    await asyncio.wait([closing])
    await asyncio.sleep(10)
    assert second.task_id == "toy-2"


async def test_a_client_can_be_closed_from_another_task() -> None:
    before = asyncio.all_tasks()
    client = ToyService().client()
    await client.submit(image())

    await asyncio.create_task(client.aclose())

    assert asyncio.all_tasks() == before


async def test_nothing_is_left_behind_by_a_client() -> None:
    before = asyncio.all_tasks()
    async with ToyService(queries=[RUNNING, DONE]).client() as client:
        await client.gather(*(image(str(number)) for number in range(20)))
    gc.collect()

    assert asyncio.all_tasks() == before


def test_use_in_another_loop_is_refused_with_the_reason() -> None:
    client = ToyService().client()

    async def use() -> None:
        await client.submit(image())

    with asyncio.Runner() as one, asyncio.Runner() as two:
        one.run(use())
        with pytest.raises(RuntimeError, match="another event loop"):
            two.run(use())
        with pytest.raises(RuntimeError, match="another event loop"):
            two.run(client.aclose())
        one.run(client.aclose())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_use_after_a_fork_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ToyService().client() as client:
        await client.submit(image())
        with monkeypatch.context() as patch:
            # A real fork of a process with threads is a warning by itself; its one trace here is the process id.
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(RuntimeError, match="after a fork"):
                await client.submit(image())


async def test_many_waiting_tickets_are_no_tasks_and_no_timers() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(limits=Limits(3)) as client:
        tasks_before = len(asyncio.all_tasks())
        handles = [await client.submit(image()) for _ in range(3000)]
        await asyncio.sleep(2)

        loop = asyncio.get_running_loop()
        assert len(asyncio.all_tasks()) - tasks_before <= 3
        assert sum(not timer.cancelled() for timer in loop._scheduled) <= 10  # type: ignore[attr-defined]
        assert sys.getsizeof(handles[0]) < 200


async def test_the_providers_key_variable_is_named_where_the_service_does_not_know_the_key() -> None:
    from bide.emulator import Emulator

    async with Emulator(api_keys=["sk-right"]) as emulator:
        async with Client(Dieyuyun(base_url=emulator.dieyuyun_url), api_key="sk-wrong") as client:
            with pytest.raises(BideError, match="DIEYUYUN_API_KEY"):
                await client.run(image())
        assert len(calls(emulator, "create")) == 1


async def test_a_cancelled_step_of_as_completed_loses_no_request() -> None:
    service = ToyService(queries=[DONE])
    async with service.client() as client:
        completed = client.as_completed(image(str(number)) for number in range(5))
        step = asyncio.create_task(anext(completed))
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait([step])

        seen = [handle.request async for handle in completed]

    assert sorted(str(each.prompt) for each in seen if isinstance(each, ImageRequest)) == list("01234")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"deadlines": 60}, "deadlines must be a Deadlines"),
        ({"limits": 3}, r"such as Limits\(concurrency=3\), not 3"),
        ({"ledger": "x.db"}, "ledger must be a Ledger"),
        ({"queries_per_second": "20"}, "must be a number"),
        ({"http_client": httpx.Client()}, r"must be an httpx\.AsyncClient"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Client(Toy(), api_key="k", **options)


@pytest.mark.parametrize("provider", [Toy, "dashscope"])
def test_a_provider_is_an_instance(provider: Any) -> None:
    with pytest.raises(TypeError, match=r"an instance such as DashScope\(\)"):
        Client(provider, api_key="k")


@pytest.mark.parametrize("timeout", [-1, "5", True, float("nan")])
async def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    async with ToyService().client() as client:
        handle = await client.submit(image())
        with pytest.raises(ValueError, match="timeout must be a number of seconds"):
            await handle.result(timeout=timeout)
