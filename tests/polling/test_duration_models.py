"""What a client has learned and what the ledger keeps of it: written rarely, shared, never lost to a fault."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from bide import ImageRequest, LedgerError, MemoryLedger, Pace, RawRequest, Request, VideoRequest
from bide._polling.duration_models import MOST_MODELS, DurationModel, DurationModels, variant_of
from bide._polling.durations import Durations, Sample, durations_from, plain_of
from bide.ledgers import SQLiteLedger
from support.emulated import image, video
from support.toy import TimedService, ToyService

IMAGES = (10.0, 30.0)
NAME = "toy@https://toy.example  image  wan2.5-t2i-preview"
DONE, RUNNING = {"status": "succeeded"}, {"status": "running"}


class WatchedLedger(MemoryLedger):
    """Counts what is learned and read, and fails as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.learns: list[float] = []
        self.reads: list[float] = []
        self.faults: list[Exception] = []

    async def learn(self, changes: Mapping[str, Callable[[str | None], str]]) -> dict[str, str]:
        self.learns.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        if self.faults:
            raise self.faults.pop(0)
        return await super().learn(changes)

    async def read_learned(self, names: Collection[str] | None = None) -> dict[str, str]:
        self.reads.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        if self.faults:
            raise self.faults.pop(0)
        return await super().read_learned(names)


def on(
    ledger: MemoryLedger | SQLiteLedger, origin: str = "toy@https://toy.example", news: Any = None
) -> DurationModels:
    def spawn(work: Any) -> None:
        running.add(task := asyncio.ensure_future(work))
        task.add_done_callback(running.discard)

    running: set[asyncio.Future[None]] = set()
    return DurationModels(ledger, origin, spawn, news or (lambda model: None))


def lesson(run: float = 12.0) -> Sample:
    return Sample(1.0, run, 0.5, 0.5)


async def seen_in(ledger: MemoryLedger | SQLiteLedger) -> dict[str, int]:
    return {name: durations_from(text).seen for name, text in (await ledger.read_learned()).items()}


# When it is written ----------------------------------------------------------------------------------------------


async def test_lessons_reach_the_ledger_within_a_second_together() -> None:
    ledger = WatchedLedger()
    experience = on(ledger)
    model = experience.model("image", "wan", None, IMAGES)
    for _ in range(20):
        experience.teach(model, lesson())
        await asyncio.sleep(0.02)
    assert model.learned.seen == 20, "what this client does next knows of it at once"
    await asyncio.sleep(1.0)

    assert len(ledger.learns) == 1
    assert list((await seen_in(ledger)).values()) == [20]


async def test_a_look_writes_nothing_and_an_end_once() -> None:
    ledger = WatchedLedger()
    service = ToyService(queries=[*[{**RUNNING, "progress": part} for part in range(30)], DONE])
    async with service.client(ledger=ledger, pace=Pace.fixed(3.0)) as client:
        await client.run(image())
        assert (service.count("GET"), ledger.learns) == (31, [])
        await asyncio.sleep(2)

        assert len(ledger.learns) == 1
    assert len(ledger.learns) == 1


async def test_what_was_not_written_yet_is_written_at_the_close() -> None:
    ledger = WatchedLedger()
    async with ToyService(queries=[RUNNING, DONE]).client(ledger=ledger) as client:
        await client.run(image())

    assert list((await seen_in(ledger)).values()) == [1]
    assert len(ledger.learns) == 1


async def test_a_thousand_ends_are_written_in_a_few_steps() -> None:
    ledger = WatchedLedger()
    experience = on(ledger)
    model = experience.model("image", "wan", None, IMAGES)
    for _ in range(1000):
        experience.teach(model, lesson())
    await asyncio.sleep(1.5)

    assert len(ledger.learns) == 1
    [text] = (await ledger.read_learned()).values()
    assert len(text) < 10_000
    assert len(durations_from(text).ends) == 128


# Whose it is -----------------------------------------------------------------------------------------------------


