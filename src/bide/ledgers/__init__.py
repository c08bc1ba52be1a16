"""Ledgers keep what must survive: records of submissions, the state of lanes, and what was learned of durations.

In come snapshots of tasks, answers of the service to creates and cancels, and the terms of lanes; fingerprints name the
API keys, which a ledger never sees. Out come records, the decision who may create now, and hints when another process
has changed something. `Ledger` describes each operation. To write a further ledger, implement `Store`, over which
`StateMachine` takes each step, and subclass `Ledger`.
"""

from typing import TYPE_CHECKING

from bide.ledgers._lanes import LaneLoad, LaneState
from bide.ledgers._ledger import Ledger
from bide.ledgers._records import Held, Hint, LaneTerms, LaneView, Record, digest_of
from bide.ledgers._state_machine import StateMachine
from bide.ledgers._store import Store
from bide.ledgers.memory import MemoryLedger

if TYPE_CHECKING:
    from bide.ledgers.sqlite.ledger import SQLiteLedger
    from bide.ledgers.sqlite.report import LedgerReport, OwnerView

__all__ = [
    "Held",
    "Hint",
    "LaneLoad",
    "LaneState",
    "LaneTerms",
    "LaneView",
    "Ledger",
    "LedgerReport",
    "MemoryLedger",
    "OwnerView",
    "Record",
    "SQLiteLedger",
    "StateMachine",
    "Store",
    "digest_of",
]


def __getattr__(name: str) -> object:
    """Load SQLite at the first use: a process without a durable ledger does not pay for it."""
    if name in ("LedgerReport", "OwnerView"):
        from bide.ledgers.sqlite import report as _report

        return getattr(_report, name)
    if name != "SQLiteLedger":
        raise AttributeError(f"module 'bide.ledgers' has no attribute {name!r}")
    try:
        from bide.ledgers.sqlite.ledger import SQLiteLedger
    except ModuleNotFoundError as missing:
        raise ImportError(
            f"SQLiteLedger needs Python's module {missing.name}, which this system lacks; MemoryLedger works everywhere"
        ) from missing
    return SQLiteLedger
