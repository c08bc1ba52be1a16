"""A ledger as plain as can be, to hold the real ones against: a dictionary of tickets, and counting.

What a lane learns is computed by the same plain functions that the ledgers call, which have tests of their own. What
the model checks is that each step of a ledger gives them what has happened, and does what they say.
"""

from __future__ import annotations

import math

from attrs import Factory, define

from bide.ledgers._lanes import (
    LaneLoad,
    LaneState,
    Setback,
    after_accept,
    after_end,
    after_refusal,
    may_start_at,
)
from bide.models import Limits

CHANCE = 0.5
"""What the ledgers draw."""
PASS_OVER = 2.0


@define
class Ticket:
    """What is known of one submission; `status` is its word."""

    name: str
    kind: str
    keys: frozenset[str]
    owner: str | None
    sequence: int
    wanted_by: tuple[str, ...] = ()
    attempt: int = 1
    status: str = "waiting"
    key: str | None = None
    task_id: str | None = None
    slot_for: float = math.inf
    slot_until: float = math.inf
    admitted: float = 0.0
    cancelling: bool = False
    can_be_sent: bool = True
    outputs: int = 0
    files: dict[str, int] = Factory(dict)

    @property
    def unsaved(self) -> tuple[int, ...]:
        """The outputs without a file, in whatever folder."""
        saved = {path.rpartition("/")[2] for path in self.files}
        return tuple(place for place in range(self.outputs) if f"{self.name}-{place}.png" not in saved)

    @property
    def is_unsent(self) -> bool:
        """Whether no task was made for it, and none will be."""
        return self.status == "rejected" or (self.status == "cancelled" and self.task_id is None)

    @property
    def is_open(self) -> bool:
        return self.status in ("waiting", "submitting", "queued", "running")

    def holds_slot(self, now: float) -> bool:
        return self.key is not None and self.slot_until > now


@define
class Lane:
    """What a lane has learned, and when creates were answered in it."""

    state: LaneState = Factory(LaneState)
    answered: list[float] = Factory(list)


@define
class Model:
    """The records and lanes of one service, under the same *limits* in every lane."""

    limits: Limits
    tickets: dict[str, Ticket] = Factory(dict)
    lanes: dict[tuple[str, str], Lane] = Factory(dict)
    offers: dict[tuple[str, str], float] = Factory(dict)  # by kind and owner

    def lane(self, kind: str, key: str) -> Lane:
        return self.lanes.setdefault((kind, key), Lane())

    def of_lane(self, kind: str, key: str) -> list[Ticket]:
        return [each for each in self.tickets.values() if (each.kind, each.key) == (kind, key)]

    def open_of(self, keys: frozenset[str]) -> list[Ticket]:
        """The open tickets of *keys*, in the order of arrival."""
        found = [
            each
            for each in self.tickets.values()
            if each.is_open and (each.key in keys if each.key is not None else keys & each.keys)
        ]
        return sorted(found, key=lambda each: each.sequence)

    def holder(self, task_id: str) -> str | None:
        return next((each.name for each in self.tickets.values() if each.task_id == task_id), None)

    # Who may start ------------------------------------------------------------------------------------------

    def load(self, kind: str, key: str, now: float) -> LaneLoad:
        slots = [each for each in self.of_lane(kind, key) if each.holds_slot(now)]
        # A create without an answer for as long as a task may last counts for nothing any more.
        sent = [each.admitted for each in slots if each.status == "submitting"]
        return LaneLoad(
            slots=len(slots),
            submitting=len(sent),
            last_admitted=max(sent, default=-math.inf),
            answered=self.lane(kind, key).answered,
            next_free=min((each.slot_until for each in slots), default=math.inf),
        )

    def is_free(self, kind: str, key: str, now: float) -> bool:
        """Whether the lane takes one more create."""
        return may_start_at(self.lane(kind, key).state, self.load(kind, key, now), self.limits, now) <= now

    def admit(self, kind: str, owner: str, keys: list[str], now: float) -> tuple[str, str] | None:
        """Whose turn it is, if it is one of *owner*: (ticket, lane)."""
        waiting = [
            each
            for each in sorted(self.tickets.values(), key=lambda each: each.sequence)
            if each.kind == kind and each.status == "waiting" and each.owner is not None
            if not each.keys.isdisjoint(keys)
        ]
        if not any(each.owner == owner for each in waiting):
            return None
        if self.is_passed_over(kind, owner, now):
            del self.offers[kind, owner]
        heads: dict[frozenset[str], Ticket] = {}
        for each in waiting:
            if not self.is_passed_over(kind, each.owner or "", now):
                heads.setdefault(each.keys, each)
        free = [key for key in keys if self.is_free(kind, key, now)]
        for head in sorted(heads.values(), key=lambda each: each.sequence):
            key = next((each for each in free if each in head.keys), None)
            if key is None:
                continue
            if head.owner == owner:
                self.offers.pop((kind, owner), None)
                return head.name, key
            free.remove(key)
            self.offers.setdefault((kind, head.owner or ""), now)
        return None

    def is_passed_over(self, kind: str, owner: str, now: float) -> bool:
        offered = self.offers.get((kind, owner))
        return offered is not None and now - offered >= PASS_OVER

    # What changes a lane ------------------------------------------------------------------------------------

    def answer(self, ticket: Ticket, now: float, *, accepted: bool) -> None:
        """The create of *ticket* has its answer."""
        lane = self.lane(ticket.kind, ticket.key or "")
        lane.answered.append(now)
        if accepted:
            in_flight = [
                each
                for each in self.of_lane(ticket.kind, ticket.key or "")
                if each.holds_slot(now) and each.status != "submitting"
            ]
            tasks = len(in_flight) + ticket.holds_slot(now) if lane.state.learned is not None else 1
            lane.state = after_accept(lane.state, tasks=tasks, sent=ticket.admitted, now=now)

    def end(self, ticket: Ticket, now: float, hold: float) -> float:
        """The accepted task of *ticket* has ended. Returns how long its slot stays in use."""
        lane = self.lane(ticket.kind, ticket.key or "")
        delay = lane.state.release_delay
        if ticket.slot_until > now:
            lane.state = after_end(lane.state, now)
        return max(hold, delay)

    def refuse(self, ticket: Ticket, setback: Setback, now: float, *, retry_after: float | None) -> None:
        """The create of *ticket* was refused for now."""
        self.answer(ticket, now, accepted=False)
        lane = self.lane(ticket.kind, ticket.key or "")
        others = [each for each in self.of_lane(ticket.kind, ticket.key or "") if each is not ticket]
        lane.state = after_refusal(
            lane.state,
            self.limits,
            setback,
            retry_after=retry_after,
            others=sum(each.holds_slot(now) for each in others),
            sent=ticket.admitted,
            now=now,
            chance=CHANCE,
        )
