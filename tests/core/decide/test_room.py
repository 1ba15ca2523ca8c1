# SPDX-License-Identifier: Apache-2.0
"""What a schedule works out once for many jobs is what it would work out for each."""

from __future__ import annotations

import random
from uuid import UUID

import pytest
from shoestring_core.decide import start
from shoestring_core.decide.offers import Hardware, Offer, Quota
from shoestring_core.decide.queue import AccountBalance, QueuedJob, QueueSnapshot, RunningJob
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.room import Room
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.money import MICRO

NOW = 1_800_000_000 * S
PROVIDERS = ("one", "two")
CASES = 60


def test_what_a_schedule_works_out_once_it_would_work_out_for_each_job(seed: int, monkeypatch: pytest.MonkeyPatch):
    cases = [random_case(random.Random(f"{seed} {number}")) for number in range(CASES)]
    timeouts = {provider: Timeouts() for provider in PROVIDERS}
    at_once = [schedule_jobs(*case, NOW, timeouts) for case in cases]
    monkeypatch.setattr(Room, "opening", Room._find_opening)
    monkeypatch.setattr(start.Precedence, "reason", lambda _, *its: start._why_first(*its))
    for case, decided in zip(cases, at_once, strict=True):
        assert schedule_jobs(*case, NOW, timeouts) == decided


def random_case(draw: random.Random) -> tuple[QueueSnapshot, list[Offer]]:
    """Few teams, providers and kinds of jobs, so that slots, quotas, budgets, guarantees and time limits meet."""
    slots = {provider: draw.choice((None, 2, 4, 8)) for provider in PROVIDERS}
    quota = {provider: draw.choice((None, None, Quota("vcpus", 12, "there"))) for provider in PROVIDERS}
    offers = [
        Offer(provider, "r", "", type_, "spot", draw.choice(("0.5", "1")), "3", slots[provider], "test", True,
              Hardware(draw.choice((2, 4)), 1024), quota=quota[provider])
        for provider in PROVIDERS for type_ in ("a", "b")
    ]  # fmt: skip
    organization = AccountBalance(UUID(int=1), "the organization", draw.choice((None, 30 * MICRO)), 0, 0, 0)
    balances, members = {organization.id: organization}, []
    for number in range(2, 10, 2):
        team, member = (UUID(int=number), UUID(int=number + 1))
        guaranteed = draw.choice((0, 0, 2 * MICRO))
        used, limit, weight = draw.randrange(5 * MICRO), draw.choice((None, 4 * MICRO)), draw.choice((1, 2))
        balances[team] = AccountBalance(team, f"team {team.int}", limit, 0, 0, 0, used, weight, 0, guaranteed)
        balances[member] = AccountBalance(member, f"member {member.int}", None, 0, 0, 0)
        members.append((member, team, organization.id))
    queue, running = [], []
    for number in range(100, 130):
        job, own, member = UUID(int=number), UUID(int=1000 + number), draw.choice(members)
        balances[own] = AccountBalance(own, "this job", draw.choice((None, None, MICRO // 100)), 0, 0, 0)
        needed = Requirements(draw.choice((1, 1, 2, 4)), type=draw.choice((None, "a", "b")))
        time_limit, not_before = draw.choice((None, 60 * S, 7200 * S)), draw.choice((0, 0, 0, NOW + S))
        refused, terminating = draw.random() < 0.1, draw.choice((0, 0, 0, 1))
        queue.append(
            QueuedJob(
                job, needed, (own, *member), 1, NOW - draw.randrange(9), terminating_machines=terminating,
                not_before=not_before, refused=refused, time_limit=time_limit,
            )
        )  # fmt: skip
    for number in range(draw.randrange(4)):
        offer, team = draw.choice(offers), draw.choice(members)[1]
        product = (offer.provider, offer.region, offer.type, offer.market)
        balances[team] = balances[team].holding(0, MICRO)
        ends_by = draw.choice((None, NOW + 3600 * S))
        running.append(
            RunningJob(
                UUID(int=2000 + number), 1, team, offer.provider, ((product, 1),), MICRO, NOW - 3600 * S, ends_by
            )
        )
    in_use = {provider: sum(job.provider == provider for job in running) for provider in PROVIDERS}
    products = {job.machines[0][0]: 1 for job in running}
    return QueueSnapshot(1, tuple(queue), balances, in_use, products=products, running=tuple(running)), offers
