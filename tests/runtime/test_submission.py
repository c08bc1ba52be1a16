"""Every arrow from waiting to accepted, and every way out."""

from __future__ import annotations

import asyncio
import itertools
import math
import pickle

import httpx
import pytest
from attrs import evolve

from bide import (
    AuthenticationError,
    Billing,
    BillingError,
    ClientClosedError,
    Deadlines,
    InvalidRequestError,
    Limits,
    SubmissionUnknownError,
    TaskCancelledError,
    TaskStatus,
    TransportError,
    WaitTimeoutError,
)
from bide.emulator import DieyuyunStyle, Emulator, ServiceLimits
from support.emulated import THREE, UNLIMITED, calls, client_at, emulator_with, image, now, video
from support.toy import Toy, ToyService

DONE = {"status": "succeeded"}


async def test_submit_returns_at_once_with_a_ticket() -> None:
    service = ToyService(queries=[DONE])
    service.delay["POST"] = 3
    async with service.client() as client:
        before = now()
        handle = await client.submit(image())

        assert now() == pytest.approx(before)
        assert handle.ticket
        assert handle.task_id is None
        assert handle.task.status in (TaskStatus.WAITING, TaskStatus.SUBMITTING)
        assert handle.task.billing is Billing.NONE
        assert (await handle.accepted()).task_id == "toy-1"


async def test_a_refused_create_is_rejected_with_the_services_words_and_frees_its_slot() -> None:
    service = ToyService(creates=[422, {"status": "queued"}], queries=[DONE])
    async with service.client(limits=Limits(1)) as client:
        refused, fine = await client.submit(image()), await client.submit(image())

        with pytest.raises(InvalidRequestError) as caught:
            await refused.result()

        assert (caught.value.ticket, caught.value.status_code, caught.value.code) == (
            refused.ticket,
            422,
            "No",
        )
        assert refused.task.status is TaskStatus.REJECTED
        assert refused.task.billing is Billing.NONE
        assert (await fine.result()).status is TaskStatus.SUCCEEDED


@pytest.mark.parametrize("service", ["dieyuyun", "dashscope"])
async def test_a_bad_key_is_told_at_once(service: str) -> None:
    async with Emulator(api_keys=["sk-right"]) as emulator, client_at(emulator, service) as client:
        before = now()

        with pytest.raises(AuthenticationError) as caught:
            await client.run(image())

        assert now() - before < 1
        assert caught.value.status_code == 401
        assert len(calls(emulator, "create")) == 1


async def test_a_429_that_means_pay_is_told_at_once_and_never_sent_again() -> None:
    async with Emulator() as emulator, client_at(emulator) as client:
        emulator.fault(on="create", status=429, body={"code": "PrepaidBillOverdue", "message": "overdue"})

        with pytest.raises(BillingError, match="overdue"):
            await client.run(image())

        await asyncio.sleep(100)
        assert len(calls(emulator, "create")) == 1


async def test_a_create_that_was_certainly_not_sent_waits_and_goes_out_when_the_network_is_back() -> None:
    refused = httpx.ConnectError("connection refused")
    service = ToyService(creates=[{"status": "queued"}, *[refused] * 9, {"status": "queued"}], queries=[DONE])
    async with service.client() as client:
        await client.run(image())
        handle = await client.submit(image())

        task = await handle.result()

        assert task.status is TaskStatus.SUCCEEDED
        assert service.count("POST") == 11
        gaps = [later - sooner for sooner, later in itertools.pairwise(service.times("POST")[1:])]
        assert all(later > 1.5 * sooner for sooner, later in itertools.pairwise(gaps[:3]))
        assert 2 <= max(gaps) <= 2.2, "in the first minute it is tried every two seconds"


async def test_where_no_connection_ever_works_it_is_told_within_half_a_minute_that_nothing_was_sent() -> None:
    service = ToyService(creates=[httpx.ConnectError("no route")])
    async with service.client() as client:
        before = now()
        handles = [await client.submit(image()) for _ in range(40)]

        for handle in handles:
            with pytest.raises(
                TransportError, match=r"toy\.example.*no connection worked for 30 s and nothing was sent"
            ) as caught:
                await handle.result()
            assert not caught.value.may_have_arrived
            assert (caught.value.bought, handle.task.status) == (True, TaskStatus.WAITING)

        assert 30 <= now() - before <= 60
        service.script["POST"], service.script["GET"] = [{"status": "queued"}], [DONE]
        assert (await handles[-1].result()).status is TaskStatus.SUCCEEDED


