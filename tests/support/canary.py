"""A canary key, and the search for it in whatever could give it away."""

from __future__ import annotations

import asyncio
import base64
import copy
import gc
import logging
import pickle
import traceback
import types
from collections.abc import Iterable
from contextvars import Context
from pathlib import Path

import pytest

from bide._wire import Secret
from bide.emulator import Emulator

CORE = "Zq7Xw2Lp9Rt4Vb6N"
KEY = f"sk-canary-{CORE}"
FORMS = [
    CORE.encode(),
    CORE[:8].encode(),
    CORE[-8:].encode(),
    CORE.encode("utf-16-le"),
    CORE[::-1].encode(),
    CORE.encode().hex().encode(),
    *(base64.b64encode(b"-" * shift + KEY.encode())[4:-8] for shift in range(3)),
]
"""As it is, in parts, and in the ways that things are packed for a log or a file."""


def assert_clean(what: str, *texts: str | bytes) -> None:
    for text in texts:
        plain = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        for form in FORMS:
            if form in plain:
                at = plain.index(form)
                pytest.fail(f"the key is in {what}: ...{plain[max(0, at - 200) : at + 60]!r}")


def assert_files_clean(folder: Path) -> None:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert paths
    for path in paths:
        assert_clean(f"the file {path.name}", path.read_bytes(), str(path))


def assert_error_clean(error: BaseException) -> None:
    """Neither its text nor a traceback with locals, along the whole chain, suppressed contexts included."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        chain += [each.__cause__, each.__context__]
        assert_clean(f"the error {type(each).__name__}", str(each), repr(each), repr(vars(each)))
        # `traceback.TracebackException(capture_locals=True)` does the same, and gives up where a repr fails.
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if not Path(frame.f_code.co_filename).name.startswith("test_"):  # those know it
                for name, value in frame.f_locals.items():
                    # A reporter may look one level deeper than a repr.
                    at = f"{name} in {frame.f_code.co_qualname}, in a traceback of {type(each).__name__}"
                    assert_clean(at, excerpt(value), excerpt(_inside(value)))


def excerpt(value: object) -> str:
    try:
        return repr(value)
    except Exception as fault:  # noqa: BLE001 - of any library
        return str(fault)


def _inside(value: object) -> object:
    return {} if isinstance(value, Secret | types.ModuleType | type) else getattr(value, "__dict__", {})


def assert_pickle_clean(value: object) -> None:
    """It pickles to something without the key, or not at all."""
    for pack in (pickle.dumps, copy.deepcopy):
        try:
            packed = pack(value)
        except Exception as refusal:  # noqa: BLE001 - of any kind
            assert_error_clean(refusal)
        else:
            assert_clean(f"a {pack.__name__} of {type(value).__name__}", repr(packed))


NOT_ENTERED = (
    types.ModuleType,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CodeType,
    types.FrameType,
    asyncio.AbstractEventLoop,
    Context,
    logging.Logger,
    Emulator,
    Secret,
)


def reachable(*roots: object) -> Iterable[object]:
    """All objects behind *roots*; the code of programs, the loop and the service itself left out."""
    seen: set[int] = set()
    todo: list[object] = list(roots)
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, types.FunctionType):
            todo += [cell.cell_contents for cell in each.__closure__ or () if _is_full(cell)]
        if not isinstance(each, NOT_ENTERED):
            todo += gc.get_referents(each)


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def assert_reprs_clean(*roots: object) -> int:
    """Every repr, and every text itself, behind *roots*."""
    count = 0
    for each in reachable(*roots):
        count += 1
        assert_clean(f"an object of type {type(each).__name__}", excerpt(each))
    return count
