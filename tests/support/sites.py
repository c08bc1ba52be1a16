"""A toy service, a ledger's file, and clients on both, as several processes have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from attrs import frozen

from bide import Client, SQLiteLedger
from bide.providers import Profile
from support.toy import Toy, ToyService


@frozen
class QuickToy(Toy):
    """A toy that may be looked at often."""

    floor: float = 0.05

    def profile(self, kind: str) -> Profile:
        return Profile(self.floor, (10, 30), self.longest, self.unknown_hold, self.limits)


class Site:
    """A service, a file, and clients that count their own calls."""

    def __init__(self, path: Path, service: ToyService) -> None:
        self.path = path
        self.service = service

    def client(self, toy: Toy | None = None, **options: Any) -> Client:
        options.setdefault("api_key", "sk-toy")
        options.setdefault("ledger", SQLiteLedger(self.path))
        return Client(toy or QuickToy(), transport=httpx.MockTransport(self.service), **options)