async def test_where_no_connection_ever_works_only_run_withdraws() -> None:
    service = ToyService(creates=[httpx.ConnectError("no route")])
    async with service.client() as client:
        with pytest.raises(TransportError, match="no connection worked for 30 s") as caught:
            await client.run(image())

        assert caught.value.bought is False
        assert (await client.statistics()).open == 0


async def test_a_wait_that_gives_up_names_the_last_fault() -> None:
    service = ToyService(creates=[httpx.ConnectError("no route to host")])
    async with service.client() as client:
        handle = await client.submit(image())

        with pytest.raises(WaitTimeoutError, match=r"The last fault: .*no route to host") as caught:
            await handle.result(timeout=10)

    fault = caught.value.fault
    assert isinstance(fault, TransportError)
    assert (fault.ticket, fault.__traceback__) == (handle.ticket, None)
    twin = pickle.loads(pickle.dumps(caught.value))
    assert str(twin.fault) == str(fault)


async def test_a_run_that_gives_up_withdraws_its_request_and_names_the_last_fault() -> None:
    service = ToyService(creates=[httpx.ConnectError("no route to host")])
    async with service.client() as client:
        with pytest.raises(
            WaitTimeoutError, match=r"withdrawn.*The last fault: .*no route to host"
        ) as caught:
            await client.run(image(), timeout=10)

        assert isinstance(caught.value.fault, TransportError)
        assert (await client.statistics()).cancelled == 1


async def test_a_busy_service_is_asked_again_after_its_retry_after() -> None:
    service = ToyService(
        creates=[httpx.Response(429, headers={"Retry-After": "17"}), {"status": "queued"}], queries=[DONE]
    )
    async with service.client() as client:
        assert (await client.run(image())).status is TaskStatus.SUCCEEDED

        first, second = service.times("POST")
        assert 17 <= second - first <= 18.1


@pytest.mark.parametrize("wait", ["86400", "Wed, 21 Oct 2099 07:28:00 GMT"])
async def test_an_absurd_retry_after_holds_a_lane_for_an_hour_and_is_reported(
    wait: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with emulator_with() as emulator, client_at(emulator) as client:
        emulator.fault(on="create", status=429, headers={"Retry-After": wait})
        with pytest.raises(WaitTimeoutError, match=f"asks for a longer wait .Retry-After: {wait}.*3600 s"):
            await client.run(image(), timeout=30)
        await client.run(image())

        refused, accepted = (each.time for each in calls(emulator, "create"))
        assert 3600 <= accepted - refused <= 3602

    lines = [each for each in caplog.records if "answered POST" in each.message]
    assert [each.levelname for each in lines] == ["WARNING"]


async def test_a_synchronous_answer_is_a_final_task() -> None:
    style = DieyuyunStyle(always_sync=True)
    async with (
        Emulator(dieyuyun=style, image_seconds=4) as emulator,
        client_at(emulator, "dieyuyun") as client,
    ):
        task = await client.run(image(n=2))

        assert task.status is TaskStatus.SUCCEEDED
        assert len(task.outputs) == 2
        assert len(calls(emulator, "query")) == 0
        assert (await client.statistics()).open == 0


async def test_two_lost_creates_of_one_moment_are_not_mixed_up() -> None:
    """Which of two candidates belongs to which of two orphans nobody can say."""
    async with emulator_with(video_seconds=40) as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="after", times=2)
        handles = [await client.submit(video("one")), await client.submit(video("two"))]

        for handle in handles:
            with pytest.raises(SubmissionUnknownError):
                await handle.result()

        assert len(calls(emulator, "create")) == 2


