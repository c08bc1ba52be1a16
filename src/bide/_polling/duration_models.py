"""What a client has learned of its tasks' durations: a copy of what the ledger keeps, and what is not there yet.

Each end is taught to the copy at once, and to the ledger within a second, together with those beside it: nothing is
written for a look. What other processes have learned comes back with the answer.
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
from bide._polling.durations import RING, Learned, Lesson, learned_from, plain_of
from bide._text import excerpt
from bide.models import RawRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from bide.ledgers import Ledger
    from bide.models import Request

FLUSH = 1.0
"""Seconds for which lessons are gathered before they are written."""
RETRY = 5.0
REFRESH = 60.0
"""Seconds after which what others may have learned is read again."""
MOST_MODELS = 1000
VARIANT = ("size", "resolution", "duration", "seconds", "n")
"""What a request says that makes its task longer or shorter."""


@define(eq=False)
class Model:
    """What is learned of one model, or of one variant of its requests.

    Attributes:
        name: what the ledger keeps it under.
        parent: the model of a variant.
        untold: lessons that the ledger does not have yet.
        read_at: when it was read from the ledger, by the loop's clock.
    """

    name: str
    learned: Learned
    parent: Model | None = None
    untold: list[Lesson] = field(factory=list)
    read_at: float | None = None

    def best(self) -> Learned:
        """What to decide with: the variant's own experience where it is clearly the better one."""
        if self.parent is None or self.learned.is_clearer_than(self.parent.learned):
            return self.learned
        return self.parent.learned

    def take(self, learned: Learned) -> None:
        """*learned* is on record; what is untold comes on top of it."""
        for lesson in self.untold:
            learned.learn(lesson)
        self.learned = learned


class Experience:
    """The models of one client.

    Args:
        origin: the provider and where it is: an emulator teaches nothing of the service.
        spawn: runs background work that ends with the client.
        news: told each model of which the ledger knew more than we did.
    """

    def __init__(
        self,
        ledger: Ledger,
        origin: str,
        spawn: Callable[[Coroutine[object, object, None]], object],
        news: Callable[[Model], None],
    ) -> None:
        self._ledger = ledger
        self._origin = origin
        self._spawn = spawn
        self._news = news
        self._time = asyncio.get_running_loop().time
        self._models: WeakValueDictionary[str, Model] = WeakValueDictionary()
        self._latest: OrderedDict[str, Model] = OrderedDict()  # those that stay although no task is of them
        self._untold: dict[str, Model] = {}
        self._flush_at: asyncio.TimerHandle | None = None

    def model(
        self, kind: str, name: str | None, request: Request | None, typical: tuple[float, float]
    ) -> Model:
        """The model, or its variant, that a task is of.

        Args:
            name: of the model, as the request or the service tells.
            typical: seconds that 10 % and 90 % of such tasks are documented to take.
        """
        whole = _joined(self._origin, kind, name)
        parent = self._model(whole, lambda: Learned.documented(*typical))
        variant = variant_of(request)
        if not variant:
            return parent
        whole = _joined(self._origin, kind, name, variant)
        return self._model(whole, lambda: Learned(parent.learned.prior), parent)

    def _model(self, name: str, make: Callable[[], Learned], parent: Model | None = None) -> Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = Model(name, make(), parent)
        self._latest[name] = model
        self._latest.move_to_end(name)
        if len(self._latest) > MOST_MODELS:
            self._latest.popitem(last=False)
        now = self._time()
        if model.read_at is None or (self._ledger.durable and now - model.read_at > REFRESH):
            model.read_at = now
            self._spawn(self._read(model))
        return model

    async def _read(self, model: Model) -> None:
        try:
            text = (await self._ledger.read_learned([model.name])).get(model.name)
        except Exception as fault:  # noqa: BLE001 - a ledger may be anybody's, and the documented times will do
            log_line(
                logging.DEBUG,
                f"what was learned of {model.name} could not be read: {excerpt(str(fault), 300)}",
            )
            return
        learned = None if text is None else _read_or_told(model.name, text)
        if learned is not None:
            model.take(learned)
            self._news(model)

    def teach(self, model: Model, lesson: Lesson) -> None:
        """A task of *model* has ended."""
        for each in (model, model.parent):
            if each is not None:
                each.learned.learn(lesson)
                each.untold = [*each.untold[1 - RING :], lesson]
                self._untold[each.name] = each
        self._flush_soon(FLUSH)

    def _flush_soon(self, seconds: float) -> None:
        if self._flush_at is None and self._untold:
            self._flush_at = asyncio.get_running_loop().call_later(seconds, lambda: self._spawn(self.flush()))

    async def flush(self) -> None:
        """Write what the ledger does not have yet. A fault of it is not ours to raise: it is tried again."""
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
        untold, self._untold = self._untold, {}
        told = {name: model.untold for name, model in untold.items()}
        changes = {
            name: partial(_taught, name, model.learned.prior, told[name]) for name, model in untold.items()
        }
        for model in untold.values():
            model.untold = []
        try:
            texts = await self._ledger.learn(changes) if changes else {}
        except BaseException as fault:
            for name, model in untold.items():
                model.untold = [*told[name], *model.untold][-RING:]
            self._untold = {**untold, **self._untold}
            if not isinstance(fault, Exception):
                raise
            log_line(logging.DEBUG, f"what was learned could not be written: {excerpt(str(fault), 300)}")
            self._flush_soon(RETRY)
            return
        for name, text in texts.items():
            model = untold[name]
            model.read_at = self._time()
            learned = _read_or_told(name, text)
            if learned is not None:
                model.take(learned)

    async def aclose(self) -> None:
        """Write what is left, as far as the ledger takes it."""
        await self.flush()
        if self._flush_at is not None:
            self._flush_at.cancel()


