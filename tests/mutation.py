# SPDX-License-Identifier: Apache-2.0
"""Mutants: copies of a module with one small fault each, which the tests should notice.

As a pytest plugin (`-p tests.mutation`) this imports a module with one fault, SHOESTRING_MUTANT=MODULE:NUMBER; or it
writes to the file SHOESTRING_REACHED which functions of which modules each test ran.
"""

from __future__ import annotations

import ast
import builtins
import copy
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

import pytest

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
FUNCTIONS = {"any": "all", "all": "any", "min": "max", "max": "min"}
METHODS = {"is_": "is_not", "is_not": "is_", "in_": "not_in", "not_in": "in_", "desc": "asc", "asc": "desc"}
CONDITIONS = ("where", "and_", "or_", "filter", "filter_by", "values")
"""Calls of which one argument is dropped."""
GUARDS = ("where", "and_", "or_")
"""Calls whose arguments are the terms of a condition."""
PREDICATES = (*GUARDS, "exists", "is_", "is_not", "in_", "not_in")
NOT_CODE = ("annotation", "returns", "decorator_list", "bases")
Variants = Callable[[ast.AST, str], Iterator[ast.AST]]
"""What a node may become by a fault, and the field of its parent that it is in."""


@dataclass(frozen=True)
class Mutant:
    """One fault. `before` and `after` are the code around it, without what both have in common.

    statement  the line on which the statement begins that has it
    seen_if    how that statement, an `if`, must find its condition for the fault to change anything; None: any way
    """

    module: str
    number: int
    function: str
    line: int
    before: str
    after: str
    twin: int = 1
    """Counts equal faults of a function."""
    statement: int = 0
    seen_if: bool | None = None

    @property
    def key(self) -> str:
        """Names the fault as long as the code around it stays as it is."""
        again = f" ({self.twin})" if self.twin > 1 else ""
        return f"{self.module.removeprefix('shoestring_core.')} {self.function}: {self.before} → {self.after}{again}"


def find_mutants(module: str, source: str, variants: Variants | None = None) -> list[Mutant]:
    """All mutants of a module, in the order of its code. `variants`: what a node may become; `missing_terms` or any."""
    seen, found = Counter[str](), []
    for number, fault in enumerate(_faults(ast.parse(source), variants or _variants)):
        before, after = _shorten(fault.before, fault.after)
        mutant = Mutant(
            module, number, fault.function, fault.line, before, after,
            statement=fault.statement, seen_if=fault.seen_if,
        )  # fmt: skip
        seen[mutant.key] += 1
        found.append(replace(mutant, twin=seen[mutant.key]))
    return found


def mutate(source: str, number: int, variants: Variants | None = None) -> ast.Module:
    """The module with one fault."""
    tree = ast.parse(source)
    list(_faults(tree, variants or _variants))[number].plant()
    return ast.fix_missing_locations(tree)


# --- faults -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fault:
    function: str
    line: int
    statement: int
    seen_if: bool | None
    before: str
    after: str
    plant: Callable[[], None]


def _faults(tree: ast.Module, variants: Variants) -> Iterator[_Fault]:
    statements, terms = dict(_lines_of_statements(tree, 0)), set(_terms_of_conditions(tree))
    for node, field, function, put in _nodes(tree, ""):
        for changed in variants(node, field):
            statement = statements[id(node)]
            before, after = ast.unparse(node).strip(), ast.unparse(changed).strip()
            line = getattr(node, "lineno", statement)
            seen_if = _seen_if(node, changed, id(node) in terms)
            yield _Fault(function, line, statement, seen_if, before, after, partial(put, changed))


def _lines_of_statements(node: ast.AST, line: int) -> Iterator[tuple[int, int]]:
    """Where the statement of each node begins, by its `id`."""
    line = node.lineno if isinstance(node, ast.stmt) else line
    yield id(node), line
    for child in ast.iter_child_nodes(node):
        yield from _lines_of_statements(child, line)


def _terms_of_conditions(tree: ast.Module) -> Iterator[int]:
    """The `and` and `or` that the conditions of `if` statements are made of, by their `id`."""
    waiting = [node.test for node in ast.walk(tree) if isinstance(node, ast.If)]
    while waiting:
        match waiting.pop():
            case ast.BoolOp(values=values) as term:
                yield id(term)
                waiting += values


