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
    """`GET /_emulator/stats`, `POST /_emulator/reset`, `POST /_emulator/faults` (one fault, or a list of them), and
    `POST /_emulator/keys` (an object with the `old` and the `new` key of an account)."""

    def __init__(
        self,
        *,
        stats: Callable[[], dict[str, Any]],
        reset: Callable[[], None],
        add: Callable[[Fault], None],
        rotate: Callable[[str, str], None],
    ) -> None:
        self._stats = stats
        self._reset = reset
        self._add = add
        self._rotate = rotate

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
            case "POST", "/_emulator/keys":
                return self._rotate_key(call)
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

    def _rotate_key(self, call: Call) -> Answer:
        match call.json():
            case {"old": str(old), "new": str(new)} if old and new:
                pass
            case _:
                return Answer.json({"error": 'expected {"old": "...", "new": "..."}, two keys'}, status=400)
        try:
            self._rotate(old, new)
        except ValueError as error:
            return Answer.json({"error": str(error)}, status=400)
        return Answer.json({"ok": True})
