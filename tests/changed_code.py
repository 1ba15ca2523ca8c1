# SPDX-License-Identifier: Apache-2.0
"""Other code for modules that are imported: marks on statements, functions replaced, values made again."""

from __future__ import annotations

import ast
import gc
import importlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType, FunctionType, ModuleType

from tests.mutation import Mutant


def mark_statements(source: str, module: str) -> ast.Module:
    """The module, each statement of whose functions comes after `__reached__("MODULE:LINE")`.

    After the condition of an `if` comes `__reached__("MODULE:LINE:True")` or `…:False`, as it is found.
    """
    tree = ast.parse(source)
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]:
        for node in [function, *_statements_within(function)]:
            for name in ("body", "orelse", "finalbody"):
                marked = [part for one in getattr(node, name, []) for part in (_mark(module, one), one)]
                if isinstance(node, ast.If):
                    marked = [_mark(module, node, f":{name == 'body'}"), *marked]
                if marked:
                    setattr(node, name, marked)
    return ast.fix_missing_locations(tree)


def _mark(module: str, statement: ast.stmt, found: str = "") -> ast.Expr:
    name = ast.Constant(f"{module}:{statement.lineno}{found}")
    mark = ast.Expr(ast.Call(ast.Name("__reached__", ast.Load()), [name], []))
    return ast.copy_location(mark, statement)


def _statements_within(node: ast.AST) -> Iterator[ast.AST]:
    """What has statements inside a function, without the functions in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child
            yield from _statements_within(child)


def functions_by_place(modules: Iterable[str]) -> dict[tuple[str, str, int], list[FunctionType]]:
    """All functions of some modules, by file, qualified name and first line."""
    wanted = {importlib.import_module(module).__file__ for module in modules}
    found: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
    gc.unfreeze()
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__code__.co_filename in wanted:
            code = one.__code__
            found[code.co_filename, code.co_qualname, code.co_firstlineno].append(one)
    gc.freeze()
    return dict(found)


def codes_within(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes_within(constant)


def made_from(tree: ast.Module, mutant: Mutant) -> list[str]:
    """The names at the top of a module whose values are made, at import, by what has the mutant."""
    changed = {mutant.function.partition(".")[0]} - {""}
    made: list[str] = []
    size = -1
    while size != len(changed):
        size = len(changed)
        for statement in tree.body:
            uses = statement.lineno <= mutant.line <= (statement.end_lineno or 0) or _names(statement) & changed
            if uses and isinstance(statement, ast.Assign | ast.AnnAssign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names = {target.id for target in targets if isinstance(target, ast.Name)}
                made += sorted(names - set(made))
                changed |= names
            elif uses and isinstance(statement, ast.FunctionDef) and not made:
                changed.add(statement.name)
    return made


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def lines_that_use(tree: ast.Module, names: Sequence[str]) -> Iterator[int]:
    """The statements of functions that use one of these names."""
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        for statement in _statements_within(function):
            if isinstance(statement, ast.stmt) and _names(statement) & set(names):
                yield statement.lineno


def make_again(module: ModuleType, tree: ast.Module, mutant: Mutant) -> bool:
    """Make again what a module made at import from the code that has the mutant, wherever it is used; if anything."""
    names = made_from(tree, mutant)
    before = {name: getattr(module, name) for name in names}
    file = getattr(module, "__file__", None) or module.__name__
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(isinstance(target, ast.Name) and target.id in names for target in targets):
                made = compile(ast.Module([statement], []), file, "exec", annotations.compiler_flag, dont_inherit=True)
                exec(made, module.__dict__)
    for name, old in before.items():
        new = getattr(module, name)
        for other in list(sys.modules.values()):
            if other.__name__.startswith("shoestring_") and getattr(other, name, None) is old:
                setattr(other, name, new)
    return bool(names)