def _seen_if(node: ast.AST, changed: ast.AST, is_term: bool) -> bool | None:
    """As `Mutant.seen_if`. Without a term an `and` holds more often, an `or` less often."""
    match node, changed:
        case ast.If(), ast.Pass():
            return True
        case ast.If(), ast.If(test=ast.Constant(value=True)):
            return False
        case ast.BoolOp(op=operator, values=values), _ if is_term:
            rest = changed.values if isinstance(changed, ast.BoolOp) else [changed]
            return isinstance(operator, ast.Or) if len(rest) < len(values) and set(rest) < set(values) else None
    return None


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str, str, Callable[[ast.AST], None]]]:
    """All nodes of code below a node, each with its field, its function, and what replaces it."""
    for field, value in ast.iter_fields(node):
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or field in NOT_CODE:
                continue
            yield child, field, function, partial(_put, node, field, index)
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            yield from _nodes(child, f"{function}.{child.name}".lstrip(".") if named else function)


def _put(parent: ast.AST, field: str, index: int | None, child: ast.AST) -> None:
    if index is None:
        setattr(parent, field, child)
    else:
        getattr(parent, field)[index] = child


def _variants(node: ast.AST, field: str) -> Iterator[ast.AST]:
    """What a node may become by a fault."""
    if field in ("test", "ifs") and not isinstance(node, ast.Compare | ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.Compare(ops=ops):
            for index, operator in enumerate(ops):
                for other in COMPARISONS[type(operator)]:
                    yield _with(node, ops=[*ops[:index], other(), *ops[index + 1 :]])
        case ast.BoolOp(op=operator, values=values):
            yield _with(node, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
            yield from (_with(node, values=rest) if len(rest) > 1 else rest[0] for rest in _without_each(values))
        case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            yield _with(node, op=OPERATORS[type(operator)]())
            if isinstance(operator, ast.BitAnd | ast.BitOr):
                yield from (left, right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Call():
            yield from _call_variants(node)
        case ast.Tuple(elts=parts) | ast.List(elts=parts) if any(isinstance(part, ast.Compare) for part in parts):
            yield from (_with(node, elts=rest) for rest in _without_each(parts))
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield ast.Return(None)
        case ast.If(body=[*_, ast.Return() | ast.Raise() | ast.Continue()], orelse=[]):
            yield ast.Pass()
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Assign(targets=[ast.Subscript()]):
            yield ast.Pass()


def missing_terms(node: ast.AST, field: str) -> Iterator[ast.AST]:
    """A condition without each of its terms, and a guard that holds always."""
    match node:
        case ast.BoolOp(op=operator, values=values):
            if field in ("test", "ifs") or isinstance(operator, ast.And) or _compares(node):
                yield from (_with(node, values=rest) if len(rest) > 1 else rest[0] for rest in _without_each(values))
        case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr(), right=right) if _compares(node):
            yield from (left, right)
        case ast.Call(args=terms) if _name(node) in GUARDS:
            yield from (_with(node, args=rest) for rest in _without_each(terms))
        case ast.Tuple(elts=parts) | ast.List(elts=parts) if any(isinstance(part, ast.Compare) for part in parts):
            yield from (_with(node, elts=rest) for rest in _without_each(parts))
        case ast.comprehension(ifs=[ast.expr() as only]) if not isinstance(only, ast.BoolOp):
            yield _with(node, ifs=[])
        case ast.If(body=[*_, ast.Return() | ast.Raise() | ast.Continue()], orelse=[]):
            yield ast.Pass()
        case ast.If(test=test) if not isinstance(test, ast.BoolOp):
            yield _with(node, test=ast.Constant(True))


def _compares(node: ast.AST) -> bool:
    """Whether it is a condition: `a or b` may be a default, and `a | b` the union of two sets."""
    return any(
        isinstance(part, ast.Compare | ast.Not | ast.Invert)
        or (isinstance(part, ast.Call) and _name(part) in PREDICATES)
        for part in ast.walk(node)
    )


def _name(call: ast.Call) -> str:
    """Of the function that is called, without what it belongs to."""
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _call_variants(call: ast.Call) -> Iterator[ast.AST]:
    match call.func:
        case ast.Name(id=name) if name in FUNCTIONS:
            yield _with(call, func=ast.Name(FUNCTIONS[name], ast.Load()))
        case ast.Attribute(value=value, attr=name) if name in METHODS:
            yield _with(call, func=ast.Attribute(value, METHODS[name], ast.Load()))
    name = _name(call)
    if name in CONDITIONS:
        yield from (_with(call, args=rest) for rest in _without_each(call.args))
        yield from (_with(call, keywords=rest) for rest in _without_each(call.keywords))
    elif name not in FUNCTIONS and len(call.args) > 1:
        first, second, *rest = call.args
        if all(isinstance(one, ast.Name | ast.Attribute) for one in (first, second)):
            yield _with(call, args=[second, first, *rest])


def _without_each(parts: list[ast.expr]) -> Iterator[list[ast.expr]]:
    return (parts[:index] + parts[index + 1 :] for index in range(len(parts)))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _shorten(before: str, after: str, kept: int = 60) -> tuple[str, str]:
    """Both in one line, without the long beginning and end that they share."""
    before, after = " ".join(before.split()), " ".join(after.split())
    start = _shared_length(before, after)
    end = _shared_length(before[start:][::-1], after[start:][::-1])
    return _cut(before, start, end, kept), _cut(after, start, end, kept)


def _shared_length(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _cut(text: str, start: int, end: int, kept: int) -> str:
    head, middle, tail = text[:start], text[start : len(text) - end], text[len(text) - end :]
    head = head if len(head) <= kept else "…" + head[-kept:]
    middle = middle if len(middle) <= 2 * kept else middle[: 2 * kept] + "…"
    return head + middle + (tail if len(tail) <= kept else tail[:kept] + "…")


# --- imported with changes --------------------------------------------------------------------------------


class ChangedModules(MetaPathFinder):
    """Imports modules from changed syntax trees: `changes` makes them from the source."""

    def __init__(self, changes: Mapping[str, Callable[[str], ast.Module]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self._changes else None
        if spec is not None:
            spec.loader = _ChangedLoader(name, spec.origin, self._changes[name])
        return spec


class _ChangedLoader(SourceFileLoader):
    def __init__(self, name: str, path: str, change: Callable[[str], ast.Module]) -> None:
        super().__init__(name, path)
        self._change = change

    def get_code(self, name: str) -> CodeType:
        return compile(self._change(Path(self.path).read_text(encoding="utf-8")), self.path, "exec", dont_inherit=True)


def record_calls(source: str, module: str) -> ast.Module:
    """The module, each function of which begins with `__reached__("MODULE FUNCTION")`."""
    tree = ast.parse(source)
    for node, _, function, _ in list(_nodes(tree, "")):
        if isinstance(node, ast.FunctionDef):
            name = ast.Constant(f"{module} {function}.{node.name}".replace(" .", " "))
            node.body.insert(0, ast.Expr(ast.Call(ast.Name("__reached__", ast.Load()), [name], [])))
    return ast.fix_missing_locations(tree)


# --- as a plugin ------------------------------------------------------------------------------------------
# The finder is in place before pytest imports the first conftest.py.

_reached = set[str]()
if _mutant := os.environ.get("SHOESTRING_MUTANT"):
    _module, _, _number = _mutant.partition(":")
    sys.meta_path.insert(0, ChangedModules({_module: partial(mutate, number=int(_number))}))
if _file := os.environ.get("SHOESTRING_REACHED"):
    builtins.__reached__ = _reached.add
    _modules = os.environ["SHOESTRING_MODULES"].split(",")
    sys.meta_path.insert(0, ChangedModules({name: partial(record_calls, module=name) for name in _modules}))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Tests that are named one by one run in that order."""
    yield
    order = {name: number for number, name in enumerate(config.args)}
    items.sort(key=lambda item: order.get(item.nodeid, 0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Write a line for each test: its name, its seconds, and the functions that it ran."""
    _reached.clear()
    begun = time.monotonic()
    result = yield
    if _file:
        entry = {"test": item.nodeid, "seconds": round(time.monotonic() - begun, 3), "reached": sorted(_reached)}
        with open(_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    return result
