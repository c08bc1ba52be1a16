"""Where the records of the commands are: the file, and what is on record there."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bide import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bide import SQLiteLedger
    from bide.ledgers import OwnerView, Record


@dataclass(frozen=True)
class Place:
    """The file of the ledger.

    Attributes:
        words: what names it on the command line; nothing where the environment or the default does.
        is_ours: whether it is the default one, whose folder is made if it is missing.
    """

    path: Path
    words: tuple[str, ...] = ()
    is_ours: bool = False

    @classmethod
    def named(cls, given: Path | None) -> Place:
        """The file of that name; None is $BIDE_LEDGER, or else the one in the user's state folder.

        Raises:
            ValueError: there is no such folder, since the user has no home.
        """
        if given is not None:
            return cls(given.expanduser().absolute(), ("--ledger", str(given)))
        told = os.environ.get("BIDE_LEDGER")
        if told:
            return cls(Path(told).expanduser().absolute())
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        try:
            # The specification of these folders has relative ones passed over.
            folder = state if state.is_absolute() else Path.home() / ".local" / "state"
        except RuntimeError:
            raise ValueError(
                "there is no home folder for the ledger: name a file with --ledger or $BIDE_LEDGER"
            ) from None
        return cls(folder / "bide" / "ledger.db", is_ours=True)

    @property
    def exists(self) -> bool:
        """Whether there is anything."""
        return self.path.exists()

    def ledger(self) -> SQLiteLedger:
        """The ledger, to be opened; for the default one its folder is made.

        Raises:
            LedgerError: the folder cannot be made.
            ImportError: this system cannot have one.
        """
        from bide import SQLiteLedger

        try:
            if self.is_ours:
                _make_private(self.path.parent)
            return SQLiteLedger(self.path)
        except OSError as fault:
            raise LedgerError(
                f"the ledger's folder {self.path.parent} cannot be made ({fault.strerror}): name another file with "
                f"--ledger or $BIDE_LEDGER"
            ) from fault

    def command(self, *words: str) -> str:
        """A command of ours on this ledger, for the user to type."""
        return shlex.join(["bide", *words[:1], *self.words, *words[1:]])


def _make_private(folder: Path) -> None:
    """Make *folder*, and those above it that are missing, for this user alone."""
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


@dataclass(frozen=True)
class Found:
    """What the words of a command are on record: a ticket for each that is known there."""

    tickets: dict[str, Record]


async def find(ledger: SQLiteLedger, words: Sequence[str], *, ended: bool = False) -> Found:
    """The records that *words* name, by their ticket or by the id of their task while that goes on.

    Args:
        ended: by the id of a task that has ended, too.

    Raises:
        LedgerError: it cannot be read.
    """
    async with ledger:
        by_task = {record.task.task_id: record for record in await ledger.records(all=ended)}
        found = {word: await ledger.get(word) or by_task.get(word) for word in words}
    return Found({word: record for word, record in found.items() if record is not None})


def driver_of(record: Record, owners: Iterable[OwnerView]) -> OwnerView | None:
    """The live process that drives *record*; None is nobody."""
    instance = (record.owner or "").partition(".")[0]
    return next((each for each in owners if each.is_alive and each.instance == instance), None)


def prompt_of(record: Record) -> str | None:
    """What was asked for, if that is stored."""
    prompt = getattr(record.request, "prompt", None)
    return prompt if isinstance(prompt, str) else None
