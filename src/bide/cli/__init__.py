"""The command line. Needs the extra "cli"; `bide emulator` and `bide demo` need "emulator" as well."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_EXTRAS = {"cyclopts": "cli", "rich": "cli", "aiohttp": "cli,emulator"}
"""What installs each optional library."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes the program's own.

    Returns:
        The exit status: 0 ok, 1 a task (or the command) failed, 2 it cannot be run like that, 3 the key was refused,
        4 rate or billing, 5 timeout, 130 interrupted.
    """
    if sys.stderr is None:  # closed by the caller: what is for it must not go to standard output instead
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the program runs
    try:
        from bide.cli._app import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except ImportError as error:
        library = _missing_extra(error)
        if library is None:
            raise
        print(
            f"bide: this command needs {library}, which is not installed: pip install 'bide[{_EXTRAS[library]}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130


def _missing_extra(error: ImportError) -> str | None:
    """The optional library that is not installed; None if something else is wrong."""
    found: BaseException | None = error
    while found is not None:
        name = (found.name or "").partition(".")[0] if isinstance(found, ModuleNotFoundError) else ""
        if name in _EXTRAS:
            return name
        found = found.__cause__
    return None
