"""Each test that takes `world` or `ledger` runs over every ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bide.ledgers import Ledger
from bide.ledgers.sqlite import session
from support.ledger_worlds import WORLDS, World


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made: World = request.param(tmp_path)
    await made.open()
    yield made
    await made.aclose()


@pytest.fixture
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite ledger does not look at what others do: what it is notified of came by a word of theirs."""
    monkeypatch.setattr(session, "TICK_SECONDS", 3600.0)


@pytest.fixture
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite ledger looks at what others do twenty times a second."""
    monkeypatch.setattr(session, "TICK_SECONDS", 0.05)


@pytest.fixture
def ledger(world: World) -> Ledger:
    return world.ledger