async def test_two_clients_on_one_ledger_lose_no_lesson() -> None:
    ledger = MemoryLedger()
    one, two = on(ledger), on(ledger)
    models = [each.model("image", "wan", image(n=2), IMAGES) for each in (one, two)]
    for number in range(30):
        for each, model in zip((one, two), models, strict=True):
            each.teach(model, lesson(10.0 + number))
        await asyncio.sleep(0.3)
    await asyncio.gather(one.aclose(), two.aclose())

    assert sorted((await seen_in(ledger)).values()) == [60, 60], "of the model and of the variant"
    assert min(model.learned.seen for model in models) > 50, "each knows nearly all of it meanwhile"


@pytest.mark.real_time
async def test_two_ledgers_on_one_file_lose_no_lesson(tmp_path: Path) -> None:
    async with SQLiteLedger(tmp_path / "tasks.db") as first, SQLiteLedger(tmp_path / "tasks.db") as second:
        one, two = on(first), on(second)
        models = [each.model("image", "wan", None, IMAGES) for each in (one, two)]
        for _ in range(10):
            for each, model in zip((one, two), models, strict=True):
                each.teach(model, lesson())
            await asyncio.gather(one.flush(), two.flush())

        assert list((await seen_in(second)).values()) == [20]


async def test_lessons_that_come_while_others_are_written_are_kept() -> None:
    ledger = WatchedLedger()
    experience = on(ledger)
    model = experience.model("image", "wan", None, IMAGES)
    await asyncio.sleep(0.1)
    experience.teach(model, lesson())
    writing = asyncio.ensure_future(experience.flush())
    await asyncio.sleep(0.005)
    experience.teach(model, lesson())
    await writing
    assert model.learned.seen == 2
    await asyncio.sleep(2)

    assert list((await seen_in(ledger)).values()) == [2]
    assert model.learned.seen == 2


async def test_what_others_have_learned_is_told_once_it_is_known() -> None:
    ledger, told = MemoryLedger(), []
    await seeded(ledger, "toy@https://toy.example  image  wan", [100.0] * 20)
    experience = on(ledger, news=told.append)
    model = experience.model("image", "wan", None, IMAGES)
    experience.teach(model, lesson())
    await asyncio.sleep(0)

    assert told == [model]
    assert model.learned.seen == 21, "what is on record, and what it does not have yet"


async def seeded(ledger: MemoryLedger | SQLiteLedger, name: str, runs: list[float]) -> None:
    learned = Durations.from_documents(10, 30)
    for run in runs:
        learned.learn(Sample(0.5, run, 0.5, 0.5))
    await ledger.learn({name: lambda before: plain_of(learned)})


async def test_a_new_client_begins_with_what_is_on_record() -> None:
    looks = []
    for runs in ([], [100.0 + number % 5 for number in range(128)]):
        ledger, service = MemoryLedger(), ToyService(queries=[RUNNING])
        await seeded(ledger, NAME, runs)
        async with service.client(ledger=ledger, pace=Pace(cap=1000)) as client:
            await client.submit(image())
            await asyncio.sleep(110)
        looks.append([time - service.times("POST")[0] for time in service.times("GET")])
    unknowing, knowing = looks

    assert unknowing[0] < 10
    assert knowing[0] > 15, "only the heavy tail asks as soon as this"
    assert sum(look < 95 for look in unknowing) > 10
    assert sum(look < 95 for look in knowing) <= 4
    assert sum(look > 95 for look in knowing) >= 3


# Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"form": 99}', '{"form": 1, "seen": -1}'])
async def test_what_cannot_be_read_is_dropped_with_a_warning_and_learned_again(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = MemoryLedger()
    await ledger.learn({NAME: lambda before: text})
    with caplog.at_level(logging.WARNING, logger="bide"):
        async with ToyService(queries=[RUNNING, DONE]).client(ledger=ledger) as client:
            await client.run(image())
            await asyncio.sleep(2)
            await client.run(image())

    assert await seen_in(ledger) == {NAME: 2}
    warnings = [each.getMessage() for each in caplog.records if "cannot be read" in each.getMessage()]
    assert warnings
    assert all(NAME in warning and "learned again" in warning for warning in warnings)


@pytest.mark.parametrize("fault", [LedgerError("the disk is full"), RuntimeError("boom")], ids=str)
async def test_a_ledger_that_fails_loses_no_lesson_and_is_tried_again(fault: Exception) -> None:
    ledger = WatchedLedger()
    experience = on(ledger)
    model = experience.model("image", "wan", None, IMAGES)
    await asyncio.sleep(0.1)
    ledger.faults = [fault] * 3
    experience.teach(model, lesson())
    await asyncio.sleep(3)
    experience.teach(model, lesson())
    await asyncio.sleep(30)

    assert list((await seen_in(ledger)).values()) == [2]
    gaps = [later - sooner for sooner, later in itertools.pairwise(ledger.learns)]
    assert len(ledger.learns) == 4
    assert max(gaps) <= 5.1


async def test_a_ledger_that_cannot_learn_delays_no_look_and_no_end() -> None:
    ledgers = [MemoryLedger(), broken := WatchedLedger()]
    broken.faults = [RuntimeError("boom")] * 1000
    looks = []
    for ledger in ledgers:
        service = ToyService(queries=[*[RUNNING] * 5, DONE])
        async with service.client(ledger=ledger, pace=Pace.fixed(4.0)) as client:
            await client.run(image("one"))
            service.script["GET"] = [RUNNING, RUNNING, DONE]
            await client.run(image("two"))
        looks.append([time - service.times("POST")[0] for time in service.times("GET")])

    assert looks[0] == pytest.approx(looks[1], abs=0.5)


async def test_a_client_closes_though_its_ledger_cannot_learn(caplog: pytest.LogCaptureFixture) -> None:
    ledger = WatchedLedger()
    with caplog.at_level(logging.WARNING, logger="bide"):
        async with ToyService(queries=[DONE]).client(ledger=ledger) as client:
            await client.run(image())
            ledger.faults = [RuntimeError("boom")] * 10
    await asyncio.sleep(100)

    assert len(ledger.learns) == 1, "nothing of a closed client goes on"
    assert not caplog.records


async def test_a_flush_that_is_cancelled_loses_nothing() -> None:
    ledger = WatchedLedger()
    experience = on(ledger)
    experience.teach(experience.model("image", "wan", None, IMAGES), lesson())
    writing = asyncio.ensure_future(experience.flush())
    await asyncio.sleep(0.005)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await experience.aclose()

    assert list((await seen_in(ledger)).values()) == [1]


# Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "variant"),
    [
        (None, ""),
        (ImageRequest("a", model="m"), ""),
        (ImageRequest("a", model="m", n=4), "n=4"),
        (ImageRequest("a", model="m", n=4, size="1024*1024"), "n=4 size=1024*1024"),
        (VideoRequest("a", model="m"), ""),
        (VideoRequest("a", model="m", duration=5, resolution="720P"), "duration=5 resolution=720P"),
        (VideoRequest("a", model="m", duration=5.0), "duration=5"),
        (VideoRequest("a", model="m", size="1280*720", seed=7), "size=1280*720"),
        (RawRequest("/p", {"model": "m", "seconds": "10", "prompt": "a"}), "seconds=10"),
        (RawRequest("/p", {"model": "m", "n": 1, "parameters": {"duration": 5, "size": "1*1"}}), "duration=5 size=1*1"),
        (RawRequest("/p", {"parameters": ["size"], "n": True, "size": {"w": 1}, "duration": None}), ""),
        (RawRequest("/p", {"size": "a\nb\x00", "duration": "1" * 17, "resolution": "a 5", "seconds": 7}), "seconds=7"),
    ],
)  # fmt: skip
def test_a_variant_is_what_makes_a_task_longer(request_: Request | None, variant: str) -> None:
    assert variant_of(request_) == variant


async def test_a_name_holds_origin_kind_model_and_variant() -> None:
    ledger = MemoryLedger()
    async with ToyService(queries=[DONE]).client(ledger=ledger) as client:
        await client.run(image(n=2))
        await client.run(video())

    assert set(await ledger.read_learned()) == {
        NAME,
        f"{NAME}  n=2",
        "toy@https://toy.example  video  wan2.6-t2v",
    }


