"""Async tests run in virtual time, unless they are marked `real_time`; chance is the same in each run."""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import bide
from bide import _outside
from support.virtual_time import RealTimeLoop, VirtualTimeLoop

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # how fast examples are made and run is no matter of ours


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Coverage rests while the tests are read, which it makes twice as long: what they import is counted before."""
    coverage = sys.modules.get("coverage")
    measuring = None if coverage is None else coverage.Coverage.current()
    if measuring is None:
        return (yield)
    for module in pkgutil.walk_packages(bide.__path__, "bide."):
        if not module.name.endswith("__main__"):  # a program, and `python -m bide` wants it fresh
            importlib.import_module(module.name)
    measuring.stop()
    try:
        return (yield)
    finally:
        measuring.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests start first: one that starts last would leave the other workers idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[Any]:
    """A failure whose text has a lone surrogate is reported as others are: no worker could send it."""
    return _sendable((yield))


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_sendable(name): _sendable(each) for name, each in value.items()}
    return type(value)(map(_sendable, value)) if isinstance(value, list | tuple) else value


@pytest.fixture(autouse=True)
def same_chance(request: pytest.FixtureRequest) -> None:
    """Phases and jitter are drawn anew in each test, and alike in each run of it.

    A run with other ones: `OTHER_CHANCE=7 pytest`.
    """
    seed = request.node.name + os.environ.get("OTHER_CHANCE", "")
    random.seed(seed)
    _outside.chance.seed(seed)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.node.get_closest_marker("real_time"):
        return "asyncio", {"loop_factory": RealTimeLoop}
    return "asyncio", {"loop_factory": VirtualTimeLoop}
