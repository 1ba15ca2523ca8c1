# SPDX-License-Identifier: Apache-2.0
"""Which queued jobs start now, on which offer, with what hold; and why the others wait.

Jobs are served in the order of `queue.FairQueue`. While a job waits for slots, no later job starts on the providers
whose slots it waits for, except to fill a gap: one that its time limit ends before the limits of running jobs let the
earlier one start. While it waits for a quota of the provider's account, none starts that counts against the same one.
While a job waits for budget, no later job starts that would draw on the same exhausted account; jobs paid from
elsewhere do. While a job waits for GPUs that its team or member may have at once, no later job of theirs that needs
GPUs starts; one that waits because they run as many jobs as they may blocks nobody. While a job waits for a backoff
because it was refused machines, no later job that needs the same starts: backoffs don't change the order. Any other job
that waits for a backoff, one that can never start, and one that is itself behind one that waits for budget, block
nobody.

The stages: whose turn it is (`queue`), which offers suit, best first (`placement`), whether one has room (`room`),
whether the job may start on it (`_decide`, `concurrency`), and if only room is missing, who makes it (`preemption`).
The words are those of `wording.waits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide import concurrency, funding, preemption, quotas
from shoestring_core.decide.deadlines import DeadlineTurn
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import gpus_of, is_stale
from shoestring_core.decide.queue import AccountBalance, FairQueue, QueuedJob, QueueSnapshot, RunningJob
from shoestring_core.decide.refusals import RecentRefusal
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.room import Blocker, Opening, Room, RoomAboutToBeFree, TimeLimits
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import WaitReason
from shoestring_core.wording import waits
from shoestring_core.wording.deadlines import ForSpot


@dataclass(frozen=True, slots=True)
class StartInputs:
    """Everything that one job's decision depends on; stored with the attempt, so that it can be recomputed.

    machines_in_use    by provider
    slots_blocked_by   an earlier job that waits for slots, by provider
    budget_blocked_by  an earlier job that waits for budget, and the account that is short
    refusals           what providers refused lately
    refused_until      when an earlier job that needs the same, and was refused it, is tried again (µs UTC)
    timeouts           by provider
    vcpus_in_use       by quota, as `quotas.quota_id` names it
    quotas_blocked     those that an earlier job waits for
    gpus_blocked_by    an earlier job that waits for GPUs that an account of this one may have, and that account
    """

    queued: QueuedJob
    offers: tuple[Offer, ...]
    machines_in_use: dict[str, int]
    balances: tuple[AccountBalance, ...]
    slots_blocked_by: dict[str, Blocker]
    budget_blocked_by: tuple[Blocker, str] | None
    now: int
    refusals: tuple[RecentRefusal, ...]
    timeouts: dict[str, Timeouts]
    refused_until: int = 0
    storage: funding.Storage = funding.STORABLE
    vcpus_in_use: dict[str, int] = field(default_factory=dict)
    quotas_blocked: tuple[str, ...] = ()
    gpus_blocked_by: tuple[Blocker, str] | None = None

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _INPUTS.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> StartInputs:
        return _INPUTS.validate_python(tree)


@dataclass(frozen=True, slots=True)
class Start:
    """Launch `nodes` machines of `offer`, each with `hold` micro-dollars reserved until `funded_until`."""

    job: UUID
    attempt: int
    reopened: bool
    nodes: int
    offer: Offer
    hold: int
    funded_until: int
    inputs: StartInputs


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job doesn't start.

    providers      those whose slots it waits for
    quotas         those that it waits for, as `quotas.quota_id` names them
    short_account  the account whose budget is too low, if that is the reason, and its name
    capped_account  likewise the account that may have no more GPUs now
    """

    job: UUID
    detail: waits.WaitDetail
    providers: tuple[str, ...] = ()
    quotas: tuple[str, ...] = ()
    short_account: tuple[UUID, str] | None = None
    capped_account: tuple[UUID, str] | None = None

    @property
    def reason(self) -> WaitReason:
        return self.detail.waits_for


