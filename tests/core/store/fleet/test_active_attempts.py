# SPDX-License-Identifier: Apache-2.0
"""Active attempts are loaded with what decisions about their machines depend on."""

from __future__ import annotations

from shoestring_core.store.fleet import active_attempts

from tests.core.world import Fleet


def test_each_machine_of_a_generation_is_known_by_its_rank_and_by_the_last_one_that_formed(fleet: Fleet) -> None:
    job, _ = fleet.running(nodes="1..2")
    assert ranks(fleet) == [(0, True, True), (1, False, True)]
    fleet.restart(job)
    assert ranks(fleet) == [(0, True, True), (1, False, True)]


def ranks(fleet: Fleet) -> list[tuple[int, bool, bool]]:
    (active,) = fleet.read(active_attempts.load_active_attempts)
    return [(status.slot, status.is_rank0, status.was_member) for status in active.machine_statuses]
