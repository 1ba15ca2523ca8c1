# SPDX-License-Identifier: Apache-2.0
"""Which queued jobs start now, on which offer, with what hold; and why the others wait.

First come, first served. While a job waits for slots, no later job of its provider starts. While a job waits for
budget, no later job starts that would draw on the same exhausted account; jobs paid from elsewhere do. A job that can
never start, or that waits for a backoff after a failed attempt, blocks nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide import funding
from shoestring_core.decide.offers import Offer, cheapest_offer
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
    type                  the only type of machine that will do; None: any
    attempt               number of the attempt that would open
    reopened              that attempt was open before and launched no machine
    terminating_machines  of earlier attempts: there are never two living machines for one slot
    not_before            it waits for a backoff until then (µs UTC)
    """

    job: UUID
    nodes: int
    provider: str
    spot: Literal["only", "prefer", "never"]
    account_path: tuple[UUID, ...]
    attempt: int
    reopened: bool = False
    terminating_machines: int = 0
    not_before: int = 0
    backoff_text: str = ""
    type: str | None = None


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


@dataclass(frozen=True)
class StartInputs:
    """Everything that one job's decision depends on; stored with the attempt, so that it can be recomputed.

    slots_blocked_by   an earlier job that waits for slots of the same provider
    budget_blocked_by  an earlier job that waits for budget, and the account that is short
    """

    queued: QueuedJob
    offers: tuple[Offer, ...]
    machines_in_use: int
    balances: tuple[AccountBalance, ...]
    position: int
    slots_blocked_by: UUID | None
    budget_blocked_by: tuple[UUID, str] | None
    now: int
    timeouts: Timeouts

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

    short_account  the account whose budget is too low, if that is the reason, and its name
    """

    job: UUID
    reason: Literal["budget", "slots", "turn", "capacity", "terminating"]
    text: str
    short_account: tuple[UUID, str] | None = None


@dataclass(frozen=True)
class Schedule:
    starts: tuple[Start, ...]
    waits: tuple[Wait, ...]


def schedule_jobs(snapshot: QueueSnapshot, offers: list[Offer], now: int, timeouts: Timeouts) -> Schedule:
    """Decide for every queued job, in the order of service; each start reduces what is left for the jobs behind it."""
    starts: list[Start] = []
    waits: list[Wait] = []
    balances, in_use = dict(snapshot.balances), dict(snapshot.machines_in_use)
    waiting_for_slots: dict[str, UUID] = {}
    waiting_for_budget: dict[UUID, tuple[UUID, str]] = {}
    for position, queued in enumerate(snapshot.queue, start=1):
        short = (waiting_for_budget[account] for account in queued.account_path if account in waiting_for_budget)
        inputs = StartInputs(
            queued=queued,
            offers=tuple(offer for offer in offers if offer.provider == queued.provider),
            machines_in_use=in_use.get(queued.provider, 0),
            balances=tuple(balances[account] for account in queued.account_path),
            position=position,
            slots_blocked_by=waiting_for_slots.get(queued.provider),
            budget_blocked_by=next(short, None),
            now=now,
            timeouts=timeouts,
        )
        decision = decide_start(inputs)
        if isinstance(decision, Start):
            starts.append(decision)
            in_use[queued.provider] = inputs.machines_in_use + queued.nodes
            for account in queued.account_path:
                held = balances[account].held + decision.hold * queued.nodes
                balances[account] = replace(balances[account], held=held)
            continue
        waits.append(decision)
        if decision.reason in ("slots", "terminating"):
            waiting_for_slots.setdefault(queued.provider, queued.job)
        if decision.short_account:
            account, name = decision.short_account
            waiting_for_budget.setdefault(account, (queued.job, name))
    return Schedule(tuple(starts), tuple(waits))


def decide_start(inputs: StartInputs) -> Start | Wait:
    """Whether one job starts. The first reason in this order is the one that the user sees."""
    queued = inputs.queued
    offer = cheapest_offer(inputs.offers, queued.provider, queued.spot, queued.type)
    if offer is None:
        what = f"{queued.type}, which was chosen for this job" if queued.type else "machine that this job allows"
        text = (
            f"{queued.provider} offers no {what} (spot: {queued.spot}). "
            f"Submit it {'again' if queued.type else 'with another resources.spot'}."
        )
        return Wait(queued.job, "capacity", text)
    if offer.slots is not None and queued.nodes > offer.slots:
        text = (
            f"Needs {_machines(queued.nodes)} at once and {queued.provider} has {offer.slots} in all. "
            "Stop it and submit it with fewer nodes, or raise SHOESTRING_LOCAL_SLOTS."
        )
        return Wait(queued.job, "capacity", text)
    if queued.terminating_machines:
        count = queued.terminating_machines
        text = (
            f"{_machines(count, 'earlier machine')} still terminating; "
            f"the job continues once the provider confirms that {'it has' if count == 1 else 'they have'} terminated."
        )
        return Wait(queued.job, "terminating", text)
    if inputs.now < queued.not_before:
        return Wait(queued.job, "capacity", queued.backoff_text)
    if wait := _wait_for_budget(inputs, offer):
        return wait
    return _wait_for_slots(inputs, offer) or _start(inputs, offer)


def _wait_for_budget(inputs: StartInputs, offer: Offer) -> Wait | None:
    queued = inputs.queued
    need = queued.nodes * funding.initial_hold(offer.on_demand_price, inputs.timeouts)
    for balance in inputs.balances:
        own = balance.id == queued.account_path[0]
        command = f"`shoestring budget set{' --job' if own else ''}`"
        if balance.overdraft:
            text = (
                f"The budget of {balance.name} is overdrawn by ${money.to_decimal(balance.overdraft)}, "
                f"so no job that it pays for can start. Ask for it to be raised with {command}."
            )
            return Wait(queued.job, "budget", text, (balance.id, balance.name))
        if missing := balance.shortfall(need):
            text = (
                f"The budget of {balance.name} is ${money.to_decimal(missing)} short: "
                f"starting {_machines(queued.nodes)} reserves ${money.to_decimal(need)}. "
                f"{'Ask' if own else 'Wait for running jobs to end, or ask'} for it to be raised with {command}."
            )
            return Wait(queued.job, "budget", text, (balance.id, balance.name))
    if inputs.budget_blocked_by:
        first, name = inputs.budget_blocked_by
        return Wait(queued.job, "turn", f"Queued behind job {first}, which waits for the budget of {name}.")
    return None


def _wait_for_slots(inputs: StartInputs, offer: Offer) -> Wait | None:
    nodes = inputs.queued.nodes
    free = None if offer.slots is None else max(0, offer.slots - inputs.machines_in_use)
    if inputs.slots_blocked_by is None and (free is None or nodes <= free):
        return None
    text = f"Number {inputs.position} in the queue: needs {_machines(nodes)}"
    if free is not None:
        text += f", {free} of {offer.slots} {'is' if free == 1 else 'are'} free"
    if inputs.slots_blocked_by is not None:
        text += f"; job {inputs.slots_blocked_by} is ahead of it"
    return Wait(inputs.queued.job, "slots", text + ". It starts automatically when machines become free.")


def _start(inputs: StartInputs, offer: Offer) -> Start:
    return Start(
        job=inputs.queued.job,
        attempt=inputs.queued.attempt,
        reopened=inputs.queued.reopened,
        nodes=inputs.queued.nodes,
        offer=offer,
        hold=funding.initial_hold(offer.on_demand_price, inputs.timeouts),
        funded_until=inputs.now + inputs.timeouts.funding_lease,
        inputs=inputs,
    )


def _machines(count: int, noun: str = "machine") -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


_INPUTS = TypeAdapter(StartInputs)
