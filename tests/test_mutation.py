# SPDX-License-Identifier: Apache-2.0
"""The soak test that plants faults in our code: its faults are code, and tests notice those that matter."""

from __future__ import annotations

import ast
import os
import random
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import changed_code, mutation
from tests.soak import guards, mutants

PLANTED = """
def limit():
    return 17 + 1

LIMIT = limit()

def may_enter(age, banned):
    if banned:
        return False
    return age >= LIMIT

def largest(values):
    best = 0
    for value in values:
        if value > best:
            best = value
    return best

def never_called(x):
    return x + 1
"""
TESTS = """
import planted

def test_enter():
    assert planted.may_enter(18, False)
    assert not planted.may_enter(17, False)
    assert not planted.may_enter(40, True)

def test_largest():
    assert planted.largest([3, 9, 2]) == 9
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[mutation.Mutant]:
    """A module with its tests in a folder of their own, in place of ours; all of its mutants."""
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "test_planted.py").write_text(TESTS)
    monkeypatch.setattr(mutants, "module_files", lambda: {"planted": tmp_path / "planted.py"})
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", f"{mutants.ROOT}{os.pathsep}{tmp_path}")
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "OPTIONS", ())
    return mutation.find_mutants("planted", PLANTED)


def test_faults_that_tests_can_notice_are_noticed_and_others_survive(
    planted: list[mutation.Mutant], tmp_path: Path
) -> None:
    by_key = {mutant.key: mutant for mutant in planted}
    reaches = mutants.record_reaches(tmp_path, "test_planted.py")
    assert {reach.test: reach.reached for reach in reaches} == {
        "test_planted.py::test_enter": ["planted may_enter"],
        "test_planted.py::test_largest": ["planted largest"],
    }

    def killed_by(key: str) -> str | None:
        return mutants.attempt(by_key[key], reaches).killed_by

    assert killed_by("planted may_enter: if banned: return False → pass") == "test_planted.py::test_enter"
    assert killed_by("planted limit: 17 + 1 → 17 - 1") == "test_planted.py::test_enter", "it runs at import"
    assert killed_by("planted largest: value > best → value >= best") is None, "nothing can notice it"
    assert killed_by("planted never_called: x + 1 → x - 1") is None, "no test runs it"


def test_a_fault_that_hangs_is_stopped() -> None:
    forever = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    assert mutants.run(forever, {}, timeout_s=0.1) == (None, "")


def test_every_mutant_is_code_with_one_difference_and_a_key_of_its_own(seed: int) -> None:
    chosen = random.Random(seed)
    for module, file in mutants.module_files().items():
        source = file.read_text(encoding="utf-8")
        found = mutation.find_mutants(module, source)
        assert max(Counter(mutant.key for mutant in found).values(), default=1) == 1
        for mutant in chosen.sample(found, min(5, len(found))):
            tree = mutation.mutate(source, mutant.number)
            compile(tree, module, "exec")
            assert ast.dump(tree) != ast.dump(ast.parse(source)), mutant.key


def test_a_seed_always_draws_the_same_mutants() -> None:
    assert mutants.draw(7, 20) == mutants.draw(7, 20)
    assert mutants.draw(7, 20) != mutants.draw(8, 20)
    assert {mutant.module for mutant in mutants.draw(7, 10**6)} == set(mutants.module_files())


# Guards: one term of a condition at a time, tried in forks

GUARDED = """
STATES = [name for name in ALL if name in ALIVE]
OPEN = update(Row).where(Row.id == bindparam("id"), Row.state == "open")

def close(row, now=None):
    if row is None or row.ended:
        return
    label = row.name or "none"
    if row.left:
        row = other(row)
    elif now:
        write(OPEN.where((Row.until <= now) | Row.lost.is_(None)), names | {label})
    return [one for one in row.parts if one.alive and one.name]
"""


SIGN = """def sign(x):
    if x > 0:
        return 1
    elif x:
        return -1
    return 0
"""
EARLY = """def lapsed(now):
    return now > 3 and now < 9

def unused():
    return 1

EARLY = lapsed(1)

def ask():
    return EARLY
"""


def test_a_guard_loses_each_of_its_terms_and_a_default_or_a_union_none() -> None:
    found = mutation.find_mutants("guarded", GUARDED, mutation.missing_terms)
    assert [(mutant.statement, mutant.seen_if, mutant.after[:27]) for mutant in found] == [
        (2, None, "for name in ALL"),
        (3, None, "update(Row).where(Row.state"),
        (3, None, "update(Row).where(Row.id =="),
        (6, True, "pass"),
        (6, True, "row.ended"),
        (6, True, "row is None"),
        (9, False, "if True: row = other(row) e"),
        (11, False, "if True: write(OPEN.where(("),
        (12, None, "OPEN.where()"),
        (12, None, "Row.until <= now"),
        (12, None, "Row.lost.is_(None)"),
        (13, None, "one.name"),
        (13, None, "one.alive"),
    ]
    assert [mutant.function for mutant in found] == 3 * [""] + 10 * ["close"]


def test_marks_tell_which_statements_of_functions_are_run() -> None:
    reached: list[str] = []
    space: dict[str, Any] = {"__reached__": reached.append}
    exec(compile(changed_code.mark_statements(SIGN, "m"), "m", "exec"), space)
    assert [space["sign"](x) for x in (5, -5, 0)] == [1, -1, 0]
    other = ["m:2", "m:2:False", "m:4"]
    assert reached == ["m:2", "m:2:True", "m:3", *other, "m:4:True", "m:5", *other, "m:4:False", "m:6"]


def test_what_a_module_makes_at_import_from_a_guard_is_made_again_with_its_mutant() -> None:
    module = ModuleType("early")
    exec(EARLY, module.__dict__)
    mutant = mutation.find_mutants("early", EARLY, mutation.missing_terms)[0]
    tree = mutation.mutate(EARLY, mutant.number, mutation.missing_terms)
    exec(compile(ast.Module(tree.body[:1], []), "early", "exec"), module.__dict__)  # as its function is replaced
    assert module.EARLY is False
    assert changed_code.make_again(module, tree, mutant)
    assert module.EARLY is True
    assert list(changed_code.lines_that_use(ast.parse(EARLY), ["EARLY"])) == [10]


def test_every_guard_can_be_taken_out(seed: int) -> None:
    chosen = random.Random(seed)
    for module, file in guards.module_files().items():
        source = file.read_text(encoding="utf-8")
        found = mutation.find_mutants(module, source, mutation.missing_terms)
        assert found, f"{module} has none"
        assert max(Counter(mutant.key for mutant in found).values()) == 1
        for mutant in chosen.sample(found, min(3, len(found))):
            compile(mutation.mutate(source, mutant.number, mutation.missing_terms), module, "exec")
        compile(changed_code.mark_statements(source, module), module, "exec")
