# SPDX-License-Identifier: Apache-2.0
"""The path of a job from queue to receipt, and what limits and people do to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.billing import bill
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import Unavailable
from shoestring_core.store import idempotency, jobs, ledger, queries, waste
from shoestring_core.store.fleet import agents
from shoestring_core.store.fleet.billing import evidence
from shoestring_core.store.tables import (
    AccountRow,
    AttemptRow,
    EventRow,
    GenerationRow,
    HoldRow,
    IdempotencyRow,
    LimitChangeRow,
    PriceRow,
)
from shoestring_core.wording.budget import PayerOverdrawn
from shoestring_worker import control_loop
from sqlalchemy import select, update

from tests.worker.conftest import World


def finish(world: World, job: UUID, step: int = 100) -> None:
    """Train to the end; the agents leave when they are ordered to."""
    generation = world.form(job)
    world.train(job, step)
    assert world.commit(world.alive(job)[0].id, generation, step, "final")
    leave(world, job)


def leave(world: World, job: UUID, cause: str = "exited") -> None:
    for machine in world.alive(job):
        assert world.order(machine.id).kind == "shutdown"
        world.provider.end(machine.provider_id, cause)
    world.tick()


def independent_bill(world: World) -> int:
    """The usage according to the provider's own journal, computed without our database."""
    launched = {entry.machine: entry for entry in world.provider.journal if entry.event == "launch"}
    ended = {entry.machine: entry.at for entry in world.provider.journal if entry.event == "end"}
    assert launched.keys() == ended.keys()
    return sum(money.cost(entry.price, ended[name] - entry.at) for name, entry in launched.items())


def spent(world: World) -> int:
    with world.store.read() as db:
        assert ledger.find_discrepancies(db) == []
        return db.sql.scalars(select(AccountRow.posted).where(AccountRow.kind == "org")).one()


def test_a_job_runs_from_queued_to_settled(world: World):
    job = world.submit(nodes=2)
    world.tick()
    assert world.job(job).state == "launching"
    generation = world.form(job)
    assert world.job(job).state == "running"
    first, second = world.alive(job)
    run = world.order(first.id).run
    assert (run.nnodes, run.node_rank, run.master_addr, run.master_port) == (2, 0, "127.0.0.1", 29500)
    assert run.task.recipe == "digits/quickstart@1"
    assert world.order(second.id).run.node_rank == 1
    world.train(job, 100)
    world.clock.pass_(20)
    assert world.commit(first.id, generation, 100, "final")
    assert world.job(job).state == "ended"
    leave(world, job)
    done = world.job(job)
    assert (done.end_reason, done.result) == ("succeeded", {"val/acc": 0.98})
    assert done.settled_at is not None
    assert spent(world) == independent_bill(world) == 2 * money.cost("0.158", 20 * S)
    with world.store.read() as db:
        assert db.sql.scalars(select(PriceRow.amount).order_by(PriceRow.amount)).all() == ["0.158", "0.526"]


def test_the_stored_plan_contains_the_decision_and_its_inputs(world: World):
    job = world.submit()
    world.tick()
    with world.store.read() as db:
        attempt = db.sql.scalars(select(AttemptRow).where(AttemptRow.job == job)).one()
    assert attempt.plan["queued"]["job"] == str(job)
    assert {offer["market"]: offer["price"] for offer in attempt.plan["offers"]} == {
        "spot": "0.158", "on_demand": "0.526",
    }  # fmt: skip


def test_jobs_wait_for_slots_in_order_and_start_when_slots_are_free(world: World):
    first, second, third = world.submit(nodes=4), world.submit(nodes=2), world.submit(nodes=1)
    world.tick()
    assert world.job(first).state == "launching"
    assert [world.job(job).wait_reason for job in (second, third)] == ["slots", "slots"]
    assert world.job(third).wait_detail["facts"]["behind"]
    finish(world, first)
    assert [world.job(job).state for job in (second, third)] == ["launching", "launching"]
    assert world.job(second).wait_reason is None


