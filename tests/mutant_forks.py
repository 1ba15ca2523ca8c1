# SPDX-License-Identifier: Apache-2.0
"""Mutants tried in forks of one process that has imported the tests: each costs the tests that it runs, little else.

A pytest plugin. Forks first run all tests and record which of them reach which statement. Then each mutant gets a fork
that changes the code in memory and runs the tests that reach its statement until one fails: what is likely to fail
first. All times are of CPU, so that on a busy machine no fewer tests run.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests import shared_database
from tests.changed_code import (
    codes_within,
    functions_by_place,
    lines_that_use,
    made_from,
    make_again,
    mark_statements,
)
from tests.mutation import Mutant, Variants, mutate

NOT_PLANTED = "not planted"
IDLE_S = 30.0
"""What has wanted less than a second of CPU for so long waits for what never comes."""
LONGEST_TEST_S = 300.0
Reached = dict[str, set[str]]
"""By test: the statements that it runs, as `MODULE:LINE`."""


@dataclass(frozen=True)
class Outcome:
    """killed_by  the test that noticed the mutant, or "timeout"; None: it survived
    tests      how many that reach it were to run
    reaching   how many there are
    seconds    of CPU that it took
    """

    killed_by: str | None
    tests: int
    reaching: int
    seconds: float


@dataclass
class MutantForks:
    """The plugin.

    modules     the files of those that have mutants, by name
    variants    as in `mutation.find_mutants`
    tests_s     how long the tests of one mutant may take that aren't its module's own
    until       when no other mutant is begun (monotonic seconds)
    on_outcome  is told as soon as a mutant has been tried
    """

    modules: Mapping[str, Path]
    mutants: Sequence[Mutant]
    variants: Variants
    jobs: int
    tests_s: float
    until: float
    on_outcome: Callable[[Mutant, Outcome], None]

    _seconds: dict[str, float] = field(default_factory=dict)
    _reached: Reached = field(default_factory=dict)
    _kills: Counter[tuple[str, str, str | None]] = field(default_factory=Counter)
    """By module, function and test."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # each fork would empty it
        with tempfile.TemporaryDirectory(prefix="shoestring-forks-") as folder:
            self._folder = Path(folder)
            self._prepare_database()
            self._functions = functions_by_place(self.modules)
            self._record(session)
            self._attempt_all(session)
        return True

    # Forks

    def _fork(self, work: Callable[[], object]) -> _Fork:
        result = self._folder / f"result-{time.monotonic_ns()}"
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                result.write_text(json.dumps(work()))
                code = 0
            finally:
                os._exit(code)
        return _Fork(pid, result)

    def _prepare_database(self) -> None:
        place = self._folder / "empty.db"
        ready = self._fork(lambda: str(shared_database.SharedDatabase(f"sqlite:///{place}").template)).wait()
        assert isinstance(ready, str)
        shared_database.ready_made = Path(ready)

    # What each test reaches

    def _record(self, session: pytest.Session) -> None:
        by_file: dict[Path, list[pytest.Item]] = defaultdict(list)
        for item in session.items:
            by_file[item.path].append(item)
        files = list(by_file.values())
        shares = [[item for items in files[number :: self.jobs] for item in items] for number in range(self.jobs)]
        forks = [self._fork(partial(self._run_recorded, session, share)) for share in shares if share]
        for fork in forks:
            recorded = fork.wait()
            if not isinstance(recorded, list):
                pytest.exit("the tests hang, or end their process", 1)
            for test, seconds, reached in recorded:
                self._seconds[test], self._reached[test] = seconds, set(reached)
        told = session.config.get_terminal_writer()
        told.line(f"{len(self._seconds)} tests, {sum(self._seconds.values()):.0f} CPU s")
        for failed in sorted({item.nodeid for item in session.items} - self._reached.keys()):
            told.line(f"left out, for it fails without a mutant: {failed}")

    def _run_recorded(self, session: pytest.Session, items: list[pytest.Item]) -> list[tuple[str, float, list[str]]]:
        """What each of the tests reaches; those that fail are left out."""
        reached, records = set[str](), []
        builtins.__reached__ = reached.add  # type: ignore[attr-defined]
        for module, file in self.modules.items():
            self._replace_functions(module, mark_statements(file.read_text(encoding="utf-8"), module))
        for item in items:
            reached.clear()
            begun = time.process_time()
            if not _run_until_failure(session, [item], {item.nodeid: LONGEST_TEST_S}):
                records.append((item.nodeid, time.process_time() - begun, sorted(reached)))
        return records

    # Mutants

    def _attempt_all(self, session: pytest.Session) -> None:
        items = {item.nodeid: item for item in session.items}
        waiting, running = list(reversed(self.mutants)), list[tuple[Mutant, _Fork, int, int]]()
        while waiting or running:
            if time.monotonic() > self.until:
                waiting.clear()
            while waiting and len(running) < self.jobs:
                mutant = waiting.pop()
                reaching = self._reaching(mutant)
                chosen = self._choose(mutant, reaching)
                if not chosen:
                    self.on_outcome(mutant, Outcome(None, 0, 0, 0.0))
                    continue
                tests = [items[test] for test in chosen]
                fork = self._fork(partial(self._run_mutant, session, mutant, tests))
                running.append((mutant, fork, len(chosen), len(reaching)))
            time.sleep(0.01)
            for entry in [one for one in running if one[1].is_over()]:
                mutant, fork, tests_run, of_all = entry
                running.remove(entry)
                killed_by = fork.wait() if fork.answered else "timeout"
                assert killed_by is None or isinstance(killed_by, str)
                if killed_by == NOT_PLANTED:
                    pytest.exit(f"{mutant.key} can't be tried: nothing runs that code", 1)
                self._kills[mutant.module, mutant.function, killed_by] += 1
                self.on_outcome(mutant, Outcome(killed_by, tests_run, of_all, fork.seconds))

    def _reaching(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutant's statement, or one that uses what is made from it at import."""
        source = self.modules[mutant.module].read_text(encoding="utf-8")
        made = made_from(ast.parse(source), mutant)
        found = "" if mutant.seen_if is None else f":{mutant.seen_if}"
        places = {f"{mutant.module}:{line}" for line in lines_that_use(ast.parse(source), made)}
        places.add(f"{mutant.module}:{mutant.statement}{found}")
        return [test for test, reached in self._reached.items() if reached & places]

    def _choose(self, mutant: Mutant, reaching: Sequence[str]) -> list[str]:
        """Those of its module's own tests, and of the others as many as there is time for.

        First those that have noticed another mutant of its function; then those that reach little else and take little
        time, its module's own before others. Of tests that reach the same, all but the quickest come later.
        """
        own_file = re.compile(rf"/test_{mutant.module.rpartition('.')[2]}(_\w+)?\.py::")
        own = {test for test in reaching if own_file.search(test)}
        costs, alike = dict[str, float](), Counter[frozenset[str]]()
        for test in sorted(reaching, key=self._seconds.__getitem__):
            reached = frozenset(self._reached[test])
            alike[reached] += 1
            kills = self._kills[mutant.module, mutant.function, test]
            nearness = (1 + kills) ** 2 * (10 if test in own else 1)
            costs[test] = self._seconds[test] * len(reached) * alike[reached] / nearness
        total, chosen = 0.0, []
        for test in sorted(reaching, key=costs.__getitem__):
            total += 0 if test in own else self._seconds[test]
            if total <= self.tests_s:
                chosen.append(test)
        return chosen

    def _run_mutant(self, session: pytest.Session, mutant: Mutant, items: list[pytest.Item]) -> str | None:
        """The test that fails."""
        source = self.modules[mutant.module].read_text(encoding="utf-8")
        tree = mutate(source, mutant.number, self.variants)
        changed = self._replace_functions(mutant.module, tree)
        made = make_again(importlib.import_module(mutant.module), tree, mutant)
        limits = {item.nodeid: 2 + 5 * self._seconds[item.nodeid] for item in items}
        return _run_until_failure(session, items, limits) if changed or made else NOT_PLANTED

    def _replace_functions(self, module: str, tree: ast.Module) -> bool:
        """Give all functions of a module the code that they have in a changed tree of the same lines.

        Whether that is another code for any.
        """
        changed = False
        file = importlib.import_module(module).__file__ or ""
        for code in codes_within(compile(tree, file, "exec", dont_inherit=True)):
            for function in self._functions.get((file, code.co_qualname, code.co_firstlineno), ()):
                changed = changed or function.__code__ != code
                function.__code__ = code
        return changed


@dataclass
class _Fork:
    pid: int
    result: Path
    answered: bool = False
    seconds: float = 0.0
    _over: bool = False
    _looked_at: float = field(default_factory=time.monotonic)
    _wanted_s: float = 0.0

    def is_over(self) -> bool:
        """Whether it has ended: by itself, at the limit of a test, or here because it waits forever."""
        if self._over:
            return True
        pid, status, used = os.wait4(self.pid, 0 if self._is_idle() else os.WNOHANG)
        if pid:
            self.seconds = used.ru_utime + used.ru_stime
            self._over, self.answered = True, status == 0
            self._kill()
        return self._over

    def _is_idle(self) -> bool:
        """Kill it, and what its tests have started, if it hardly wanted any CPU for long. Whether it did."""
        if time.monotonic() < self._looked_at + IDLE_S:
            return False
        before, self._looked_at, self._wanted_s = self._wanted_s, time.monotonic(), _wanted_cpu_s(self.pid)
        idle = abs(self._wanted_s - before) < 1
        if idle:
            self._kill()
        return idle

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> object:
        """What it returned; None if it gave no answer."""
        while not self.is_over():
            time.sleep(0.01)
        return json.loads(self.result.read_text()) if self.answered else None


def _wanted_cpu_s(pid: int) -> float:
    """How long a process's threads have run or have waited for a CPU, which others had; not a number: not known."""
    nanoseconds: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):
            nanoseconds += (int(one) for one in thread.read_text().split()[:2])
    return sum(nanoseconds) / 1e9 if nanoseconds else math.nan


def _run_until_failure(
    session: pytest.Session, items: Sequence[pytest.Item], limits: Mapping[str, float]
) -> str | None:
    """Run tests, without a word; the name of the first that fails. A test that takes more CPU seconds than its limit
    ends the process."""
    session.config.get_terminal_writer()._file = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    failed = session.testsfailed
    for item, following in zip(items, [*items[1:], None], strict=True):
        signal.setitimer(signal.ITIMER_PROF, limits[item.nodeid])
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed > failed:
            return item.nodeid
    return None
