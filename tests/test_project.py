"""The package as a whole: what it exports, what it needs, what its files promise each other."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bide

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PUBLIC_MODULES = ("bide", "bide.emulator", "bide.errors", "bide.ledgers", "bide.models", "bide.providers")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BLOCK_EXTRAS = "import sys; sys.modules.update(dict.fromkeys(['aiohttp', 'cyclopts', 'rich']));"


def public_things() -> Iterator[Any]:
    """Public classes and functions. A value has its docstring below it, where only a reader finds it."""
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield pytest.param(thing, id=f"{module_name}.{name}")


def python(program: str) -> str:
    """What *program* prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_names_are_sorted_and_there(name: str) -> None:
    module = importlib.import_module(name)

    assert len(set(module.__all__)) == len(module.__all__)
    assert sorted(module.__all__, key=ruff_order) == list(module.__all__)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []


def ruff_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_every_error_and_model_is_at_the_top() -> None:
    assert set(bide.errors.__all__) <= set(bide.__all__)
    assert set(bide.models.__all__) - set(bide.__all__) == {"request_from_dict"}


@pytest.mark.parametrize("thing", list(public_things()))
def test_every_public_name_is_documented(thing: Any) -> None:
    undocumented = [name for name, member in own_members(thing) if not (inspect.getdoc(member) or "").strip()]

    assert (thing.__doc__ or "").strip()
    assert undocumented == []


def own_members(thing: Any) -> Iterator[tuple[str, Any]]:
    """The public functions of a class. What implements a documented protocol is documented there."""
    documented = set(dir(bide.Provider)) | set(dir(bide.ledgers.Ledger))
    for name, member in vars(thing).items() if inspect.isclass(thing) else ():
        if inspect.isfunction(member) and not name.startswith("_") and name not in documented:
            yield name, member


@pytest.mark.real_time
def test_the_package_needs_no_extras() -> None:
    loaded = python(f"{BLOCK_EXTRAS} from bide import *; import json; print(json.dumps(sorted(sys.modules)))")

    assert bide.Client.__module__ in json.loads(loaded)
    assert not any(name.startswith(("bide.emulator", "bide.cli")) for name in json.loads(loaded))


@pytest.mark.real_time
def test_an_import_alone_loads_no_library_and_names_come_when_they_are_asked_for() -> None:
    show = (
        "print(sorted({'httpx', 'anyio', 'attrs', 'asyncio'} & set(sys.modules)), hasattr(bide, 'nothing'))"
    )
    program = f"import sys, bide; {show}; bide.Client; {show}; bide.errors.BideError"

    assert python(program) == "[] False\n['anyio', 'asyncio', 'attrs', 'httpx'] False\n"


def test_type_checkers_see_the_names_where_they_are_at_run_time() -> None:
    tree = ast.parse(Path(bide.__file__).read_text())
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"
    ]
    seen = {alias.name: str(node.module) for node in imports for alias in node.names}
    del seen["import_module"]

    assert set(seen) == set(bide.__all__) <= set(dir(bide))
    assert {
        name: home
        for name, home in seen.items()
        if getattr(sys.modules[home], name) is not getattr(bide, name)
    } == {}


@pytest.mark.real_time
def test_an_import_starts_nothing() -> None:
    shown = python("import threading; from bide import *; print(threading.active_count())")

    assert shown == "1\n"


def test_the_version_is_told_once() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert PROJECT["project"]["version"] == bide.__version__
    assert "## [Unreleased]" in changelog


def test_types_are_shipped() -> None:
    assert Path(bide.__file__).with_name("py.typed").exists()


def test_every_group_that_make_sets_up_is_there() -> None:
    needs = set(re.findall(r"\.ready-(\w+) ##", (ROOT / "Makefile").read_text()))

    assert needs - {"demo"} <= set(PROJECT["dependency-groups"])
    assert "demo" in needs


def test_no_test_names_a_private_module_in_text() -> None:
    """A module that moves takes its imports along; what stands in quotes stays behind, and a patch hits nothing."""
    private = re.compile(r"\bbide(\.\w+)*\.(_\w|sqlite\.\w)")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value.strip()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path.name != "test_structure.py"  # the modules of its toy are no modules of the package
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and private.search(node.value)
    ]

    assert found == []