@dataclass(frozen=True)
class SchedulingDecision:
    """
    evictions       running jobs that make room for some of those that wait
    short_accounts  accounts of which no later job starts: one of these waits for their budget, or they run as many as
                    they may
    complete        False: the turn is a job's that was not read and may start; nothing is decided beyond it
    """

    starts: tuple[Start, ...]
    waits: tuple[Wait, ...]
    short_accounts: frozenset[UUID] = frozenset()
    complete: bool = True
    evictions: tuple[preemption.Eviction, ...] = ()


def schedule_jobs(
    snapshot: QueueSnapshot,
    offers: Iterable[Offer],
    now: int,
    timeouts: Mapping[str, Timeouts],
    storage: funding.Storage = funding.STORABLE,
    unanswered: Mapping[str, str] | None = None,
    unserved: Mapping[str, int] | None = None,
) -> SchedulingDecision:
    """Decide for each job, in the order of service; each start reduces what is left for the jobs behind it.

    Nothing depends on jobs that can't start any more: if they were not read, the decisions are the same.

    offers      of providers that are served now
    timeouts    by provider
    unanswered  those of them that have not said what they offer since this worker started, or can't be asked until
                somebody acts: why, as a sentence; "": it is being asked
    unserved    providers that were served once: when each answered last (µs UTC)
    """
    available = tuple(offers)
    with_quota = quotas.offers_with_quota(available)
    running = [replace(job, vcpus=quotas.vcpus_in_use(dict(job.machines), with_quota)) for job in snapshot.running]
    vcpus_in_use = quotas.vcpus_in_use(snapshot.products, with_quota)
    room = Room(
        available, dict(snapshot.machines_in_use), vcpus_in_use, now, snapshot.refusals, dict(timeouts), storage,
        unanswered=unanswered or {}, unserved=unserved or {},
    )  # fmt: skip
    about_to_be_free = RoomAboutToBeFree(room, running)
    time_limits = TimeLimits(running, about_to_be_free.slots)
    starts: list[Start] = []
    waiting: list[Wait] = []
    evictions: list[preemption.Eviction] = []
    waiting_for_budget: dict[UUID, tuple[Blocker, str]] = {}
    waiting_for_gpus: dict[UUID, tuple[Blocker, str]] = {}
    refused_until: dict[Requirements, int] = {}
    with_slots = [name for name in timeouts if not _has_only_stale_offers(available, name, now)]
    complete = True
    balances, precedence = dict(snapshot.balances), _Precedence()
    turns = FairQueue(snapshot, balances, room.lowest_rate)
    for accounts, queued in turns:
        if queued is None:
            exhausted = all(name in room.slots_blocked_by for name in with_slots)
            if exhausted or any(account.id in waiting_for_budget for account in accounts):
                continue
            if concurrency.find_jobs_cap(accounts):
                continue
            complete = False
            break
        turn = _Turn(
            queued,
            balances=(balances[queued.account_path[0]], *accounts),
            budget_blocked_by=_first_of(queued, waiting_for_budget)
            if waiting_for_budget and not queued.committed  # else no other can be short of what pays for it
            else None,
            refused_until=refused_until.get(queued.requirements, 0) if refused_until else 0,
            gpus_blocked_by=_first_of(queued, waiting_for_gpus) if waiting_for_gpus else None,
        )
        if queued.refused:
            refused_until[queued.requirements] = max(turn.refused_until, queued.not_before)
        decision = _decide(turn, room, precedence)
        team = turn.balances[-2]
        if isinstance(decision, Start):
            starts.append(decision)
            offer, nodes = decision.offer, decision.nodes
            room.take(offer, nodes)
            if (end := room.ends_by(queued, offer)) is not None:
                time_limits.add(end, offer.provider, nodes)
            hold = max(0, nodes * decision.hold - queued.committed)
            rate, gpus = funding.rate_of(offer, nodes), gpus_of(offer, nodes)
            for balance in accounts:  # the job's own is no other's
                balances[balance.id] = balance.holding(hold, rate, 1, gpus)
            turns.balances_changed(team.id)
            precedence.balances_changed()
            continue
        waiting.append(decision)
        if turn.budget_blocked_by:
            continue  # another job starts before it, so it keeps neither slots nor budget from others
        guaranteed = team.guaranteed_rate > 0 and team.guarantees(room.lowest_rate(queued))
        if guaranteed and isinstance(decision.detail, waits.MachinesInUse | waits.QuotaInUse):
            made = _make_room(turn, room, running, balances, about_to_be_free)
            if made is not None:
                evictions += made.evictions
                # what its team is about to have doesn't run yet, so it makes none of what runs an excess over its rate
                running = [job for job in running if job.team != team.id and job not in made.evicted]
                balances |= made.balances
                for account in made.balances:
                    turns.balances_changed(account)
                precedence.balances_changed()
        short_of_slots = [provider for provider in decision.providers if provider not in room.slots_blocked_by]
        short_of_quotas = [quota for quota in decision.quotas if quota not in room.quotas_blocked]
        if short_of_slots or short_of_quotas or decision.short_account or decision.capped_account:
            blocker = Blocker(queued.job, turn.balances, guaranteed)
            if short_of_slots or short_of_quotas:
                nodes = queued.requirements.nodes
                room.block(time_limits.blocked_by(blocker, nodes, room, short_of_slots), short_of_quotas)
            if decision.short_account:
                account, name = decision.short_account
                waiting_for_budget.setdefault(account, (blocker, name))
            if decision.capped_account:
                account, name = decision.capped_account
                waiting_for_gpus.setdefault(account, (blocker, name))
    full = () if complete else (account for account, balance in balances.items() if balance.runs_all_it_may)
    short = frozenset((*waiting_for_budget, *full))
    return SchedulingDecision(tuple(starts), tuple(waiting), short, complete, tuple(evictions))