def test_a_preempted_gang_resumes_from_its_checkpoint_in_a_new_attempt(world: World):
    job = world.submit(nodes=2)
    world.tick()
    generation = world.form(job)
    first, second = world.alive(job)
    world.train(job, 40)
    world.store.write(lambda db: agents.record_notice(db, second.id, world.clock.now + 10 * S))
    world.exits(second.id, generation, "drained", rank=1)
    world.tick(1)
    assert world.job(job).state == "running"  # rank 0's machine is still uploading
    world.commit(first.id, generation, 40, "order")
    world.exits(first.id, generation, "drained")
    world.tick(1)
    assert world.job(job).state == "queued"
    leave(world, job, "preempted")
    assert (world.job(job).state, world.job(job).attempt) == ("launching", 2)

    assert world.form(job) == 2
    with world.store.read() as db:
        generations = db.sql.scalars(
            select(GenerationRow).where(GenerationRow.job == job).order_by(GenerationRow.number)
        ).all()
        attempts = db.sql.scalars(select(AttemptRow).where(AttemptRow.job == job).order_by(AttemptRow.number)).all()
    assert [(one.state, one.start_step) for one in generations] == [("ended", 0), ("formed", 40)]
    assert (attempts[0].state, attempts[0].reason, attempts[0].trained) == ("closed", "preempted", True)
    assert world.order(world.alive(job)[0].id).run.resume.step == 40
    finish(world, job, 100)
    assert world.job(job).end_reason == "succeeded"
    assert spent(world) == independent_bill(world)


@pytest.mark.any_database
def test_a_checkpoint_committed_after_its_attempt_ended_is_used(world: World):
    job = world.submit(nodes=2)
    world.tick()
    generation = world.form(job)
    first, second = world.alive(job)
    world.train(job, 30)
    world.provider.end(second.provider_id, "crashed")
    world.tick(1)
    assert world.job(job).state == "queued"
    assert world.order(first.id).kind == "shutdown"
    assert world.commit(first.id, generation, 30)
    leave(world, job)
    world.form(job)
    assert world.order(world.alive(job)[0].id).run.resume.step == 30


def test_a_complete_upload_whose_machine_died_before_the_commit_is_adopted(world: World):
    job = world.submit()
    world.tick()
    generation = world.form(job)
    world.train(job, 50)
    upload(world, job, generation, 50)
    world.provider.end(world.alive(job)[0].provider_id, "crashed")
    world.tick()
    world.form(job)
    assert world.order(world.alive(job)[0].id).run.resume.step == 50


@pytest.mark.any_database
@pytest.mark.parametrize("flaw", ["torn", "ahead of its points", "another job's"])
def test_an_upload_that_is_incomplete_or_ahead_of_its_metrics_is_not_adopted(world: World, flaw: str):
    job = world.submit()
    world.tick()
    generation = world.form(job)
    world.train(job, 50)
    owner = job if flaw != "another job's" else UUID(int=1)
    upload(world, job, generation, 60 if flaw == "ahead of its points" else 50, torn=flaw == "torn", owner=owner)
    world.provider.end(world.alive(job)[0].provider_id, "crashed")
    world.tick()
    world.form(job)
    assert world.job(job).checkpoint is None
    assert world.order(world.alive(job)[0].id).run.resume is None


def upload(
    world: World, job: UUID, generation: int, step: int, *, torn: bool = False, owner: UUID | None = None
) -> None:
    data = b"weights"
    manifest = {
        "format": 1, "job": str(owner or job), "generation": generation, "step": step, "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "parts": [],
    }  # fmt: skip
    key = f"jobs/{job}/g/{generation}/final/000001"
    for name, content in (("data", b"weigh" if torn else data), ("manifest.json", json.dumps(manifest).encode())):
        with world.objects.writer(f"{key}/{name}", 10**8) as writer:
            writer.write(content)
            writer.finish()


