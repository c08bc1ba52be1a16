"""The ledger of one machine: a SQLite file that any number of processes share, and that outlives them all."""

from bide.ledgers.sqlite.ledger import SQLiteLedger

__all__ = ["SQLiteLedger"]
