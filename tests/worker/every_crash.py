# SPDX-License-Identifier: Apache-2.0
"""Each fault at each failpoint of the worker, at the first time and at a later one that the seed draws: no slot is paid
twice, nothing leaks, every job ends as ever and costs what the journal says. `tests.soak.crashes` runs it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.worker.conftest import World
from tests.worker.crashes import Day
from tests.worker.saboteur import KINDS, Fault, FaultKind
from tests.worker.test_crashes import on_the_day

pytestmark = pytest.mark.any_database


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(on_the_day()))
def test_a_fault_changes_neither_ends_nor_bills(make_world: Callable[..., World], name: str, kind: FaultKind):
    Day(make_world("sim", "far"), Fault(name, kind)).play()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(on_the_day()))
def test_a_later_fault_changes_neither_ends_nor_bills(
    make_world: Callable[..., World], name: str, kind: FaultKind, seed: int
):
    fault = Fault(name, kind, random.Random(f"{seed} {name} {kind}").randint(2, 6))
    Day(make_world("sim", "far"), fault).play(must_strike=False)