async def test_a_lost_create_is_found_although_others_of_its_model_were_made_just_then() -> None:
    async with emulator_with(video_seconds=40) as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="after", match="the lost one")
        handles = [await client.submit(video(f"{name} one")) for name in ("a", "the lost", "b")]

        tasks = await asyncio.gather(*(handle.result() for handle in handles))

        prompts = {task.id: task.prompt for task in emulator.tasks()}
        assert [prompts[task.task_id or ""] for task in tasks] == ["a one", "the lost one", "b one"]


async def test_a_task_of_another_program_with_the_key_makes_a_lost_create_undecidable() -> None:
    async with emulator_with(video_seconds=40) as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="after", delay=2.0, match="mine")
        handle = await client.submit(video("mine"))
        await asyncio.sleep(1)
        async with httpx.AsyncClient(base_url=emulator.dashscope_url) as other:
            await other.post(
                "/services/aigc/video-generation/video-synthesis",
                json={"model": "wan2.6-t2v", "input": {"prompt": "theirs"}},
                headers={"Authorization": "Bearer sk-canary-0123456789", "X-DashScope-Async": "enable"},
            )

        with pytest.raises(SubmissionUnknownError):
            await handle.result()

        assert len(emulator.tasks()) == 2


async def test_a_create_that_never_arrived_is_told_as_unknown_and_not_sent_again() -> None:
    async with emulator_with() as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="before")
        handle = await client.submit(video())

        with pytest.raises(SubmissionUnknownError, match="bide does not send it again"):
            await handle.result()

        assert handle.task.status is TaskStatus.UNKNOWN
        assert handle.task.billing is Billing.UNKNOWN
        assert len(emulator.tasks()) == 0
        assert len(calls(emulator, "create")) == 1


async def test_a_failing_list_leaves_a_lost_create_unknown() -> None:
    async with emulator_with() as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="after")
        emulator.fault(on="list", status=500, times=99)

        with pytest.raises(SubmissionUnknownError):
            await client.run(video())


async def test_an_unknown_create_holds_its_slot_for_a_while() -> None:
    service = ToyService(creates=[httpx.ReadTimeout("hung"), {"status": "queued"}], queries=[DONE])
    async with service.client(Toy(unknown_hold=100), limits=Limits(1)) as client:
        lost, next_one = await client.submit(image()), await client.submit(image())
        with pytest.raises(SubmissionUnknownError):
            await lost.result()
        await next_one.result()

        first, second = service.times("POST")
        assert 100 <= second - first <= 101


async def test_an_idempotent_create_is_sent_again_with_the_same_ticket() -> None:
    service = ToyService(creates=[httpx.ReadError("cut"), 500, {"status": "queued"}], queries=[DONE])
    async with service.client(Toy(idempotent=True)) as client:
        task = await client.run(image())

        assert task.status is TaskStatus.SUCCEEDED
        assert len(service.tickets) == 3
        assert set(service.tickets) == {task.ticket}


async def test_an_idempotent_create_that_never_gets_an_answer_ends_as_unknown() -> None:
    service = ToyService(creates=[httpx.ReadError("cut")])
    async with service.client(Toy(idempotent=True)) as client:
        with pytest.raises(SubmissionUnknownError, match="cut"):
            await client.run(image())

        assert service.count("POST") == 5


async def test_a_bug_in_reading_the_answer_makes_the_create_unknown_and_reaches_who_waits() -> None:
    class Buggy(Toy):
        def read_created(self, reply: object, request: object) -> object:  # type: ignore[override]
            raise KeyError("oops")

    async with ToyService().client(Buggy()) as client:
        with pytest.raises(SubmissionUnknownError, match="KeyError: 'oops'"):
            await client.run(image())


async def test_a_full_lane_of_unnamed_cap_learns_from_a_429_that_names_its_reason() -> None:
    async with emulator_with(concurrency=2, video_seconds=10) as emulator:
        async with client_at(emulator, limits=UNLIMITED) as client:
            await client.gather(*(video(str(number)) for number in range(6)))
            assert (await client.statistics()).lanes[0].learned

        stats = emulator.stats()
        assert stats["tasks"] == 6
        assert [kinds["video"] for kinds in stats["max_in_flight"].values()] == [2]


