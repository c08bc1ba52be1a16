"""Several processes on one file: forks, deaths, and lost words."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from bide import ImageRequest
from bide.ledgers import Hint, Record, SQLiteLedger
from bide.ledgers.sqlite import backend, processes, session
from bide.models import Limits, TaskStatus
from support.ledger_worlds import ORIGIN, admitted, in_thread, record, running, state, terms, ticks
from support.programs import program
from support.toy import ToyService
from support.waits import A_MINUTE, until

pytestmark = pytest.mark.real_time

DRIVES_THREE = """
    async def main():
        async with SQLiteLedger(path, store_prompts=sys.argv[3] == "True") as ledger:
            me = await ledger.enter(ORIGIN, {"k1"})
            await running(ledger, "sent", "x1", owner=me)
            await ledger.add(record("half", owner=me))
            await admitted(ledger, owner=me)
            await ledger.add(record("waiting", owner=me))
            say(ledger._session.instance)
            await asyncio.sleep(600)

    asyncio.run(main())
"""
FORKS = """
    async def main():
        ledger = SQLiteLedger(path)
        client = ToyService().client(ledger=ledger)
        await client.__aenter__()
        await ledger.add(record("parents"))
        child = os.fork()
        if child == 0:
            try:
                ledger.get("parents").send(None)
            except RuntimeError as fault:
                say("child:", fault)
            else:
                say("child: no fault")
            try:
                client.submit(CAT).send(None)
            except RuntimeError as fault:
                say("client:", fault)
            say("child goes on")
            del ledger, client
            gc.collect()
            if sys.argv[3] == "exits":
                os._exit(0)  # to leave `asyncio.run` is to close the selector of the parent, who then hears of nothing
            time.sleep(600)
        if sys.argv[3] == "exits":
            os.waitpid(child, 0)
        say("forked", child)
        await ledger.add(record("later"))
        say("added")
        await asyncio.sleep(600)

    asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def ended(ledger: SQLiteLedger, ticket: str) -> bool:
    found = await ledger.get(ticket)
    return found is not None and found.task.status.is_final


async def is_alone(ledger: SQLiteLedger) -> bool:
    """Whether no other process is on record."""
    return len((await ledger.report()).owners) == 1


def names(path: Path) -> set[str]:
    return {each.name for each in path.with_name("ledger.db-bide").iterdir()}


# Deaths ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_ticks")
async def test_what_a_killed_process_has_left_can_be_adopted_once_others_look(path: Path) -> None:
    async with SQLiteLedger(path) as ledger, program(DRIVES_THREE, path, True) as other:
        instance = await other.line()
        me = await ledger.enter(ORIGIN, {"k1"})
        heard: list[Record | Hint] = []
        ledger.subscribe(heard.append)
        assert await ledger.adopt(ORIGIN, {"k1"}, me) == []
        assert f"{instance}.lock" in names(path)

        other.kill()
        await until(lambda: any(isinstance(each, Record) and each.owner is None for each in heard))
        adopted = await ledger.adopt(ORIGIN, {"k1"}, me)

        assert Hint.OWNERS in heard
        assert [(each.ticket, str(each.task.status)) for each in adopted] == [
            ("sent", "running"),
            ("half", "submitting"),
            ("waiting", "waiting"),
        ]
        assert not any(each.startswith(instance) for each in names(path))
        report = await ledger.report()
        assert [each.is_alive for each in report.owners] == [True]
        assert report.unowned == 0


@pytest.mark.usefixtures("quick_ticks")
async def test_a_process_that_is_stopped_shortly_keeps_what_it_drives(path: Path) -> None:
    async with SQLiteLedger(path) as ledger, program(DRIVES_THREE, path, True) as other:
        await other.line()
        other.process.send_signal(signal.SIGSTOP)

        await ticks(ledger)

        assert await ledger.adopt(ORIGIN, {"k1"}, "me") == []
        other.process.send_signal(signal.SIGCONT)


