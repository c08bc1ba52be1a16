"""Starting, serving and stopping."""

from __future__ import annotations

import asyncio
import importlib
import logging
import subprocess
import sys
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from bide.emulator import Emulator
from support.emulator_callers import Caller, DashScopeCaller, DieyuyunCaller
from support.waits import A_MINUTE


async def test_the_urls_name_one_port_for_both_services_and_another_for_assets() -> None:
    async with Emulator() as emulator:
        urls = (emulator.dieyuyun_url, emulator.dashscope_url, emulator.asset_url)

    assert all(url.startswith("http://127.0.0.1:") for url in urls)
    assert urls[1] == f"{urls[0]}/api/v1"
    assert urls[2] != urls[0]


async def test_it_can_be_given_its_ports_and_started_again_on_them() -> None:
    async with Emulator() as first:
        port, asset_port = (int(url.rpartition(":")[2]) for url in (first.dieyuyun_url, first.asset_url))
    again = Emulator(port=port, asset_port=asset_port)
    for _ in range(2):
        async with again, DieyuyunCaller(again) as caller:
            assert (await caller.create()).status_code == 200
            assert again.dieyuyun_url == first.dieyuyun_url
            assert again.asset_url == first.asset_url
            assert again.stats()["tasks"] == 1


async def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_open() -> None:
    async with Emulator() as first:
        port = int(first.dieyuyun_url.rpartition(":")[2])
        for taken in (Emulator(port=port), Emulator(asset_port=port)):
            with pytest.raises(OSError, match="in use"):
                await taken.__aenter__()


def test_there_is_no_url_before_it_runs() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        _ = Emulator().dashscope_url


async def test_an_emulator_runs_once_at_a_time() -> None:
    async with Emulator() as emulator:
        with pytest.raises(RuntimeError, match="running already"):
            await emulator.__aenter__()


async def test_it_answers_on_a_name_or_ipv6_too() -> None:
    try:
        async with Emulator(host="::1") as emulator, DieyuyunCaller(emulator) as caller:
            assert (await caller.create()).status_code == 200
            assert emulator.dieyuyun_url.startswith("http://[::1]:")
    except OSError:  # pragma: no cover  # a machine without IPv6
        pytest.skip("no IPv6 here")


async def test_leaving_cuts_hung_calls_and_idle_connections_at_once() -> None:
    loop = asyncio.get_running_loop()
    emulator = Emulator()
    async with Caller("", "sk-one") as caller:
        async with emulator:
            emulator.fault(on="query", delay=3600)
            hung = asyncio.create_task(caller.get(f"{emulator.dieyuyun_url}/v1/tasks/x"))
            await caller.get(f"{emulator.dieyuyun_url}/_emulator/stats")
            await asyncio.sleep(1)
            start = loop.time()
        with pytest.raises(httpx.ReadError):
            await hung

    assert loop.time() - start < 2
    assert emulator.stats()["queries"] == 1
    await emulator.aclose()


@pytest.mark.real_time
async def test_leaving_waits_for_no_call_by_the_real_clock_either() -> None:
    async with asyncio.timeout(A_MINUTE), Caller("", "sk-one") as caller:
        async with Emulator() as emulator:
            emulator.fault(on="query", delay=3600)
            hung = asyncio.create_task(caller.get(f"{emulator.dieyuyun_url}/v1/tasks/x"))
            await caller.get(f"{emulator.dieyuyun_url}/_emulator/stats")
            await asyncio.sleep(0.05)
        with pytest.raises(httpx.ReadError):  # which would come after an hour
            await hung


async def test_kept_connections_outlast_any_poll_interval() -> None:
    limits = httpx.Limits(keepalive_expiry=None)
    async with Emulator() as emulator, httpx.AsyncClient(limits=limits, trust_env=False) as client:
        ports = set()
        for _ in range(3):
            answer = await client.get(f"{emulator.dieyuyun_url}/_emulator/stats")
            stream = answer.extensions["network_stream"]
            ports.add(stream.get_extra_info("client_addr"))
            await asyncio.sleep(3600)

    assert len(ports) == 1


async def test_the_date_header_follows_the_loops_clock() -> None:
    async with Emulator() as emulator, DashScopeCaller(emulator) as caller:
        dates = []
        for _ in range(2):
            dates.append(parsedate_to_datetime((await caller.get("/tasks")).headers["date"]))
            await asyncio.sleep(7200)

    assert 7199 <= (dates[1] - dates[0]).total_seconds() <= 7201


async def test_five_hundred_tasks_in_flight_have_no_task_and_no_timer_of_the_loop() -> None:
    """So they are cheap; `benchmarks/web_service.py` has the figure."""
    async with Emulator(image_seconds=60) as emulator, DieyuyunCaller(emulator) as caller:
        await caller.created()
        before = len(asyncio.all_tasks()), timers()
        for _ in range(499):
            await caller.created()
        after = len(asyncio.all_tasks()), timers()

    (in_flight,) = emulator.stats()["max_in_flight"].values()
    assert in_flight["image"] == 500
    assert after == before


def timers() -> int:
    """What the loop will do later, but for what was called off."""
    loop: Any = asyncio.get_running_loop()
    return sum(not each.cancelled() for each in loop._scheduled)


async def test_the_request_log_tells_when_each_call_came_and_what_it_got() -> None:
    async with Emulator(image_seconds=10) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created()
        await asyncio.sleep(4)
        await caller.task(task_id)
        await caller.get("/v1/none")
        records = emulator.requests()

    assert [(each.service, each.on, each.method, each.status) for each in records] == [
        ("dieyuyun", "create", "POST", 200),
        ("dieyuyun", "query", "GET", 200),
        (None, "other", "GET", 404),
    ]
    assert records[1].time - records[0].time == pytest.approx(4, abs=0.01)
    assert records[1].path == f"/v1/tasks/{task_id}"
    assert all(each.has_key and "authorization" not in each.headers for each in records)


async def test_nothing_is_logged_for_ordinary_calls(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="create", drop="after")
        with pytest.raises(httpx.ReadError):
            await caller.create()
        await caller.create()

    assert [record for record in caplog.records if not record.name.startswith("http")] == []


def test_without_aiohttp_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("bide.emulator")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)

    with pytest.raises(ImportError, match=r"pip install 'bide\[emulator\]'"):
        importlib.import_module("bide.emulator")


@pytest.mark.real_time
def test_a_program_in_development_mode_ends_without_a_warning() -> None:
    program = (
        "import asyncio, bide.emulator\n"
        "async def main():\n"
        "    async with bide.emulator.Emulator() as emulator:\n"
        "        await asyncio.sleep(0.01)\n"
        "asyncio.run(main(), debug=True)\n"
    )

    done = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
