"""What a client has learned of its tasks' durations: a copy of what the ledger keeps, and what is not recorded yet.

When a task ends, the client changes its copy at once, and writes to the ledger within a second, together with other
ends. A poll that shows no end writes nothing. The ledger's answer contains what other processes have learned.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from attrs import define, field

from bide._events import log_line
from bide._polling.durations import ENDS_KEPT, Durations, Sample, durations_from, plain_of
from bide._text import excerpt
from bide.models import RawRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from bide.ledgers import Ledger
    from bide.models import Request

FLUSH_SECONDS = 1.0
"""Seconds for which samples are gathered before they are written."""
RETRY_SECONDS = 5.0
REFRESH_SECONDS = 60.0
"""Seconds until the ledger is read again: other processes may have learned more meanwhile."""
MOST_MODELS = 1000
VARIANT_FIELDS = ("size", "resolution", "duration", "seconds", "n")
"""Fields of a request that make its task longer or shorter."""


@define(eq=False)
class DurationModel:
    """What is learned of one model, or of one variant of its requests.

    Attributes:
        name: its name on the ledger.
        parent: the model of a variant.
        unwritten: samples that the ledger does not have yet.
        read_at: when it was read from the ledger, by the loop's clock.
    """

    name: str
    learned: Durations
    parent: DurationModel | None = None
    unwritten: list[Sample] = field(factory=list)
    read_at: float | None = None

    def best(self) -> Durations:
        """The durations to decide with: the variant's own if they are clearly the better guide, else the model's."""
        if self.parent is None or self.learned.is_clearer_than(self.parent.learned):
            return self.learned
        return self.parent.learned

    def take(self, learned: Durations) -> None:
        """Take *learned* from the ledger, and add what is unwritten."""
        for sample in self.unwritten:
            learned.learn(sample)
        self.learned = learned


class DurationModels:
    """The models of one client.

    Args:
        origin: the provider and its address: an emulator teaches nothing about the service.
        spawn: runs background work that ends with the client.
        on_news: called with each model of which the ledger knew more than the copy.
    """

    def __init__(
        self,
        ledger: Ledger,
        origin: str,
        spawn: Callable[[Coroutine[object, object, None]], object],
        on_news: Callable[[DurationModel], None],
    ) -> None:
        self._ledger = ledger
        self._origin = origin
        self._spawn = spawn
        self._on_news = on_news
        self._time = asyncio.get_running_loop().time
        self._models: WeakValueDictionary[str, DurationModel] = WeakValueDictionary()
        self._latest: OrderedDict[str, DurationModel] = OrderedDict()  # kept although no task needs them now
        self._unwritten: dict[str, DurationModel] = {}
        self._flush_at: asyncio.TimerHandle | None = None

    def model(
        self, kind: str, name: str | None, request: Request | None, typical: tuple[float, float]
    ) -> DurationModel:
        """The model of a task, or its variant.

        Args:
            name: of the model, from the request or from the service's answer.
            typical: seconds that 10 % and 90 % of such tasks take, as the service documents.
        """
        whole = _join(self._origin, kind, name)
        parent = self._model(whole, lambda: Durations.from_documents(*typical))
        variant = variant_of(request)
        if not variant:
            return parent
        whole = _join(self._origin, kind, name, variant)
        return self._model(whole, lambda: Durations(parent.learned.prior), parent)

    def _model(
        self, name: str, make: Callable[[], Durations], parent: DurationModel | None = None
    ) -> DurationModel:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = DurationModel(name, make(), parent)
        self._latest[name] = model
        self._latest.move_to_end(name)
        if len(self._latest) > MOST_MODELS:
            self._latest.popitem(last=False)
        now = self._time()
        if model.read_at is None or (self._ledger.durable and now - model.read_at > REFRESH_SECONDS):
            model.read_at = now
            self._spawn(self._read(model))
        return model

    async def _read(self, model: DurationModel) -> None:
        try:
            text = (await self._ledger.read_learned([model.name])).get(model.name)
        except Exception as fault:  # noqa: BLE001 - a ledger may be the caller's own; use the documented times
            log_line(
                logging.DEBUG,
                f"what was learned of {model.name} could not be read: {excerpt(str(fault), 300)}",
            )
            return
        learned = None if text is None else _read_or_log(model.name, text)
        if learned is not None:
            model.take(learned)
            self._on_news(model)

    def teach(self, model: DurationModel, sample: Sample) -> None:
        """Add the *sample* of a task that has ended."""
        for each in (model, model.parent):
            if each is not None:
                each.learned.learn(sample)
                each.unwritten = [*each.unwritten[1 - ENDS_KEPT :], sample]
                self._unwritten[each.name] = each
        self._flush_soon(FLUSH_SECONDS)

    def _flush_soon(self, seconds: float) -> None:
        if self._flush_at is None and self._unwritten:
            self._flush_at = asyncio.get_running_loop().call_later(seconds, lambda: self._spawn(self.flush()))

    async def flush(self) -> None:
        """Write what the ledger does not have yet. If that fails, it is tried again later."""
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
        unwritten, self._unwritten = self._unwritten, {}
        samples = {name: model.unwritten for name, model in unwritten.items()}
        changes = {
            name: partial(_changed_text, name, model.learned.prior, samples[name])
            for name, model in unwritten.items()
        }
        for model in unwritten.values():
            model.unwritten = []
        try:
            texts = await self._ledger.learn(changes) if changes else {}
        except BaseException as fault:
            for name, model in unwritten.items():
                model.unwritten = [*samples[name], *model.unwritten][-ENDS_KEPT:]
            self._unwritten = {**unwritten, **self._unwritten}
            if not isinstance(fault, Exception):
                raise
            log_line(logging.DEBUG, f"what was learned could not be written: {excerpt(str(fault), 300)}")
            self._flush_soon(RETRY_SECONDS)
            return
        for name, text in texts.items():
            model = unwritten[name]
            model.read_at = self._time()
            learned = _read_or_log(name, text)
            if learned is not None:
                model.take(learned)

    async def aclose(self) -> None:
        """Write what is left, if the ledger can."""
        await self.flush()
        if self._flush_at is not None:
            self._flush_at.cancel()


def _changed_text(name: str, prior: Sequence[float], samples: Sequence[Sample], text: str | None) -> str:
    """The new text for the ledger: its present *text* with *samples* added. The ledger calls this during its step."""
    learned = (None if text is None else _read_or_log(name, text)) or Durations(prior)
    for sample in samples:
        learned.learn(sample)
    return plain_of(learned)


def _read_or_log(name: str, text: str) -> Durations | None:
    """The durations in *text*; None, and a line in the log, if it cannot be read."""
    try:
        return durations_from(text)
    except ValueError as fault:
        what = excerpt(str(fault), 300)
        log_line(
            logging.WARNING, f"what was learned of {name} cannot be read, so it is learned again: {what}"
        )
        return None


def _join(origin: str, *parts: str | None) -> str:
    """One name from all parts. No part contains two spaces, so different parts give different names."""
    return "  ".join([origin, *(" ".join(excerpt(part, 200).split()) if part else "-" for part in parts)])


def variant_of(request: Request | None) -> str:
    """The fields of *request* that make its task longer or shorter, as "duration=5 size=1280*720"; "" if there are
    none.

    The ledger keeps this text, and a field of such a name may hold anything. So only numbers and short words are used;
    from a body that the caller has written, only values with a digit.
    """
    fields: dict[str, Any] = {}
    if isinstance(request, RawRequest):
        parameters = request.body.get("parameters")
        for place in (request.body, parameters if isinstance(parameters, dict) else {}):
            fields |= {name: place[name] for name in VARIANT_FIELDS if name in place}
    elif request is not None:
        fields = {name: getattr(request, name, None) for name in VARIANT_FIELDS}
    words = {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in fields.items()
        if value is not None and not isinstance(value, bool)
    }
    is_plain = (_FIGURE if isinstance(request, RawRequest) else _WORD).fullmatch
    plain = {name: word for name, word in words.items() if is_plain(word)}
    return " ".join(f"{name}={plain[name]}" for name in sorted(plain) if (name, plain[name]) != ("n", "1"))


_WORD = re.compile(r"[0-9A-Za-z*:._-]{1,16}")
_FIGURE = re.compile(r"(?=[^0-9]*[0-9])[0-9A-Za-z*:.]{1,16}")
