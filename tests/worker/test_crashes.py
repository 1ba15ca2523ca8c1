# SPDX-License-Identifier: Apache-2.0
"""A worker may die between any two commits and calls: each has a failpoint, where `tests.soak.crashes` does that."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import shoestring_worker
from shoestring_worker.providers.base import Provider, RegionalProvider

from tests.worker.conftest import World
from tests.worker.crashes import Day
from tests.worker.saboteur import VERBS

WORKER = Path(shoestring_worker.__file__).parent
CHOKE_POINT = "steps.py"
"""The only module that opens a write transaction; all others call its `write`."""
NOT_ON_THE_DAY = {
    "set_half_life",  # when a worker starts
    "record_eviction",  # tests/worker/test_evictions.py
    "record_decision",  # of a deadline: tests/worker/test_deadlines.py
    "postpone",  # likewise
    "roll_over",  # a period ends: tests/core/store/test_periods.py
    "tell_forecast",  # tests/core/store/test_forecasts.py
    "tell_storage",  # the credentials end: tests/worker/test_credentials.py
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(WORKER.glob("*.py")):
        yield path.name, ast.parse(path.read_text())


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def commits() -> set[str]:
    """The functions that the worker's steps hand to `write`, which puts a failpoint around each."""
    found = set()
    for name, tree in modules():
        for call in calls(tree):
            called = ast.unparse(call.func)
            if name == CHOKE_POINT or called not in ("write", "self._write"):
                continue
            function = call.args[0] if called == "self._write" else call.args[1]
            if ast.unparse(function) != "function":  # `_write` itself passes it on
                found.add(ast.unparse(function).rpartition(".")[2])
    return found


def on_the_day() -> set[str]:
    return (commits() | VERBS) - NOT_ON_THE_DAY


def test_every_commit_of_the_worker_has_a_failpoint_on_either_side():
    opened = [
        f"{name}:{call.lineno}"
        for name, tree in modules()
        for call in calls(tree)
        if name != CHOKE_POINT and ast.unparse(call.func) in ("store.write", "self.store.write", "self._store.write")
    ]
    assert opened == [], "a commit outside of steps.write has no failpoint"
    (chosen,) = [tree for name, tree in modules() if name == CHOKE_POINT]
    (write,) = [node for node in chosen.body if isinstance(node, ast.FunctionDef) and node.name == "write"]
    assert "around(function.__name__, " in ast.unparse(write)
    assert len(commits()) > 20


def test_every_call_of_a_provider_has_a_failpoint_on_either_side():
    verbs = {
        name
        for protocol in (Provider, RegionalProvider)
        for name, _ in inspect.getmembers(protocol, inspect.isfunction)
        if not name.startswith("_")
    }
    assert verbs == VERBS
    guarded, bare = set(), []
    for name, tree in modules():
        inside = {
            id(node): call.args[0].value
            for call in calls(tree)
            if ast.unparse(call.func) == "around" and isinstance(call.args[0], ast.Constant)
            for node in ast.walk(call.args[1])
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in verbs and ast.unparse(node.value).endswith("adapter"):
                if inside.get(id(node)) == node.attr:
                    guarded.add(node.attr)
                else:
                    bare.append(f"{name}:{node.lineno} {node.attr}")
    assert bare == [], "a call of a provider without its failpoint"
    assert guarded == verbs


@pytest.mark.any_database
def test_a_day_without_faults_reaches_every_failpoint(make_world: Callable[..., World]):
    day = Day(make_world("sim", "far")).play()
    assert set(day.saboteur.reached) == on_the_day()
    assert day.overlapping & day.interrupted, "no machine was left to its provider while its job went on"
