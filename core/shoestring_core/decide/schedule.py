# SPDX-License-Identifier: Apache-2.0
"""Which queued jobs start now, on which offer, with what hold; and why the others wait.

Jobs are served in the order of `queue.FairQueue`. While a job waits for slots, no later job starts on the providers
whose slots it waits for, except to fill a gap: one that its time limit ends before the limits of running jobs let the
earlier one start. While it waits for a quota of the provider's account, none starts that counts against the same one.
While a job waits for budget, no later job starts that would draw on the same exhausted account; jobs paid from
elsewhere do. While a job waits for a backoff because it was refused machines, no later job that needs the same starts:
backoffs don't change the order. Any other job that waits for a backoff, one that can never start, and one that is
itself behind one that waits for budget, block nobody.

The stages: whose turn it is (`queue`), which offers suit, best first (`placement`), whether the job may start on one
(`_decide`), and if only room is missing, who makes it (`preemption`). The words are those of `wording.waits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide import funding, preemption, quotas
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import Placement, is_stale, rank_offers
from shoestring_core.decide.queue import AccountBalance, FairQueue, QueuedJob, QueueSnapshot, RunningJob
from shoestring_core.decide.refusals import RecentRefusal
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import WaitReason
from shoestring_core.wording import waits


@dataclass(frozen=True)
class Blocker:
    """A job that waits, whose turn was earlier.

    balances    of its accounts at its turn, its own first
    guaranteed  it was its turn because its team borrows nothing for it
    room_at     of the slots that it waits for: when the time limits of running jobs will have made enough free (µs
                UTC); None: that isn't known
    """

    job: UUID
    balances: tuple[AccountBalance, ...]
    guaranteed: bool = False
    room_at: int | None = None


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
    """

    job: UUID
    detail: waits.WaitDetail
    providers: tuple[str, ...] = ()
    quotas: tuple[str, ...] = ()
    short_account: tuple[UUID, str] | None = None

    @property
    def reason(self) -> WaitReason:
        return self.detail.waits_for