def decide_start(inputs: StartInputs) -> Start | Wait:
    """Whether one job starts. The first reason in this order is the one that the user sees."""
    blocked_by = inputs.budget_blocked_by, inputs.gpus_blocked_by
    turn = _Turn(inputs.queued, inputs.balances, blocked_by[0], inputs.refused_until, blocked_by[1])
    room = Room(
        inputs.offers, inputs.machines_in_use, inputs.vcpus_in_use, inputs.now, inputs.refusals, inputs.timeouts,
        inputs.storage, inputs.slots_blocked_by, inputs.quotas_blocked,
    )  # fmt: skip
    return _decide(turn, room, _Precedence())


@dataclass(slots=True)
class _Turn:
    """A job's turn. The fields are as in `StartInputs`."""

    queued: QueuedJob
    balances: tuple[AccountBalance, ...]
    budget_blocked_by: tuple[Blocker, str] | None
    refused_until: int
    gpus_blocked_by: tuple[Blocker, str] | None

    @property
    def most_gpus(self) -> int | None:
        """That it may have beside what runs: none while an earlier job waits for some; None: there is no cap."""
        return 0 if self.gpus_blocked_by else concurrency.free_gpus(self.balances)


def _first_of(queued: QueuedJob, waiting: Mapping[UUID, tuple[Blocker, str]]) -> tuple[Blocker, str] | None:
    """The earlier job that waits for one of this job's accounts, its own first."""
    return next((waiting[account] for account in queued.account_path if account in waiting), None)


def _has_only_stale_offers(offers: tuple[Offer, ...], provider: str, now: int) -> bool:
    """False without any: a provider may offer more when it knows what later jobs require."""
    own = [offer for offer in offers if offer.provider == provider]
    return bool(own) and all(is_stale(offer, now) for offer in own)


