"""The source files of the package, read without running them: modules, imports, classes and lines of code."""

from __future__ import annotations

import ast
import io
import tokenize
import tomllib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

PACKAGE = "bide"

Function = ast.FunctionDef | ast.AsyncFunctionDef
Graph = dict[str, set[str]]

_LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Module:
    """One file of the package.

    Attributes:
        name: the dotted name, such as `bide._http.pool`; a package has the name of its folder.
        path: the file.
        is_package: whether the file is the `__init__.py` of a package.
        text: its text.
    """

    name: str
    path: Path
    is_package: bool
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    @property
    def room(self) -> str:
        """The entry at the top of the package that the module belongs to: a folder or a file."""
        return ".".join(self.name.split(".")[:2])

    @property
    def summary(self) -> str:
        """The first sentence of its docstring, without the period."""
        words = " ".join((ast.get_docstring(self.tree) or "").split("\n\n")[0].split())
        sentence, _, _ = words.partition(". ")
        return sentence.removesuffix(".")

    @cached_property
    def prose_lines(self) -> frozenset[int]:
        """The numbers of the lines that hold nothing but docstrings and comments."""
        lines: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Expr) and _is_text(node.value):
                lines.update(_span(node))
        comments = {token.start[0] for token in self._tokens() if token.type == tokenize.COMMENT}
        return frozenset(lines | (comments - self._lines_with_tokens))

    @cached_property
    def code_lines(self) -> frozenset[int]:
        """The numbers of the lines that hold code: neither blank nor only a docstring or a comment."""
        return frozenset(self._lines_with_tokens - self.prose_lines)

    @cached_property
    def _lines_with_tokens(self) -> set[int]:
        lines: set[int] = set()
        for token in self._tokens():
            if token.type not in _LAYOUT_TOKENS:
                lines.update(range(token.start[0], token.end[0] + 1))
        return lines

    def _tokens(self) -> Iterator[tokenize.TokenInfo]:
        return tokenize.generate_tokens(io.StringIO(self.text).readline)

    def code_lines_of(self, node: ast.ClassDef | Function) -> int:
        """How many lines of code *node* has, decorators included."""
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        return len(self.code_lines.intersection(range(first, (node.end_lineno or first) + 1)))


class House:
    """The package in one checkout of the repository.

    Args:
        root: the folder with `pyproject.toml` and `src`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "src" / PACKAGE
        self.modules = {module.name: module for module in _modules(self.folder)}

    @cached_property
    def layers(self) -> list[list[str]]:
        """The layers of the import contract, the highest first, each with the names of its rooms."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text("utf-8"))
        contracts = project["tool"]["importlinter"]["contracts"]
        layers = next(each["layers"] for each in contracts if each["type"] == "layers")
        return [layer.replace("|", " ").replace(":", " ").split() for layer in layers]

    @property
    def top_entries(self) -> list[str]:
        """The files and folders at the top of the package."""
        return sorted(path.name for path in self.folder.iterdir() if path.name != "__pycache__")

    @cached_property
    def imports(self) -> Graph:
        """For each module the modules of the package that it imports: at the top, in functions and for typing."""
        return {name: set(self._imports_of(module)) - {name} for name, module in self.modules.items()}

    @cached_property
    def room_imports(self) -> Graph:
        """The same between the entries at the top of the package."""
        graph: Graph = {module.room: set() for module in self.modules.values()}
        for name, imported in self.imports.items():
            room = self.modules[name].room
            graph[room].update(self.modules[each].room for each in imported)
            graph[room].discard(room)
        return graph

    def _imports_of(self, module: Module) -> Iterator[str]:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in self.modules)
            elif isinstance(node, ast.ImportFrom):
                source = module_of_import(module, node)
                for alias in node.names:
                    inner = f"{source}.{alias.name}"
                    if inner in self.modules:
                        yield inner
                    elif source in self.modules:
                        yield source

    def classes(self) -> Iterator[tuple[Module, ast.ClassDef]]:
        """Every class, with its module."""
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    yield module, node

    def functions(self) -> Iterator[tuple[Module, str, Function]]:
        """Every function and method, with its module and its name in it."""
        for module in self.modules.values():
            for name, node in definitions(module.tree):
                if isinstance(node, Function):
                    yield module, name, node


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """The classes and functions below *tree*, each with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | Function):
            yield f"{prefix}{node.name}", node
            yield from definitions(node, f"{prefix}{node.name}.")
        else:
            yield from definitions(node, prefix)


def module_of_import(module: Module, node: ast.ImportFrom) -> str:
    """The full name of the module that a `from ... import` names."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The groups of nodes that import each other, directly or by way of others."""
    return sorted(sorted(group) for group in _groups(graph) if len(group) > 1)


def levels(graph: Mapping[str, Iterable[str]]) -> int:
    """The nodes on the longest chain of imports. A circle counts as one node."""
    groups = _groups(graph)
    group_of = {name: index for index, group in enumerate(groups) for name in group}
    height: dict[int, int] = {}
    for index, group in enumerate(groups):  # what a group imports comes before it
        below = {group_of[each] for name in group for each in graph[name]} - {index}
        height[index] = 1 + max((height[each] for each in below), default=0)
    return max(height.values(), default=0)


def reachable(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """What *start* imports, directly or by way of others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for each in graph[waiting.pop()]:
            if each not in found:
                found.add(each)
                waiting.append(each)
    return found


def _groups(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """Tarjan's strongly connected components; each comes after those that it imports."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for each in graph[name]:
            if each not in order:
                visit(each)
                lowest[name] = min(lowest[name], lowest[each])
            elif each in stack:
                lowest[name] = min(lowest[name], order[each])
        if lowest[name] == order[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            groups.append(group)

    for name in graph:
        if name not in order:
            visit(name)
    return groups


def _modules(folder: Path) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(folder).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        yield Module(name, path, is_package, path.read_text("utf-8"))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _span(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)