def _taught(name: str, prior: Sequence[float], lessons: Sequence[Lesson], text: str | None) -> str:
    """The text of what is learned once *lessons* are: it runs where the ledger takes its steps."""
    learned = (None if text is None else _read_or_told(name, text)) or Learned(prior)
    for lesson in lessons:
        learned.learn(lesson)
    return plain_of(learned)


def _read_or_told(name: str, text: str) -> Learned | None:
    """What is learned, from its text; None, and a warning, where that cannot be read."""
    try:
        return learned_from(text)
    except ValueError as fault:
        what = excerpt(str(fault), 300)
        log_line(logging.WARNING, f"what was learned of {name} cannot be read, and is learned anew: {what}")
        return None


def _joined(origin: str, *parts: str | None) -> str:
    """One name of all. Two spaces are in no part of it, and so no other parts have the same name."""
    return "  ".join([origin, *(" ".join(excerpt(part, 200).split()) if part else "-" for part in parts)])


def variant_of(request: Request | None) -> str:
    """What of *request* makes its task longer or shorter, as "duration=5 size=1280*720"; "" where it says nothing.

    Only numbers and short words, and of a body of the user's own only what has a digit: the name is kept, and a field
    of that name may hold anything.
    """
    told: dict[str, Any] = {}
    if isinstance(request, RawRequest):
        parameters = request.body.get("parameters")
        for place in (request.body, parameters if isinstance(parameters, dict) else {}):
            told |= {name: place[name] for name in VARIANT if name in place}
    elif request is not None:
        told = {name: getattr(request, name, None) for name in VARIANT}
    words = {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in told.items()
        if value is not None and not isinstance(value, bool)
    }
    is_plain = (_FIGURE if isinstance(request, RawRequest) else _WORD).fullmatch
    plain = {name: word for name, word in words.items() if is_plain(word)}
    return " ".join(f"{name}={plain[name]}" for name in sorted(plain) if (name, plain[name]) != ("n", "1"))


_WORD = re.compile(r"[0-9A-Za-z*:._-]{1,16}")
_FIGURE = re.compile(r"(?=[^0-9]*[0-9])[0-9A-Za-z*:.]{1,16}")
