"""A ledger as plain as can be, to hold the real ones against: a dictionary of tickets, and counting.

Where a moment matters the model knows it between two bounds: a pause has jitter, and a real clock goes on between two
lines. So a lane is *surely free*, *surely full*, or in between, and then either answer is right.
"""

from __future__ import annotations

import math

from attrs import Factory, define

from bide.models import Limits

MINUTE = 60.0
RAISE_EVERY = 20.0
LONGEST_PAUSE = 60.0


@define
class Span:
    """A moment between two bounds."""

    low: float
    high: float

    def plus(self, least: float, most: float | None = None) -> Span:
        return Span(self.low + least, self.high + (least if most is None else most))


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
    slot_until: Span = Factory(lambda: Span(math.inf, math.inf))
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

    def may_hold_slot(self, now: Span) -> bool:
        return self._holds(self.slot_until.high, now.low)

    def surely_holds_slot(self, now: Span) -> bool:
        return self._holds(self.slot_until.low, now.high)

    def _holds(self, until: float, now: float) -> bool:
        return self.key is not None and (self.is_open or self.status == "unknown") and until > now


@define
class Lane:
    """What a lane has learned, and the creates that were answered in it."""

    paused_until: Span = Factory(lambda: Span(-math.inf, -math.inf))
    learned: int | None = None
    learned_at: Span = Factory(lambda: Span(0.0, 0.0))
    probing: bool = False
    answered: list[Span] = Factory(list)


@define
class Model:
    """The records and lanes of one service, under the same *limits* in every lane."""

    limits: Limits
    tickets: dict[str, Ticket] = Factory(dict)
    lanes: dict[tuple[str, str], Lane] = Factory(dict)

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

    def is_free(self, kind: str, key: str, now: Span) -> bool | None:
        """Whether the lane surely takes one more create, surely does not (False), or may (None)."""
        lane, records = self.lane(kind, key), self.of_lane(kind, key)
        # A create that nobody has heard of for as long as a task may last counts for nothing any more.
        sent = [each for each in records if each.status == "submitting"]
        surely_sent = sum(each.surely_holds_slot(now) for each in sent)
        may_be_sent = sum(each.may_hold_slot(now) for each in sent)
        must = not (lane.probing and may_be_sent)
        may = not (lane.probing and surely_sent)
        must = must and lane.paused_until.high <= now.low
        may = may and lane.paused_until.low <= now.high
        least, most = self._caps(lane, now)
        must = must and sum(each.may_hold_slot(now) for each in records) < least
        may = may and sum(each.surely_holds_slot(now) for each in records) < most
        if self.limits.creates_per_minute is not None:
            whole, seconds = self.window()
            must = must and may_be_sent + sum(e.high > now.low - seconds for e in lane.answered) < whole
            may = may and surely_sent + sum(e.low > now.high - seconds for e in lane.answered) < whole
        return True if must else None if may else False

    def window(self) -> tuple[int, float]:
        rate = self.limits.creates_per_minute or 0.0
        whole = max(1, int(rate))
        return whole, MINUTE * whole / rate

    def _caps(self, lane: Lane, now: Span) -> tuple[float, float]:
        documented = math.inf if self.limits.concurrency is None else self.limits.concurrency
        if lane.learned is None:
            return documented, documented
        grown = [
            lane.learned + max(0, math.floor((moment - since) / RAISE_EVERY))
            for moment, since in ((now.low, lane.learned_at.high), (now.high, lane.learned_at.low))
        ]
        return min(documented, grown[0]), min(documented, grown[1])

    def turn(self, kind: str, owner: str, keys: list[str], now: Span) -> list[tuple[str, str] | None]:
        """The possible answers to *owner*: (ticket, lane), or None for nobody. One, where all lanes are sure."""
        heads: dict[frozenset[str], Ticket] = {}
        for each in sorted(self.tickets.values(), key=lambda each: each.sequence):
            waits = each.kind == kind and each.status == "waiting" and each.owner is not None
            if waits and not each.keys.isdisjoint(keys):
                heads.setdefault(each.keys, each)
        states = {key: self.is_free(kind, key, now) for key in keys}
        unsure = [key for key in keys if states[key] is None]
        answers: list[tuple[str, str] | None] = []
        for choice in range(2 ** len(unsure)):
            taken = {key for number, key in enumerate(unsure) if choice >> number & 1}
            free = [key for key in keys if states[key] or key in taken]
            answers.append(self._first(list(heads.values()), owner, free))
        return answers

    def _first(self, heads: list[Ticket], owner: str, free: list[str]) -> tuple[str, str] | None:
        for head in heads:
            key = next((each for each in free if each in head.keys), None)
            if key is None:
                continue
            if head.owner == owner:
                return head.name, key
            free = [each for each in free if each != key]
        return None

    # What changes a lane ------------------------------------------------------------------------------------

    def answer(self, ticket: Ticket, now: Span, *, accepted: bool) -> None:
        """The create of *ticket* has its answer."""
        lane = self.lane(ticket.kind, ticket.key or "")
        lane.answered.append(now)
        if accepted:
            lane.probing = False

    def refuse(
        self, ticket: Ticket, setback: str, now: Span, *, certain: bool, retry_after: float | None
    ) -> None:
        """The create of *ticket* was refused for now."""
        self.answer(ticket, now, accepted=False)
        lane = self.lane(ticket.kind, ticket.key or "")
        least = retry_after or (0.5 if setback == "unreachable" or retry_after == 0 else 5.0)
        most = max(retry_after or 0.0, LONGEST_PAUSE) + 1
        pause = now.plus(least, most)
        lane.paused_until = Span(
            max(lane.paused_until.low, pause.low), max(lane.paused_until.high, pause.high)
        )
        lane.probing = True
        if setback == "slots" and (certain or self.limits.concurrency is not None):
            others = [each for each in self.of_lane(ticket.kind, ticket.key or "") if each is not ticket]
            surely = sum(each.surely_holds_slot(now) for each in others)
            assert surely == sum(each.may_hold_slot(now) for each in others), (
                "no moment of the model is so near"
            )
            lane.learned, lane.learned_at = max(1, surely), pause