class _Precedence:
    """Why another job goes before a member's: the same for all of these, until balances change."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[UUID, UUID], waits.LessUsed | waits.WithinGuaranteedRate | None] = {}

    def reason(
        self, blocker: Blocker, balances: Sequence[AccountBalance]
    ) -> waits.LessUsed | waits.WithinGuaranteedRate | None:
        pair = blocker.job, balances[1].id
        try:
            return self._reasons[pair]
        except KeyError:
            reason = self._reasons[pair] = _why_first(blocker, balances)
            return reason

    def balances_changed(self) -> None:
        self._reasons.clear()


def _make_room(
    turn: _Turn,
    room: Room,
    running: Sequence[RunningJob],
    balances: Mapping[UUID, AccountBalance],
    about_to_be_free: RoomAboutToBeFree,
) -> preemption.Room | None:
    """For a job with which its team borrows nothing: on the best offer where enough is about to be free, or others can
    be evicted. Only the first that waits there has any made: what is freed is for it alone.
    """
    requirements = turn.queued.requirements
    nodes = requirements.nodes
    for offer in room.placement(requirements).within_gpus(turn.most_gpus).best_by_quota:
        quota = quotas.quota_id(offer)
        if offer.provider in room.slots_blocked_by or quota in room.quotas_blocked:
            continue
        slots, vcpus = room.free_slots(offer), quotas.free_vcpus(offer, room.vcpus_in_use)
        vcpus_coming = about_to_be_free.vcpus[quota] if quota else 0
        there = tuple(job for job in running if job.provider == offer.provider)
        case = preemption.EvictionInputs(
            claimant=turn.queued.job,
            rate=funding.rate_of(offer, nodes),
            team=turn.balances[-2],
            provider=offer.provider,
            slots_missing=0 if slots is None else max(0, nodes - slots - about_to_be_free.slots[offer.provider]),
            quota=quota,
            vcpus_missing=0 if vcpus is None else max(0, quotas.vcpus_of(offer, nodes) - vcpus - vcpus_coming),
            running=there,
            lenders=tuple(balances[team] for team in sorted({job.team for job in there})),
            now=room.now,
        )
        if made := preemption.make_room(case):
            return made
    return None


def _decide(turn: _Turn, room: Room, precedence: _Precedence) -> Start | Wait:
    queued, requirements, most_gpus = turn.queued, turn.queued.requirements, turn.most_gpus
    if queued.deadline is not None and queued.deadline.market == "wait":
        return Wait(queued.job, _for_spot(queued.deadline))
    opening = room.opening(queued, most_gpus)
    if opening is None and room.placement(requirements).best is None:
        return Wait(queued.job, room.why_none(requirements))
    if queued.terminating_machines or queued.closing:
        detail = waits.EarlierMachinesTerminating(max(1, queued.terminating_machines))
        suitable = tuple(room.placement(requirements).best_by_provider)
        return Wait(queued.job, detail, suitable if queued.terminating_machines else ())
    if room.now < queued.not_before:
        return Wait(queued.job, waits.RetryDelayed())
    if room.now < turn.refused_until:
        return Wait(queued.job, waits.BehindRefusedJob())
    if full := concurrency.find_jobs_cap(turn.balances):
        return Wait(queued.job, full)
    if opening is None:
        return _wait_for_gpus(turn, room, precedence)
    if not opening.storable:
        return Wait(queued.job, waits.NothingStorable(room.storage.problem))
    need = requirements.nodes * opening.hold - queued.committed
    if need > 0 and (shortage := find_shortage(turn.balances, need, requirements.nodes)):
        balance, short = shortage
        return Wait(queued.job, short, short_account=(balance.id, balance.name))
    if not opening.has_room:
        return Wait(queued.job, _what_is_in_use(turn, room, opening, precedence), opening.full, opening.used_up)
    if turn.budget_blocked_by:
        # last: while nothing is free, only the head of the queue is read, which may lack the job that goes first
        blocker, name = turn.budget_blocked_by
        return Wait(queued.job, waits.BehindJobShortOfBudget(name, precedence.reason(blocker, turn.balances)))
    return _start(turn, room, opening)


def _for_spot(turn: DeadlineTurn) -> waits.WaitDetail:
    if turn.case is None:
        return waits.InQueue()
    return ForSpot(turn.case.on_demand_at, turn.case.plan.deadline)


def _wait_for_gpus(turn: _Turn, room: Room, precedence: _Precedence) -> Wait:
    """Its team or member may not have as many as it needs beside what runs, or beside what an earlier job waits for."""
    job, needed = turn.queued.job, room.placement(turn.queued.requirements).fewest_gpus
    if capped := concurrency.find_gpus_cap(turn.balances, needed):
        balance, detail = capped
        return Wait(job, detail, capped_account=(balance.id, balance.name) if needed <= detail.cap else None)
    assert turn.gpus_blocked_by
    blocker, name = turn.gpus_blocked_by
    return Wait(job, waits.BehindJobAtCap(name, precedence.reason(blocker, turn.balances)))


def find_shortage(
    balances: Sequence[AccountBalance], need: int, nodes: int
) -> tuple[AccountBalance, waits.BudgetOverdrawn | waits.BudgetShort] | None:
    """The first of a job's accounts, its own first, that can't hold `need` for its machines, and what it lacks."""
    for balance in balances:
        own = balance is balances[0]
        if balance.overdraft:
            return balance, waits.BudgetOverdrawn(balance.name, money.to_decimal(balance.overdraft), own)
        if missing := balance.shortfall(need):
            amounts = money.to_decimal(need), money.to_decimal(missing)
            return balance, waits.BudgetShort(balance.name, *amounts, nodes, own, balance.held >= missing)
    return None


def _what_is_in_use(
    turn: _Turn, room: Room, opening: Opening, precedence: _Precedence
) -> waits.MachinesInUse | waits.QuotaInUse:
    """Slots of the best offer's provider, or else the quota that its machines count against."""
    offer, nodes = opening.offer, turn.queued.requirements.nodes
    if offer.provider not in opening.full:
        return quotas.in_use(offer, nodes, room.vcpus_in_use, quotas.quota_id(offer) in room.quotas_blocked)
    blocker = room.slots_blocked_by.get(offer.provider)
    first = precedence.reason(blocker, turn.balances) if blocker else None
    return waits.MachinesInUse(nodes, room.free_slots(offer), offer.slots, blocker is not None, first)


