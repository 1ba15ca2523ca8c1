# SPDX-License-Identifier: Apache-2.0
"""Which queued jobs start now, on which offer, with what hold; and why the others wait.

First come, first served. While a job waits for slots, no later job starts on the providers whose slots it waits for.
While a job waits for budget, no later job starts that would draw on the same exhausted account; jobs paid from
elsewhere do. A job that can never start, or that waits for a backoff after a failed attempt, blocks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide import funding
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import Placement, is_stale, rank_offers
from shoestring_core.decide.refusals import RecentRefusal
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import WaitReason
from shoestring_core.wording import waits


@dataclass(frozen=True)
class AccountBalance:
    """An account at the time of the decision, in micro-dollars."""

    id: UUID
    name: str
    limit: int | None
    posted: int
    held: int
    overdraft: int

    def shortfall(self, amount: int) -> int:
        """How much is missing to hold `amount` more; 0: nothing."""
        if self.limit is None:
            return 0
        missing = self.posted + self.held + amount - self.limit
        return max(missing, 0)


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue.

    account_path          its accounts, leaf to root
    attempt               number of the attempt that would open
    reopened              that attempt was open before and launched no machine
    terminating_machines  of earlier attempts: there are never two living machines for one slot
    closing               its last attempt is not closed yet, even if its machines have terminated
    not_before            it waits for a backoff until then (µs UTC)
    """

    job: UUID
    requirements: Requirements
    account_path: tuple[UUID, ...]
    attempt: int
    reopened: bool = False
    terminating_machines: int = 0
    closing: bool = False
    not_before: int = 0


@dataclass(frozen=True)
class QueueSnapshot:
    """What a schedule is made from. `queue` is in the order of service; `machines_in_use` counts them by provider.

    unreadable  jobs that are left out of the queue because their stored spec or sizing can't be read, and why
    """

    plan_version: int
    queue: tuple[QueuedJob, ...]
    balances: dict[UUID, AccountBalance]
    machines_in_use: dict[str, int]
    unreadable: dict[UUID, str] = field(default_factory=dict)
    refusals: tuple[RecentRefusal, ...] = ()


@dataclass(frozen=True)
class StartInputs:
    """Everything that one job's decision depends on; stored with the attempt, so that it can be recomputed.

    machines_in_use    by provider
    slots_blocked_by   an earlier job that waits for slots, by provider
    budget_blocked_by  an earlier job that waits for budget, and the account that is short
    refusals           what providers refused lately
    timeouts           by provider
    """

    queued: QueuedJob
    offers: tuple[Offer, ...]
    machines_in_use: dict[str, int]
    balances: tuple[AccountBalance, ...]
    slots_blocked_by: dict[str, UUID]
    budget_blocked_by: tuple[UUID, str] | None
    now: int
    refusals: tuple[RecentRefusal, ...]
    timeouts: dict[str, Timeouts]

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _INPUTS.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> StartInputs:
        return _INPUTS.validate_python(tree)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Wait:
    """Why a job doesn't start.

    providers      those whose slots it waits for
    short_account  the account whose budget is too low, if that is the reason, and its name
    """

    job: UUID
    detail: waits.WaitDetail
    providers: tuple[str, ...] = ()
    short_account: tuple[UUID, str] | None = None

    @property
    def reason(self) -> WaitReason:
        return self.detail.waits_for


@dataclass(frozen=True)
class SchedulingDecision:
    """
    short_accounts  accounts that pay for no later job, because one of these waits for their budget
    exhausted       no later job could start, whatever it requires: jobs wait for slots of every provider
    """

    starts: tuple[Start, ...]
    waits: tuple[Wait, ...]
    short_accounts: frozenset[UUID] = frozenset()
    exhausted: bool = False


def schedule_jobs(
    snapshot: QueueSnapshot, offers: Iterable[Offer], now: int, timeouts: Mapping[str, Timeouts]
) -> SchedulingDecision:
    """Decide for each job, in the order of service; each start reduces what is left for the jobs behind it.

    Nothing depends on later jobs: of the queue's head alone, the decisions are the same.

    offers    of providers that are served now
    timeouts  by provider
    """
    available, by_provider = tuple(offers), dict(timeouts)
    placements: dict[Requirements, Placement] = {}
    starts: list[Start] = []
    waiting: list[Wait] = []
    balances, in_use = dict(snapshot.balances), dict(snapshot.machines_in_use)
    waiting_for_slots: dict[str, UUID] = {}
    waiting_for_budget: dict[UUID, tuple[UUID, str]] = {}
    for queued in snapshot.queue:
        short = (waiting_for_budget[account] for account in queued.account_path if account in waiting_for_budget)
        inputs = StartInputs(
            queued=queued,
            offers=available,
            machines_in_use=in_use,
            balances=tuple(balances[account] for account in queued.account_path),
            slots_blocked_by=waiting_for_slots,
            budget_blocked_by=next(short, None),
            now=now,
            refusals=snapshot.refusals,
            timeouts=by_provider,
        )
        if queued.requirements not in placements:
            placements[queued.requirements] = place(inputs)
        decision = _decide(inputs, placements[queued.requirements])
        if isinstance(decision, Start):
            starts.append(decision)
            in_use = in_use | {decision.offer.provider: in_use.get(decision.offer.provider, 0) + decision.nodes}
            for account in queued.account_path:
                held = balances[account].held + decision.hold * decision.nodes
                balances[account] = replace(balances[account], held=held)
            continue
        waiting.append(decision)
        if any(provider not in waiting_for_slots for provider in decision.providers):
            waiting_for_slots = dict.fromkeys(decision.providers, queued.job) | waiting_for_slots
        if decision.short_account:
            account, name = decision.short_account
            waiting_for_budget.setdefault(account, (queued.job, name))
    exhausted = all(name in waiting_for_slots or _has_only_stale_offers(available, name, now) for name in by_provider)
    return SchedulingDecision(tuple(starts), tuple(waiting), frozenset(waiting_for_budget), exhausted)


