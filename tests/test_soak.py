"""A thousand tasks through random faults, cancels and timeouts: nothing is lost, nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from bide import BideError, Limits, TaskStatus, WaitTimeoutError
from support.emulated import SERVICES, client_at, emulator_with, now, video

if TYPE_CHECKING:
    from bide import Client, TaskHandle
    from bide.emulator import Emulator

pytestmark = pytest.mark.no_cover  # tracing doubles its time, and other tests run the same lines
TASKS, SLOTS = 500, 20


def plague(emulator: Emulator, chance: random.Random) -> None:
    """Order one misfortune of a random kind."""
    emulator.fault(
        **chance.choice(
            [
                {"on": "create", "drop": "before"},
                {"on": "create", "drop": "after"},
                {"on": "create", "status": 429, "headers": {"Retry-After": "2"}},
                {"on": "create", "status": 503, "headers": {"Retry-After": "1"}},
                {"on": "create", "status": 500},
                {"on": "create", "status": 400},
                {"on": "create", "delay": 70.0},
                {"on": "query", "drop": "before"},
                {"on": "query", "drop": "after", "times": 3},
                {"on": "query", "status": 500, "times": 3},
                {"on": "query", "status": 429, "headers": {"Retry-After": "1"}},
                {"on": "query", "status": 404},
                {"on": "query", "status": 401},
                {"on": "query", "truncate": 9},
                {"on": "query", "delay": 3600.0},
                {"on": "query", "status": 200, "body": "<html>"},
                {"on": "cancel", "status": 500},
                {"on": "cancel", "drop": "after"},
                {"on": "list", "status": 500},
            ]
        )  # type: ignore[arg-type]
    )


async def one_user(client: Client, number: int, chance: random.Random, handles: list[TaskHandle]) -> None:
    """Submit one task and treat it as users do."""
    await asyncio.sleep(chance.uniform(0, 300))
    handle = await client.submit(
        video(f"number {number}" + chance.choice(["", "", "", "[fail]", "[status NEW]"]))
    )
    handles.append(handle)
    mood = chance.random()
    try:
        if mood < 0.2:
            await handle.result(timeout=chance.uniform(0.1, 60))
        elif mood < 0.35:
            await asyncio.sleep(chance.uniform(0, 60))
            await handle.cancel()
        elif mood < 0.5:
            async with asyncio.timeout(chance.uniform(0, 60)):
                async for _ in handle.events():
                    pass
        elif mood < 0.6:
            await asyncio.sleep(chance.uniform(0, 60))
            await handle.refresh()
        elif mood < 0.9:
            await handle.result()
    except (BideError, TimeoutError):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("service", SERVICES)
async def test_a_soak_ends_with_every_ticket_final_and_every_slot_free(service: str) -> None:
    chance = random.Random(f"soak {service}")
    handles: list[TaskHandle] = []
    before = asyncio.all_tasks()
    async with emulator_with(video_seconds=(1, 8), retry_after=1) as emulator:
        async with client_at(emulator, service, limits=Limits(SLOTS), queries_per_second=100.0) as client:
            users = [asyncio.create_task(one_user(client, n, chance, handles)) for n in range(TASKS)]
            until = now() + 400
            while now() < until:
                plague(emulator, chance)
                await asyncio.sleep(chance.uniform(0.2, 3))
            await asyncio.wait(users)
            for handle in handles:
                while not handle.task.status.is_final:
                    try:
                        await handle.result(timeout=3600)
                    except WaitTimeoutError as error:
                        pytest.fail(f"never ended: {error}")
                    except BideError:
                        pass

            await asyncio.sleep(1000)
            statistics = await client.statistics()
            assert statistics.open == 0
            assert [lane.slots for lane in statistics.lanes] == [0]

        ends = Counter(handle.task.status for handle in handles)
        assert sum(ends.values()) == TASKS
        assert all(status.is_final for status in ends)
        assert ends[TaskStatus.SUCCEEDED] > TASKS / 2

        known = Counter(handle.task_id for handle in handles if handle.task_id is not None)
        made = {task.id for task in emulator.tasks()}
        assert max(known.values()) == 1, "no task belongs to two tickets"
        assert set(known) <= made
        assert len(made - set(known)) <= ends[TaskStatus.UNKNOWN], (
            "what is not known by its id was told as unknown"
        )
        bought = Counter(task.prompt.partition("[")[0] for task in emulator.tasks())
        assert max(bought.values()) == 1, "nothing was bought twice"
        assert max(kinds["video"] for kinds in emulator.stats()["max_in_flight"].values()) <= SLOTS
    del handle, handles, users
    gc.collect()
    assert asyncio.all_tasks() == before