@dataclass(frozen=True)
class SchedulingDecision:
    """
    evictions       running jobs that make room for some of those that wait
    short_accounts  accounts that pay for no later job, because one of these waits for their budget
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
) -> SchedulingDecision:
    """Decide for each job, in the order of service; each start reduces what is left for the jobs behind it.

    Nothing depends on jobs that can't start any more: if they were not read, the decisions are the same.

    offers    of providers that are served now
    timeouts  by provider
    """
    available, by_provider = tuple(offers), dict(timeouts)
    shared = _Shared(available, now, snapshot.refusals)
    starts: list[Start] = []
    waiting: list[Wait] = []
    evictions: list[preemption.Eviction] = []
    balances, in_use = dict(snapshot.balances), dict(snapshot.machines_in_use)
    with_quota = quotas.offers_with_quota(available)
    vcpus_in_use = quotas.vcpus_in_use(snapshot.products, with_quota)
    running = [replace(job, vcpus=quotas.vcpus_in_use(dict(job.machines), with_quota)) for job in snapshot.running]
    about_to_be_free = _RoomAboutToBeFree(in_use, vcpus_in_use, running)
    time_limits = _TimeLimits(running, about_to_be_free.slots)
    waiting_for_quotas: tuple[str, ...] = ()
    waiting_for_slots: dict[str, Blocker] = {}
    waiting_for_budget: dict[UUID, tuple[Blocker, str]] = {}
    refused_until: dict[Requirements, int] = {}
    with_slots = [name for name in by_provider if not _has_only_stale_offers(available, name, now)]
    complete = True
    turns = FairQueue(snapshot, balances, shared.lowest_rate)
    for accounts, queued in turns:
        if queued is None:
            exhausted = all(name in waiting_for_slots for name in with_slots)
            if exhausted or any(account.id in waiting_for_budget for account in accounts):
                continue
            complete = False
            break
        inputs = StartInputs(
            queued=queued,
            offers=available,
            machines_in_use=in_use,
            balances=(balances[queued.account_path[0]], *accounts),
            slots_blocked_by=waiting_for_slots,
            budget_blocked_by=_first_short(queued, waiting_for_budget) if waiting_for_budget else None,
            now=now,
            refusals=snapshot.refusals,
            timeouts=by_provider,
            refused_until=refused_until.get(queued.requirements, 0) if refused_until else 0,
            storage=storage,
            vcpus_in_use=vcpus_in_use,
            quotas_blocked=waiting_for_quotas,
        )
        if queued.refused:
            refused_until[queued.requirements] = max(inputs.refused_until, queued.not_before)
        decision = _decide(inputs, shared)
        team = inputs.balances[-2]
        if isinstance(decision, Start):
            starts.append(decision)
            in_use = in_use | {decision.offer.provider: in_use.get(decision.offer.provider, 0) + decision.nodes}
            if (quota := quotas.quota_id(decision.offer)) is not None:
                added = quotas.vcpus_of(decision.offer, decision.nodes)
                vcpus_in_use = vcpus_in_use | {quota: vcpus_in_use.get(quota, 0) + added}
            hold, rate = decision.hold * decision.nodes, rate_of(decision.offer, decision.nodes)
            for balance in accounts:  # the job's own is no other's
                balances[balance.id] = balance.holding(hold, rate)
            turns.balances_changed(team.id)
            time_limits.add_start(decision)
            shared.balances_changed()
            if decision.offer.slots is not None or quota is not None:
                shared.room_changed()
            continue
        waiting.append(decision)
        if inputs.budget_blocked_by:
            continue  # another job starts before it, so it keeps neither slots nor budget from others
        guaranteed = team.guaranteed_rate > 0 and team.guarantees(shared.lowest_rate(queued))
        if guaranteed and isinstance(decision.detail, waits.MachinesInUse | waits.QuotaInUse):
            room = _make_room(inputs, shared.placement(queued), running, balances, about_to_be_free)
            if room is not None:
                evictions += room.evictions
                running = [job for job in running if job not in room.evicted]
                balances |= room.balances
                for account in room.balances:
                    turns.balances_changed(account)
                shared.balances_changed()
        short_of_slots = [provider for provider in decision.providers if provider not in waiting_for_slots]
        short_of_quotas = [quota for quota in decision.quotas if quota not in waiting_for_quotas]
        if short_of_slots or short_of_quotas or decision.short_account:
            blocker = Blocker(queued.job, inputs.balances, guaranteed)
            if short_of_slots or short_of_quotas:
                waiting_for_slots = waiting_for_slots | time_limits.blocked_by(blocker, inputs, short_of_slots)
                waiting_for_quotas = (*waiting_for_quotas, *short_of_quotas)
                shared.room_changed()
            if decision.short_account:
                account, name = decision.short_account
                waiting_for_budget.setdefault(account, (blocker, name))
    short = frozenset(waiting_for_budget)
    return SchedulingDecision(tuple(starts), tuple(waiting), short, complete, tuple(evictions))


def decide_start(inputs: StartInputs) -> Start | Wait:
    """Whether one job starts. The first reason in this order is the one that the user sees."""
    return _decide(inputs, _Shared(inputs.offers, inputs.now, inputs.refusals))


def _first_short(queued: QueuedJob, waiting: Mapping[UUID, tuple[Blocker, str]]) -> tuple[Blocker, str] | None:
    """The earlier job that waits for the budget of one of this job's accounts, its own first."""
    return next((waiting[account] for account in queued.account_path if account in waiting), None)


def _has_only_stale_offers(offers: tuple[Offer, ...], provider: str, now: int) -> bool:
    """False without any: a provider may offer more when it knows what later jobs require."""
    own = [offer for offer in offers if offer.provider == provider]
    return bool(own) and all(is_stale(offer, now) for offer in own)