async def test_someone_else_on_the_key_teaches_a_lower_cap_that_grows_back() -> None:
    async with emulator_with(concurrency=3, video_seconds=30, retry_after=1) as emulator:
        async with client_at(emulator, "dieyuyun", limits=THREE) as theirs:
            await (await theirs.submit(video("theirs"))).accepted()
            # A ledger of its own: a program on another machine that uses the same key.
            from bide import MemoryLedger

            async with client_at(emulator, "dieyuyun", limits=THREE, ledger=MemoryLedger()) as client:
                handles = [await client.submit(video(str(number))) for number in range(3)]
                await asyncio.sleep(15)
                (lane,) = (await client.statistics()).lanes
                assert (lane.cap, lane.learned, lane.slots) == (2, True, 2)
                refused = emulator.stats()["creates_429"]
                await asyncio.gather(*(handle.result() for handle in handles))
                await asyncio.sleep(60)
                assert (await client.statistics()).lanes[0].cap == 3

        assert refused == 2, "at first, and when one more is tried about ten seconds later"


async def test_the_create_rate_of_a_lane_is_kept() -> None:
    limits = ServiceLimits(creates_per_minute=30)
    async with Emulator(dashscope_limits=limits, image_seconds=2) as emulator, client_at(emulator) as client:
        await client.gather(*(image(str(number)) for number in range(70)))

        assert emulator.stats()["creates_429"] == 0
        assert emulator.stats()["creates"] == 70
        times = [call.time for call in calls(emulator, "create")]
        assert 120 <= times[-1] - times[0] <= 130


async def test_several_keys_are_each_kept_full_and_a_task_stays_with_its_key() -> None:
    async with emulator_with(concurrency=3, video_seconds=10) as emulator:
        async with client_at(emulator, api_key=["sk-one", "sk-two"], limits=THREE) as client:
            before = now()
            tasks = await client.gather(*(video(str(number)) for number in range(12)))
            wall = now() - before

        stats = emulator.stats()
        assert [task.status for task in tasks] == [TaskStatus.SUCCEEDED] * 12
        assert stats["creates_429"] == 0
        assert sorted(kinds["video"] for kinds in stats["max_in_flight"].values()) == [3, 3]
        assert wall <= 2 * (10 + 10)


async def test_two_clients_of_a_loop_share_the_lanes_and_the_query_budget_of_their_key() -> None:
    async with emulator_with(concurrency=3, queries=20, video_seconds=10) as emulator:
        async with client_at(emulator, limits=THREE) as one, client_at(emulator, limits=THREE) as two:
            await asyncio.gather(
                one.gather(*(video(f"one {number}") for number in range(6))),
                two.gather(*(video(f"two {number}") for number in range(6))),
            )

        stats = emulator.stats()
        assert (stats["tasks"], stats["creates_429"], stats["queries_429"]) == (12, 0, 0)
        order = [task.prompt for task in emulator.tasks()]
        assert order[:3] != ["one 0", "one 1", "one 2"] or "two 0" in order[:7], "first come, first served"


async def test_a_waiting_request_is_withdrawn_without_a_call() -> None:
    service = ToyService(queries=[{"status": "running"}])
    async with service.client(limits=Limits(1)) as client:
        await (await client.submit(image())).accepted()
        waiting = await client.submit(image())

        assert await waiting.cancel()

        assert waiting.task.status is TaskStatus.CANCELLED
        with pytest.raises(TaskCancelledError):
            await waiting.result()
        assert (service.count("POST"), service.count("DELETE")) == (1, 0)


async def test_a_cancel_while_submitting_is_carried_out_once_the_id_is_known() -> None:
    service = ToyService(queries=[{"status": "cancelled"}])
    service.delay["POST"] = 5
    async with service.client() as client:
        handle = await client.submit(image())
        await asyncio.sleep(1)
        cancel = asyncio.create_task(handle.cancel())
        await asyncio.sleep(1)
        cancel.cancel()  # whoever asked leaves: the cancel is remembered all the same
        await asyncio.wait([cancel])

        with pytest.raises(TaskCancelledError):
            await handle.result()

        assert service.count("DELETE") == 1
        assert handle.task_id == "toy-1"


