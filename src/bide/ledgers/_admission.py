"""`Admission`: whose create may be sent next, and what each answer teaches the lane. A part of the state machine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import evolve

from bide import _outside
from bide.ledgers._lanes import (
    PASS_OVER_SECONDS,
    LaneState,
    after_accept,
    after_end,
    after_refusal,
    cap,
    is_passed_over,
    may_start_at,
    window,
)
from bide.ledgers._records import Held, Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bide.ledgers._lanes import Setback
    from bide.ledgers._records import LaneTerms
    from bide.ledgers._store import Store
    from bide.models import Limits


class Admission:
    """The rules of `_lanes.py` over the lanes and queues of a store. Its methods run inside a step of the ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # Whose turn it is --------------------------------------------------------------------------------------

    def turn(
        self, origin: str, kind: str, owner: str, lanes: Sequence[LaneTerms]
    ) -> tuple[Record, LaneTerms] | Held:
        """The record of *owner* that a lane can take now, and that lane: see `Ledger.admit`.

        An owner that does not take a slot which it was offered is passed over. The offer is noted when another owner
        asks.
        """
        now = self._store.now()
        keys = frozenset(each.key for each in lanes)
        heads = [head for head in self._store.heads(origin, kind) if not keys.isdisjoint(head.keys)]
        if not any(head.owner == owner for head in heads):
            return Held(is_idle=True)
        offers = dict(self._store.offers(origin, kind))
        if is_passed_over(offers.get(owner), now):
            self._store.write_offer(origin, kind, owner, None)
            del offers[owner]
        free, until = self._free_lanes(origin, kind, lanes, now)
        first_heads: dict[frozenset[str], Record] = {}
        for head in heads:
            if not is_passed_over(offers.get(head.owner or ""), now):
                first_heads.setdefault(head.keys, head)
        for head in first_heads.values():
            terms_for_head = next((each for each in free if each.key in head.keys), None)
            if terms_for_head is None:
                continue
            if head.owner == owner:
                if owner in offers:
                    self._store.write_offer(origin, kind, owner, None)
                return head, terms_for_head
            free.remove(terms_for_head)
            until = min(until, self._offer(head, offers, now) + PASS_OVER_SECONDS)
        return Held(until)

    def _free_lanes(
        self, origin: str, kind: str, lanes: Sequence[LaneTerms], now: float
    ) -> tuple[list[LaneTerms], float]:
        """The lanes that can take one more create now, and when the first of the others can."""
        free: list[LaneTerms] = []
        until = math.inf
        for terms in lanes:
            at = self._may_start_at(origin, kind, terms, now)
            if at <= now:
                free.append(terms)
            else:
                until = min(until, at)
        return free, until

    def _may_start_at(self, origin: str, kind: str, terms: LaneTerms, now: float) -> float:
        state = self._store.lane(origin, kind, terms.key)
        seconds = window(terms.limits)[1]
        if state.window is None or state.window < seconds:
            state = evolve(state, window=seconds)
            self._store.write_lane(origin, kind, terms.key, state)
        capped = cap(state, terms.limits, now) is not None
        load = self._store.load(origin, kind, terms.key, now, slots=capped, creates=bool(seconds))
        return may_start_at(state, load, terms.limits, now)

    def _offer(self, head: Record, offers: Mapping[str, float], now: float) -> float:
        """Note that the owner of *head* can take a free slot. Returns since when."""
        owner = head.owner or ""
        if owner not in offers:
            self._store.write_offer(head.origin, head.kind, owner, now)
        return offers.get(owner, now)

    def pass_over(self, record: Record) -> None:
        """The owner of *record* cannot send: it is passed over until it asks again."""
        self._store.write_offer(record.origin, record.kind, record.owner or "", -math.inf)

    def forget(self, owner: str, origin: str, kind: str) -> None:
        """*owner* waits no more in this queue."""
        if owner in self._store.offers(origin, kind):
            self._store.write_offer(origin, kind, owner, None)

    # What answers teach ------------------------------------------------------------------------------------

    def is_paused(self, record: Record) -> bool:
        """Whether the lane of *record* pauses now."""
        return self._lane(record).paused_until > self._store.now()

    def note_refusal(
        self, record: Record, limits: Limits, setback: Setback, *, retry_after: float | None
    ) -> None:
        """Note that the create of *record* was refused for now."""
        now, key = self._store.now(), record.key or ""
        lane = self.count_create(record)
        load = self._store.load(record.origin, record.kind, key, now, creates=False)
        lane = after_refusal(
            lane,
            limits,
            setback,
            retry_after=retry_after,
            others=load.slots - (record.slot_until > now),
            sent=now if record.admitted is None else record.admitted,
            now=now,
            chance=_outside.chance.random(),
        )
        self._store.write_lane(record.origin, record.kind, key, lane)

    def note_accept(self, record: Record) -> None:
        """Note that the create of *record*, which is `submitting` still, was accepted: its lane goes on."""
        if record.key is None:
            return
        lane, now = self.count_create(record), self._store.now()
        place = (record.origin, record.kind, record.key)
        tasks = 1
        if lane.learned is not None:
            load = self._store.load(*place, now, creates=False)
            tasks = load.slots - load.submitting + (record.slot_until > now)
        sent = now if record.admitted is None else record.admitted
        after = after_accept(lane, tasks=tasks, sent=sent, now=now)
        if after != lane:
            self._store.write_lane(*place, after)

    def note_end(self, record: Record) -> float:
        """Note that the task of *record* has ended. Returns after how many seconds the service has its slot free."""
        if record.key is None:
            return 0.0
        now, lane = self._store.now(), self._lane(record)
        if record.slot_until > now:
            self._store.write_lane(record.origin, record.kind, record.key, after_end(lane, now))
        return lane.release_delay

    def count_create(self, record: Record) -> LaneState:
        """Count the create of *record*, which was answered or given up. Returns the state of its lane."""
        lane = self._lane(record)
        if lane.window:
            place = (record.origin, record.kind, record.key or "")
            self._store.count_create(*place, self._store.now(), lane.window)
        return lane

    def _lane(self, record: Record) -> LaneState:
        return self._store.lane(record.origin, record.kind, record.key or "")