class _Shared:
    """What is the same for many jobs, worked out once: which offers suit all with the same requirements; until room
    changes, because a job takes it or waits for it, where those would start; until balances change, why another job
    goes before a member's."""

    def __init__(self, offers: tuple[Offer, ...], now: int, refusals: tuple[RecentRefusal, ...]) -> None:
        self._offers, self._now, self._refusals = offers, now, refusals
        self._placements: dict[Requirements, Placement] = {}
        self._openings: dict[tuple[Requirements, int | None], _Opening | waits.WaitDetail] = {}
        self._why_first: dict[tuple[UUID, UUID], waits.LessUsed | waits.WithinGuaranteedRate | None] = {}

    def placement(self, queued: QueuedJob) -> Placement:
        """The offers that suit the job, and why the others don't."""
        found = self._placements.get(queued.requirements)
        if found is None:
            found = rank_offers(self._offers, queued.requirements, self._now, self._refusals)
            self._placements[queued.requirements] = found
        return found

    def lowest_rate(self, queued: QueuedJob) -> int:
        """Micro-dollars an hour of the job's machines on the best offer; 0 if none suits it."""
        best = self.placement(queued).best
        return rate_of(best, queued.requirements.nodes) if best else 0

    def opening(self, inputs: StartInputs) -> _Opening | waits.WaitDetail:
        need = inputs.queued.requirements, inputs.queued.time_limit
        found = self._openings.get(need)
        if found is None:
            found = self._openings[need] = _find_opening(inputs, self.placement(inputs.queued))
        return found

    def why_first(
        self, blocker: Blocker, balances: Sequence[AccountBalance]
    ) -> waits.LessUsed | waits.WithinGuaranteedRate | None:
        pair = blocker.job, balances[1].id
        found = self._why_first.get(pair, "unknown")
        if found == "unknown":
            found = self._why_first[pair] = _why_first(blocker, balances)
        return found

    def room_changed(self) -> None:
        self._openings.clear()

    def balances_changed(self) -> None:
        self._why_first.clear()


def rate_of(offer: Offer, nodes: int) -> int:
    """Micro-dollars an hour that so many of its machines cost now."""
    return nodes * _hourly_rate(offer.price)


class _RoomAboutToBeFree:
    """Slots by provider, and vCPUs by quota, of machines that their jobs don't want any more."""

    def __init__(
        self, slots_in_use: Mapping[str, int], vcpus_in_use: Mapping[str, int], running: Iterable[RunningJob]
    ) -> None:
        self.slots, self.vcpus = Counter(slots_in_use), Counter(vcpus_in_use)
        for job in running:
            self.slots[job.provider] -= job.slots
            self.vcpus.subtract(job.vcpus)


class _TimeLimits:
    """When slots will be free at the latest, by provider, because time limits end what runs there."""

    def __init__(self, running: Iterable[RunningJob], about_to_be_free: Mapping[str, int]) -> None:
        self._ends = [(job.ends_by, job.provider, job.slots) for job in running if job.ends_by is not None]
        self._about_to_be_free = about_to_be_free

    def add_start(self, start: Start) -> None:
        if (end := _ends_by(start.inputs, start.offer)) is not None:
            self._ends.append((end, start.offer.provider, start.nodes))

    def blocked_by(self, blocker: Blocker, inputs: StartInputs, providers: Iterable[str]) -> dict[str, Blocker]:
        """What keeps later jobs from the slots of these providers."""
        free = {offer.provider: _free_slots(inputs, offer) or 0 for offer in inputs.offers} if self._ends else {}
        return {
            provider: replace(blocker, room_at=self._room_at(provider, inputs, free[provider])) if free else blocker
            for provider in providers
        }

    def _room_at(self, provider: str, inputs: StartInputs, free: int) -> int | None:
        slots = free + self._about_to_be_free.get(provider, 0)
        for end, where, number in sorted(self._ends):
            if slots >= inputs.queued.requirements.nodes:
                break  # the next schedule starts it
            if where == provider:
                slots += number
                if slots >= inputs.queued.requirements.nodes:
                    return end
        return None


def _ends_by(inputs: StartInputs, offer: Offer) -> int | None:
    """When the job's time limit ends it if it starts now on this offer (µs UTC), with the time to start and end."""
    if inputs.queued.time_limit is None:
        return None
    timeouts = inputs.timeouts[offer.provider]
    starting = timeouts.boot + timeouts.launch_window + timeouts.forming
    return inputs.now + starting + inputs.queued.time_limit + timeouts.drain


