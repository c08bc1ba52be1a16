"""Each test that takes `world` or `ledger` runs over every ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bide.ledgers import Ledger
from support.ledger_worlds import WORLDS, World


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made: World = request.param(tmp_path)
    await made.open()
    yield made
    await made.aclose()


@pytest.fixture
def ledger(world: World) -> Ledger:
    return world.ledger
