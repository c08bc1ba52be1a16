"""The ledger of one machine: a SQLite file that any number of processes share, and that outlives them all.

What enters: steps of the state machine, from the event loop of a client (`ledger.py`). What leaves: their results, each
changed record, and hints when other processes have changed something or have died. A session (`session.py`) passes the
steps to a thread (`worker.py`), which takes them in transactions over the file (`backend.py`).
"""

from bide.ledgers.sqlite.ledger import SQLiteLedger

__all__ = ["SQLiteLedger"]