def decide_start(inputs: StartInputs) -> Start | Wait:
    """Whether one job starts. The first reason in this order is the one that the user sees."""
    return _decide(inputs, place(inputs))


def _has_only_stale_offers(offers: tuple[Offer, ...], provider: str, now: int) -> bool:
    """False without any: a provider may offer more when it knows what later jobs require."""
    own = [offer for offer in offers if offer.provider == provider]
    return bool(own) and all(is_stale(offer, now) for offer in own)


def place(inputs: StartInputs) -> Placement:
    """The offers that suit the job, and why the others don't."""
    return rank_offers(inputs.offers, inputs.queued.requirements, inputs.now, inputs.refusals)


def _decide(inputs: StartInputs, placement: Placement) -> Start | Wait:
    queued = inputs.queued
    if placement.best is None:
        return Wait(queued.job, _why_no_offer(queued, placement))
    providers = tuple(dict.fromkeys(offer.provider for offer in placement.ranked))
    if queued.terminating_machines or queued.closing:
        detail = waits.EarlierMachinesTerminating(max(1, queued.terminating_machines))
        return Wait(queued.job, detail, providers if queued.terminating_machines else ())
    if inputs.now < queued.not_before:
        return Wait(queued.job, waits.RetryDelayed())
    available = next((offer for offer in placement.ranked if _has_free_slots(inputs, offer)), None)
    if wait := _wait_for_budget(inputs, available or placement.best):
        return wait
    return _wait_for_slots(inputs, placement.best, providers) if available is None else _start(inputs, available)


def _why_no_offer(queued: QueuedJob, placement: Placement) -> waits.WaitDetail:
    """Why no offer suits a job, by the offers that come closest."""
    passed_over = {one.reason: one.offer for one in placement.passed_over}
    requirements = queued.requirements
    if silent := passed_over.get("unanswered"):
        return waits.ProviderUnanswered(silent.provider)
    if full := passed_over.get("quota"):
        return waits.QuotaExhausted(full.provider, full.type, full.market)
    if small := passed_over.get("slots"):
        return waits.TooFewSlots(requirements.nodes, small.provider, small.slots or 0)
    return waits.NoOffer(requirements.provider, requirements.type, requirements.spot)


def _wait_for_budget(inputs: StartInputs, offer: Offer) -> Wait | None:
    queued, nodes = inputs.queued, inputs.queued.requirements.nodes
    if shortage := find_shortage(inputs.balances, hold_for(offer, nodes, inputs.timeouts), nodes):
        balance, detail = shortage
        return Wait(queued.job, detail, short_account=(balance.id, balance.name))
    if inputs.budget_blocked_by:
        _, name = inputs.budget_blocked_by
        return Wait(queued.job, waits.BehindJobShortOfBudget(name))
    return None


def hold_for(offer: Offer, nodes: int, timeouts: Mapping[str, Timeouts]) -> int:
    """Micro-dollars that are held to start so many machines."""
    return nodes * funding.initial_hold(offer.on_demand_price, timeouts[offer.provider], offer.billing.minimum)


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
            return balance, waits.BudgetShort(balance.name, *amounts, nodes, own)
    return None


def _has_free_slots(inputs: StartInputs, offer: Offer) -> bool:
    if offer.provider in inputs.slots_blocked_by:
        return False
    free = _free_slots(inputs, offer)
    return free is None or inputs.queued.requirements.nodes <= free


def _free_slots(inputs: StartInputs, offer: Offer) -> int | None:
    """None: no limit."""
    return None if offer.slots is None else max(0, offer.slots - inputs.machines_in_use.get(offer.provider, 0))


def _wait_for_slots(inputs: StartInputs, offer: Offer, providers: tuple[str, ...]) -> Wait:
    nodes, behind = inputs.queued.requirements.nodes, offer.provider in inputs.slots_blocked_by
    detail = waits.MachinesInUse(nodes, _free_slots(inputs, offer), offer.slots, behind)
    return Wait(inputs.queued.job, detail, providers)


def _start(inputs: StartInputs, offer: Offer) -> Start:
    timeouts = inputs.timeouts[offer.provider]
    return Start(
        job=inputs.queued.job,
        attempt=inputs.queued.attempt,
        reopened=inputs.queued.reopened,
        nodes=inputs.queued.requirements.nodes,
        offer=offer,
        hold=funding.initial_hold(offer.on_demand_price, timeouts, offer.billing.minimum),
        funded_until=inputs.now + timeouts.funding_lease,
        inputs=inputs,
    )


_INPUTS = TypeAdapter(StartInputs)
