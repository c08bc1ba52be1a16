"""The emulator's own calls, for programs that reach it by HTTP only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bide.emulator._answers import Answer
from bide.emulator._faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from bide.emulator._answers import Call


class Control:
    """`GET /_emulator/stats`, `POST /_emulator/reset`, `POST /_emulator/faults` (one fault, or a list of them)."""

    def __init__(
        self, *, stats: Callable[[], dict[str, Any]], reset: Callable[[], None], add: Callable[[Fault], None]
    ) -> None:
        self._stats = stats
        self._reset = reset
        self._add = add

    def answer(self, call: Call) -> Answer:
        """Carry out a control call."""
        match call.method, call.path.rstrip("/"):
            case "GET", "/_emulator/stats":
                return Answer.json(self._stats())
            case "POST", "/_emulator/reset":
                self._reset()
                return Answer.json({"ok": True})
            case "POST", "/_emulator/faults":
                return self._order(call)
            case _:
                return Answer.json({"error": "no such call"}, status=404)

    def _order(self, call: Call) -> Answer:
        try:
            data = json.loads(call.body)
            faults = [Fault.from_dict(each) for each in (data if isinstance(data, list) else [data])]
        except (ValueError, RecursionError) as error:
            return Answer.json({"error": str(error)}, status=400)
        for fault in faults:
            self._add(fault)
        return Answer.json({"ok": True, "faults": len(faults)})
