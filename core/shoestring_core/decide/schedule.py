# SPDX-License-Identifier: Apache-2.0
"""Which queued jobs start now, on which offer, with what hold; and why the others wait.

First come, first served. While a job waits for slots, no later job starts on the providers whose slots it waits for.
While a job waits for budget, no later job starts that would draw on the same exhausted account; jobs paid from
elsewhere do. A job that can never start, or that waits for a backoff after a failed attempt, blocks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide import funding
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import Placement, rank_offers
from shoestring_core.decide.refusals import RecentRefusal
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import Timeouts


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
    backoff_text: str = ""


@dataclass(frozen=True)
class QueueSnapshot:
    """What a schedule is made from. `queue` is in the order of service; `machines_in_use` counts them by provider.

    unreadable  jobs that are left out of the queue because their stored spec or sizing can't be read, and why
    """

    epoch: int
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
    position: int
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
    """Why a job doesn't start: a code, and a sentence that says what to do.

    providers      those whose slots it waits for
    short_account  the account whose budget is too low, if that is the reason, and its name
    """

    job: UUID
    reason: Literal["budget", "slots", "turn", "capacity", "quota", "terminating"]
    text: str
    providers: tuple[str, ...] = ()
    short_account: tuple[UUID, str] | None = None


@dataclass(frozen=True)
class Schedule:
    starts: tuple[Start, ...]
    waits: tuple[Wait, ...]


def schedule_jobs(
    snapshot: QueueSnapshot, offers: Iterable[Offer], now: int, timeouts: Mapping[str, Timeouts]
) -> Schedule:
    """Decide for every queued job, in the order of service; each start reduces what is left for the jobs behind it.

    offers    of providers that are served now
    timeouts  by provider
    """
    available, by_provider = tuple(offers), dict(timeouts)
    placements: dict[Requirements, Placement] = {}
    starts: list[Start] = []
    waits: list[Wait] = []
    balances, in_use = dict(snapshot.balances), dict(snapshot.machines_in_use)
    waiting_for_slots: dict[str, UUID] = {}
    waiting_for_budget: dict[UUID, tuple[UUID, str]] = {}
    for position, queued in enumerate(snapshot.queue, start=1):
        short = (waiting_for_budget[account] for account in queued.account_path if account in waiting_for_budget)
        inputs = StartInputs(
            queued=queued,
            offers=available,
            machines_in_use=in_use,
            balances=tuple(balances[account] for account in queued.account_path),
            position=position,
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
        waits.append(decision)
        if any(provider not in waiting_for_slots for provider in decision.providers):
            waiting_for_slots = dict.fromkeys(decision.providers, queued.job) | waiting_for_slots
        if decision.short_account:
            account, name = decision.short_account
            waiting_for_budget.setdefault(account, (queued.job, name))
    return Schedule(tuple(starts), tuple(waits))


def decide_start(inputs: StartInputs) -> Start | Wait:
    """Whether one job starts. The first reason in this order is the one that the user sees."""
    return _decide(inputs, place(inputs))


def place(inputs: StartInputs) -> Placement:
    """The offers that suit the job, and why the others don't."""
    return rank_offers(inputs.offers, inputs.queued.requirements, inputs.now, inputs.refusals)


def _decide(inputs: StartInputs, placement: Placement) -> Start | Wait:
    queued = inputs.queued
    if placement.best is None:
        return _no_offer(queued, placement)
    providers = tuple(dict.fromkeys(offer.provider for offer in placement.ranked))
    if queued.terminating_machines or queued.closing:
        count = max(1, queued.terminating_machines)
        text = (
            f"{_machines(count, 'earlier machine')} still terminating; "
            f"the job continues once the provider confirms that {'it has' if count == 1 else 'they have'} terminated."
        )
        return Wait(queued.job, "terminating", text, providers if queued.terminating_machines else ())
    if inputs.now < queued.not_before:
        return Wait(queued.job, "capacity", queued.backoff_text)
    available = next((offer for offer in placement.ranked if _has_free_slots(inputs, offer)), None)
    if wait := _wait_for_budget(inputs, available or placement.best):
        return wait
    return _wait_for_slots(inputs, placement.best, providers) if available is None else _start(inputs, available)


def _no_offer(queued: QueuedJob, placement: Placement) -> Wait:
    """Why no offer suits a job, by the offers that come closest."""
    passed_over = {one.reason: one.offer for one in placement.passed_over}
    requirements = queued.requirements
    provider = requirements.provider or "any provider"
    if silent := passed_over.get("unanswered"):
        text = f"{silent.provider} does not answer. The job starts once it does."
        return Wait(queued.job, "capacity", text)
    if full := passed_over.get("quota"):
        text = (
            f"The account's quota of {full.type} machines ({full.market}) at {full.provider} is exhausted. It is tried "
            "again every few minutes; have the quota raised, or wait for other machines to end."
        )
        return Wait(queued.job, "quota", text)
    if small := passed_over.get("slots"):
        text = (
            f"Needs {_machines(requirements.nodes)} at once and {small.provider} has {small.slots} in all. "
            "Stop it and submit it with fewer nodes, or have the provider's limit raised."
        )
        return Wait(queued.job, "capacity", text)
    what = f"{requirements.type} machine" if requirements.type else "machine that this job allows"
    again = "again" if requirements.type else "with another resources.spot"
    text = f"No {what} is offered by {provider} (spot: {requirements.spot}). Submit it {again}."
    return Wait(queued.job, "capacity", text)


def _wait_for_budget(inputs: StartInputs, offer: Offer) -> Wait | None:
    queued, nodes = inputs.queued, inputs.queued.requirements.nodes
    need = nodes * funding.initial_hold(offer.on_demand_price, inputs.timeouts[offer.provider], offer.billing.minimum)
    for balance in inputs.balances:
        own = balance.id == queued.account_path[0]
        command = f"`shoestring budget set{' --job' if own else ''}`"
        if balance.overdraft:
            text = (
                f"The budget of {balance.name} is overdrawn by ${money.to_decimal(balance.overdraft)}, "
                f"so no job that it pays for can start. Ask for it to be raised with {command}."
            )
            return Wait(queued.job, "budget", text, short_account=(balance.id, balance.name))
        if missing := balance.shortfall(need):
            text = (
                f"The budget of {balance.name} is ${money.to_decimal(missing)} short: "
                f"starting {_machines(nodes)} reserves ${money.to_decimal(need)}. "
                f"{'Ask' if own else 'Wait for running jobs to end, or ask'} for it to be raised with {command}."
            )
            return Wait(queued.job, "budget", text, short_account=(balance.id, balance.name))
    if inputs.budget_blocked_by:
        first, name = inputs.budget_blocked_by
        return Wait(queued.job, "turn", f"Queued behind job {first}, which waits for the budget of {name}.")
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
    free, ahead = _free_slots(inputs, offer), inputs.slots_blocked_by.get(offer.provider)
    text = f"Number {inputs.position} in the queue: needs {_machines(inputs.queued.requirements.nodes)}"
    if free is not None:
        text += f", {free} of {offer.slots} {'is' if free == 1 else 'are'} free"
    if ahead is not None:
        text += f"; job {ahead} is ahead of it"
    return Wait(inputs.queued.job, "slots", text + ". It starts automatically when machines become free.", providers)


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


def _machines(count: int, noun: str = "machine") -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


_INPUTS = TypeAdapter(StartInputs)
