# SPDX-License-Identifier: Apache-2.0
"""Who starts now, on what, with how much money; and why everybody else waits.

First come, first served. A job that waits for slots lets no later job of its provider overtake. A job that waits for
money lets no later job overtake that would draw on the account that is short; jobs paid from elsewhere go on. A job
that could never run, or that sits out a delay after a refusal, stands in nobody's way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import UUID

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide import funding
from shoestring_core.decide.offers import Offer, suitable
from shoestring_core.decide.timeouts import Timeouts


@dataclass(frozen=True)
class Balance:
    """An account at the time of the decision, in micro-dollars."""

    id: UUID
    name: str
    limit: int | None
    posted: int
    held: int
    overdraft: int

    def short_of(self, amount: int) -> int:
        """How much is missing to hold `amount` more; 0: nothing."""
        if self.limit is None:
            return 0
        missing = self.posted + self.held + amount - self.limit
        return max(missing, 0)


@dataclass(frozen=True)
class Waiting:
    """A queued job.

    path        its accounts, leaf to root
    type        the only type of machine that will do; None: any
    attempt     number of the attempt that would open
    reopened    that attempt was open before and bought no machine
    ending      machines of earlier attempts that aren't terminated yet: never two alive for one slot
    not_before  it sits out a delay until then (µs UTC)
    """

    job: UUID
    nodes: int
    provider: str
    spot: Literal["only", "prefer", "never"]
    path: tuple[UUID, ...]
    attempt: int
    reopened: bool = False
    ending: int = 0
    not_before: int = 0
    delay_text: str = ""
    type: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """What a plan is made from. `queue` is in the order of service; `taken` counts living machines by provider."""

    epoch: int
    queue: tuple[Waiting, ...]
    balances: dict[UUID, Balance]
    taken: dict[str, int]


@dataclass(frozen=True)
class Case:
    """Everything that one job's decision depends on; kept with the attempt, so that it can be worked out again."""

    waiting: Waiting
    offers: tuple[Offer, ...]
    taken: int
    balances: tuple[Balance, ...]
    position: int
    behind: UUID | None
    """An earlier job that waits for slots of the same provider."""
    behind_money: tuple[UUID, str] | None
    """An earlier job that waits for money, and the account that is short."""
    now: int
    timeouts: Timeouts

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _CASE.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Case:
        return _CASE.validate_python(tree)


@dataclass(frozen=True)
class Start:
    """Rent `nodes` machines of `offer`, each with `hold` micro-dollars set aside until `funded_until`."""

    job: UUID
    attempt: int
    reopened: bool
    nodes: int
    offer: Offer
    hold: int
    funded_until: int
    case: Case


@dataclass(frozen=True)
class Wait:
    """Why a job doesn't start: a code and a sentence that says what to do."""

    job: UUID
    reason: Literal["money", "slots", "turn", "capacity", "ending"]
    text: str
    short: tuple[UUID, str] | None = None
    """The account that lacks money, when that is the reason."""


@dataclass(frozen=True)
class Plan:
    starts: tuple[Start, ...]
    waits: tuple[Wait, ...]


def plan(snapshot: Snapshot, offers: list[Offer], now: int, timeouts: Timeouts) -> Plan:
    """Decide for every queued job, in the order of service. What one job takes is gone for those behind it."""
    starts: list[Start] = []
    waits: list[Wait] = []
    balances, taken = dict(snapshot.balances), dict(snapshot.taken)
    blocked: dict[str, UUID] = {}
    short: dict[UUID, tuple[UUID, str]] = {}
    for position, waiting in enumerate(snapshot.queue, start=1):
        case = Case(
            waiting=waiting,
            offers=tuple(offer for offer in offers if offer.provider == waiting.provider),
            taken=taken.get(waiting.provider, 0),
            balances=tuple(balances[account] for account in waiting.path),
            position=position,
            behind=blocked.get(waiting.provider),
            behind_money=next((short[account] for account in waiting.path if account in short), None),
            now=now,
            timeouts=timeouts,
        )
        decision = consider(case)
        if isinstance(decision, Start):
            starts.append(decision)
            taken[waiting.provider] = case.taken + waiting.nodes
            for account in waiting.path:
                held = balances[account].held + decision.hold * waiting.nodes
                balances[account] = replace(balances[account], held=held)
            continue
        waits.append(decision)
        if decision.reason in ("slots", "ending"):
            blocked.setdefault(waiting.provider, waiting.job)
        if decision.short:
            account, name = decision.short
            short.setdefault(account, (waiting.job, name))
    return Plan(tuple(starts), tuple(waits))


