"""The `bide` command: image, video, watch, resume and the rest, built only on the public names of the library.

`main` reads command-line arguments, the environment and standard input. It prints results on standard output and all
other messages on standard error, and returns an exit status. `_app` has the commands and their options, `_tasks` and
`_records` carry them out, and `_follow` follows many tasks to their ends.

It needs the extra "cli"; `bide emulator` and `bide demo` need the extra "emulator" as well.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_EXTRAS = {"cyclopts": "cli", "rich": "cli", "aiohttp": "cli,emulator"}
"""The extras that install each optional library."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None means those of the program itself.

    Returns:
        The exit status: 0 success, 1 a task (or the command) failed, 2 wrong usage, 3 the key was refused, 4 rate limit
        or billing, 5 timeout, 130 interrupted.
    """
    if sys.stderr is None:  # the caller has closed it; messages must not go to standard output instead
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the program ends
    try:
        from bide.cli._app import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except ImportError as error:
        library = _missing_library(error)
        if library is None:
            raise
        print(
            f"bide: this command needs {library}, which is not installed: pip install 'bide[{_EXTRAS[library]}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130


def _missing_library(error: ImportError) -> str | None:
    """The optional library that is not installed; None if something else is wrong."""
    cause: BaseException | None = error
    while cause is not None:
        name = (cause.name or "").partition(".")[0] if isinstance(cause, ModuleNotFoundError) else ""
        if name in _EXTRAS:
            return name
        cause = cause.__cause__
    return None
