"""Follow the calls of one function through the package, as a reader does who opens each function once.

The calls are found in the syntax tree; nothing runs. The type of `self.name` is taken from annotations, and from the
assignments in the methods of its class. A call is followed where its function is found by that:

- A protocol or an abstract class with one implementation in the package leads to that one. Where there are several
  (ledgers, providers) the walk ends at the abstract method.
- A plain function that makes a coroutine gives it to a background task: that is another walk. An `async` function
  waits for its coroutines, so they are followed.
- Properties are read as data. Making an object is no step. Functions that are passed as values are not followed.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from sources import PACKAGE, Function, House, Module, module_of_import, reachable

if TYPE_CHECKING:
    from collections.abc import Iterator

_Node = TypeVar("_Node", bound=ast.AST)

_WRAPPERS = {"Annotated", "Awaitable", "ClassVar", "Final", "Future", "Optional", "Task"}
_LAST = {
    "Coroutine",
    "dict",
    "Mapping",
    "MutableMapping",
    "OrderedDict",
    "WeakValueDictionary",
    "defaultdict",
}
_MANY = {
    *("AsyncIterable", "AsyncIterator", "Collection", "Iterable", "Iterator", "Sequence", "WeakSet", "deque"),
    *("frozenset", "list", "set", "tuple"),
}
_ITEM_METHODS = {"get", "pop", "popitem", "popleft", "setdefault"}
_SAME = {"frozenset", "iter", "list", "reversed", "set", "sorted", "tuple"}


@dataclass(frozen=True)
class Definition:
    """A class or function of the package: its module, its name in it, and its node."""

    module: Module
    name: str
    node: ast.ClassDef | Function = field(compare=False)

    def __str__(self) -> str:
        return f"{self.module.name.removeprefix(PACKAGE + '.')}:{self.name}"


@dataclass(frozen=True)
class Many:
    """A container, by the type of what it holds."""

    item: Type | None


Type = Definition | Many


@dataclass(frozen=True)
class Step:
    """One function calls another one, however often."""

    caller: Definition
    callee: Definition
    is_stay: bool
    is_climb: bool
    is_return: bool


@dataclass(frozen=True)
class Walk:
    """The steps from one start.

    Attributes:
        stays: steps within a file.
        climbs: steps into a file that imports the caller's file, directly or by way of others: against the imports.
        returns: steps into another file that was read already.
        functions: functions that are read, the start included.
        files: files that they stand in.
    """

    start: Definition
    steps: tuple[Step, ...]

    @property
    def stays(self) -> int:
        return sum(step.is_stay for step in self.steps)

    @property
    def climbs(self) -> int:
        return sum(step.is_climb for step in self.steps)

    @property
    def returns(self) -> int:
        return sum(step.is_return for step in self.steps)

    @property
    def functions(self) -> int:
        return len({self.start, *(step.callee for step in self.steps)})

    @property
    def files(self) -> int:
        return len({self.start.module, *(step.callee.module for step in self.steps)})


class Walker:
    """Finds the walks through one house."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._names = {name: _names_of(module) for name, module in house.modules.items()}
        self._attributes: dict[tuple[Definition, str], Type | None] = {}
        self._above = cache(lambda name: {each for each in house.modules if name in self._below(each)})
        self._below = cache(lambda name: reachable(house.imports, name))

    def find(self, start: str) -> Definition | None:
        """The function that `module:Class.function` names; None if the house has no such function."""
        module_name, _, name = start.partition(":")
        module = self._house.modules.get(module_name)
        first, *rest = name.split(".")
        found = self._names[module_name].get(first) if module is not None else None
        for each in rest:
            found = self._method(found, each) if isinstance(found, Definition) else None
        return found if isinstance(found, Definition) else None

    def walk(self, start: Definition) -> Walk:
        """Follow the calls from *start*, each call before the next one."""
        steps: list[Step] = []
        read: set[Definition] = set()
        files: set[Module] = set()

        def visit(caller: Definition) -> None:
            read.add(caller)
            files.add(caller.module)
            for callee in self._callees(caller):
                home, there = caller.module, callee.module
                climbs = there != home and there.name in self._above(home.name)
                returns = there != home and there in files
                steps.append(Step(caller, callee, there == home, climbs, returns))
                if callee not in read:
                    visit(callee)

        visit(start)
        return Walk(start, tuple(steps))

    # Calls -------------------------------------------------------------------------------------------------

    def _callees(self, caller: Definition) -> Iterator[Definition]:
        """The functions that *caller* calls, in the order of the text, each once."""
        scope = self._scope(caller)
        waits = isinstance(caller.node, ast.AsyncFunctionDef)
        seen: set[Definition] = set()
        for call in _in_order(caller.node, ast.Call):
            callee = self._called(call, scope)
            if callee is None or not isinstance(callee.node, Function) or callee in seen:
                continue
            callee = self._implementation(callee)
            if callee in seen or (isinstance(callee.node, ast.AsyncFunctionDef) and not waits):
                continue
            seen.add(callee)
            yield callee

    def _called(self, call: ast.Call, scope: Scope) -> Definition | None:
        """The function or class that *call* calls."""
        return self._denoted(call.func, scope)

    def _denoted(self, node: ast.expr, scope: Scope) -> Definition | None:
        """The function or class that an expression names."""
        if isinstance(node, ast.Name):
            found = None if node.id in scope.types else self._resolve(scope.module, node.id)
            return found if isinstance(found, Definition) else None
        if not isinstance(node, ast.Attribute):
            return None
        if _is_super(node.value):
            return self._inherited(scope.owner, node.attr)
        if isinstance(node.value, ast.Name) and node.value.id not in scope.types:
            named = self._resolve(scope.module, node.value.id)
            if isinstance(named, Module):
                found = self._resolve(named, node.attr)
                return found if isinstance(found, Definition) else None
            if isinstance(named, Definition) and isinstance(named.node, ast.ClassDef):
                return self._method(named, node.attr)
        owner = self._type(node.value, scope)
        return self._method(owner, node.attr) if isinstance(owner, Definition) else None

    def _implementation(self, method: Definition) -> Definition:
        """The one implementation of an abstract method, or the method itself."""
        owner = self._owner_of(method)
        if owner is None or not _is_abstract(owner.node, method.node):
            return method
        found = [self._method(each, method.node.name) for each in self._implementers(owner)]
        others = {each for each in found if each is not None and each != method}
        return others.pop() if len(others) == 1 else method

    def _implementers(self, abstract: Definition) -> Iterator[Definition]:
        """The classes that derive from *abstract*, or have all methods of that protocol."""
        is_protocol = _is_protocol(abstract.node)
        needed = {node.name for node in abstract.node.body if isinstance(node, Function)}
        for module, node in self._house.classes():
            each = Definition(module, node.name, node)
            if each == abstract or _is_protocol(node):
                continue
            if abstract in self._ancestors(each) or (
                is_protocol and all(self._method(each, name) for name in needed)
            ):
                yield each

    # Names and types ---------------------------------------------------------------------------------------

    def _resolve(self, module: Module, name: str) -> Definition | Module | None:
        """What *name* means in *module*: a class or function of the package, or a module."""
        found = self._names[module.name].get(name)
        if not isinstance(found, tuple):
            return found
        source, original = found
        if f"{source}.{original}" in self._house.modules:
            return self._house.modules[f"{source}.{original}"]
        home = self._house.modules.get(source)
        return None if home is None else self._resolve(home, original)

    def _ancestors(self, owner: Definition) -> list[Definition]:
        found: list[Definition] = []
        for base in owner.node.bases if isinstance(owner.node, ast.ClassDef) else ():
            name = _name_of(base)
            named = self._resolve(owner.module, name) if name is not None else None
            if isinstance(named, Definition):
                found += [named, *self._ancestors(named)]
        return found

    def _method(self, owner: Definition, name: str) -> Definition | None:
        for each in (owner, *self._ancestors(owner)):
            for node in each.node.body:
                if isinstance(node, Function) and node.name == name:
                    return Definition(each.module, f"{each.name}.{name}", node)
        return None

    def _owner_of(self, method: Definition) -> Definition | None:
        """The class that a method stands in."""
        owner = self.find(f"{method.module.name}:{method.name.rpartition('.')[0]}")
        return owner if owner is not None and isinstance(owner.node, ast.ClassDef) else None

    def _inherited(self, owner: Definition | None, name: str) -> Definition | None:
        for each in self._ancestors(owner) if owner is not None else ():
            found = self._method(each, name)
            if found is not None:
                return found
        return None

    def _scope(self, function: Definition) -> Scope:
        """The types of the arguments and the local names of *function*."""
        owner = self._owner_of(function)
        scope = Scope(function.module, owner, {})
        if owner is not None:
            scope.types.update({"self": owner, "cls": owner})
        for _ in range(2):  # a name may be used above the loop or comprehension that binds it
            for node in ast.walk(function.node):
                self._bind(node, scope)
        return scope

    def _bind(self, node: ast.AST, scope: Scope) -> None:
        """Note the types of the names that *node* assigns."""
        match node:
            case ast.arg(arg=name, annotation=annotation) if annotation is not None:
                scope.note(ast.Name(name), self._annotated(annotation, scope))
            case ast.AnnAssign(target=target, annotation=annotation):
                scope.note(target, self._annotated(annotation, scope))
            case ast.Assign(targets=[target], value=value) | ast.NamedExpr(target=target, value=value):
                scope.note(target, self._type(value, scope))
            case ast.For() | ast.AsyncFor() | ast.comprehension():
                many = self._type(node.iter, scope)
                scope.note(node.target, many.item if isinstance(many, Many) else None)
            case ast.withitem(context_expr=value, optional_vars=target) if target is not None:
                scope.note(target, self._type(value, scope))

    def _annotated(self, node: ast.expr, scope: Scope) -> Type | None:
        """The type that an annotation names."""
        match node:
            case ast.Constant(value=str(text)):
                return self._annotated(ast.parse(text, mode="eval").body, scope)
            case ast.Name(id="Self"):
                return scope.owner
            case ast.Name(id=name):
                found = self._resolve(scope.module, name)
                return (
                    found if isinstance(found, Definition) and isinstance(found.node, ast.ClassDef) else None
                )
            case ast.BinOp(left=left, right=right):
                return self._annotated(left, scope) or self._annotated(right, scope)
            case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
                parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                if name in _WRAPPERS:
                    return self._annotated(parts[0], scope)
                if name in _LAST:
                    last = self._annotated(parts[-1], scope)
                    return last if name == "Coroutine" else Many(last)
                if name in _MANY:
                    return Many(self._annotated(parts[0], scope))
        return None

    def _type(self, node: ast.expr, scope: Scope) -> Type | None:
        """The type of an expression, as far as it can be found."""
        match node:
            case ast.Name(id=name):
                return scope.types.get(name)
            case ast.Attribute(value=value, attr=name):
                owner = self._type(value, scope)
                return self._attribute(owner, name) if isinstance(owner, Definition) else None
            case ast.Await(value=value) | ast.NamedExpr(value=value):
                return self._type(value, scope)
            case ast.BoolOp(values=values):
                return next((found for each in values if (found := self._type(each, scope))), None)
            case ast.IfExp(body=body, orelse=orelse):
                return self._type(body, scope) or self._type(orelse, scope)
            case ast.Subscript(value=value, slice=inner):
                many = self._type(value, scope)
                return (
                    (many if isinstance(inner, ast.Slice) else many.item) if isinstance(many, Many) else None
                )
            case ast.ListComp(elt=element) | ast.SetComp(elt=element) | ast.GeneratorExp(elt=element):
                return Many(self._type(element, scope))
            case ast.Call():
                return self._result(node, scope)
        return None

    def _result(self, call: ast.Call, scope: Scope) -> Type | None:
        """The type of what a call returns."""
        called = self._called(call, scope)
        if called is not None and isinstance(called.node, ast.ClassDef):
            return called
        if called is not None and isinstance(called.node, Function):
            where = Scope(called.module, self._owner_of(called), {})
            return self._annotated(called.node.returns, where) if called.node.returns is not None else None
        match call.func:
            case ast.Attribute(value=value, attr=name):
                many = self._type(value, scope)
                if isinstance(many, Many):
                    return (
                        many.item if name in _ITEM_METHODS else many if name in {"values", "copy"} else None
                    )
            case ast.Name(id=name) if call.args:
                first = self._type(call.args[0], scope)
                if name in _SAME:
                    return first
                if name in {"next", "max", "min"} and isinstance(first, Many):
                    return first.item
        return None

    def _attribute(self, owner: Definition, name: str) -> Type | None:
        """The type of an attribute: by the body of the class, a property, or the assignments in its methods."""
        key = (owner, name)
        if key not in self._attributes:
            self._attributes[key] = None  # an attribute that is made of itself has no type
            self._attributes[key] = self._find_attribute(owner, name)
        return self._attributes[key]

    def _find_attribute(self, owner: Definition, name: str) -> Type | None:
        for each in (owner, *self._ancestors(owner)):
            scope = Scope(each.module, each, {})
            for node in each.node.body:
                match node:
                    case ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                        return self._annotated(node.annotation, scope)
                    case ast.FunctionDef(name=found, returns=returns) if (
                        found == name and returns is not None
                    ):
                        return self._annotated(returns, scope) if node.decorator_list else None
            for node in each.node.body:
                if isinstance(node, Function):
                    found_type = self._assigned(
                        Definition(each.module, f"{each.name}.{node.name}", node), name
                    )
                    if found_type is not None:
                        return found_type
        return None

    def _assigned(self, method: Definition, name: str) -> Type | None:
        """The type that *method* gives to `self.name`."""
        for node in ast.walk(method.node):
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not any(_is_own(target, name) for target in targets):
                continue
            scope = self._scope(method)
            found = self._annotated(node.annotation, scope) if isinstance(node, ast.AnnAssign) else None
            found = found or (self._type(node.value, scope) if node.value is not None else None)
            if found is not None:
                return found
        return None


