# SPDX-License-Identifier: Apache-2.0
"""What a plan over 5,000 pending jobs of 100 teams costs, in CPU of one core: the decision alone, without a database.

Four queues: all machines are in use after a few starts; the same, while 400 jobs run and a third of the teams is below
its guaranteed rate; all teams are short of budget after some; and all start.
Jobs differ in machines, type and market; 80 offers of two providers suit some of them.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal
from uuid import UUID

from shoestring_core import money
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.queue import AccountBalance, QueuedJob, QueueSnapshot, RunningJob
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import S, Timeouts

JOBS, TEAMS, MEMBERS = 5000, 100, 3
RUNNING = 400
ROUNDS, BOUND_S = 15, 0.1
NOW = 1_800_000_000 * S
TYPES, ZONES = ("a1", "b2", "c4", "d8"), tuple("abcde")


def main() -> list[str]:
    gc.freeze()  # as the worker does once it has started
    return [
        measure("no slot is free any more", snapshot("100000.00"), offers(4)),
        measure("400 jobs run, some have to make room", guaranteed(snapshot("100000.00")), offers(RUNNING // 2)),
        measure("all teams get short of budget", snapshot("2.00"), offers(None)),
        measure("all jobs start", snapshot("100000.00"), offers(None)),
    ]


def measure(name: str, queue: QueueSnapshot, offered: Sequence[Offer]) -> str:
    timeouts = {"one": Timeouts(), "two": Timeouts()}
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        decision = schedule_jobs(queue, offered, NOW, timeouts)
        seconds.append(time.process_time() - began)
        assert len(decision.starts) + len(decision.waits) == JOBS
    evicted = f", {len(decision.evictions)} running ones are evicted" if queue.running else ""
    median = statistics.median(seconds)
    return (
        f"{name}: {1e3 * median:.0f} ms, at best {1e3 * min(seconds):.0f}; {len(decision.starts)} of {JOBS} jobs of "
        f"{TEAMS} teams start{evicted} (bound {1e3 * BOUND_S:.0f} ms: {'holds' if median <= BOUND_S else 'MISSED'})"
    )


def offers(slots: int | None) -> list[Offer]:
    """40 of each provider, with as many machines at most."""
    draw = random.Random(1)
    markets: tuple[Literal["spot", "on_demand"], ...] = ("spot", "on_demand")
    places = itertools.product(("one", "two"), TYPES, ZONES, markets)
    return [
        Offer(provider, "r", zone, type_, market, f"{draw.uniform(0.1, 3):.4f}", "3.0000", slots, "bench", True,
              fetched_at=NOW)
        for provider, type_, zone, market in places
    ]  # fmt: skip


def snapshot(team_limit: str) -> QueueSnapshot:
    draw = random.Random(2)
    numbers = (UUID(int=number) for number in itertools.count(1))
    organization = account(next(numbers), "the organization", None)
    balances, members = {organization.id: organization}, []
    for team in range(TEAMS):
        its = account(next(numbers), f"team {team}", team_limit, recent=draw.randrange(10**9), weight=1 + team % 3)
        own = [account(next(numbers), f"a member of team {team}", None, draw.randrange(10**8)) for _ in range(MEMBERS)]
        balances |= {each.id: each for each in (its, *own)}
        members += [(each.id, its.id, organization.id) for each in own]
    queue = []
    for at in range(JOBS):
        leaf = account(next(numbers), "this job", "1000.00")
        balances[leaf.id] = leaf
        requirements = Requirements(
            nodes=draw.choice((1, 1, 1, 2, 4)), type=draw.choice((None, *TYPES)), spot=draw.choice(("only", "prefer"))
        )
        path = (leaf.id, *draw.choice(members))
        queue.append(QueuedJob(next(numbers), requirements, path, attempt=1, queued_at=NOW - (JOBS - at) * S))
    return QueueSnapshot(1, tuple(queue), balances, {})


def guaranteed(queue: QueueSnapshot) -> QueueSnapshot:
    """Every slot is taken by jobs of two teams of three; each third is guaranteed $6 an hour and has none."""
    teams = [one for one in queue.balances.values() if one.name.startswith("team")]
    having = [team for number, team in enumerate(teams) if number % 3]
    balances = dict(queue.balances)
    for team in teams[::3]:
        balances[team.id] = replace(team, guaranteed_rate=6 * money.MICRO)
    running = []
    for number in range(RUNNING):
        lender, provider = having[number % len(having)].id, ("one", "two")[number % 2]
        machines = (((provider, "r", "a1", "spot"), 1),)
        job = RunningJob(UUID(int=10**6 + number), 1, lender, provider, machines, money.MICRO, NOW - 3600 * S)
        balances[lender] = balances[lender].holding(0, job.rate)
        running.append(job)
    in_use = {"one": RUNNING // 2, "two": RUNNING // 2}
    return replace(queue, balances=balances, machines_in_use=in_use, running=tuple(running))


def account(id_: UUID, name: str, limit: str | None, recent: int = 0, weight: int = 1) -> AccountBalance:
    return AccountBalance(id_, name, None if limit is None else money.from_decimal(limit), 0, 0, 0, recent, weight)