def consider(case: Case) -> Start | Wait:
    """Whether one job starts. The order of the questions is the order in which reasons are shown."""
    waiting = case.waiting
    offer = suitable(case.offers, waiting.provider, waiting.spot, waiting.type)
    if offer is None:
        kind = f"{waiting.type}, which was chosen for it" if waiting.type else "machine that this job allows"
        text = (
            f"{waiting.provider} offers no {kind} (spot: {waiting.spot}). "
            f"Submit it {'again' if waiting.type else 'with another resources.spot'}."
        )
        return Wait(waiting.job, "capacity", text)
    if offer.slots is not None and waiting.nodes > offer.slots:
        text = (
            f"Needs {_machines(waiting.nodes)} at once and {waiting.provider} has {offer.slots} in all. "
            "Stop it and submit it with fewer nodes, or have SHOESTRING_LOCAL_SLOTS raised."
        )
        return Wait(waiting.job, "capacity", text)
    if waiting.ending:
        count = _machines(waiting.ending, "earlier machine")
        text = f"{count} still ending; it starts once the provider reports them terminated."
        return Wait(waiting.job, "ending", text)
    if case.now < waiting.not_before:
        return Wait(waiting.job, "capacity", waiting.delay_text)
    if lack := _lack_of_money(case, offer):
        return lack
    return _lack_of_slots(case, offer) or _start(case, offer)


def smallest_hold(
    offers: list[Offer], provider: str, spot: Literal["only", "prefer", "never"], nodes: int, timeouts: Timeouts
) -> int:
    """Micro-dollars without which a job can't start at all. 0 if the provider has no suitable offer now."""
    offer = suitable(offers, provider, spot)
    return 0 if offer is None else nodes * funding.first_hold(offer.on_demand_price, timeouts)


def _lack_of_money(case: Case, offer: Offer) -> Wait | None:
    waiting = case.waiting
    need = waiting.nodes * funding.first_hold(offer.on_demand_price, case.timeouts)
    for balance in case.balances:
        own = balance.id == waiting.path[0]
        raise_it = "raised with `shoestring budget set --job`" if own else "raised with `shoestring budget set`"
        if balance.overdraft:
            text = (
                f"The budget of {balance.name} is overdrawn by ${money.to_decimal(balance.overdraft)}, so nothing new "
                f"starts from it. Ask for it to be {raise_it}."
            )
            return Wait(waiting.job, "money", text, (balance.id, balance.name))
        if missing := balance.short_of(need):
            text = (
                f"The budget of {balance.name} is ${money.to_decimal(missing)} short: "
                f"starting {_machines(waiting.nodes)} sets aside ${money.to_decimal(need)}. "
                f"{'Ask' if own else 'Wait for running jobs to end, or ask'} for it to be {raise_it}."
            )
            return Wait(waiting.job, "money", text, (balance.id, balance.name))
    if case.behind_money:
        first, name = case.behind_money
        text = f"Waits its turn: job {first} came first and waits for money of {name}."
        return Wait(waiting.job, "turn", text)
    return None


def _lack_of_slots(case: Case, offer: Offer) -> Wait | None:
    nodes = case.waiting.nodes
    free = None if offer.slots is None else max(0, offer.slots - case.taken)
    if case.behind is None and (free is None or nodes <= free):
        return None
    text = f"Number {case.position} in the queue: needs {_machines(nodes)}"
    if free is not None:
        text += f", {free} of {offer.slots} {'is' if free == 1 else 'are'} free"
    if case.behind is not None:
        text += f"; job {case.behind} came first"
    return Wait(case.waiting.job, "slots", text + ". It starts by itself when machines end.")


def _start(case: Case, offer: Offer) -> Start:
    return Start(
        job=case.waiting.job,
        attempt=case.waiting.attempt,
        reopened=case.waiting.reopened,
        nodes=case.waiting.nodes,
        offer=offer,
        hold=funding.first_hold(offer.on_demand_price, case.timeouts),
        funded_until=case.now + case.timeouts.funding_lease,
        case=case,
    )


def _machines(count: int, noun: str = "machine") -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


_CASE = TypeAdapter(Case)
