# SPDX-License-Identifier: Apache-2.0
"""Preemption: which running jobs save a checkpoint and go back to the queue, so that a team gets its guaranteed rate.

A team's *rate* is what its running machines cost an hour, its *guaranteed rate* what it can have as soon as it asks.
What a team runs above that it borrows, and gives back when a job that stays within its own team's guaranteed rate waits
for machines. Of the teams that borrow, the one with the largest share gives first: what it borrows by its weight. No
team goes below its guaranteed rate, and who asks borrows nothing, so with each eviction the largest share of those
concerned falls: a job that was evicted never evicts the one that took its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide.queue import AccountBalance, RunningJob
from shoestring_core.decide.timeouts import S
from shoestring_core.wording.jobs import Evicted

MIN_RUN_TIME = 600 * S
"""A job trains for so long before it is evicted: to start again costs minutes of its machines."""


@dataclass(frozen=True)
class EvictionInputs:
    """The case: a job that waits for room, and who could make it. Stored with the attempts that end for it.

    claimant  the job, whose machines would cost `rate` micro-dollars an hour
    team      its team, now
    provider  whose slots it waits for: `slots_missing`, beyond those that are free or about to be
    quota     which it waits for, as `quotas.quota_id` names it: `vcpus_missing` likewise
    running   what runs there
    lenders   the teams of these jobs
    """

    claimant: UUID
    rate: int
    team: AccountBalance
    provider: str
    slots_missing: int
    quota: str | None
    vcpus_missing: int
    running: tuple[RunningJob, ...]
    lenders: tuple[AccountBalance, ...]
    now: int

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _INPUTS.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> EvictionInputs:
        return _INPUTS.validate_python(tree)


@dataclass(frozen=True)
class Eviction:
    """The attempt of a running job ends after a checkpoint, and the job goes back to its place in the queue."""

    job: UUID
    attempt: int
    reason: Evicted
    inputs: EvictionInputs


@dataclass(frozen=True)
class Room:
    """Room is made for the claimant, or about to be free: `balances`, of the teams when it has it."""

    evicted: tuple[RunningJob, ...]
    evictions: tuple[Eviction, ...]
    balances: Mapping[UUID, AccountBalance]


def make_room(inputs: EvictionInputs) -> Room | None:
    """None: there is none, and not all of it can be made."""
    evictions = decide_evictions(inputs)
    if not evictions and (inputs.slots_missing or inputs.vcpus_missing):
        return None
    jobs = {eviction.job for eviction in evictions}
    evicted = tuple(job for job in inputs.running if job.job in jobs)
    teams = {team.id: team for team in inputs.lenders} | {inputs.team.id: inputs.team.holding(0, inputs.rate)}
    for job in evicted:
        teams[job.team] = teams[job.team].holding(0, -job.rate)
    return Room(evicted, evictions, teams)


def decide_evictions(inputs: EvictionInputs) -> tuple[Eviction, ...]:
    """The jobs that make room for the claimant; none if not all of it can be made."""
    if not inputs.team.guarantees(inputs.rate):
        return ()
    chosen = list(_choose(inputs))
    if _is_short(inputs, chosen):
        return ()
    for job in reversed(tuple(chosen)):  # a large one may do for several; those of the smallest share are spared first
        others = [other for other in chosen if other is not job]
        if not _is_short(inputs, others):
            chosen = others
    lenders = {team.id: team for team in inputs.lenders}
    return tuple(Eviction(job.job, job.attempt, _reason(inputs, lenders[job.team]), inputs) for job in chosen)


def _choose(inputs: EvictionInputs) -> Iterator[RunningJob]:
    """One job after another of the team that then has the largest share, its newest first."""
    chosen: list[RunningJob] = []
    lenders = {team.id: team for team in inputs.lenders}
    while _is_short(inputs, chosen):
        candidates = [
            job for job in inputs.running
            if job not in chosen and _helps(inputs, job, chosen) and _may_be_evicted(job, lenders, inputs.now)
        ]  # fmt: skip
        if not candidates:
            return
        victim = max(candidates, key=lambda job: (lenders[job.team].share, job.since or 0, job.job.int))
        lenders[victim.team] = lenders[victim.team].holding(0, -victim.rate)
        chosen.append(victim)
        yield victim


def _may_be_evicted(job: RunningJob, lenders: Mapping[UUID, AccountBalance], now: int) -> bool:
    """All that it costs is above its team's guaranteed rate, and it has trained for long enough."""
    until = protected_until(job)
    return until is not None and now >= until and 0 < job.rate <= lenders[job.team].borrowed_rate


def protected_until(job: RunningJob) -> int | None:
    """When the job may be evicted (µs UTC); None: that isn't known, because it doesn't train yet."""
    return None if job.since is None else job.since + MIN_RUN_TIME


def _missing(inputs: EvictionInputs, evicted: list[RunningJob]) -> tuple[int, int]:
    """Slots and vCPUs that the claimant still lacks once these jobs have ended."""
    slots = sum(job.slots for job in evicted if job.provider == inputs.provider)
    vcpus = sum(job.vcpus.get(inputs.quota or "", 0) for job in evicted)
    return max(0, inputs.slots_missing - slots), max(0, inputs.vcpus_missing - vcpus)


def _is_short(inputs: EvictionInputs, evicted: list[RunningJob]) -> bool:
    return any(_missing(inputs, evicted))


def _helps(inputs: EvictionInputs, job: RunningJob, evicted: list[RunningJob]) -> bool:
    return sum(_missing(inputs, [*evicted, job])) < sum(_missing(inputs, evicted))


def _reason(inputs: EvictionInputs, lender: AccountBalance) -> Evicted:
    team = inputs.team
    return Evicted(
        team.name, money.to_decimal(team.guaranteed_rate), money.to_decimal(team.rate),
        lender.name, money.to_decimal(lender.guaranteed_rate), money.to_decimal(lender.rate),
    )  # fmt: skip


_INPUTS = TypeAdapter(EvictionInputs)
