"""The ledger of one machine: a SQLite file that any number of processes share, and that outlives them all.

In come steps of the state machine, from the event loop of a client (`ledger.py`). A session (`session.py`) passes them
to a thread (`worker.py`), which takes them in transactions over the file (`backend.py`). Out come their results, each
changed record, and hints when other processes have changed something or have died.
"""

from bide.ledgers.sqlite.ledger import SQLiteLedger

__all__ = ["SQLiteLedger"]