def test_ranks_restart_on_the_same_machines_up_to_three_times_after_a_kill(world: World):
    job = world.submit(nodes=2)
    world.tick()
    for number in (1, 2, 3, 4):
        assert world.form(job) == number
        world.exits(world.alive(job)[0].id, number, "signal")
        world.tick(1)
    done = world.job(job)
    assert (done.state, done.end_reason, done.attempt) == ("ended", "infrastructure", 1)
    assert len(world.provider.journal) == 2


@pytest.mark.any_database
def test_a_new_checkpoint_resets_the_restart_count(world: World):
    job = world.submit()
    world.tick()
    for number in range(1, 7):
        assert world.form(job) == number
        world.train(job, number * 10)
        world.commit(world.alive(job)[0].id, number, number * 10)
        world.exits(world.alive(job)[0].id, number, "signal")
        world.tick(1)
    assert world.job(job).state == "running"


def test_a_user_error_ends_the_job_once_all_machines_have_reported(world: World):
    job = world.submit(nodes=2)
    world.tick()
    generation = world.form(job)
    world.exits(world.alive(job)[0].id, generation, "error", kind="nan")
    world.tick(5)
    assert world.job(job).state == "running"
    world.clock.pass_(5)
    world.report(job)
    world.tick()
    done = world.job(job)
    assert (done.state, done.end_reason, done.end_detail["facts"]["error"]) == ("ended", "nan", "error nan")
    assert done.attempt == 1


def test_a_stopped_job_drains_ends_and_is_settled(world: World):
    job = world.submit()
    world.tick()
    generation = world.form(job)
    (machine,) = world.alive(job)
    world.train(job, 10)
    world.clock.pass_(10)
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    assert world.order(machine.id).kind == "drain"
    world.tick()
    assert world.order(machine.id).kind == "drain"
    assert world.commit(machine.id, generation, 10, "order")
    world.exits(machine.id, generation, "drained")
    leave(world, job)
    done = world.job(job)
    assert (done.state, done.end_reason) == ("ended", "user_stop")
    assert done.settled_at is not None
    assert spent(world) == independent_bill(world) > 0


def test_a_stop_while_launching_terminates_the_launched_machines(world: World):
    job = world.submit()
    world.tick()
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    world.tick(1)
    assert world.provider.alive() == []
    world.tick(1)
    assert world.job(job).end_reason == "user_stop"
    assert world.job(job).settled_at is not None


