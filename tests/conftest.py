"""Async tests run in virtual time, unless they are marked `real_time`; chance is the same in each run."""

from __future__ import annotations

import random
from typing import Any

import pytest

from virtual_time import VirtualTimeLoop


@pytest.fixture(autouse=True)
def same_chance(request: pytest.FixtureRequest) -> None:
    """Phases and jitter are drawn anew in each test, and alike in each run of it."""
    random.seed(request.node.nodeid)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.node.get_closest_marker("real_time"):
        return "asyncio", {}
    return "asyncio", {"loop_factory": VirtualTimeLoop}
