"""What must survive: records of submissions and the state of lanes. The API key is never among them."""

from bide.ledgers._base import Held, LaneTerms, LaneView, Ledger, Record
from bide.ledgers.memory import MemoryLedger

__all__ = ["Held", "LaneTerms", "LaneView", "Ledger", "MemoryLedger", "Record"]