async def test_a_cancel_while_submitting_withdraws_a_request_that_is_refused_for_now() -> None:
    service = ToyService(creates=[429])
    service.delay["POST"] = 5
    async with service.client() as client:
        handle = await client.submit(image())
        await asyncio.sleep(1)

        assert await handle.cancel()

        assert handle.task.status is TaskStatus.CANCELLED
        await asyncio.sleep(100)
        assert (service.count("POST"), service.count("DELETE")) == (1, 0)


async def test_the_waiting_deadline_withdraws_the_request_and_says_so() -> None:
    service = ToyService(queries=[{"status": "running"}])
    async with service.client(limits=Limits(1), deadlines=Deadlines(waiting=20)) as client:
        await (await client.submit(image())).accepted()
        waiting = await client.submit(image())
        before = now()

        with pytest.raises(WaitTimeoutError, match=r"within 20 s .* nothing was sent"):
            await waiting.result()

        assert now() - before == pytest.approx(20, abs=0.1)
        assert service.count("POST") == 1
        with pytest.raises(WaitTimeoutError):
            await waiting.result()


async def test_the_waiting_deadline_of_a_request_on_its_way_waits_for_its_answer() -> None:
    service = ToyService(creates=[429, {"status": "queued"}])
    service.delay["POST"] = 5
    async with service.client(deadlines=Deadlines(waiting=3)) as client:
        handle = await client.submit(image())

        with pytest.raises(WaitTimeoutError, match="The last fault: busy"):
            await handle.result()

        await asyncio.sleep(100)
        assert service.count("POST") == 1


async def test_the_same_ticket_gives_the_same_handle_and_one_create() -> None:
    service = ToyService(queries=[DONE])
    async with service.client() as client:
        one, two = await asyncio.gather(*(client.submit(image(), ticket="order-1") for _ in range(2)))
        await one.result()
        three = await client.submit(image(), ticket="order-1")

        assert one is two is three
        assert service.count("POST") == 1
        with pytest.raises(ValueError, match="already names another request"):
            await client.submit(image("another"), ticket="order-1")


async def test_the_same_ticket_in_another_client_of_the_loop_follows_the_first() -> None:
    service = ToyService(queries=[{"status": "running"}, DONE])
    async with service.client() as one, service.client() as two:
        await one.submit(image(), ticket="order-1")
        handle = await two.submit(image(), ticket="order-1")

        assert (await handle.result()).status is TaskStatus.SUCCEEDED
        assert service.count("POST") == 1


async def test_creates_under_way_are_bounded_whatever_the_lane_allows() -> None:
    service = ToyService(queries=[DONE])
    service.delay["POST"] = 1
    async with service.client(limits=Limits(1000)) as client:
        handles = [await client.submit(image(str(number))) for number in range(200)]
        await asyncio.sleep(0.5)
        assert service.count("POST") == 15
        assert len(asyncio.all_tasks()) < 80

        await asyncio.gather(*(handle.accepted() for handle in handles))
        assert service.count("POST") == 200


async def test_what_a_closed_client_left_running_is_watched_by_another_one_of_the_loop() -> None:
    """Else its slots would seem in use for ever."""
    async with emulator_with(concurrency=3, video_seconds=20) as emulator:
        async with client_at(emulator, limits=THREE) as second:
            first = client_at(emulator, limits=THREE)
            handles = [await first.submit(video(str(number))) for number in range(5)]
            await asyncio.gather(*(handle.accepted() for handle in handles[:3]))
            mine = await second.submit(video("mine"))

            await first.aclose()
            task = await mine.result()

        assert task.status is TaskStatus.SUCCEEDED
        assert emulator.stats()["creates_429"] == 0
        assert len(emulator.tasks()) == 4
        with pytest.raises(ClientClosedError, match="nothing was made"):
            await handles[4].result()


async def test_a_cancelled_submit_withdraws_what_was_not_sent() -> None:
    service = ToyService(queries=[{"status": "running"}])
    async with service.client(limits=Limits(1)) as client:
        await (await client.submit(image())).accepted()
        submit = asyncio.create_task(client.submit(image()))
        await asyncio.sleep(0)
        submit.cancel()
        await asyncio.wait([submit])
        await asyncio.sleep(0.1)

        assert submit.cancelled()
        assert (await client.statistics()).waiting == 0


