# SPDX-License-Identifier: Apache-2.0
"""What agents report changes the rows of their own machine, and the gang only once all of it agrees."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import wire
from shoestring_core.decide.offers import Hardware
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import AgentRefused
from shoestring_core.events import GenerationChange
from shoestring_core.store import jobs
from shoestring_core.store.fleet import agents, gangs, observations
from shoestring_core.store.tables import GenerationRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import attempts, machines
from sqlalchemy import update

from tests.core.world import (
    LAUNCHING,
    NEVER_LAUNCHED,
    PLANNED,
    RUNNING,
    TERMINATED,
    TERMINATING,
    Fleet,
    about,
    meanwhile,
)


def order(fleet: Fleet, machine: UUID, base: str = "http://objects") -> tuple[wire.Order, str]:
    return fleet.read(agents.current_order, machine, lambda key: f"{base}/{key}", fleet.timeouts)


# Leases


def test_a_report_renews_the_lease_of_its_own_machine_alone(fleet: Fleet) -> None:
    _, (machine, other) = fleet.running(nodes=2)
    before = fleet.machine_row(other)
    fleet.clock.pass_(20)
    returned = fleet.write(agents.renew_lease, machine, fleet.timeouts)
    renewed, silent = fleet.machine_row(machine), fleet.machine_row(other)
    assert renewed.last_report_at == fleet.clock.now
    assert renewed.alive_until == returned.alive_until == fleet.clock.now + fleet.timeouts.machine_lease
    assert (silent.last_report_at, silent.alive_until) == (before.last_report_at, before.alive_until)


def test_a_machine_that_is_to_end_gets_no_new_lease(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    before = fleet.machine_row(machine)
    for state in (PLANNED, TERMINATING, TERMINATED, NEVER_LAUNCHED):
        fleet.alter(MachineRow, MachineRow.id == machine, state=state, ended_at=1)
        fleet.clock.pass_(5)
        fleet.write(agents.renew_lease, machine, fleet.timeouts)
        row = fleet.machine_row(machine)
        assert (row.state, row.alive_until, row.last_report_at) == (state, before.alive_until, before.last_report_at)


def test_a_machine_whose_launch_was_not_answered_yet_can_report(fleet: Fleet) -> None:
    (machine,) = fleet.ids(fleet.start())
    fleet.call(machine)
    fleet.register(machine)
    fleet.clock.pass_(7)
    fleet.write(agents.renew_lease, machine, fleet.timeouts)
    row = fleet.machine_row(machine)
    assert (row.state, row.alive_until) == (LAUNCHING, fleet.clock.now + fleet.timeouts.machine_lease)


def test_the_first_preemption_notice_counts_and_requests_a_tick(fleet: Fleet) -> None:
    _, (machine, other) = fleet.running(nodes=2)
    assert fleet.requests_tick(lambda: fleet.write(agents.record_notice, machine, 111))
    fleet.write(agents.record_notice, machine, 222)
    assert (fleet.machine_row(machine).notice_at, fleet.machine_row(other).notice_at) == (111, None)
    assert [state for state, _ in fleet.told("machine", machine)].count("notice") == 1


# Left to the provider


FREE_HOUR = {"free_if_interrupted_within": 3600 * S}
DRAINED = wire.RankExit(rank=0, outcome="drained", at=0.0)
NOTICE = 120 * S


def noticed(fleet: Fleet, nodes: int = 1, **fields: object) -> tuple[UUID, UUID]:
    """A job that trains, and a machine of it that its provider would interrupt for nothing."""
    job, (machine, *_) = fleet.running(nodes, **fields)
    fleet.alter(MachineRow, MachineRow.job == job, billing=FREE_HOUR, market="spot")
    fleet.write(agents.record_notice, machine, fleet.clock.now + NOTICE)
    return job, machine


def drained(fleet: Fleet, machine: UUID, generation: int = 1, *more: wire.RankExit) -> int | None:
    """Until when it is left to its provider once its ranks have exited."""
    fleet.say(machine, "exited", generation, exits=[DRAINED, *more])
    return fleet.machine_row(machine).left_until


def test_a_machine_whose_work_is_saved_is_left_to_its_provider_until_a_minute_after_the_notice(fleet: Fleet) -> None:
    job, machine = noticed(fleet, 2)
    until = fleet.clock.now + NOTICE + 60 * S
    assert fleet.machine_row(machine).left_until is None
    assert drained(fleet, machine) == until
    assert [row.left_until for row in fleet.machine_rows(job)] == [until, None]
    assert [state for state, _ in fleet.told("machine", machine)].count("left") == 1
    fleet.alter(MachineRow, MachineRow.id == machine, notice_at=None)
    fleet.write(agents.record_notice, machine, fleet.clock.now + 2 * NOTICE)
    assert fleet.machine_row(machine).left_until == until, "the first counts"
    assert [state for state, _ in fleet.told("machine", machine)].count("left") == 1


@pytest.mark.parametrize("outcome", ["error", "signal"])
def test_a_rank_that_failed_has_saved_nothing(fleet: Fleet, outcome: str) -> None:
    _, machine = noticed(fleet)
    assert drained(fleet, machine, 1, wire.RankExit(rank=1, outcome=outcome, at=0.0)) is None


@pytest.mark.parametrize(
    "unlike",
    [{"market": "on_demand"}, {"billing": {}}, {"launched_at": 0}, {"state": TERMINATING}, {"launched_at": None}],
)
def test_a_machine_that_ends_or_is_billed_anyway_is_not_left(fleet: Fleet, unlike: dict[str, Any]) -> None:
    _, machine = noticed(fleet)
    fleet.alter(MachineRow, MachineRow.id == machine, **unlike)
    assert drained(fleet, machine) is None


def test_a_machine_is_not_left_after_its_time(fleet: Fleet) -> None:
    _, machine = noticed(fleet)
    fleet.clock.pass_((NOTICE + 60 * S) / S)
    assert drained(fleet, machine) is None


def test_a_machine_whose_ranks_were_to_start_again_is_not_left(fleet: Fleet) -> None:
    job, machine = noticed(fleet)
    fleet.write(gangs.open_generation, job, 1, attempts.RankKilled(0))
    assert (drained(fleet, machine, 1), drained(fleet, machine, 2)) == (None, None)


def test_a_machine_of_a_closed_attempt_is_not_left(fleet: Fleet) -> None:
    job, machine = noticed(fleet)
    fleet.retry(job)
    fleet.launch_again(job)
    fleet.alter(MachineRow, MachineRow.id == machine, state=RUNNING, ended_at=None)
    assert drained(fleet, machine) is None


def test_a_machine_without_a_notice_is_not_left(fleet: Fleet) -> None:
    job, (machine,) = fleet.running()
    fleet.alter(MachineRow, MachineRow.job == job, billing=FREE_HOUR, market="spot")
    assert drained(fleet, machine) is None


def test_a_machine_of_an_elastic_gang_is_not_left(fleet: Fleet) -> None:
    _, machine = noticed(fleet, "1..2")
    assert drained(fleet, machine) is None


# Boot


def test_a_machine_that_boots_tells_how_far_it_is_until_its_agent_registers(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    machine, planned = fleet.ids(job)
    fleet.call(machine)

    def boot(one: UUID) -> None:
        report = wire.BootReport(
            machine=one, boot_token="", phase="driver", message="580", seconds=1.5, driver="580.95.05"
        )
        fleet.write(agents.record_boot, report)

    boot(machine)
    (told,) = fleet.events("agent")
    assert (told.job, told.attempt, about(told)) == (job, 1, str(machine))
    assert {"event": "boot", "phase": "driver", "message": "580", "seconds": 1.5}.items() <= told.data.items()
    assert told.data["at"] == fleet.clock.now / S
    assert fleet.machine_row(machine).driver == "580.95.05"
    fleet.register(machine)
    for refused in (machine, planned, uuid7()):
        with pytest.raises(AgentRefused):
            boot(refused)
    assert len(fleet.events("agent")) == 1


def test_what_a_boot_report_does_not_say_stays_as_it_was(fleet: Fleet) -> None:
    machine, other = fleet.ids(fleet.start(nodes=2))

    def boot(**told: Any) -> None:
        fleet.write(agents.record_boot, wire.BootReport(machine=machine, boot_token="", **told))

    for one in (machine, other):
        fleet.call(one)
    boot(phase="driver", driver="580.95.05")
    assert not fleet.requests_tick(lambda: boot(phase="install"))
    row = fleet.machine_row(machine)
    assert (row.driver, row.boot_failure) == ("580.95.05", None)
    assert fleet.requests_tick(lambda: boot(phase="agent", message="no space", failure="boot"))
    row = fleet.machine_row(machine)
    assert (row.driver, row.hello_at) == ("580.95.05", fleet.clock.now)
    assert row.boot_failure == {"failure": "boot", "phase": "agent", "message": "no space"}
    untold = fleet.machine_row(other)
    assert (untold.hello_at, untold.driver, untold.boot_failure) == (None, None, None)


# Registration


def test_registering_binds_the_session_of_one_machine(fleet: Fleet) -> None:
    machine, other = fleet.launch(fleet.start(nodes=2))
    fleet.clock.pass_(2)
    returned = fleet.register(machine)
    row = fleet.machine_row(machine)
    assert returned is not None
    assert returned.session_hash == row.session_hash == wire.hash_session(f"session {machine}")
    assert (row.registered_at, row.last_report_at) == (fleet.clock.now, fleet.clock.now)
    assert row.alive_until == fleet.clock.now + fleet.timeouts.machine_lease
    assert (row.address, row.hardware) == ("127.0.0.1", wire.Hardware(cpus=2).model_dump())
    assert fleet.told("machine", machine)[-1] == ("registered", None)
    assert (fleet.machine_row(other).session_hash, fleet.machine_row(other).registered_at) == (None, None)
    fleet.clock.pass_(3)
    assert fleet.register(machine) is not None
    assert fleet.machine_row(machine).registered_at == fleet.clock.now - 3 * S, "a lost reply changes nothing"
    assert fleet.told("machine", machine).count(("registered", None)) == 1


@pytest.mark.parametrize("why", ["a wrong boot token", "a second session secret"])
def test_a_refused_registration_alarms_the_team_and_binds_nothing(fleet: Fleet, why: str) -> None:
    job = fleet.start()
    (machine,) = fleet.launch(job)
    if why == "a second session secret":
        fleet.register(machine)
    before = fleet.machine_row(machine).session_hash
    assert fleet.register(machine, "thief", token_ok=why != "a wrong boot token") is None
    assert fleet.machine_row(machine).session_hash == before
    (alarm,) = fleet.events("alarm")
    assert (alarm.job, alarm.attempt, about(alarm)) == (job, 1, str(machine))
    refused = "boot_token" if why == "a wrong boot token" else "second_session"
    assert alarm.reason == machines.SecretRefused(refused).as_json()


def test_a_machine_that_is_to_end_does_not_register(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    for state in (PLANNED, TERMINATING, TERMINATED, NEVER_LAUNCHED):
        fleet.alter(MachineRow, MachineRow.id == machine, state=state, ended_at=1)
        assert fleet.register(machine) is None
        assert fleet.machine_row(machine).session_hash is None


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("theirs", [{"state": TERMINATING}, {"session_hash": "another's"}])
def test_a_machine_that_ends_or_is_bound_meanwhile_gets_no_session(fleet: Fleet, theirs: dict[str, str]) -> None:
    (machine,) = fleet.launch(fleet.start())
    with meanwhile(fleet.store, "machines", update(MachineRow).where(MachineRow.id == machine).values(**theirs)):
        fleet.register(machine)
    row = fleet.machine_row(machine)
    assert (row.session_hash, row.registered_at) == (theirs.get("session_hash"), None)


def test_a_machine_that_does_not_exist_is_refused(fleet: Fleet) -> None:
    with pytest.raises(AgentRefused):
        fleet.write(agents.register, uuid7(), True, "hash", "", wire.Hardware(), fleet.timeouts)
    with pytest.raises(AgentRefused):
        fleet.read(agents.authenticate, uuid7(), "session")
    with pytest.raises(AgentRefused):
        fleet.write(agents.renew_lease, uuid7(), fleet.timeouts)


def test_a_machine_without_a_session_authenticates_nobody(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    with pytest.raises(AgentRefused):
        fleet.read(agents.authenticate, machine, "")
    fleet.register(machine)
    assert fleet.read(agents.authenticate, machine, f"session {machine}").id == machine
    with pytest.raises(AgentRefused):
        fleet.read(agents.authenticate, machine, "session")


def test_the_first_generation_opens_when_the_whole_gang_has_registered(fleet: Fleet) -> None:
    job, bystander = fleet.start(nodes=3), fleet.start()
    machines = fleet.launch(job)
    fleet.register(fleet.launch(bystander)[0])
    for machine in machines[1:]:
        fleet.register(machine)
        assert fleet.job_row(job).generation == 0
        assert order(fleet, machine)[0].kind == "wait"
    fleet.clock.pass_(1)
    fleet.register(machines[0])
    opened = fleet.generation_row(job)
    assert (opened.state, opened.attempt, opened.opened_at) == ("forming", 1, fleet.clock.now)
    assert (opened.world_size, opened.start_step, opened.start_checkpoint) == (3, 0, None)
    assert [(one.machine, one.nproc) for one in fleet.member_rows(job)] == [(machine, 1) for machine in machines]
    fleet.register(machines[0])
    assert fleet.job_row(job).generation == 1
    assert fleet.job_row(bystander).generation == 1


@pytest.mark.parametrize("state", [TERMINATING, TERMINATED])
def test_no_generation_opens_with_a_machine_that_is_lost(fleet: Fleet, state: str) -> None:
    job = fleet.start(nodes=2)
    lost, machine = fleet.launch(job)
    fleet.register(lost)
    fleet.alter(MachineRow, MachineRow.id == lost, state=state, ended_at=1)
    assert fleet.register(machine) is not None
    assert fleet.job_row(job).generation == 0


def test_no_generation_opens_before_every_machine_of_the_gang_is_there(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    machine, other = fleet.launch(job)
    fleet.alter(MachineRow, MachineRow.id == other, state=NEVER_LAUNCHED)
    fleet.register(machine)
    assert fleet.job_row(job).generation == 0


def test_no_generation_opens_for_a_job_that_is_being_stopped(fleet: Fleet) -> None:
    job = fleet.start()
    (machine,) = fleet.launch(job)
    fleet.write(jobs.stop, job, "ann")
    assert fleet.register(machine) is not None
    assert fleet.job_row(job).generation == 0


def test_each_attempt_has_its_own_first_generation(fleet: Fleet) -> None:
    job, (machine,) = fleet.running()
    fleet.train(job, 5)
    fleet.commit(machine, 1, 5)
    fleet.retry(job)
    fleet.open_attempt(job)
    (second,) = fleet.launch(job)
    fleet.register(second)
    opened = fleet.generation_row(job, 2)
    assert (opened.attempt, opened.state, opened.start_step) == (2, "forming", 5)
    assert opened.start_checkpoint == fleet.job_row(job).checkpoint
    assert [one.machine for one in fleet.member_rows(job, 2)] == [second]


# Forming


def test_a_generation_forms_once_all_its_members_are_ready(fleet: Fleet) -> None:
    job, bystander = fleet.start(nodes=2), fleet.start()
    first, second = fleet.launch(job)
    for machine in (*fleet.launch(bystander), first, second):
        fleet.register(machine)
    fleet.clock.pass_(1)
    assert not fleet.say(second, "ready", 1)
    assert not fleet.say(second, "ready", 1, port=7), "said twice"
    assert fleet.generation_row(job).state == "forming"
    assert order(fleet, second)[0].kind == "prepare"
    fleet.clock.pass_(1)
    assert fleet.requests_tick(lambda: fleet.say(first, "ready", 1, port=29500))
    formed, row = fleet.generation_row(job), fleet.job_row(job)
    assert (formed.state, formed.master, formed.formed_at) == ("formed", "127.0.0.1:29500", fleet.clock.now)
    assert (row.state, row.started_at) == ("running", fleet.clock.now)
    ready = [(one.ready_at, one.port) for one in fleet.member_rows(job)]
    assert ready == [(fleet.clock.now, 29500), (fleet.clock.now - S, None)]
    assert fleet.generation_row(bystander).state == "forming"
    assert [one.data["state"] for one in fleet.events("generation") if one.job == job] == ["forming", "formed"]
    assert not fleet.say(second, "ready", 1, port=8)
    assert fleet.generation_row(job).master == "127.0.0.1:29500"


def test_rank_0_may_be_the_first_that_is_ready(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    for machine in fleet.launch(job):
        fleet.register(machine)
    first, second = fleet.ids(job)
    assert not fleet.say(first, "ready", 1, port=29500)
    assert fleet.say(second, "ready", 1, port=29501)
    assert fleet.generation_row(job).master == "127.0.0.1:29500"


def test_a_generation_of_a_job_that_is_being_stopped_does_not_form(fleet: Fleet) -> None:
    job = fleet.start()
    (machine,) = fleet.launch(job)
    fleet.register(machine)
    fleet.write(jobs.stop, job, "ann")
    fleet.say(machine, "ready", 1, port=29500)
    assert fleet.generation_row(job).state == "forming"
    assert fleet.job_row(job).state == "stopping"


def test_ready_for_an_older_generation_is_no_news(fleet: Fleet) -> None:
    job = fleet.start()
    (machine,) = fleet.launch(job)
    fleet.register(machine)
    fleet.write(gangs.open_generation, job, 1, attempts.RankKilled(0))
    assert not fleet.say(machine, "ready", 1, port=1)
    assert fleet.member_rows(job, 1)[0].ready_at is None
    assert fleet.job_row(job).state == "launching"
    assert not fleet.say(machine, "ready", 3, port=1), "no member of it"
    assert fleet.say(machine, "ready", 2, port=1)
    assert fleet.generation_row(job, 2).state == "formed"


def test_what_a_member_says_is_recorded_of_its_own_job_alone(fleet: Fleet) -> None:
    (bystander, _), (job, (machine,)) = fleet.running(), fleet.running()
    ready_at = fleet.member_rows(bystander)[0].ready_at
    fleet.clock.pass_(1)
    fleet.restart(job)
    fleet.exits(machine, 1, "signal")
    (untouched,) = fleet.member_rows(bystander)
    assert (untouched.ready_at, untouched.exited_at, untouched.exits) == (ready_at, None, None)


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("said", ["ready", "exited"])
def test_what_a_member_said_meanwhile_stands(fleet: Fleet, said: str) -> None:
    job = fleet.start(nodes=2)
    fleet.launch(job)
    for machine in fleet.ids(job):
        fleet.register(machine)
    first = {"ready": {"ready_at": 1, "port": 1}, "exited": {"exited_at": 1, "exits": []}}[said]
    with meanwhile(fleet.store, "members", update(MemberRow).where(MemberRow.machine == machine).values(**first)):
        fleet.say(machine, said, 1, **({"port": 2} if said == "ready" else {}))
    member = fleet.member_rows(job)[-1]
    assert {name: getattr(member, name) for name in first} == first


def test_ready_for_a_generation_that_is_over_is_no_news(fleet: Fleet) -> None:
    job = fleet.start()
    (machine,) = fleet.launch(job)
    fleet.register(machine)
    fleet.alter(GenerationRow, GenerationRow.job == job, state="ended")
    assert not fleet.say(machine, "ready", 1, port=1)
    assert fleet.member_rows(job)[0].ready_at is None
    assert fleet.job_row(job).state == "launching"


def test_the_exit_of_a_member_is_recorded_once(fleet: Fleet) -> None:
    job, (machine, other) = fleet.running(nodes=2)
    ends = [
        wire.RankExit(rank=0, outcome="signal", at=2.0, code=-9),
        wire.RankExit(rank=1, outcome="error", at=1.0, kind="data", message="no file"),
        wire.RankExit(rank=2, outcome="error", at=1.0, kind="data", message="no file"),
    ]
    fleet.clock.pass_(1)
    assert fleet.requests_tick(lambda: fleet.say(machine, "exited", 1, exits=ends))
    fleet.clock.pass_(1)
    fleet.exits(machine, 1, "finished")
    first, second = fleet.member_rows(job)
    assert first.exited_at == fleet.clock.now - S
    assert [wire.from_stored(wire.RankExit, one) for one in first.exits] == ends
    assert (second.machine, second.exited_at, second.exits) == (other, None, None)
    told = [one for one in fleet.events("generation") if one.data["state"] == "exited"]
    assert [(one.reason["facts"], one.generation, about(one)) for one in told] == [
        ({"outcomes": ["error", "signal"]}, 1, str(machine))
    ]
    assert wire.from_stored(GenerationChange, told[0].data).exits == tuple(ends)


def test_the_exit_from_an_older_generation_is_kept_with_it(fleet: Fleet) -> None:
    job, (machine,) = fleet.running()
    fleet.restart(job)
    fleet.exits(machine, 1, "signal")
    assert fleet.member_rows(job, 1)[0].exited_at == fleet.clock.now
    assert fleet.member_rows(job, 2)[0].exited_at is None
    assert order(fleet, machine)[0].kind == "run"


def test_a_member_that_says_it_runs_changes_nothing(fleet: Fleet) -> None:
    early = fleet.start()
    (booted,) = fleet.launch(early)
    fleet.register(booted)
    assert not fleet.say(booted, "running", 1)
    assert fleet.member_rows(early)[0].ready_at is None
    job, (machine,) = fleet.running()
    assert not fleet.say(machine, "running", 1)
    assert fleet.member_rows(job)[0].exited_at is None


# Orders


def test_an_order_has_a_tag_that_changes_with_it_alone(fleet: Fleet) -> None:
    job, (machine, other) = fleet.running(nodes=2)
    first, tag = order(fleet, machine)
    again, same = order(fleet, machine, "http://signed-again")
    assert (first.kind, again.kind, tag) == ("run", "run", same)
    assert order(fleet, other)[1] != tag
    fleet.write(jobs.stop, job, "ann")
    assert order(fleet, machine)[1] != tag
    drain = order(fleet, machine)[0]
    assert (drain.kind, drain.reason, drain.run) == ("drain", "user", None)


def test_ranks_run_as_their_generation_was_formed(fleet: Fleet) -> None:
    job, (first, second) = fleet.running(nodes=2)
    run = order(fleet, second)[0].run
    assert run is not None
    assert (run.node_rank, run.nnodes, run.nproc_per_node) == (1, 2, 1)
    assert (run.master_addr, run.master_port, run.resume, run.init) == ("127.0.0.1", 29500, None, None)
    fleet.train(job, 7)
    fleet.commit(first, 1, 7)
    stored = fleet.checkpoint_rows(job)[0]
    fleet.restart(job)
    now = order(fleet, first)[0]
    run = now.run
    assert run is not None
    assert now.generation == 2
    assert run.resume == wire.CheckpointDownload(
        step=7, data_url=f"http://objects/{stored.object_key}/data",
        manifest_url=f"http://objects/{stored.object_key}/manifest.json", manifest_sha256=stored.manifest_sha,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("hardware", "device"),
    [
        (None, "auto"),
        (Hardware(4, 16384), "auto"),
        (Hardware(4, 16384, "T4", 1, 16384), "cuda"),
        (Hardware(4, 16384, "T4", 1, 16384, simulated_gpus=True), "cpu"),
    ],
)
def test_ranks_must_find_the_gpus_that_their_machine_is_paid_for(
    fleet: Fleet, hardware: Hardware | None, device: str
) -> None:
    _, (machine,) = fleet.running()
    fleet.alter(MachineRow, MachineRow.id == machine, offered_hardware=hardware and asdict(hardware))
    run = order(fleet, machine)[0].run
    assert run is not None
    assert run.task.device == device


def test_weights_are_initialized_from_another_job_only_without_an_own_checkpoint(fleet: Fleet) -> None:
    source, (machine,) = fleet.running()
    fleet.train(source, 9)
    fleet.commit(machine, 1, 9)
    theirs = fleet.checkpoint_rows(source)[0]
    job, (own,) = fleet.running()
    fleet.alter(JobRow, JobRow.id == job, init_checkpoint=theirs.id)
    run = order(fleet, own)[0].run
    assert run is not None
    assert (run.resume, run.init.step) == (None, 9)
    fleet.train(job, 3)
    fleet.commit(own, 1, 3)
    fleet.restart(job)
    run = order(fleet, own)[0].run
    assert (run.resume.step, run.init) == (3, None)


def test_a_machine_of_an_earlier_attempt_shuts_down(fleet: Fleet) -> None:
    job, (machine,) = fleet.running()
    fleet.retry(job)
    fleet.clock.pass_(1)
    fleet.open_attempt(job)
    fleet.alter(MachineRow, MachineRow.id == machine, state=RUNNING, ended_at=None)
    assert order(fleet, machine)[0].kind == "shutdown"
    assert order(fleet, machine)[0].reason == "machine_lost"


# A gang that may lose machines


def elastic(fleet: Fleet) -> tuple[UUID, list[UUID], UUID]:
    """A generation of two machines of three; the third has registered and waits."""
    job = fleet.start(nodes="2..3")
    *pair, late = fleet.launch(job)
    for machine in pair:
        fleet.register(machine)
    fleet.write(gangs.open_generation, job, 1, attempts.FewerMachines(2, 3), (0, 1))
    for machine in pair:
        fleet.say(machine, "ready", 1, port=29500)
    fleet.register(late)
    return job, pair, late


def test_waiting_machines_are_admitted_once_the_generation_has_done_a_step(fleet: Fleet) -> None:
    job, (first, second), late = elastic(fleet)
    assert {order(fleet, one)[0].kind for one in (first, second)} == {"run"}
    fleet.train(job, 0)
    assert order(fleet, first)[0].kind == "run"
    fleet.train(job, 1)
    assert [order(fleet, one)[0].kind for one in (first, second, late)] == ["drain", "drain", "wait"]
    fleet.alter(GenerationRow, GenerationRow.job == job, start_step=1)
    assert order(fleet, first)[0].kind == "run", "no step beyond where it began"
    fleet.alter(GenerationRow, GenerationRow.job == job, start_step=0)
    fleet.write(observations.begin_termination, late, machines.NotNeeded(), lease=False)
    assert order(fleet, first)[0].kind == "run"


def test_a_gang_of_fixed_size_admits_nobody(fleet: Fleet) -> None:
    job, (first, _), _ = elastic(fleet)
    fleet.train(job, 1)
    fixed = fleet.job_row(job).spec
    fixed["resources"]["min"] = fixed["resources"]["nodes"]
    fleet.alter(JobRow, JobRow.id == job, spec=fixed)
    assert order(fleet, first)[0].kind == "run"
