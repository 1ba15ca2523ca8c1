# SPDX-License-Identifier: Apache-2.0
"""Whether one job starts when its turn comes: on which offer and with what hold, or else what it waits for.

The words are those of `wording.waits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide import concurrency, funding, quotas
from shoestring_core.decide.deadlines import DeadlineTurn
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.queue import AccountBalance, QueuedJob
from shoestring_core.decide.refusals import RecentRefusal
from shoestring_core.decide.room import Blocker, Opening, Room
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import WaitReason
from shoestring_core.wording import waits
from shoestring_core.wording.deadlines import ForSpot

BlockedBy: TypeAlias = tuple[Blocker, str]
"""An earlier job that waits, and the name of the account that keeps it waiting."""

WhyFirst: TypeAlias = waits.LessUsed | waits.WithinGuaranteedRate


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
    budget_blocked_by: BlockedBy | None
    now: int
    refusals: tuple[RecentRefusal, ...]
    timeouts: dict[str, Timeouts]
    refused_until: int = 0
    storage: funding.Storage = funding.STORABLE
    vcpus_in_use: dict[str, int] = field(default_factory=dict)
    quotas_blocked: tuple[str, ...] = ()
    gpus_blocked_by: BlockedBy | None = None

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

    providers       those whose slots it waits for
    quotas          those that it waits for, as `quotas.quota_id` names them
    short_account   the account whose budget is too low, if that is the reason, and its name
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


@dataclass(slots=True)
class Turn:
    """A job's turn. The fields are as in `StartInputs`."""

    queued: QueuedJob
    balances: tuple[AccountBalance, ...]
    budget_blocked_by: BlockedBy | None
    refused_until: int
    gpus_blocked_by: BlockedBy | None

    @property
    def team(self) -> AccountBalance:
        return self.balances[-2]

    @property
    def most_gpus(self) -> int | None:
        """That it may have beside what runs: none while an earlier job waits for some; None: there is no cap."""
        return 0 if self.gpus_blocked_by else concurrency.free_gpus(self.balances)


class Precedence:
    """Why another job goes before a member's: the same for all of these, until balances change."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[UUID, UUID], WhyFirst | None] = {}

    def reason(self, blocker: Blocker, balances: Sequence[AccountBalance]) -> WhyFirst | None:
        pair = blocker.job, balances[1].id
        try:
            return self._reasons[pair]
        except KeyError:
            reason = self._reasons[pair] = _why_first(blocker, balances)
            return reason

    def balances_changed(self) -> None:
        self._reasons.clear()


def decide_start(turn: Turn, room: Room, precedence: Precedence) -> Start | Wait:
    """Whether one job starts. The first reason in this order is the one that the user sees."""
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


def _start(turn: Turn, room: Room, opening: Opening) -> Start:
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


def _for_spot(turn: DeadlineTurn) -> waits.WaitDetail:
    if turn.case is None:
        return waits.InQueue()
    return ForSpot(turn.case.on_demand_at, turn.case.plan.deadline)


def _wait_for_gpus(turn: Turn, room: Room, precedence: Precedence) -> Wait:
    """Its team or member may not have as many as it needs beside what runs, or beside what an earlier job waits for."""
    job, needed = turn.queued.job, room.placement(turn.queued.requirements).fewest_gpus
    if capped := concurrency.find_gpus_cap(turn.balances, needed):
        balance, detail = capped
        return Wait(job, detail, capped_account=(balance.id, balance.name) if needed <= detail.cap else None)
    assert turn.gpus_blocked_by
    blocker, name = turn.gpus_blocked_by
    return Wait(job, waits.BehindJobAtCap(name, precedence.reason(blocker, turn.balances)))


def _what_is_in_use(
    turn: Turn, room: Room, opening: Opening, precedence: Precedence
) -> waits.MachinesInUse | waits.QuotaInUse:
    """Slots of the best offer's provider, or else the quota that its machines count against."""
    offer, nodes = opening.offer, turn.queued.requirements.nodes
    if offer.provider not in opening.full:
        return quotas.in_use(offer, nodes, room.vcpus_in_use, quotas.quota_id(offer) in room.quotas_blocked)
    blocker = room.slots_blocked_by.get(offer.provider)
    first = precedence.reason(blocker, turn.balances) if blocker else None
    return waits.MachinesInUse(nodes, room.free_slots(offer), offer.slots, blocker is not None, first)


def _why_first(blocker: Blocker, balances: Sequence[AccountBalance]) -> WhyFirst | None:
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


_INPUTS = TypeAdapter(StartInputs)