async def test_an_error_of_a_submission_is_a_fresh_one_for_each_who_waits() -> None:
    async with ToyService(creates=[422]).client() as client:
        handle = await client.submit(image())

        results = await asyncio.gather(*(handle.result() for _ in range(3)), return_exceptions=True)

        assert len({id(each) for each in results}) == 3
        assert all(isinstance(each, InvalidRequestError) for each in results)


def test_a_record_is_a_value() -> None:
    assert evolve(image(), n=2) == image(n=2)


async def test_two_services_at_one_address_with_one_key_do_not_share_their_lanes() -> None:
    async with emulator_with(concurrency=3, video_seconds=10) as emulator:
        async with (
            client_at(emulator, "dieyuyun", limits=THREE) as one,
            client_at(emulator, limits=THREE) as two,
        ):
            before = now()
            await asyncio.gather(
                one.gather(*(video(str(number)) for number in range(6))),
                two.gather(*(video(str(number)) for number in range(6))),
            )

            assert now() - before < 2 * (10 + 10)


async def test_a_cancelled_submit_of_a_ticket_on_record_leaves_the_first_submission_alone() -> None:
    service = ToyService(queries=[{"status": "running"}])
    async with service.client(limits=Limits(1)) as client:
        await (await client.submit(image())).accepted()
        first = await client.submit(image(), ticket="order-1")
        second = asyncio.create_task(client.submit(image(), ticket="order-1"))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        await asyncio.sleep(0.1)

        assert first.task.status is TaskStatus.WAITING


async def test_a_ledger_that_fails_for_a_while_ends_no_wait() -> None:
    from bide import LedgerError, MemoryLedger

    class Shaky(MemoryLedger):
        broken = True

        async def admit(self, *args: object, **more: object) -> object:  # type: ignore[override]
            if self.broken:
                raise LedgerError("the disk is full")
            return await super().admit(*args, **more)  # type: ignore[arg-type]

    ledger = Shaky()
    service = ToyService(queries=[DONE])
    async with service.client(ledger=ledger) as client:
        handle = await client.submit(image())
        with pytest.raises(WaitTimeoutError, match="the disk is full") as told:
            await handle.result(timeout=3.0)
        assert (told.value.bought, type(told.value.fault)) == (True, LedgerError)

        ledger.broken = False
        assert (await handle.result()).status is TaskStatus.SUCCEEDED
        assert service.count("POST") == 1


@pytest.mark.parametrize("second", [429, 422, httpx.ConnectError("down")], ids=str)
async def test_a_refused_repetition_says_nothing_about_the_create_that_may_have_arrived(
    second: object,
) -> None:
    service = ToyService(creates=[httpx.ReadError("cut"), second, {"status": "queued"}], queries=[DONE])
    async with service.client(Toy(idempotent=True)) as client:
        assert (await client.run(image())).status is TaskStatus.SUCCEEDED

    service = ToyService(creates=[httpx.ReadError("cut"), second])
    async with service.client(Toy(idempotent=True)) as client:
        with pytest.raises(SubmissionUnknownError):
            await client.run(image())
        assert service.count("POST") == 5


async def test_looking_at_the_statistics_does_not_forget_the_create_rate() -> None:
    limits = ServiceLimits(creates_per_minute=30)
    async with Emulator(dashscope_limits=limits, image_seconds=2) as emulator, client_at(emulator) as client:
        handles = [await client.submit(image(str(number))) for number in range(40)]
        for _ in range(100):
            await client.statistics()
            await asyncio.sleep(1)
        await asyncio.gather(*(handle.result() for handle in handles))

        assert emulator.stats()["creates_429"] == 0


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (None, 60),
        (Limits(), 60),
        (Limits(concurrency=40), 60),
        ({"image": Limits(concurrency=40)}, 60),
        (Limits(creates_per_minute=math.inf), 0),
        (UNLIMITED, 0),
    ],
)
async def test_only_infinity_lifts_a_documented_limit(
    limits: Limits | dict[str, Limits] | None, seconds: float
) -> None:
    """DashScope documents 30 image creates a minute."""
    async with emulator_with(image_seconds=1) as emulator, client_at(emulator, limits=limits) as client:
        await client.gather(*(image(f"number {number}") for number in range(31)))

        first, *_, last = (each.time for each in calls(emulator, "create"))
        assert seconds <= last - first < seconds + 5


