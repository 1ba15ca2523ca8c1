# SPDX-License-Identifier: Apache-2.0
"""The soak test that plants faults in our code: its faults are code, and tests notice those that matter."""

from __future__ import annotations

import ast
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import mutation
from tests.soak import mutants

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