def test_a_machine_that_does_not_exit_is_terminated_through_the_provider(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    world.tick()
    assert len(world.provider.alive()) == 1
    world.tick(8)
    assert world.provider.alive() == []
    world.tick()
    assert world.job(job).state == "ended"


def test_a_job_at_its_time_limit_keeps_its_checkpoint(world: World):
    job = world.submit(limits={"time": "30s"})
    world.tick()
    generation = world.form(job)
    (machine,) = world.alive(job)
    for _ in range(6):
        world.report(job)
        world.tick(4)
    assert world.job(job).state == "running"
    world.report(job)
    world.tick(6)
    assert world.job(job).state == "stopping"
    world.train(job, 9)
    world.commit(machine.id, generation, 9, "order")
    world.exits(machine.id, generation, "drained")
    leave(world, job)
    done = world.job(job)
    assert (done.end_reason, done.checkpoint is not None) == ("time_limit", True)


# Money


@pytest.mark.any_database
def test_holds_of_a_long_run_are_extended_and_it_pays_what_it_used(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    held = []
    for _ in range(60):
        world.report(job)
        world.tick(5)
        with world.store.read() as db:
            held.append(db.sql.scalars(select(AccountRow.held).where(AccountRow.kind == "job")).one())
            assert ledger.find_discrepancies(db) == []
        (machine,) = world.alive(job)
        assert machine.funded_until - world.clock.now >= 30 * S
    assert max(held) <= money.cost_ceiling("0.526", 75 * S)  # what is spent is posted, not held
    finish(world, job)
    assert spent(world) == independent_bill(world) == money.cost("0.158", 300 * S)


@pytest.mark.any_database
def test_heartbeat_and_ledger_audit_keep_their_intervals_during_a_long_job(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(control_loop, "AUDIT_S", 200)
    job = world.submit()
    world.tick()
    world.form(job)
    world.store.write(lambda db: db.execute(update(AccountRow).where(AccountRow.kind == "team").values(posted=1)))
    began = world.clock.now
    for _ in range(17):
        world.report(job)
        world.tick(15)
        with world.store.read() as db:
            heartbeat = queries.load_services(db)["worker"].last_heartbeat_at
        assert world.clock.now - heartbeat < 30 * S, "/readyz would say that no worker has run"
        alarms = [record for record in caplog.records if "ledger totals are inconsistent" in record.message]
        assert bool(alarms) == (world.clock.now - began >= 200 * S)
    assert alarms


def test_responses_that_are_no_longer_repeated_are_deleted_every_ten_minutes(world: World):
    world.tick()
    world.store.write(lambda db: idempotency.begin_request(db, "ann", "key", "request"))
    long_ago = IdempotencyRow.begun_at - idempotency.RESPONSE_TTL - 1
    world.store.write(lambda db: db.execute(update(IdempotencyRow).values(begun_at=long_ago)))
    for after_s, kept in ((590, 1), (10, 0)):
        world.tick(after_s)
        with world.store.read() as db:
            assert len(db.sql.scalars(select(IdempotencyRow)).all()) == kept


def test_a_job_that_exhausts_its_budget_is_paused_and_resumes_after_the_limit_is_raised(world: World):
    limit = money.cost_ceiling("0.526", 80 * S)
    world.budget(limit)
    job = world.submit()
    world.tick()
    generation = world.form(job)
    (machine,) = world.alive(job)
    for step in range(1, 200):
        if world.job(job).state != "running":
            break
        world.train(job, step)
        world.tick(5)
    assert (world.job(job).state, world.job(job).stop_reason) == ("stopping", "budget")
    assert world.commit(machine.id, generation, step, "order")
    world.exits(machine.id, generation, "drained")
    leave(world, job)
    assert world.job(job).state == "paused"
    assert spent(world) <= limit
    world.tick(60)
    assert world.job(job).state == "paused"

    world.budget(10 * limit)
    world.tick()
    assert world.job(job).state == "launching"
    world.form(job)
    assert world.order(world.alive(job)[0].id).run.resume.step == step


@pytest.mark.any_database
def test_a_job_trains_across_the_border_of_a_month_and_one_that_waited_for_it_goes_on(world: World):
    limit = money.cost_ceiling("0.526", 80 * S)
    world.budget(limit)
    job = world.submit()
    world.tick()
    world.form(job)
    plan = ledger.Plan("month", "UTC", world.clock.now + 30 * S)
    team = world.store.write(lambda db: ledger.set_period(db, team_row(db).id, plan, actor="admin", reason="")).id
    for step in range(1, 8):
        world.train(job, step)
        world.tick(5)
    assert world.job(job).state == "running"
    with world.store.read() as db:
        account, period = team_row(db), ledger.load_periods(db, [team])[team]
        kinds = select(LimitChangeRow.kind).where(LimitChangeRow.account == team).order_by(LimitChangeRow.version)
        assert db.sql.scalars(kinds).all()[-1] == "rolled_over"
    assert period.starts_at == plan.ends_at
    assert ledger.period_limit(account) == limit
    assert 0 < account.carried < account.held
    for step in range(8, 200):
        if world.job(job).state != "running":
            break
        world.train(job, step)
        world.tick(5)
    assert world.job(job).stop_reason == "budget"
    world.exits(world.alive(job)[0].id, 1, "drained")
    leave(world, job)
    assert spent(world) > limit, "both months paid"
    assert spent(world) <= 2 * limit
    assert world.job(job).state == "paused"
    world.clock.now = period.ends_at
    world.tick(5)
    assert world.job(job).state in ("queued", "launching")
    with world.store.read() as db:
        assert ledger.find_discrepancies(db) == []


def team_row(db) -> AccountRow:
    return db.sql.scalars(select(AccountRow).where(AccountRow.kind == "team")).one()


def test_the_cost_of_a_preempted_run_is_split_into_training_and_waste_by_cause(world: World):
    job = world.submit()
    world.tick()
    world.clock.pass_(10)
    world.form(job)
    for step in range(1, 5):
        world.train(job, step)
        world.tick(10)
    leave_at_once(world, job)
    world.tick(10)
    world.form(job)
    for step in range(1, 5):
        world.train(job, step)
        world.tick(10)
    with world.store.read() as db:
        (used,) = waste.load_use(db, world.admin.team, 0)
        costs = [line.amount for row in queries.load_machines(db, job) for line in bill(evidence(row), db.now)]
    assert sum(used.parts.values()) == sum(costs)
    assert {"set_up", "lost_steps", "training"} <= used.parts.keys()
    assert used.parts["lost_steps"] > 0


def leave_at_once(world: World, job: UUID) -> None:
    """Its machine is taken back before it has saved anything."""
    for machine in world.alive(job):
        world.provider.end(machine.provider_id, "preempted")
    world.tick()


def test_a_job_that_is_to_finish_reserves_its_longest_run_and_outlives_a_cut_of_the_limit(world: World):
    job = world.submit(on_budget="finish", limits={"time": 300})
    world.budget(money.cost_ceiling("0.526", 300 * S))
    world.tick()
    assert (world.job(job).state, world.job(job).wait_reason) == ("queued", "budget"), "the time to start isn't covered"
    world.budget(money.from_decimal("5"))
    world.tick()
    world.form(job)
    with world.store.read() as db:
        reserved = team_row(db).held
    assert reserved >= money.cost_ceiling("0.526", 300 * S)
    world.budget(1)
    for step in range(1, 59):
        world.train(job, step)
        world.tick(5)
    assert world.job(job).state == "running", "it goes on with what it has reserved"
    world.train(job, 59)
    world.tick(10)
    assert (world.job(job).state, world.job(job).stop_reason) == ("stopping", "time_limit")
    world.exits(world.alive(job)[0].id, 1, "drained")
    leave(world, job)
    assert spent(world) <= reserved
    with world.store.read() as db:
        assert team_row(db).held == 0
        assert [row.amount for row in db.sql.scalars(select(HoldRow))] == [reserved]


@pytest.mark.any_database
def test_on_budget_stop_ends_the_job(world: World):
    world.budget(money.cost_ceiling("0.526", 80 * S))
    job = world.submit(on_budget="stop")
    world.tick()
    world.form(job)
    for _ in range(100):
        world.report(job)
        world.tick(5)
    assert world.job(job).end_reason == "budget"


def test_lowering_the_limit_during_a_run_pauses_the_job_and_shows_the_overdraft(world: World):
    world.budget(money.from_decimal("5"))
    job = world.submit()
    world.tick()
    world.form(job)
    world.tick(5)
    world.budget(1)
    world.tick()
    assert (world.job(job).state, world.job(job).desired_state) == ("stopping", "pause")
    with world.store.read() as db:
        assert db.sql.scalars(select(AccountRow.overdraft).where(AccountRow.kind == "team")).one() > 0
        stopping = (
            select(EventRow.reason).where(EventRow.job == job, EventRow.kind == "job").order_by(EventRow.seq.desc())
        )
        assert db.sql.scalars(stopping.limit(1)).one() == PayerOverdrawn("team vision").as_json()
    world.exits(world.alive(job)[0].id, 1, "drained")
    leave(world, job)
    assert world.job(job).state == "paused"
    world.budget(money.from_decimal("5"))
    world.tick()
    assert world.job(job).state == "launching"
    with world.store.read() as db:
        assert db.sql.scalars(select(AccountRow.overdraft).where(AccountRow.kind == "team")).one() == 0


def test_raising_the_limit_while_the_job_is_pausing_queues_it_once_its_machines_are_terminated(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    world.budget(1)
    world.tick()
    assert world.job(job).state == "stopping"
    world.budget(money.from_decimal("5"))
    world.exits(world.alive(job)[0].id, 1, "drained")
    leave(world, job)
    assert (world.job(job).state, world.job(job).attempt) == ("launching", 2)


def test_of_two_jobs_only_one_starts_when_the_budget_covers_one(world: World):
    world.budget(money.cost_ceiling("0.526", 75 * S))
    first, second = world.submit(), world.submit()
    world.tick()
    assert [world.job(job).state for job in (first, second)] == ["launching", "queued"]
    assert world.job(second).wait_reason == "budget"
    assert world.job(second).wait_detail["facts"]["account"] == "team vision"
    world.budget(money.from_decimal("5"))
    world.tick()
    assert world.job(second).state == "launching"


def test_a_machine_that_was_never_launched_releases_its_hold_at_once(world: World):
    world.provider.slots = 0
    world.submit()
    offers = world.provider.offers(())
    world.provider.offers = lambda _: [replace(offer, slots=4) for offer in offers]
    world.tick()
    with world.store.read() as db:
        assert db.sql.scalars(select(HoldRow.state)).all() == ["closed"]
        assert db.sql.scalars(select(AccountRow.held).where(AccountRow.kind == "org")).one() == 0


def test_a_machine_is_funded_no_longer_than_it_could_store_a_checkpoint(world: World, monkeypatch: pytest.MonkeyPatch):
    job = world.submit()
    world.tick()
    world.form(job)
    (machine,) = world.alive(job)
    assert machine.funded_until is not None
    ends = machine.funded_until // S + 20
    monkeypatch.setattr(world.objects, "urls_end_by", lambda: ends)
    for step in (1, 2):
        world.train(job, step)
        world.tick(20)
    assert world.alive(job)[0].funded_until == ends * S - world.timeouts.drain
    world.train(job, 3)
    world.tick(10)
    assert world.alive(job)[0].funded_until == ends * S - world.timeouts.drain
    monkeypatch.setattr(world.objects, "urls_end_by", lambda: ends + 3600)
    world.tick(1)
    assert world.alive(job)[0].funded_until == world.clock.now + world.timeouts.funding_lease


def test_a_machine_is_funded_from_its_start_no_longer_than_it_could_store_a_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    ends = world.clock.now // S + 40
    monkeypatch.setattr(world.objects, "urls_end_by", lambda: ends)
    job = world.submit()
    world.tick()
    assert world.alive(job)[0].funded_until == ends * S - world.timeouts.drain
    late = world.submit()
    world.clock.pass_(40)
    world.tick()
    assert world.machines(late) == []
    assert world.job(late).wait_detail["code"] == "nothing_storable"


def test_while_the_object_store_is_out_of_reach_no_hold_is_extended_and_no_job_starts(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    def out_of_reach() -> None:
        raise Unavailable("The credentials can't be renewed.")

    job = world.submit()
    world.tick()
    world.form(job)
    funded = world.alive(job)[0].funded_until
    monkeypatch.setattr(world.objects, "urls_end_by", out_of_reach)
    for step in (1, 2):
        world.train(job, step)
        world.tick(20)
    assert world.alive(job)[0].funded_until == funded
    later = world.submit()
    world.tick(1)
    assert world.machines(later) == []
    assert world.job(later).wait_detail["facts"] == {"problem": "The credentials can't be renewed."}
    assert world.job(job).wait_detail["facts"] == {"problem": "The credentials can't be renewed.", "until": funded}
    monkeypatch.setattr(world.objects, "urls_end_by", lambda: None)
    world.tick(1)
    assert world.machines(later)
    assert world.job(job).wait_detail is None
    with world.store.read() as db:
        storage = select(EventRow.data).where(EventRow.job == job, EventRow.kind == "storage")
        told = db.sql.scalars(storage.order_by(EventRow.seq)).all()
    assert told == [{"lost": True}, {"lost": False}], "once each"