def _make_room(
    inputs: StartInputs,
    placement: Placement,
    running: Sequence[RunningJob],
    balances: Mapping[UUID, AccountBalance],
    about_to_be_free: _RoomAboutToBeFree,
) -> preemption.Room | None:
    """For a job with which its team borrows nothing: on the best offer where enough is about to be free, or others can
    be evicted. Only the first that waits there has any made: what is freed is for it alone.
    """
    nodes = inputs.queued.requirements.nodes
    for offer in placement.best_by_quota:
        quota = quotas.quota_id(offer)
        if offer.provider in inputs.slots_blocked_by or quota in inputs.quotas_blocked:
            continue
        slots, vcpus = _free_slots(inputs, offer), quotas.free_vcpus(offer, inputs.vcpus_in_use)
        vcpus_coming = about_to_be_free.vcpus[quota] if quota else 0
        there = tuple(job for job in running if job.provider == offer.provider)
        case = preemption.EvictionInputs(
            claimant=inputs.queued.job,
            rate=rate_of(offer, nodes),
            team=inputs.balances[-2],
            provider=offer.provider,
            slots_missing=0 if slots is None else max(0, nodes - slots - about_to_be_free.slots[offer.provider]),
            quota=quota,
            vcpus_missing=0 if vcpus is None else max(0, quotas.vcpus_of(offer, nodes) - vcpus - vcpus_coming),
            running=there,
            lenders=tuple(balances[team] for team in sorted({job.team for job in there})),
            now=inputs.now,
        )
        if room := preemption.make_room(case):
            return room
    return None


@dataclass(frozen=True, slots=True)
class _Opening:
    """The offer on which a job would start: for all jobs that need the same it is the same, until another one starts or
    waits for room.

    offer      the best that has room, or if none has, the best
    has_room   if not, `providers` have too few slots, and `quotas` are used up
    storable   whether a machine that is launched now has time to store anything
    hold       micro-dollars that are held to start one machine
    suitable   providers whose offers suit the job, best first
    """

    offer: Offer
    has_room: bool
    storable: bool
    hold: int
    suitable: tuple[str, ...]
    providers: tuple[str, ...] = ()
    quotas: tuple[str, ...] = ()


def _find_opening(inputs: StartInputs, placement: Placement) -> _Opening | waits.WaitDetail:
    """Or why no offer suits."""
    requirements, best = inputs.queued.requirements, placement.best
    if best is None:
        return why_no_offer(requirements, placement)
    storable, suitable = _can_store(inputs, best), tuple(placement.best_by_provider)
    for offer in placement.best_by_quota:
        if _has_room(inputs, offer):
            hold = machine_hold(offer, requirements, inputs.timeouts[offer.provider])
            return _Opening(offer, True, storable, hold, suitable)
    full = tuple(name for name, offer in placement.best_by_provider.items() if not _has_free_slots(inputs, offer))
    named = [quotas.quota_id(offer) for offer in placement.best_by_quota if offer.provider not in full]
    used_up = tuple(dict.fromkeys(quota for quota in named if quota is not None))
    hold = machine_hold(best, requirements, inputs.timeouts[best.provider])
    return _Opening(best, False, storable, hold, suitable, full, used_up)


def _decide(inputs: StartInputs, shared: _Shared) -> Start | Wait:
    queued, opening = inputs.queued, shared.opening(inputs)
    if not isinstance(opening, _Opening):
        return Wait(queued.job, opening)
    if queued.terminating_machines or queued.closing:
        detail = waits.EarlierMachinesTerminating(max(1, queued.terminating_machines))
        return Wait(queued.job, detail, opening.suitable if queued.terminating_machines else ())
    if inputs.now < queued.not_before:
        return Wait(queued.job, waits.RetryDelayed())
    if inputs.now < inputs.refused_until:
        return Wait(queued.job, waits.BehindRefusedJob())
    if not opening.storable:
        return Wait(queued.job, waits.NothingStorable(inputs.storage.problem))
    nodes = queued.requirements.nodes
    if shortage := find_shortage(inputs.balances, nodes * opening.hold, nodes):
        balance, short = shortage
        return Wait(queued.job, short, short_account=(balance.id, balance.name))
    if not opening.has_room:
        return Wait(queued.job, _what_is_in_use(inputs, opening, shared), opening.providers, opening.quotas)
    # last: while nothing is free, only the head of the queue is read, which may lack the job that goes first
    return _wait_for_turn(inputs, shared) or _start(inputs, opening)


def _can_store(inputs: StartInputs, offer: Offer) -> bool:
    """Whether a machine that is launched now has time to store anything."""
    until = funding.funded_until(inputs.now, inputs.timeouts[offer.provider], inputs.storage.until)
    return not inputs.storage.problem and until > inputs.now


def why_no_offer(requirements: Requirements, placement: Placement) -> waits.WaitDetail:
    """Why no offer suits a job, by the offers that come closest."""
    passed_over = {one.reason: one.offer for one in placement.passed_over}
    if silent := passed_over.get("unanswered"):
        return waits.ProviderUnanswered(silent.provider)
    if full := passed_over.get("quota"):
        return waits.QuotaExhausted(full.provider, full.type, full.market)
    if above := _closest_to_quota(placement):
        return quotas.below_need(above, requirements.nodes)
    if small := passed_over.get("slots"):
        return waits.TooFewSlots(requirements.nodes, small.provider, small.slots or 0)
    return placement.no_offer


