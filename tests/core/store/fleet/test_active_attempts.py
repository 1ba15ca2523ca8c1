# SPDX-License-Identifier: Apache-2.0
"""Active attempts are loaded with what decisions about their machines depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet import active_attempts, agents, gangs, launches, planning
from shoestring_core.store.tables import AttemptRow, GenerationRow, MachineRow, MemberRow
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import attempts
from sqlalchemy import event

from tests.core.world import NEVER_LAUNCHED, OFFER, PLANNED, RUNNING, TERMINATED, Fleet
from tests.statements import counted


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
def test_an_attempt_is_at_work_as_long_as_a_machine_of_it_may_run_and_is_not_left_to_its_provider(fleet: Fleet) -> None:
    _, (first, second) = fleet.running(nodes=2)

    def at_work() -> bool:
        return fleet.read(active_attempts.load_active_attempts)[0].at_work

    assert at_work()
    fleet.end(first)
    assert at_work()
    fleet.alter(MachineRow, MachineRow.id == second, left_until=1)
    assert not at_work()
    fleet.end(second)
    assert not at_work()


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


# Decided from rows: what fills a slot, what may join, what was refused

OPENED, NOW = 100, 200
"""When the attempt was opened, and now (s)."""


def machine(slot: int, state: str, created: float = OPENED, **more: Any) -> MachineRow:
    return MachineRow(id=uuid7(), slot=slot, state=state, created_at=round(created * S), provider="local", **more)


def attempt_of(
    fleet: Fleet, nodes: int | str, machines: list[MachineRow], generation: GenerationRow | None = None
) -> active_attempts.ActiveAttempt:
    return active_attempts.ActiveAttempt(
        job=fleet.job(resources={"nodes": nodes}), attempt=AttemptRow(number=1, state="open", opened_at=OPENED * S),
        machines=machines, generation=generation, members=[], last_formed=frozenset(), restarts=0, trained_us=0,
    )  # fmt: skip


FORMED = GenerationRow(number=1, attempt=1, state="formed", opened_at=OPENED * S)


@pytest.mark.parametrize(
    ("nodes", "generation", "machines", "empty"),
    [
        (2, None, [machine(0, RUNNING), machine(1, PLANNED)], []),
        (2, None, [machine(0, NEVER_LAUNCHED, 199), machine(1, RUNNING)], [0]),
        (2, None, [machine(0, NEVER_LAUNCHED, 199.8), machine(1, RUNNING)], []),
        (2, None, [machine(0, NEVER_LAUNCHED, 199.3), machine(0, NEVER_LAUNCHED, 199.4), machine(1, RUNNING)], []),
        (2, None, [machine(0, NEVER_LAUNCHED, 199.4), machine(1, RUNNING, 199.9)], [0]),
        (2, None, [*(machine(0, NEVER_LAUNCHED, 50) for _ in range(5)), machine(0, NEVER_LAUNCHED, 199.4)], [0, 1]),
        (2, None, [machine(0, TERMINATED), machine(1, RUNNING)], []),
        (2, FORMED, [machine(0, TERMINATED), machine(1, RUNNING)], []),
        ("1..2", FORMED, [machine(0, TERMINATED), machine(1, RUNNING)], [0]),
        ("1..2", FORMED, [machine(0, TERMINATED), machine(0, PLANNED), machine(1, RUNNING)], []),
    ],
    ids=[
        "all filled", "given up", "given up just now", "twice: a longer backoff", "tries of another slot don't count",
        "nor do those before it was opened again", "lost before the first generation", "lost from a gang of fixed size",
        "lost from an elastic gang", "replaced",
    ],
)  # fmt: skip
def test_a_slot_is_empty_if_its_launches_were_given_up_or_an_elastic_gang_lost_its_machine(
    fleet: Fleet, nodes: int | str, generation: GenerationRow | None, machines: list[MachineRow], empty: list[int]
) -> None:
    active = attempt_of(fleet, nodes, machines, generation)
    assert sorted(active.empty_slots(NOW * S, fleet.timeouts)) == empty


def test_refusals_before_an_attempt_was_opened_again_are_past(fleet: Fleet) -> None:
    refused = {"refusal": "capacity", "refusal_text": "full", "refused_at": NOW * S}
    before = machine(0, NEVER_LAUNCHED, OPENED - 1, **refused)
    active = attempt_of(fleet, 2, [before, machine(0, RUNNING), machine(1, NEVER_LAUNCHED, **refused)])
    assert active.gang_status().refusals == ((RefusalKind.CAPACITY, "full"),)
    assert active.live_machines == [active.machines[1]]


def test_the_machines_of_a_gang_are_its_members_the_last_ones_and_those_that_may_join(fleet: Fleet) -> None:
    given_up, lost, alive = machine(0, NEVER_LAUNCHED), machine(0, TERMINATED), machine(1, RUNNING)
    active = attempt_of(fleet, "1..2", [given_up, alive, lost])
    assert shown(active) == [(0, TERMINATED, True, False), (1, RUNNING, True, False)], "there is no generation yet"
    formed = replace(active, generation=FORMED)
    assert shown(formed) == [(1, RUNNING, True, False)]
    of_last = replace(formed, last_formed=frozenset({lost.id, given_up.id}))
    assert shown(of_last) == [(0, TERMINATED, True, True), (1, RUNNING, True, False)]
    member = MemberRow(machine=lost.id, node_rank=0)
    assert shown(replace(formed, members=[member])) == [(0, TERMINATED, True, False), (1, RUNNING, False, False)]


def shown(active: active_attempts.ActiveAttempt) -> list[tuple[int, str, bool, bool]]:
    return [(one.slot, one.state, one.is_member, one.was_member) for one in active.machine_statuses]


def test_an_attempt_has_the_machines_generation_and_members_that_are_its_own(fleet: Fleet) -> None:
    with counted(fleet.store) as statements:
        assert fleet.read(active_attempts.load_active_attempts) == []
    assert statements.reads == 1
    job, (first,) = fleet.running()
    fleet.restart(job)
    (active,) = fleet.read(active_attempts.load_active_attempts)
    assert active.generation
    assert (active.generation.number, len(active.members)) == (2, 1)
    fleet.retry(job)
    (second,) = fleet.launch_again(job)
    (active,) = fleet.read(active_attempts.load_active_attempts)
    assert (active.attempt.number, [row.id for row in active.machines]) == (2, [second])
    assert (active.generation, active.members, active.last_formed) == (None, [], frozenset())
    fleet.alter(AttemptRow, AttemptRow.job == job, AttemptRow.number == 1, state="closing")
    fleet.form(job)
    older, active = sorted(fleet.read(active_attempts.load_active_attempts), key=lambda one: one.attempt.number)
    assert ([row.id for row in older.machines], older.generation, older.members) == ([first], None, [])
    assert active.generation
    assert active.generation.number == 3
    assert active.last_formed == {second}
