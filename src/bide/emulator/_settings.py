"""The settings that both services share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bide.emulator._durations import Sampler


@dataclass(frozen=True)
class Settings:
    """How the emulator behaves; `Emulator` documents each."""

    seconds: Mapping[str, Sampler]
    queue_seconds: Sampler
    cancel_seconds: float
    speed: float
    seed: int
    failure_share: float
    keep: float
    url_seconds: float
    fresh_urls: bool
    cut_share: float
    retry_after: float | None
    keys: frozenset[str] | None
    """Fingerprints of the keys that are accepted; None accepts every key."""


def fingerprint(key: str) -> str:
    """The short hash under which the emulator tells of an API *key*; the key itself it never keeps."""
    return hashlib.sha256(b"bide emulator " + key.encode()).hexdigest()[:8]
