"""Errors carry what a program needs, survive pickling, and stand in one tree."""

from __future__ import annotations

import copy
import pickle
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from bide import errors
from bide.errors import (
    APIError,
    BideError,
    ClientClosedError,
    SubmissionUnknownError,
    TaskError,
    TaskFailedError,
    TransportError,
    WaitTimeoutError,
)
from bide.models import Billing, ErrorDetail, ImageRequest, Output, Task, TaskStatus

TASK = Task(
    ticket="t-1",
    task_id="a-1",
    status=TaskStatus.FAILED,
    outputs=(Output(error=ErrorDetail("x")),),
    raw={"a": [1]},
)
CLASSES: list[type[BideError]] = [getattr(errors, name) for name in errors.__all__]


def details(cls: type[BideError]) -> dict[str, Any]:
    """A value for each keyword of *cls*."""
    found: dict[str, Any] = {"ticket": "t-1", "task_id": "a-1"}
    if issubclass(cls, APIError):
        found |= {"status_code": 429, "code": "c", "message": "m", "request_id": "r", "retry_after": 1.5}
    if issubclass(cls, TaskError | WaitTimeoutError):
        found |= {"task": TASK}
    if issubclass(cls, TaskFailedError):
        found |= {"code": "c", "message": "m", "billing": Billing.NONE, "retryable": True}
    if issubclass(cls, TransportError):
        found |= {"may_have_arrived": False, "permanent": True}
    if issubclass(cls, SubmissionUnknownError):
        found |= {
            "request": ImageRequest("p", model="m", extra={"a": 1}),
            "sent_at": datetime(2026, 6, 5, tzinfo=UTC),
            "model": "m",
        }
    return found


def attributes_of(error: BideError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in details(type(error))}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_pickle_and_copy(cls: type[BideError]) -> None:
    error = cls("what happened", **details(cls))

    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert str(twin) == "what happened"
        assert attributes_of(twin) == attributes_of(error) == details(cls)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_can_do_without_details(cls: type[BideError]) -> None:
    error = cls("what happened")

    assert (error.ticket, error.task_id) == (None, None)
    assert str(error) == "what happened"


@pytest.mark.parametrize("cls", CLASSES)
def test_each_waiter_gets_an_error_of_its_own(cls: type[BideError]) -> None:
    cause = ValueError("why")
    error = cls("what happened", **details(cls))
    error.__cause__ = cause
    error.add_note("a note")

    fresh = error.about(ticket="t-2", task_id="a-2", bought=True)

    assert fresh is not error
    assert type(fresh) is cls
    assert str(fresh) == "what happened"
    assert attributes_of(fresh) == {**details(cls), "ticket": "t-2", "task_id": "a-2"}
    assert (error.ticket, error.task_id, error.bought) == ("t-1", "a-1", None)
    assert fresh.bought is True
    assert pickle.loads(pickle.dumps(fresh)).bought is True
    assert fresh.__cause__ is cause
    assert fresh.__traceback__ is None
    assert fresh.__notes__ == ["a note"]


def test_a_wait_that_timed_out_is_a_timeout_error() -> None:
    assert issubclass(WaitTimeoutError, TimeoutError)
    assert issubclass(ClientClosedError, RuntimeError)
    with pytest.raises(TimeoutError, match="gave up"):
        raise WaitTimeoutError("gave up", task=TASK)


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn: dict[str, str | None] = {"BideError": None}
    path = ["BideError"]
    for branch, name in re.findall(r"^ {4}([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE):
        path = [*path[: len(branch) // 4 + 1], name]
        drawn[name] = path[-2]

    assert sorted(drawn) == sorted(errors.__all__)
    for name, parent in drawn.items():
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases[0] == (parent or "Exception")


def test_every_class_of_the_module_is_public() -> None:
    classes = {
        name
        for name, each in vars(errors).items()
        if isinstance(each, type) and each.__module__ == errors.__name__
    }

    assert classes == set(errors.__all__)
