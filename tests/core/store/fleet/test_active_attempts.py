# SPDX-License-Identifier: Apache-2.0
"""Active attempts are loaded with what decisions about their machines depend on."""

from __future__ import annotations

import pytest
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.store.fleet import active_attempts, agents, gangs, launches, planning
from shoestring_core.store.tables import GenerationRow, MachineRow, MemberRow
from shoestring_core.wording import attempts
from sqlalchemy import event

from tests.core.world import OFFER, PLANNED, RUNNING, TERMINATED, Fleet


def test_each_machine_of_a_generation_is_known_by_its_rank_and_by_the_last_one_that_formed(fleet: Fleet) -> None:
    job, _ = fleet.running(nodes="1..2")
    assert ranks(fleet) == [(0, True, True), (1, False, True)]
    fleet.restart(job)
    assert ranks(fleet) == [(0, True, True), (1, False, True)]
    fleet.write(gangs.open_generation, job, 1, attempts.FewerMachines(1, 2), (0,))
    assert ranks(fleet) == [(0, True, True), (1, False, True)], "it has not formed"


def ranks(fleet: Fleet) -> list[tuple[int, bool, bool]]:
    (active,) = fleet.read(active_attempts.load_active_attempts)
    return [(status.slot, status.is_rank0, status.was_member) for status in active.machine_statuses]


def test_a_generation_knows_its_members_that_are_lost_and_machines_that_may_join(fleet: Fleet) -> None:
    job = fleet.start(nodes="1..2")
    first, second = fleet.launch(job)
    for machine in (first, second):
        fleet.register(machine)
    fleet.end(second, "crashed")
    assert membership(fleet) == [(0, RUNNING, True), (1, TERMINATED, True)], "before it formed as well"
    fleet.write(gangs.open_generation, job, 1, attempts.FewerMachines(1, 2), (0,))
    assert membership(fleet) == [(0, RUNNING, True)]
    fleet.write(
        planning.refill_slot, job, 1, 1, OFFER, agent_url="http://api", deployment="test", timeouts=fleet.timeouts
    )
    assert membership(fleet) == [(0, RUNNING, True), (1, PLANNED, False)]


def test_refusals_of_an_attempt_are_known_with_their_text_if_they_have_one(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    refused, interrupted = fleet.ids(job)
    fleet.write(launches.record_refusal, fleet.call(refused), RefusalKind.CAPACITY, "full")
    fleet.call(interrupted)
    fleet.observe(interrupted)
    fleet.write(agents.record_notice, interrupted, fleet.clock.now)
    (active,) = fleet.read(active_attempts.load_active_attempts)
    assert active.gang_status().refusals == ((RefusalKind.CAPACITY, "full"), (RefusalKind.INTERRUPTED, ""))


@pytest.mark.any_database
def test_an_attempt_is_alive_as_long_as_a_machine_of_it_may_run(fleet: Fleet) -> None:
    _, machines = fleet.running(nodes=2)
    alive = []
    for machine in machines:
        alive.append(fleet.read(active_attempts.load_active_attempts)[0].alive)
        fleet.end(machine)
    assert alive == [True, True]
    assert fleet.read(active_attempts.load_active_attempts)[0].alive is False


@pytest.mark.any_database
def test_nothing_is_read_of_jobs_without_an_active_attempt(fleet: Fleet) -> None:
    """A tick stays as cheap as it is, however many jobs there have been."""
    ended, (machine,) = fleet.running()
    fleet.train(ended, 5)
    fleet.commit(machine, 1, 5, "final")
    fleet.finish_attempt(ended)
    job, _ = fleet.running()
    read = []

    def note(row: object, _context: object) -> None:
        read.append(row.job)

    for table in (MachineRow, GenerationRow, MemberRow):
        event.listen(table, "load", note)
    try:
        fleet.read(active_attempts.load_active_attempts)
    finally:
        for table in (MachineRow, GenerationRow, MemberRow):
            event.remove(table, "load", note)
    assert read == [job] * 3


def membership(fleet: Fleet) -> list[tuple[int, str, bool]]:
    (active,) = fleet.read(active_attempts.load_active_attempts)
    return [(status.slot, status.state, status.is_member) for status in active.machine_statuses]