def _why_first(
    blocker: Blocker, balances: Sequence[AccountBalance]
) -> waits.LessUsed | waits.WithinGuaranteedRate | None:
    """Why the blocker's team, or its member in the same team, goes first; None: its job came first."""
    team = blocker.balances[-2]
    if blocker.guaranteed and team.id != balances[-2].id:
        rates = money.to_decimal(team.rate), money.to_decimal(team.guaranteed_rate)
        return waits.WithinGuaranteedRate(team.name, *rates)
    for theirs, own in zip(blocker.balances[-2:0:-1], balances[-2:0:-1], strict=False):
        if theirs.id != own.id:
            if theirs.used_by_weight >= own.used_by_weight:
                return None
            used = _rounded(theirs.used), _rounded(own.used)
            return waits.LessUsed(theirs.name, own.name, *used, theirs.weight, own.weight)
    return None


@lru_cache(maxsize=4096)
def _rounded(amount: int) -> str:
    """Dollars to a cent, or two digits of less than one, so that a stored wait seldom changes."""
    return money.to_decimal(round(amount, -min(4, max(0, len(str(amount)) - 2))))


def _start(turn: _Turn, room: Room, opening: Opening) -> Start:
    queued, offer = turn.queued, opening.offer
    inputs = StartInputs(
        queued=queued,
        offers=room.offers,
        machines_in_use=room.machines_in_use,
        balances=turn.balances,
        slots_blocked_by=room.slots_blocked_by,
        budget_blocked_by=turn.budget_blocked_by,
        now=room.now,
        refusals=room.refusals,
        timeouts=room.timeouts,
        refused_until=turn.refused_until,
        storage=room.storage,
        vcpus_in_use=room.vcpus_in_use,
        quotas_blocked=room.quotas_blocked,
        gpus_blocked_by=turn.gpus_blocked_by,
    )
    return Start(
        job=queued.job,
        attempt=queued.attempt,
        reopened=queued.reopened,
        nodes=queued.requirements.nodes,
        offer=offer,
        hold=opening.hold,
        funded_until=funding.funded_until(room.now, room.timeouts[offer.provider], room.storage.until),
        inputs=inputs,
    )


_INPUTS = TypeAdapter(StartInputs)