@pytest.mark.parametrize(
    "name", ["a\nb", "\ud800", "x" * 10_000, "模型", "a\x00b", "'; DROP TABLE learned; --", " ", ""]
)
async def test_a_hostile_model_name_is_kept_as_one_short_line(name: str) -> None:
    ledger = MemoryLedger()
    experience = on(ledger)
    experience.teach(experience.model("image", name, None, IMAGES), lesson())
    await experience.aclose()

    [kept] = await ledger.read_learned()
    assert kept.isprintable()
    assert len(kept) < 300
    assert kept.encode()


@pytest.mark.real_time
async def test_a_hostile_model_name_is_kept_in_a_file(tmp_path: Path) -> None:
    async with SQLiteLedger(tmp_path / "tasks.db") as ledger:
        experience = on(ledger)
        for name in ("a\nb", "\ud800", "a\x00b", "'; DROP TABLE learned; --"):
            experience.teach(experience.model("image", name, None, IMAGES), lesson())
        await experience.aclose()

        assert list((await seen_in(ledger)).values()) == [1, 1, 1, 1]


async def test_a_model_that_is_named_like_a_variant_is_another() -> None:
    experience = on(MemoryLedger())

    variant = experience.model("image", "wan", image(n=4), IMAGES)
    for name in ("wan n=4", "wan  n=4", "wan\nn=4", " wan  n=4 "):
        assert experience.model("image", name, None, IMAGES) is not variant


async def test_who_looks_by_the_clock_teaches_durations_and_no_lateness() -> None:
    ledger = MemoryLedger()
    async with TimedService().client(ledger=ledger, pace=Pace.fixed(9.0)) as client:
        await client.gather(*(image("12") for _ in range(12)))
    [text] = (await ledger.read_learned()).values()
    learned = durations_from(text)

    assert (learned.seen, learned.late) == (12, 0.0)
    assert learned.lag > 3


async def test_an_emulator_teaches_nothing_of_the_service() -> None:
    ledger = MemoryLedger()
    real, emulated = (
        on(ledger, "dashscope@https://dashscope.aliyuncs.com"),
        on(ledger, "dashscope@http://127.0.0.1:1"),
    )
    emulated.teach(emulated.model("image", "wan", None, IMAGES), lesson(0.1))
    await emulated.aclose()
    model = real.model("image", "wan", None, IMAGES)
    await asyncio.sleep(1)

    assert model.learned.seen == 0


async def test_a_client_of_countless_models_remembers_the_latest_and_loses_no_lesson() -> None:
    ledger = WatchedLedger()
    experience = on(ledger)
    for number in range(MOST_MODELS + 500):
        experience.teach(experience.model("image", f"model-{number}", None, IMAGES), lesson())
        if number % 100 == 0:
            await asyncio.sleep(1.5)
    await experience.aclose()

    assert set((await seen_in(ledger)).values()) == {1}
    assert len(ledger.learns) < 40


async def test_a_variant_decides_with_its_own_times_once_they_are_clearly_narrower() -> None:
    experience = on(MemoryLedger())
    short, long = (
        experience.model("video", "wan", VideoRequest("a", model="wan", duration=seconds), (60, 300))
        for seconds in (5, 10)
    )
    assert short.best() is short.parent.learned  # type: ignore[union-attr]  # a variant has one
    for number in range(20):
        experience.teach(short, lesson(60 + number % 5))
        experience.teach(long, lesson(200 + number % 5))

    assert short.best() is short.learned
    assert long.best() is long.learned
    assert short.parent is long.parent
    assert isinstance(short.parent, DurationModel)
    assert short.parent.learned.seen == 40


async def test_what_is_kept_is_json_of_a_few_kilobytes() -> None:
    ledger = MemoryLedger()
    async with ToyService(queries=[DONE]).client(ledger=ledger) as client:
        await client.run(image())

    [text] = (await ledger.read_learned()).values()
    assert {"form", "seen", "lag", "ends", "rests", "prior"} <= set(json.loads(text))
    assert len(text) < 1000