async def test_infinity_lifts_a_documented_concurrency() -> None:
    """DashScope documents 3 videos in flight."""
    async with emulator_with(video_seconds=100) as emulator, client_at(emulator, limits=UNLIMITED) as client:
        before = now()
        handles = [await client.submit(video(f"number {number}")) for number in range(9)]
        await asyncio.gather(*(handle.accepted() for handle in handles))

        assert now() - before < 60
        assert [lane.cap for lane in (await client.statistics()).lanes] == [None]


async def test_a_service_that_says_retry_after_0_is_not_asked_without_a_pause() -> None:
    service = ToyService(creates=[httpx.Response(429, headers={"Retry-After": "0"})])
    async with service.client() as client:
        await client.submit(image())
        await asyncio.sleep(60)

    assert service.count("POST") < 10


async def test_ten_creates_that_fail_together_cost_one_pause() -> None:
    """A blip of a second must not idle the lane for a minute."""
    blips = [*[httpx.ConnectError("blip")] * 10, {"status": "queued"}]
    service = ToyService(creates=[{"status": "queued"}, *blips], queries=[DONE])
    async with service.client(limits=Limits(10)) as client:
        await client.run(image())
        service.delay["POST"] = 0.1
        before = now()
        handles = [await client.submit(image()) for _ in range(10)]
        await asyncio.gather(*(handle.accepted() for handle in handles))

        assert now() - before < 3


async def test_whoever_waits_behind_a_fault_is_told_of_it() -> None:
    async with ToyService(creates=[httpx.ConnectError("no route to host")]).client(
        limits=Limits(1)
    ) as client:
        handles = [await client.submit(image()) for _ in range(5)]
        results = await asyncio.gather(
            *(handle.result(timeout=10) for handle in handles), return_exceptions=True
        )

    assert ["no route to host" in str(each) for each in results] == [True] * 5


@pytest.mark.parametrize("step", ["accept", "put_back", "finish"])
async def test_what_the_service_has_told_is_recorded_though_the_ledger_fails_at_first(step: str) -> None:
    from bide import LedgerError, MemoryLedger

    ledger, failures = MemoryLedger(), iter([OSError("disk full"), LedgerError("disk full")])
    honest = getattr(ledger, step)

    async def shaky(*args: object, **more: object) -> object:
        fault = next(failures, None)
        if fault is not None:
            raise fault
        return await honest(*args, **more)

    setattr(ledger, step, shaky)
    done = {"id": None, "status": "succeeded"}
    first = {"accept": {"status": "queued"}, "put_back": 429, "finish": done}[step]
    running = [{"status": "running"}] * 5
    service = ToyService(creates=[first, {"status": "queued"}], queries=[*running, DONE])
    async with service.client(ledger=ledger) as client:
        handle = await client.submit(image())
        with pytest.raises(WaitTimeoutError, match="disk full") as told:
            await handle.result(timeout=7.0)
        assert (told.value.bought, type(told.value.fault)) == (True, LedgerError)

        assert (await handle.result()).status is TaskStatus.SUCCEEDED
        assert len(service.tickets) == (2 if step == "put_back" else 1)


async def test_a_create_that_is_answered_as_done_without_a_result_is_looked_at_for_it() -> None:
    service = ToyService(creates=[{"status": "succeeded", "outputs": 0}], queries=[{"status": "succeeded"}])
    async with service.client() as client:
        task = await client.run(image())

    assert (task.status, len(task.outputs), task.error) == (TaskStatus.SUCCEEDED, 1, None)
    assert (service.count("POST"), service.count("GET")) == (1, 1)


async def test_a_request_that_runs_out_of_time_before_its_turn_is_withdrawn_and_says_so() -> None:
    service = ToyService(queries=[{"status": "running"}])
    async with service.client(limits=Limits(1)) as client:
        await (await client.submit(image())).accepted()

        with pytest.raises(WaitTimeoutError, match=r"was withdrawn: nothing was sent"):
            await client.run(image(), timeout=5)

        assert (await client.statistics()).waiting == 0
