# SPDX-License-Identifier: Apache-2.0
"""Concurrency caps: no more jobs of a team or member run, and have no more GPUs, than may at once; others go on."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from uuid import UUID

import pytest
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.queue import AccountBalance, QueuedJob, QueueSnapshot
from shoestring_core.decide.schedule import SchedulingDecision, schedule_jobs
from shoestring_core.decide.start import StartInputs, Wait
from shoestring_core.spec.gpus import parse_gpus
from shoestring_core.wording import waits

from tests.core.decide.recompute import recompute_start
from tests.core.decide.test_queue import NOW, ORG, TIMEOUTS, A, B, balance, member, queued, snapshot

CPU = Offer("sim", "sim", "", "cpu", "spot", "0.10", "0.10", None, "test", True, Hardware(4, 1024))


def gpus(number: int, price: str = "1.00") -> Offer:
    return replace(CPU, type=f"gpu.{number}", price=price, hardware=Hardware(4, 1024, "L4", number, 24 * 1024))


def capped(account: UUID, jobs: int | None = None, gpus: int | None = None, runs: tuple[int, int] = (0, 0)):
    """`runs`: jobs, and the GPUs that they have."""
    return replace(balance(account), max_jobs=jobs, max_gpus=gpus, jobs=runs[0], gpus=runs[1])


def needing(job: QueuedJob, gpu: str) -> QueuedJob:
    return replace(job, requirements=replace(job.requirements, gpus=parse_gpus(gpu)))


def decide(snap: QueueSnapshot, *offers: Offer) -> SchedulingDecision:
    decision = schedule_jobs(snap, offers or [CPU], NOW, TIMEOUTS)
    for start in decision.starts:
        assert recompute_start(StartInputs.from_json(start.inputs.as_json())) == start
    return decision


def started(decision: SchedulingDecision) -> list[int]:
    return [start.job.int for start in decision.starts]


def told(decision: SchedulingDecision) -> dict[int, waits.WaitDetail]:
    return {wait.job.int: wait.detail for wait in decision.waits}


def test_no_more_jobs_of_a_team_start_than_may_run_at_once_and_the_others_say_so():
    decision = decide(snapshot(*(queued(n, A, n) for n in (1, 2, 3)), queued(4, B), a=capped(A, jobs=4, runs=(2, 0))))
    assert started(decision) == [1, 4, 2]
    assert told(decision) == {3: waits.JobsAtCap("account 10", 4, 4)}
    assert told(decision)[3].text().startswith("Account 10 runs 4 of at most 4 jobs at once. ")


def test_of_a_member_at_its_cap_nothing_starts_and_the_rest_of_the_team_goes_on():
    own = capped(member(A, 1), jobs=1, runs=(1, 0))
    decision = decide(snapshot(queued(1, A, 1), queued(2, A, 2), own=own))
    assert started(decision) == [2]
    assert told(decision) == {1: waits.JobsAtCap("account 11", 1, 1)}


def test_a_job_at_a_cap_keeps_neither_machines_nor_budget_from_others():
    slots = replace(CPU, slots=1)
    decision = decide(snapshot(queued(1, A, nodes=1), queued(2, B), a=capped(A, jobs=0)), slots)
    assert started(decision) == [2]
    assert decision.waits[0].providers == ()
    assert told(decision)[1].text().startswith("Account 10 may start no job now: its concurrency cap is 0. ")


def test_gpus_count_by_machine_and_on_offers_with_fewer_a_job_still_starts():
    """The cheaper machine has 4 GPUs, of which the team may have 2 more."""
    job = needing(queued(1, A), "any")
    team = capped(A, gpus=8, runs=(1, 6))
    (start,) = decide(snapshot(job, a=team), gpus(4, "1.00"), gpus(2, "1.50"), gpus(1, "2.00")).starts
    assert start.offer.type == "gpu.2"
    gang = replace(job, requirements=replace(job.requirements, nodes=2))
    (start,) = decide(snapshot(gang, a=team), gpus(4, "1.00"), gpus(2, "1.50"), gpus(1, "2.00")).starts
    assert start.offer.type == "gpu.1"
    larger = replace(job, requirements=replace(job.requirements, nodes=3))
    assert told(decide(snapshot(larger, a=team), gpus(1))) == {1: waits.GpusAtCap("account 10", 3, 6, 8)}


def test_later_jobs_that_need_fewer_gpus_do_not_overtake_and_those_that_need_none_do():
    large, small, none = needing(queued(1, A), "L4:4"), needing(queued(2, A), "L4:1"), queued(3, A)
    other = needing(queued(4, B), "L4:1")
    decision = decide(snapshot(large, small, none, other, a=capped(A, gpus=4, runs=(1, 2))), gpus(4), gpus(1), CPU)
    assert started(decision) == [3, 4]
    assert told(decision) == {1: waits.GpusAtCap("account 10", 4, 2, 4), 2: waits.BehindJobAtCap("account 10")}


def test_a_job_that_needs_more_gpus_than_its_team_may_ever_have_blocks_nobody():
    never, small = needing(queued(1, A), "L4:4"), needing(queued(2, A), "L4:1")
    decision = decide(snapshot(never, small, a=capped(A, gpus=2)), gpus(4), gpus(1))
    assert started(decision) == [2]
    assert "may have at most 2 at once. Ask for fewer" in told(decision)[1].text()


def test_jobs_of_an_account_that_runs_all_it_may_need_not_be_read():
    snap = replace(snapshot(queued(1, A), queued(2, B), a=capped(A, jobs=0)), unread=frozenset({(member(A), A, ORG)}))
    decision = decide(snap)
    assert decision.complete
    assert started(decision) == [2]
    more = replace(snap, unread=frozenset({(member(A), A, ORG), (member(B), B, ORG)}))
    incomplete = decide(more)
    assert not incomplete.complete
    assert incomplete.short_accounts == {A}


@pytest.mark.parametrize("part", range(4))
def test_of_random_queues_no_cap_is_exceeded_and_no_job_waits_for_one_that_has_room(seed: int, part: int):
    draw = random.Random(f"{seed}/{part}")
    for _ in range(40):
        accounts = [A, B, *(member(team, n) for team in (A, B) for n in (1, 2))]
        caps: dict[str, AccountBalance] = {}
        for number, account in enumerate(accounts):
            runs = draw.randint(0, 3), draw.randint(0, 8)
            caps[f"a{number}"] = capped(account, draw.choice((None, 0, 2, 5)), draw.choice((None, 0, 4, 9)), runs)
        jobs = []
        for number in range(1, 20):
            job = queued(number, draw.choice((A, B)), draw.randint(1, 2), draw.randint(1, 3))
            jobs.append(needing(job, draw.choice(("none", "any", "L4:1", "L4:2", "L4:4"))))
        snap = snapshot(*jobs, **caps)
        offers = (CPU, gpus(1), gpus(2), gpus(4, "1.30"))
        slots = draw.choice((None, 6))  # of the provider
        decision = decide(snap, *(replace(offer, slots=slots) for offer in offers))
        _check(snap, decision)


def _check(snap: QueueSnapshot, decision: SchedulingDecision) -> None:
    runs: Counter[UUID] = Counter()
    has: Counter[UUID] = Counter()
    for start in decision.starts:
        for account in start.inputs.queued.account_path:
            runs[account] += 1
            has[account] += start.nodes * (start.offer.hardware.gpus if start.offer.hardware else 0)
    for account in runs:
        before = snap.balances[account]
        assert before.max_jobs is None or before.jobs + runs[account] <= before.max_jobs
        assert before.max_gpus is None or not has[account] or before.gpus + has[account] <= before.max_gpus
    by_name = {one.name: one for one in snap.balances.values()}
    for wait in decision.waits:
        _check_wait(wait, by_name, runs, has)


def _check_wait(wait: Wait, by_name: dict[str, AccountBalance], runs: Counter[UUID], has: Counter[UUID]) -> None:
    match wait.detail:
        case waits.JobsAtCap(name, jobs, cap):
            account = by_name[name]
            assert cap == account.max_jobs
            assert cap <= jobs <= account.jobs + runs[account.id]
        case waits.GpusAtCap(name, needed, _, cap):
            account = by_name[name]
            assert cap == account.max_gpus
            assert account.gpus + has[account.id] + needed > cap
        case waits.BehindJobAtCap():
            pass
        case detail:
            assert detail.waits_for not in ("budget", "cap")
