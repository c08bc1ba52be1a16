"""The machine is itself tested: each fault that it has helped to mend is brought back, and it must find it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bide import _submissions
from bide._http import transport
from bide._runtime import engine, submitter, takeover, wishes
from bide.ledgers.sqlite import ledger as sqlite_ledger
from bide.providers import DashScope, Dieyuyun
from simulation.history import happen
from simulation.plans import Misfortune, Moment, Plan, Wish, draw

pytestmark = pytest.mark.no_cover  # tracing makes a history four times as long
MOST_HISTORIES = 400
"""So many histories with the right misfortunes at most, until the fault must be found."""


def plans(fits: Callable[[Plan], bool]) -> Iterator[Plan]:
    return itertools.islice(
        filter(fits, (draw(f"mutation {number}") for number in itertools.count())), MOST_HISTORIES
    )


def has(*kinds: str) -> Callable[[Plan], bool]:
    return lambda plan: any(each.kind in kinds for each in plan.misfortunes)


def durable_with(*kinds: str) -> Callable[[Plan], bool]:
    return lambda plan: plan.durable and has(*kinds)(plan)


Patch = pytest.MonkeyPatch


def an_answer_that_has_arrived_is_thrown_away(patch: Patch) -> None:
    patch.setattr(transport, "lived_timeout", asyncio.timeout)


def a_caller_that_leaves_leaves_its_request_in_the_queue(patch: Patch) -> None:
    patch.setattr(wishes.Wishes, "leave", lambda self, ticket: None)


def what_a_step_that_seemed_to_fail_has_admitted_is_never_sent(patch: Patch) -> None:
    patch.setattr(takeover.Takeover, "reconcile_soon", lambda self: None)


def a_create_that_may_have_arrived_is_sent_again(patch: Patch) -> None:
    for provider in (DashScope, Dieyuyun):
        patch.setattr(provider, "idempotent", property(lambda self: True))


def a_closed_client_says_that_nothing_was_bought(patch: Patch) -> None:
    honest = _submissions._outcomes.client_closed

    def client_closed(record: Any, *, durable: bool) -> Any:
        error = honest(record, durable=durable)
        error.bought = False
        return error

    patch.setattr(_submissions._outcomes, "client_closed", client_closed)


def a_wait_that_times_out_says_that_nothing_was_bought(patch: Patch) -> None:
    honest = wishes.Wishes.leave_with

    async def leave_with(self: Any, ticket: str, error: Any) -> Any:
        return (await honest(self, ticket, error)).about(ticket=ticket, task_id=None, bought=False)

    patch.setattr(wishes.Wishes, "leave_with", leave_with)


def a_client_that_could_not_enter_leaves_the_ledger_open(patch: Patch) -> None:
    async def keep_open(self: Any) -> None:
        if self._owners:
            return

    patch.setattr(sqlite_ledger.SQLiteLedger, "_close_if_unused", keep_open)


def an_adopted_create_is_not_looked_up(patch: Patch) -> None:
    patch.setattr(submitter.Submitter, "recover", lambda self, record: None)


def a_task_that_was_accepted_is_not_watched(patch: Patch) -> None:
    honest, count = engine.Engine._watch, itertools.count()

    def watch(self: Any, record: Any, *, answered: bool = False) -> None:
        if next(count) % 5:
            honest(self, record, answered=answered)

    patch.setattr(engine.Engine, "_watch", watch)


BLOCKED_WHILE_THE_CREATE_IS_SENT = Plan(
    seed="by hand",
    service="dashscope",
    durable=False,
    hosts=1,
    cap=1,
    slots=None,
    retry_after=None,
    seconds=(5.0, 8.0),
    wishes=(Wish("wish 0", 0, 0.0, "run", group=1),),
    misfortunes=(Misfortune("block", Moment(wish="wish 0", phase="sent"), (("host", 0), ("seconds", 70.0))),),
)
"""Few histories that are drawn show this fault."""

MUTATIONS: list[tuple[Callable[[Patch], None], Callable[[Plan], bool] | list[Plan]]] = [
    (an_answer_that_has_arrived_is_thrown_away, [BLOCKED_WHILE_THE_CREATE_IS_SENT]),
    (a_caller_that_leaves_leaves_its_request_in_the_queue, has("cancel")),
    (what_a_step_that_seemed_to_fail_has_admitted_is_never_sent, durable_with("ledger")),
    (a_create_that_may_have_arrived_is_sent_again, has("exchange", "restart")),
    (a_closed_client_says_that_nothing_was_bought, has("close")),
    (a_wait_that_times_out_says_that_nothing_was_bought, has("exchange")),
    (a_client_that_could_not_enter_leaves_the_ledger_open, durable_with("ledger")),
    (an_adopted_create_is_not_looked_up, durable_with("kill")),
    (a_task_that_was_accepted_is_not_watched, has("exchange", "close")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mutate", "fits"), MUTATIONS, ids=[each.__name__ for each, _ in MUTATIONS])
def test_the_machine_finds_that(
    mutate: Callable[[Patch], None], fits: Callable[[Plan], bool] | list[Plan], monkeypatch: Patch
) -> None:
    mutate(monkeypatch)

    assert any(happen(plan).broken for plan in (plans(fits) if callable(fits) else fits)), "not found"