@dataclass(frozen=True)
class Scope:
    """The names that a function knows by their types."""

    module: Module
    owner: Definition | None
    types: dict[str, Type]

    def note(self, target: ast.expr, found: Type | None) -> None:
        """Keep the first type that is found for a name."""
        if isinstance(target, ast.Name) and found is not None:
            self.types.setdefault(target.id, found)


def _names_of(module: Module) -> dict[str, Definition | tuple[str, str] | None]:
    """What the names at the top of *module* mean: what it defines, and where what it imports stands."""
    names: dict[str, Definition | tuple[str, str] | None] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            source = module_of_import(module, node)
            names.update({alias.asname or alias.name: (source, alias.name) for alias in node.names})
    for node in ast.iter_child_nodes(module.tree):
        if isinstance(node, ast.ClassDef | Function):
            names[node.name] = Definition(module, node.name, node)
    return names


def _in_order(node: ast.AST, kind: type[_Node]) -> Iterator[_Node]:
    """The nodes of *kind* below *node* in the order of the text; a call comes after the calls in its arguments."""
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child, kind)
        if isinstance(child, kind):
            yield child


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _is_own(target: ast.expr, name: str) -> bool:
    """Whether *target* is `self.name`."""
    match target:
        case ast.Attribute(value=ast.Name(id="self"), attr=found):
            return found == name
    return False


def _is_protocol(node: ast.ClassDef | Function) -> bool:
    return isinstance(node, ast.ClassDef) and any(_name_of(base) == "Protocol" for base in node.bases)


def _is_abstract(owner: ast.ClassDef | Function, method: ast.ClassDef | Function) -> bool:
    return _is_protocol(owner) or any(_name_of(each) == "abstractmethod" for each in method.decorator_list)


def _name_of(node: ast.expr) -> str | None:
    """The last part of a name, without the arguments of a generic class."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _name_of(value)
    return None