def _closest_to_quota(placement: Placement) -> Offer | None:
    """Of the offers that the account's quotas don't cover, the one for which the least has to be asked."""
    above = [one.offer for one in placement.passed_over if one.reason == "above_quota"]
    return min(above, key=lambda offer: (quotas.vcpus_of(offer), Decimal(offer.price)), default=None)


def _wait_for_turn(inputs: StartInputs, shared: _Shared) -> Wait | None:
    if inputs.budget_blocked_by is None:
        return None
    blocker, name = inputs.budget_blocked_by
    return Wait(inputs.queued.job, waits.BehindJobShortOfBudget(name, shared.why_first(blocker, inputs.balances)))


def hold_for(offer: Offer, requirements: Requirements, timeouts: Mapping[str, Timeouts]) -> int:
    """Micro-dollars that are held to start the job's machines."""
    return requirements.nodes * machine_hold(offer, requirements, timeouts[offer.provider])


def machine_hold(offer: Offer, requirements: Requirements, timeouts: Timeouts) -> int:
    """Micro-dollars that are held to start one of the job's machines."""
    return funding.initial_hold(offer.rate_cap, timeouts, offer.billing.minimum, requirements.reserved_time)


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


def _has_room(inputs: StartInputs, offer: Offer) -> bool:
    if not _has_free_slots(inputs, offer) or quotas.quota_id(offer) in inputs.quotas_blocked:
        return False
    free = quotas.free_vcpus(offer, inputs.vcpus_in_use)
    return free is None or quotas.vcpus_of(offer, inputs.queued.requirements.nodes) <= free


def _has_free_slots(inputs: StartInputs, offer: Offer) -> bool:
    if (blocker := inputs.slots_blocked_by.get(offer.provider)) and not _ends_before(inputs, offer, blocker):
        return False
    free = _free_slots(inputs, offer)
    return free is None or inputs.queued.requirements.nodes <= free


def _ends_before(inputs: StartInputs, offer: Offer, blocker: Blocker) -> bool:
    """Whether the job has left the slots again when the one before it can have them: then it fills the gap."""
    end = _ends_by(inputs, offer)
    return end is not None and blocker.room_at is not None and end <= blocker.room_at


def _free_slots(inputs: StartInputs, offer: Offer) -> int | None:
    """None: no limit."""
    return None if offer.slots is None else max(0, offer.slots - inputs.machines_in_use.get(offer.provider, 0))


def _what_is_in_use(
    inputs: StartInputs, opening: _Opening, shared: _Shared
) -> waits.MachinesInUse | waits.QuotaInUse:
    """Slots of the best offer's provider, or else the quota that its machines count against."""
    offer, nodes = opening.offer, inputs.queued.requirements.nodes
    if offer.provider not in opening.providers:
        return quotas.in_use(offer, nodes, inputs.vcpus_in_use, quotas.quota_id(offer) in inputs.quotas_blocked)
    blocker = inputs.slots_blocked_by.get(offer.provider)
    first = shared.why_first(blocker, inputs.balances) if blocker else None
    return waits.MachinesInUse(nodes, _free_slots(inputs, offer), offer.slots, blocker is not None, first)


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
def _hourly_rate(price: str) -> int:
    """Micro-dollars."""
    return money.cost(price, money.HOUR)


@lru_cache(maxsize=4096)
def _rounded(amount: int) -> str:
    """Dollars to a cent, or two digits of less than one, so that a stored wait seldom changes."""
    return money.to_decimal(round(amount, -min(4, max(0, len(str(amount)) - 2))))


def _start(inputs: StartInputs, opening: _Opening) -> Start:
    queued, offer = inputs.queued, opening.offer
    return Start(
        job=queued.job,
        attempt=queued.attempt,
        reopened=queued.reopened,
        nodes=queued.requirements.nodes,
        offer=offer,
        hold=opening.hold,
        funded_until=funding.funded_until(inputs.now, inputs.timeouts[offer.provider], inputs.storage.until),
        inputs=inputs,
    )


_INPUTS = TypeAdapter(StartInputs)