IS_SILENT_FOR_A_WHILE = """
    async def main():
        service = ToyService(queries=[{"status": "running"}])
        async with service.client(ledger=SQLiteLedger(path), limits=Limits(2)) as client:
            handles = [await client.submit(CAT, ticket=f"t{number}") for number in range(4)]
            await handles[1].accepted()
            say(service.count("POST"))
            if sys.argv[3] == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                time.sleep(float(sys.argv[3]))
            before = service.count("GET")
            results = [str((await handle.result()).status) for handle in handles]
            say(*results, service.count("POST"))

    asyncio.run(main())
"""


@pytest.mark.usefixtures("quick_ticks")
@pytest.mark.parametrize("how", ["stopped", "4"])
async def test_a_process_that_lives_and_does_nothing_is_adopted_from_and_follows_when_it_goes_on(
    path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped, or its event loop is blocked."""
    monkeypatch.setattr(backend, "SILENT_SECONDS", 2.0)
    service = ToyService(queries=[{"status": "succeeded"}])
    service.name = "here"
    async with (
        service.client(ledger=SQLiteLedger(path), limits=Limits(2)) as client,
        program(IS_SILENT_FOR_A_WHILE, path, how) as other,
    ):
        assert await other.line() == "2"
        handles = [await client.attach(ticket=f"t{number}") for number in range(4)]

        results = [await handle.result(timeout=A_MINUTE) for handle in handles]

        assert [each.status for each in results] == [TaskStatus.SUCCEEDED] * 4
        assert service.count("POST") == 2, "the two that had waited are sent here"
        other.process.send_signal(signal.SIGCONT)
        assert await other.line() == "succeeded succeeded succeeded succeeded 2"


@pytest.mark.usefixtures("quick_ticks")
async def test_a_silent_process_keeps_its_creates_under_way_for_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only it can get their answers."""
    monkeypatch.setattr(backend, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(backend, "LONG_SILENT_SECONDS", 2.0)
    async with SQLiteLedger(path) as ledger, program(DRIVES_THREE, path, True) as other:
        await other.line()
        me = await ledger.enter(ORIGIN, {"k1"})
        other.process.send_signal(signal.SIGSTOP)
        adopted: list[str] = []

        async def adopts() -> bool:
            adopted.extend(each.ticket for each in await ledger.adopt(ORIGIN, {"k1"}, me))
            return bool(adopted)

        await until(adopts)
        assert adopted == ["sent", "waiting"]
        adopted.clear()
        await until(adopts)
        assert adopted == ["half"]
        other.process.send_signal(signal.SIGCONT)


async def test_the_loop_of_a_process_shows_that_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BEAT_SECONDS", 0.05)
    async with SQLiteLedger(path) as ledger:
        await ledger.enter(ORIGIN, {"k1"})
        presence = (await in_thread(ledger, lambda it: it)).presence
        first = presence.beat_of(presence.instance)

        await until(lambda: (presence.beat_of(presence.instance) or 0) >= (first or 0) + 3)


def test_the_silence_of_others_counts_only_while_this_process_lives(path: Path) -> None:
    """Where a whole machine was asleep, each process finds the others silent for hours: all of them slept.

    An earlier version gives no sign at all.
    """
    beats, now = {"old": None, "quiet": 7, "lively": 1}, 0.0

    class Heard:
        def beat_of(self, instance: str) -> int | None:
            return beats[instance]

    silence = processes.Silence(Heard(), lambda: now)  # type: ignore[arg-type]
    silence.check(beats)
    now += 7200.0
    silence.check(beats)
    assert silence.seconds_of("quiet") == 1
    for _ in range(14):
        now += 1.0
        beats["lively"] = (beats["lively"] or 0) + 1
        silence.check(beats)

    assert [silence.seconds_of(each) for each in beats] == [0, 15, 0]
    beats["quiet"] = 8
    assert silence.seconds_of("quiet") == 0


@pytest.mark.usefixtures("quick_ticks")
async def test_what_waits_without_its_request_ends_when_its_process_is_killed(path: Path) -> None:
    async with SQLiteLedger(path, store_prompts=False) as ledger, program(DRIVES_THREE, path, False) as other:
        await other.line()

        other.kill()
        await until(lambda: len(names(path)) <= 3)
        await until(lambda: ended(ledger, "waiting"))
        found = await ledger.get("waiting")

        assert found is not None
        assert found.task.status is TaskStatus.CANCELLED
        assert "its request was not stored" in (found.task.error.message if found.task.error else "")
        left = await ledger.adopt(ORIGIN, {"k1"}, "me")
        assert [each.ticket for each in left] == ["sent", "half"]


async def test_a_dead_process_is_found_by_the_next_one_that_opens_the_file(path: Path) -> None:
    async with program(DRIVES_THREE, path, True) as other:
        await other.line()
        other.kill()

    async with SQLiteLedger(path) as ledger:
        left: list[Record] = []

        async def adopted_all() -> bool:
            left.extend(await ledger.adopt(ORIGIN, {"k1"}, "me"))
            return len(left) >= 3

        await until(adopted_all)

    assert [each.ticket for each in left] == ["sent", "half", "waiting"]


@pytest.mark.usefixtures("quick_ticks")
async def test_a_client_goes_on_with_what_a_killed_one_has_left(path: Path) -> None:
    drives = """
    async def main():
        service = ToyService()
        async with service.client(ledger=SQLiteLedger(path)) as client:
            handle = await client.submit(CAT, ticket="t1")
            await handle.accepted()
            say(service.count("POST"))
            await asyncio.sleep(600)

    asyncio.run(main())
    """
    service = ToyService(queries=[{"status": "succeeded"}])
    async with service.client(ledger=SQLiteLedger(path)) as client, program(drives, path) as other:
        assert await other.line() == "1"
        handle = await client.attach(ticket="t1")
        assert service.count("GET") == 0

        other.kill()
        task = await handle.result(timeout=A_MINUTE)

        assert task.status is TaskStatus.SUCCEEDED
        assert service.count("POST") == 0


async def test_who_has_no_file_descriptor_left_takes_nobody_for_dead(path: Path) -> None:
    def look_without(backend: Any) -> list[str]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.open(path, os.O_RDONLY)
            dead: list[str] = backend.read_peers().dead
            return dead
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    async with SQLiteLedger(path) as one, SQLiteLedger(path):
        assert await in_thread(one, look_without) == []
        assert len((await one.report()).owners) == 2


async def test_by_way_of_a_link_it_is_the_same_ledger(path: Path, tmp_path: Path) -> None:
    """Each name would have a folder of locks otherwise, and each side take the other one for dead."""
    link, folder = tmp_path / "link.db", tmp_path / "folder"
    link.symlink_to(path)
    folder.symlink_to(tmp_path, target_is_directory=True)
    ledgers = [SQLiteLedger(each) for each in (path, link, folder / "link.db")]
    async with ledgers[0], ledgers[1], ledgers[2]:
        assert {each.path for each in ledgers} == {path.resolve()}
        assert [each.is_alive for each in (await ledgers[0].report()).owners] == [True] * 3
        assert [each.name for each in tmp_path.glob("*-bide")] == ["ledger.db-bide"]


# Forks -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_ticks")
async def test_a_forked_child_is_told_and_its_end_neither_frees_the_parents_lock_nor_harms_the_file(
    path: Path,
) -> None:
    async with SQLiteLedger(path) as ledger, program(FORKS, path, "exits") as parent:
        assert "fork before a ledger is first used" in await parent.line()
        assert "after a fork each process needs a Client of its own" in await parent.line()
        assert await parent.line() == "child goes on"
        assert (await parent.line()).startswith("forked")
        assert await parent.line() == "added"

        await ticks(ledger)

        report = await ledger.report()
        assert [each.is_alive for each in report.owners] == [True, True]
        assert report.problems == ()
        assert [each.ticket for each in await ledger.records()] == ["parents", "later"]


@pytest.mark.usefixtures("quick_ticks")
async def test_a_forked_child_that_lives_on_does_not_hide_its_parents_death(path: Path) -> None:
    async with SQLiteLedger(path) as ledger, program(FORKS, path, "stays") as parent:
        lines = [await parent.line() for _ in range(5)]  # of both, as they come
        (child,) = [int(each.split()[1]) for each in lines if each.startswith("forked")]
        assert "added" in lines
        assert len((await ledger.report()).owners) == 2

        try:
            parent.kill()
            await until(lambda: is_alone(ledger))
        finally:
            os.kill(child, signal.SIGKILL)

        await ledger.add(record("after"))
        assert (await ledger.report()).problems == ()


async def test_a_child_whose_parent_had_the_file_open_cannot_open_it_anew(path: Path) -> None:
    """SQLite would take the parent's locks for its own, and write to files that the parent may remove."""
    forks = """
    async def add(ticket):
        async with SQLiteLedger(path) as ledger:
            await ledger.add(record(ticket))

    async def main():
        async with SQLiteLedger(path) as ledger:
            await ledger.add(record("parents"))
            child = os.fork()
            if child == 0:
                asyncio._set_running_loop(None)
                try:
                    asyncio.run(add("childs"))
                except Exception as error:
                    say(error)
                os._exit(0)
            await asyncio.to_thread(os.waitpid, child, 0)
            say(*[each.ticket for each in await ledger.records()], *(await ledger.report()).problems)

    asyncio.run(main())
    """
    async with program(forks, path) as parent:
        assert "was open when this process was forked" in await parent.line()
        assert await parent.line() == "parents"


async def test_a_forked_child_that_leaves_the_blocks_of_its_parent_ends(path: Path) -> None:
    """It has no thread that could close the ledger, and the file is its parent's."""
    forks = """
    async def main():
        async with SQLiteLedger(path) as ledger:
            await ledger.enter(ORIGIN, {"k1"})
            child = os.fork()
            if child == 0:
                try:
                    ledger.aclose().send(None)
                except StopIteration:
                    sys.exit(7)
            status = None
            for _ in range(6000):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    break
                time.sleep(0.01)
            else:
                os.kill(child, 9)
            say(ended == child, os.waitstatus_to_exitcode(status))
            os._exit(0)  # the child has closed the selector of this loop

    asyncio.run(main())
    """
    async with program(forks, path) as parent:
        assert await parent.line() == "True 7"


async def test_no_process_is_forked_while_the_ledgers_thread_is_inside_sqlite(path: Path) -> None:
    """SQLite's locks outlive a fork: a child that uses SQLite for anything would wait for ever for the lost thread."""
    forks = """
    async def main():
        async with SQLiteLedger(path) as ledger:
            has_begun, steps = threading.Event(), []

            def slow(backend):
                has_begun.set()
                time.sleep(0.3)
                steps.append(slow)

            step = asyncio.create_task(in_thread(ledger, slow, writes=True))
            await asyncio.to_thread(has_begun.wait)
            child = os.fork()
            if child == 0:
                os._exit(len(steps))
            await step
            await ledger.add(record("t1"))
            say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *[each.ticket for each in await ledger.records()])

    import threading
    asyncio.run(main())
    """
    async with program(forks, path) as parent:
        assert await parent.line() == "1 t1"


# Words -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_ticks")
async def test_a_word_that_is_lost_is_made_up_for_at_the_next_tick(path: Path) -> None:
    lanes = terms(limits=Limits(1))
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        me, them = await one.enter(ORIGIN, {"k1"}), await other.enter(ORIGIN, {"k1"})
        got = await running(one, "t1", "x1", owner=me)
        await other.add(record("t2", owner=them))
        await other.follow("t1", client="me")
        await asyncio.sleep(0.1)
        for each in path.with_name("ledger.db-bide").glob("*.sock"):
            each.unlink()
        heard: list[Record | Hint] = []
        other.subscribe(heard.append)

        await one.finish("t1", state(got, TaskStatus.SUCCEEDED), owner=me)

        await until(lambda: any(isinstance(each, Record) for each in heard))
        await until(lambda: Hint.SLOTS in heard)
        assert (await admitted(other, lanes, them)).ticket == "t2"


@pytest.mark.usefixtures("no_ticks")
async def test_words_arrive_under_a_path_longer_than_a_sockets_may_be(tmp_path: Path) -> None:
    directory = tmp_path / ("a" * 100) / ("b" * 100)
    directory.mkdir(parents=True)
    path = directory / "ledger.db"
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        await one.add(record("t1"))
        await other.follow("t1", client="me")
        assert len([each for each in names(path) if each.endswith(".sock")]) == 2
        heard: list[TaskStatus] = []
        other.subscribe(lambda news: heard.append(news.task.status) if isinstance(news, Record) else None)

        await one.forget("t1")

        await until(lambda: TaskStatus.CANCELLED in heard)

    assert names(path) == {"write.lock"}


@pytest.mark.usefixtures("no_ticks")
async def test_a_flood_of_words_harms_nobody(path: Path) -> None:
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        me = await one.enter(ORIGIN, {"k1"})
        await asyncio.gather(*(one.add(record(f"t{number}", owner=me)) for number in range(300)))
        heard: set[str] = set()
        one.subscribe(
            lambda news: (
                heard.add(news.ticket) if isinstance(news, Record) and news.task.status.is_final else None
            )
        )

        await asyncio.gather(*(other.forget(f"t{number}") for number in range(300)))

        await until(lambda: len(heard) == 300)


async def test_processes_take_turns_at_one_lane_and_break_no_cap(path: Path) -> None:
    takes = """
    async def main():
        lanes = terms(limits=Limits(2))
        async with SQLiteLedger(path) as ledger:
            me = await ledger.enter(ORIGIN, {"k1"})
            turn = asyncio.Event()
            ledger.subscribe(lambda _: turn.set())
            for number in range(15):
                await ledger.add(record(f"{me}-{number}", owner=me))
            most = done = 0
            while done < 15:
                turn.clear()
                got = await admit(ledger, lanes, me)
                if isinstance(got, Held):
                    await turn.wait()
                    continue
                most = max(most, (await lane_of(ledger)).slots)
                await asyncio.sleep(0.002)
                await ledger.finish(got.ticket, state(got, TaskStatus.FAILED), owner=me)
                done += 1
            say("most", most)

    asyncio.run(main())
    """
    async with program(takes, path) as one, program(takes, path) as two, program(takes, path) as three:
        told = [await each.line() for each in (one, two, three)]

    assert set(told) <= {"most 1", "most 2"}
    async with SQLiteLedger(path) as ledger:
        ended = await ledger.records(all=True)
        assert len(ended) == 45
        assert {each.task.status for each in ended} == {TaskStatus.FAILED}


async def test_a_ticket_is_bought_once_though_two_clients_submit_it(path: Path) -> None:
    services = [ToyService(), ToyService()]
    services[1].name = "other"
    clients = [each.client(ledger=SQLiteLedger(path)) for each in services]
    async with clients[0], clients[1]:
        cat = ImageRequest("a cat", model="m")
        tickets = [f"t{number}" for number in range(20)]
        handles = await asyncio.gather(
            *(client.submit(cat, ticket=ticket) for ticket in tickets for client in clients)
        )

        await asyncio.gather(*(each.accepted() for each in handles))

        bought = services[0].tickets + services[1].tickets
        assert sorted(bought) == sorted(tickets)
