# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from shoestring_core import money
from shoestring_core.store import ledger

from tests.worker.conftest import World


def test_a_job_runs_from_queue_to_settled_bill(world: World):
    job = world.submit(nodes=2)
    world.tick()
    assert world.job(job).state == "launching"
    assert len(world.cloud.alive()) == 2

    generation = world.form(job)
    assert world.job(job).state == "running"
    first, second = world.alive(job)
    run = world.order(first.id).run
    assert run is not None
    assert (run.nnodes, run.node_rank, run.master_addr, run.master_port) == (2, 0, "127.0.0.1", 29500)
    world.train(job, 100)
    world.clock.pass_(20)
    assert world.commit(first.id, generation, 100, "final")
    assert world.job(job).state == "ended"
    assert world.order(second.id).kind == "end"
    for machine in world.cloud.alive():
        world.cloud.end(machine.id, "exited")
    world.tick(1)

    done = world.job(job)
    assert done.end_reason == "succeeded"
    assert done.settled_at is not None
    spent = sum(transfer.amount for transfer in world.transfers())
    assert spent == 2 * money.cost("0.158", 20_000_000)
    with world.store.read() as db:
        assert ledger.sweep(db) == []
