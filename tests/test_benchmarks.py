"""What the benchmarks print and how they judge; the figures themselves are for `make bench`."""

from __future__ import annotations

import argparse
import ast
import asyncio
import importlib
import json
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from bide import Client, DashScope, VideoRequest
from bide.emulator import Emulator, ServiceLimits

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMED = {
    "slots",
    "budget",
    "overhead",
    "flat",
    "peer",
    "scale",
    "cancel",
    "import",
    "ledger",
    "pace",
    "behind",
    "download",
    "web_service",
    "mishaps",
    "recovery",
}


@pytest.fixture
def goals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("goals")


def options(**chosen: bool) -> argparse.Namespace:
    return argparse.Namespace(**{"json": False, "check": False, **chosen})


def test_a_table_says_which_goals_are_met(goals: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        goals.Row("bide", "ratio", 1.0, "at most 1.2", True),
        goals.Row("bide", "errors", 3, "0", False),
        goals.Row("peer", "lateness", math.nan),
    ]

    goals.show("Title", rows, options())

    assert capsys.readouterr().out.splitlines() == [
        "Title",
        "  bide  ratio          1.00  at most 1.2  met",
        "  bide  errors            3  0            MISSED",
        "  peer  lateness       none",
    ]


def test_json_is_one_object_with_null_for_what_is_no_number(
    goals: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    goals.show("Title", [goals.Row("peer", "lateness", math.nan)], options(json=True))

    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["benchmark"] == "Title"
    assert told["rows"] == [{"case": "peer", "figure": "lateness", "value": None, "goal": "", "met": None}]


@pytest.mark.parametrize(("met", "ends"), [(True, False), (None, False), (False, True)])
def test_only_a_missed_goal_fails_the_check(goals: ModuleType, met: bool | None, ends: bool) -> None:
    row = goals.Row("bide", "ratio", 1.0, "at most 1.2", met)

    goals.show("Title", [row], options())
    if ends:
        with pytest.raises(SystemExit, match="1"):
            goals.show("Title", [row], options(check=True))
    else:
        goals.show("Title", [row], options(check=True))


def test_each_benchmark_is_there_and_says_what_it_measures() -> None:
    runnable = {path.stem: path for path in FOLDER.glob("*.py") if "__main__" in path.read_text()}

    assert set(runnable) == NAMED
    for path in runnable.values():
        assert len(ast.get_docstring(ast.parse(path.read_text())) or "") > 80


# The pace ----------------------------------------------------------------------------------------------------

MINE: dict[str, Any] = {
    "name": "mine",
    "kind": "video",
    "documented": [60, 300],
    "arrivals": {"bursts": [3, 60]},
    "run": {"lognormal": [20, 0.2]},
    "ts": "full",
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_a_workload_gives_the_same_tasks_each_time_and_a_shorter_run_the_first_of_them(
    bench: Callable[[str], Any],
) -> None:
    workload = bench("workloads").WORKLOADS["V3"]

    def facts(lives: list[Any]) -> list[tuple[Any, ...]]:
        return [(life.arrives, life.queue, life.run, life.fails, life.variant) for life in lives]

    assert facts(workload.lives(1, 20)) == facts(workload.lives(1))[:20]
    assert facts(workload.lives(1, 20)) != facts(workload.lives(2, 20))
    assert {life.variant for life in workload.lives(1, 50)} == {"5s", "10s"}


def test_the_tasks_of_a_workload_follow_its_terms(bench: Callable[[str], Any]) -> None:
    terms = MINE | {"run": 10, "fails": 0, "switch": {"every": 2, "factors": [1, 3]}}

    lives = bench("workloads").parse(terms).lives(0, 6)

    assert [life.arrives for life in lives] == [0, 0, 0, 60, 60, 60]
    assert [life.run for life in lives] == [10, 10, 30, 30, 10, 10]


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        ("none", [None, None, None]),
        ("stair", [0, 30, 90]),
        ({"stairs": [[0.2, 40], [0.8, 70]]}, [0, 40, 70]),
        ({"jump": [0.25, 90]}, [0, 90, 90]),
        ({"clock": 5}, [0, 50, 99]),
        ({"linear": 0}, [0, 25, 90]),
        ({"stuck": [0.5, 0.5]}, [0, 49.5, 99]),
    ],
)
def test_a_progress_bar_follows_its_terms(
    bench: Callable[[str], Any], progress: Any, shown: list[float | None]
) -> None:
    [life] = bench("workloads").parse(MINE | {"run": 10, "fails": 0, "progress": progress}).lives(0, 1)

    assert [life.progress(0), life.progress(2.5), life.progress(9)] == shown


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": 3}, "workload, name: expected a word, not 3"),
        ({"kind": "song"}, "mine, kind: expected one of image, video, not 'song'"),
        ({"colour": 1}, "mine: expected one of name, kind, .*, not 'colour'"),
        ({"documented": [300, 60]}, "mine, documented: expected the lesser first"),
        (
            {"run": {"lognormal": [20]}},
            r"mine, run, lognormal: expected a list \[median, sigma\], not \[20\]",
        ),
        ({"run": {"normal": [20, 1]}}, "mine, run: expected an object with one of lognormal, .*, not"),
        ({"run": {"mix": [[1, {"exp": 0}]]}}, "mine, run, mix, exp: expected a number above 0, not 0"),
        (
            {"arrivals": "sometimes"},
            "mine, arrivals: expected an object with one of poisson, .*, not 'sometimes'",
        ),
        ({"progress": "fast"}, "mine, progress: expected an object or one of none, .*, not 'fast'"),
        (
            {"progress": {"stairs": [[0.8, 10], [0.2, 20]]}},
            "mine, progress, stairs: expected shares of the run that",
        ),
        (
            {"switch": {"every": 0, "factors": [1]}},
            "mine, switch, every: expected a whole number from 1, not 0",
        ),
        ({"drift": {"run": 1}}, "mine, drift, run: expected a number from 0 to 0.99, not 1"),
        (
            {"classes": [{"name": "5s", "share": 0.5, "factor": 1}]},
            "mine, classes: expected shares that sum up to 1",
        ),
        ({"fails": 3}, "mine, fails: expected a number from 0 to 1, not 3"),
        ({"slots": True}, "mine, slots: expected a whole number from 1, not True"),
        ({"ts": None}, "mine, ts: expected one of none, end1, full, not None"),
    ],
)
def test_a_wrong_workload_is_refused_with_what_was_expected(
    bench: Callable[[str], Any], wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        bench("workloads").parse(MINE | wrong)


def test_a_file_of_workloads_is_read(bench: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(MINE))
    (tmp_path / "two.json").write_text(json.dumps([MINE, MINE]))
    (tmp_path / "torn.json").write_text('{"name":')
    read = bench("workloads").read

    assert [workload.name for workload in read(tmp_path / "one.json")] == ["mine"]
    with pytest.raises(ValueError, match="expected each name once"):
        read(tmp_path / "two.json")
    with pytest.raises(ValueError, match="expected JSON"):
        read(tmp_path / "torn.json")


def test_the_example_of_the_readme_is_a_workload(bench: Callable[[str], Any]) -> None:
    example = (FOLDER / "README.md").read_text().partition("```json\n")[2].partition("```")[0]

    workload = bench("workloads").parse(json.loads(example))

    assert len(workload.lives(0)) == 500


def test_the_readme_of_the_benchmarks_names_them_all() -> None:
    text = (FOLDER / "README.md").read_text()

    assert {name for name in NAMED if f"| `{name}.py` |" in text} == NAMED


def test_a_gain_is_read_between_two_prices_in_logarithms(bench: Callable[[str], Any]) -> None:
    between = bench("verdicts").between

    assert between([(10, 0.5), (1, 5)], 10**0.5) == pytest.approx(5 / 10**0.5)
    assert math.isnan(between([(10, 0.5), (1, 5)], 11))


def test_a_run_of_a_workload_counts_each_poll_and_each_second_of_lag(bench: Callable[[str], Any]) -> None:
    terms = MINE | {"run": 20, "fails": 0, "failing_polls": 0, "round_trip": [0.2, 0], "arrivals": "at once"}
    workload = bench("workloads").parse(terms | {"slots": 5})
    paces = bench("paces")

    figures = paces.run(workload, paces.EVERY_3, 0, count=5)

    # The first poll comes at once, the others about 3 s after each answer; an end is heard of 0.1 s later at the least.
    assert 7 <= figures.polls <= 8
    assert 3 <= figures.least_gap < 3.4
    assert 0.1 < figures.lag < 3.5
    assert figures.use == pytest.approx(100)
    assert figures == paces.run(workload, paces.EVERY_3, 0, count=5)


def test_prices_are_tried_until_they_enclose_the_polls_and_the_lag_of_another_pace(
    bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    paces, verdicts = bench("paces"), bench("verdicts")

    def run(_workload: object, policy: Any, _seed: int) -> Any:
        price = policy.price
        polls, lag = (9.0, 1.5) if price is None else (2 / price**0.5, 2 * price**0.5)
        return paces.Figures(polls, lag, lag, lag, least_gap=1.0, use=math.nan)

    monkeypatch.setattr(paces, "run", run)
    done = paces.study(paces.Job(None, 0, (paces.ours(), paces.EVERY_3), search=True))

    runs = {policy: {0: figures} for policy, figures in done.items()}
    assert verdicts.gains(runs, 0) == (pytest.approx(1.5 / (4 / 9)), pytest.approx(9 / (4 / 1.5)))
    assert sorted(policy.price for policy in done if policy.price is not None) == [
        pytest.approx(price) for price in (0.04, 0.1, 0.25, 0.625)
    ]


# Downloads ---------------------------------------------------------------------------------------------------


@pytest.fixture
def origin(bench: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server of large files is, with one of 1 MB."""
    files = bench("files")
    noise = tmp_path_factory.mktemp("noise") / "noise"
    noise.write_bytes(bytes(files.MB))
    # A real file: its threads would share the position of a file in memory.
    with noise.open("rb") as file, files._Server(file) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def test_the_server_of_large_files_goes_on_where_a_download_broke_off(origin: str) -> None:
    with httpx.Client(base_url=origin, trust_env=False) as client:
        whole = client.get("/1/one")
        same = {"If-Range": whole.headers["etag"]}
        ends = [client.get("/1/one", headers=same | {"Range": f"bytes={start}-"}) for start in (20, 500_000)]
        changed = client.get("/1/one", headers={"If-Range": '"other"', "Range": "bytes=20-"})

    assert len(whole.content) == 1_000_000
    assert [(each.status_code, each.content) for each in ends] == [
        (206, whole.content[20:]),
        (206, whole.content[500_000:]),
    ]
    assert (changed.status_code, changed.content) == (200, whole.content)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read there")
def test_the_benchmark_of_downloads_saves_whole_files_and_tells_how_late_the_loop_was(
    bench: Callable[[str], Any], origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    download = bench("download")

    measured = download.run(
        download.with_bide, [f"{origin}/1/{number}" for number in range(3)], tmp_path, True
    )

    assert sorted(path.stat().st_size for path in tmp_path.iterdir()) == [1_000_000] * 3
    assert 0 < measured.seconds < 10
    assert measured.late


def test_a_download_is_judged_by_curl_alone_and_where_there_is_none_by_nothing(
    bench: Callable[[str], Any],
) -> None:
    download = bench("download")
    one, two = (download.Measured(seconds, 0.0, (0.001,), (0.001,), growth=1) for seconds in (1.0, 2.0))
    found = {"curl to nowhere": [one], "curl": [one], "httpx by hand": [one], "bide": [two]}

    rows = download.rows_of("1 of 200 MB", found, 200_000_000, 0.6)
    del found["curl"]
    without = download.rows_of("1 of 200 MB", found, 200_000_000, 0.6)

    assert [(row.figure, row.value) for row in rows if row.met is False] == [("to curl", 0.5)]
    assert {row.figure for row in without if row.met is not None} == {
        "lag of the loop p99, ms",
        "growth of memory, MB",
    }


# Other clients, and what goes wrong --------------------------------------------------------------------------


@pytest.fixture
def peers(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of the other clients. What it sets in the environment is taken back."""
    for name in ("NO_PROXY", "no_proxy", "DASHSCOPE_HTTP_BASE_URL"):
        monkeypatch.setenv(name, "*")
    return lambda name: bench(f"peers.{name}")


def terms(peers: Callable[[str], Any], **options: Any) -> Any:
    mishap = {name: options.pop(name) for name in ("cut", "outage", "held") if name in options}
    return peers("stubs").Terms(3, (8, 12), 5, mishap=peers("gate").Mishap(**mishap), **options)


async def create(http: httpx.AsyncClient, prompt: str, key: str = "") -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await http.post("/v1/text_to_video", json={"promptText": prompt}, headers=headers)


async def test_a_create_whose_answer_is_cut_has_made_a_task_and_the_next_one_is_paid_for_twice(
    peers: Callable[[str], Any],
) -> None:
    async with (
        peers("stubs").RunwayTasks(terms(peers, cut=2)) as stub,
        httpx.AsyncClient(base_url=stub.origin, trust_env=False) as http,
    ):
        first = await create(http, "one")
        await http.get(f"/v1/tasks/{first.json()['id']}")
        with pytest.raises(httpx.TransportError):
            await create(http, "two")
        again = await create(http, "two")

    assert (first.status_code, again.status_code) == (200, 200)
    assert (stub.counts().paid, stub.counts().twice) == (3, 1)


async def test_a_service_that_keeps_keys_answers_a_repeated_one_with_the_task_that_it_has_made(
    peers: Callable[[str], Any],
) -> None:
    async with (
        peers("stubs").RunwayTasks(terms(peers, cut=1, keeps_keys=True)) as stub,
        httpx.AsyncClient(base_url=stub.origin, trust_env=False) as http,
    ):
        with pytest.raises(httpx.TransportError):
            await create(http, "one", "key")
        again = await create(http, "one", "key")
        other = await create(http, "one", "other key")

    assert (again.json(), other.json()) == ({"id": "task-0"}, {"id": "task-1"})
    assert stub.counts().paid == 2


async def test_in_an_outage_connections_are_refused_and_after_it_the_tasks_are_still_there(
    peers: Callable[[str], Any],
) -> None:
    async with (
        peers("stubs").RunwayTasks(terms(peers, outage=(1, 20))) as stub,
        httpx.AsyncClient(base_url=stub.origin, trust_env=False) as http,
    ):
        made = (await create(http, "one")).json()["id"]
        await asyncio.sleep(2)
        with pytest.raises(httpx.ConnectError):
            await http.get(f"/v1/tasks/{made}")
        await asyncio.sleep(20)
        found = await http.get(f"/v1/tasks/{made}")

    assert found.json()["status"] == "SUCCEEDED"


async def test_another_user_of_the_key_holds_slots_of_a_stub_for_its_time(
    peers: Callable[[str], Any],
) -> None:
    async with (
        peers("stubs").RunwayTasks(terms(peers, held=(2, 30))) as stub,
        httpx.AsyncClient(base_url=stub.origin, trust_env=False) as http,
    ):
        before = [(await create(http, prompt)).status_code for prompt in ("one", "two")]
        await asyncio.sleep(31)
        after = [(await create(http, prompt)).status_code for prompt in ("two", "three", "four", "five")]

    assert (before, after) == ([200, 429], [200, 200, 200, 429])


async def test_another_user_of_the_key_holds_slots_of_the_emulator_and_is_not_counted(
    peers: Callable[[str], Any],
) -> None:
    emulated, limits = peers("emulated"), ServiceLimits(concurrency=3)
    mishap = peers("gate").Mishap(held=(2, 30))
    async with emulated.Troubled(mishap, "dashscope", video_seconds=10, dashscope_limits=limits) as emulator:
        async with Client(DashScope(base_url=emulator.dashscope_url), api_key=emulated.KEY) as client:
            await client.gather(*(VideoRequest(name, model=emulated.MODEL) for name in ("one", "two")))
        counts = emulated.counts_of(emulator, "dashscope")
        most = list(emulator.stats()["max_in_flight"].values())

    assert (counts.paid, counts.twice) == (2, 0)
    assert counts.refused > 0
    assert most == [{"video": 3}]


def test_the_table_of_mishaps_names_who_is_as_good_as_bide(
    bench: Callable[[str], Any], peers: Callable[[str], Any]
) -> None:
    assert peers
    mishaps = bench("mishaps")
    found = {
        "cut create": mishaps.results_of(
            [
                *(goals_row(mishaps.DASHSCOPE, value) for value in (12, 0, 0, 0, 48.2)),
                *(goals_row(mishaps.DIEYUYUN, value) for value in (11, 0, 1, 0, 50.0)),
                *(goals_row("patient", value) for value in (12, 0, 0, 43, 52.0)),
                *(goals_row("careful", value) for value in (11, 0, 1, 3, 52.0)),
                *(goals_row("careless", value) for value in (12, 1, 0, 3, 52.0)),
                goals_row("absent", math.nan),
            ]
        )
    }

    assert mishaps.equals(found) == [
        "cut create: as good as bide, dashscope: patient",
        "cut create: as good as bide, dieyuyun: patient; careful",
    ]
    lines = [line.split() for line in mishaps.table(found).splitlines()]
    assert lines[2] == ["bide,", "dashscope", "12", "0", "0", "0", "48"]
    assert lines[-1] == ["absent", "-", "-", "-", "-", "-"]


def goals_row(case: str, value: float) -> Any:
    return importlib.import_module("goals").Row(case, "", value)


def test_bide_has_no_goal_where_a_service_has_no_way_to_find_a_lost_create(
    bench: Callable[[str], Any], peers: Callable[[str], Any]
) -> None:
    assert peers
    mishaps, row = bench("mishaps"), bench("goals").Row

    def verdict(name: str, case: str, figure: str, value: int) -> bool | None:
        return mishaps.judged(name, row(case, figure, value)).met

    assert verdict("cut create", mishaps.DIEYUYUN, mishaps.DONE, 11) is None
    assert verdict("cut create", mishaps.DIEYUYUN, mishaps.TWICE, 1) is False
    assert verdict("cut create", mishaps.DASHSCOPE, mishaps.DONE, 11) is False
    assert verdict("shared key", mishaps.DASHSCOPE, mishaps.LOST, 0) is True
    assert verdict("shared key", "openai", mishaps.DONE, 3) is None


# Recovery ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def ruled(bench: Callable[[str], Any]) -> AsyncIterator[Callable[..., Any]]:
    """Makes a client of a DashScope service with rules of its own; tasks take 10 s."""
    rules = bench("rules")
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(
            Emulator(video_seconds=10, queue_seconds=0, dashscope_limits=ServiceLimits())
        )

        async def make(**options: Any) -> Any:
            service = rules.Service(emulator, rules.Terms(**options))
            http = httpx.AsyncClient(transport=service, base_url=emulator.dashscope_url)
            return service, await stack.enter_async_context(http)

        yield make


async def order(http: httpx.AsyncClient) -> int:
    body = {"model": "wan2.6-t2v", "input": {"prompt": "a cat"}}
    headers = {"Authorization": "Bearer sk-bench", "X-DashScope-Async": "enable"}
    path = "services/aigc/video-generation/video-synthesis"
    return (await http.post(path, json=body, headers=headers)).status_code


async def test_a_service_with_rules_refuses_a_create_beyond_its_slots_however_many_come_at_once(
    ruled: Callable[..., Any],
) -> None:
    service, http = await ruled(slots=3)

    answers = await asyncio.gather(*(order(http) for _ in range(5)))

    assert sorted(answers) == [200, 200, 200, 429, 429]
    assert (len(service.refusals), service.used(1)) == (2, 3)


async def test_a_slot_of_a_service_with_rules_is_free_so_long_after_the_end_as_it_says(
    ruled: Callable[..., Any],
) -> None:
    _, http = await ruled(slots=1, release=lambda number: (1.0, 2.0)[number])

    answers = [await order(http)]
    for seconds in (10.5, 1.0, 11.0, 1.0):
        await asyncio.sleep(seconds)
        answers.append(await order(http))

    assert answers == [200, 429, 200, 429, 200]


async def test_another_user_takes_the_slots_of_a_service_with_rules_as_they_get_free(
    bench: Callable[[str], Any], ruled: Callable[..., Any]
) -> None:
    _, http = await ruled(slots=3, held=bench("rules").Held(2, 5.0, 30.0))

    before = [await order(http) for _ in range(3)]
    await asyncio.sleep(12)
    during = [await order(http) for _ in range(2)]
    await asyncio.sleep(20)
    after = [await order(http) for _ in range(4)]

    assert (before, during, after) == ([200] * 3, [200, 429], [200, 200, 200, 429])


async def test_a_service_with_rules_is_not_reached_in_its_outage(ruled: Callable[..., Any]) -> None:
    service, http = await ruled(outage=(5.0, 35.0))
    await asyncio.sleep(4.96)

    for error in (httpx.ConnectError, httpx.ConnectError):
        with pytest.raises(error):
            await order(http)
    await asyncio.sleep(30)

    assert await order(http) == 200
    assert [round(call, 2) for call in service.calls] == [4.96, 5.01, 35.06]
    assert len(service.tasks()) == 1


def test_the_ideal_client_starts_each_task_when_a_slot_is_free(bench: Callable[[str], Any]) -> None:
    recovery = bench("recovery")

    # Three slots for 120 s: 12 rounds of 10 s, the last of which ends 0.05 s too late; 10 rounds with 2 s between.
    assert recovery.ideal([10.0] * 100, [0.0] * 100) == 33
    assert recovery.ideal([10.0] * 100, [2.0] * 100) == 30


def test_the_most_calls_within_a_time_are_counted_wherever_it_begins(bench: Callable[[str], Any]) -> None:
    most_within = bench("recovery").most_within

    assert most_within([0.0, 0.5, 0.9, 1.2, 1.4, 3.0], 1.0) == 4
    assert most_within([0.0, 1.0, 2.0], 1.0) == 1
    assert most_within([], 1.0) == 0


def test_a_run_of_the_recovery_counts_what_the_service_has_refused(bench: Callable[[str], Any]) -> None:
    recovery = bench("recovery")

    free, capped = (
        recovery.played(partial(recovery.unknown, cap, is_coded=False, seed=0)) for cap in (None, 3)
    )

    assert free.refused == 0
    assert capped.refused > 0
    assert capped.wall > 24 / 3 * 8 > free.wall
