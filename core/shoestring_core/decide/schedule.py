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
whether the job may start on it (`start`, `concurrency`), and if only room is missing, who makes it (`preemption`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from shoestring_core.decide import concurrency, funding, preemption, quotas
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import gpus_of, is_stale
from shoestring_core.decide.queue import AccountBalance, FairQueue, QueuedJob, QueueSnapshot, RunningJob
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.room import Blocker, Room, RoomAboutToBeFree, TimeLimits
from shoestring_core.decide.start import BlockedBy, Precedence, Start, Turn, Wait, decide_start
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.wording import waits


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
    answered_at: Mapping[str, int] | None = None,
) -> SchedulingDecision:
    """Decide for each job, in the order of service; each start reduces what is left for the jobs behind it.

    Nothing depends on jobs that can't start any more: if they were not read, the decisions are the same.

    offers       of providers that are served now
    timeouts     by provider
    unanswered   those of them that have not said what they offer since this worker started, or can't be asked until
                 somebody acts: why, as a sentence; "": it is being asked
    answered_at  when each provider answered last, also those that are no longer served (µs UTC)
    """
    available = tuple(offers)
    with_quota = quotas.offers_with_quota(available)
    running = [replace(job, vcpus=quotas.vcpus_in_use(dict(job.machines), with_quota)) for job in snapshot.running]
    vcpus_in_use = quotas.vcpus_in_use(snapshot.products, with_quota)
    room = Room(
        available, dict(snapshot.machines_in_use), vcpus_in_use, now, snapshot.refusals, dict(timeouts), storage,
        unanswered=unanswered or {}, answered_at=answered_at or {},
    )  # fmt: skip
    return _SchedulingPass(snapshot, room, running).run()


class _SchedulingPass:
    """One pass over the queue: what is left for the next job, and what earlier jobs wait for.

    room                what slots and quotas are left, and who waits for those
    balances            of all accounts, with what the starts of this pass hold
    running             the jobs that may be evicted yet
    waiting_for_budget  the earlier job that waits for the budget of an account, by account
    waiting_for_gpus    likewise for GPUs that the account may have
    refused_until       when the earlier job with these requirements that was refused machines is tried again (µs UTC)
    """

    def __init__(self, snapshot: QueueSnapshot, room: Room, running: list[RunningJob]) -> None:
        self.room, self.running = room, running
        self.balances, self.precedence = dict(snapshot.balances), Precedence()
        self.turns = FairQueue(snapshot, self.balances, room.lowest_rate)
        self.about_to_be_free = RoomAboutToBeFree(room, running)
        self.time_limits = TimeLimits(running, self.about_to_be_free.slots)
        self.providers = [name for name in room.timeouts if not _has_only_stale_offers(room.offers, name, room.now)]
        self.waiting_for_budget: dict[UUID, BlockedBy] = {}
        self.waiting_for_gpus: dict[UUID, BlockedBy] = {}
        self.refused_until: dict[Requirements, int] = {}
        self.starts: list[Start] = []
        self.waits: list[Wait] = []
        self.evictions: list[preemption.Eviction] = []

    def run(self) -> SchedulingDecision:
        for accounts, queued in self.turns:
            if queued is None:
                if self._may_start_unread(accounts):
                    return self._decision(complete=False)
                continue
            turn = self._turn_of(queued, accounts)
            decision = decide_start(turn, self.room, self.precedence)
            if isinstance(decision, Start):
                self._start(turn, decision)
            else:
                self._wait(turn, decision)
        return self._decision(complete=True)

    def _may_start_unread(self, accounts: Sequence[AccountBalance]) -> bool:
        """Whether a job of this member that was not read may start: nothing that all of them need is used up."""
        if all(name in self.room.slots_blocked_by for name in self.providers):
            return False
        if any(account.id in self.waiting_for_budget for account in accounts):
            return False
        return concurrency.find_jobs_cap(accounts) is None

    def _turn_of(self, queued: QueuedJob, accounts: tuple[AccountBalance, ...]) -> Turn:
        """`accounts`: all of the job's but its own."""
        requirements, refused_until = queued.requirements, 0
        if self.refused_until:
            refused_until = self.refused_until.get(requirements, 0)
        if queued.refused:
            self.refused_until[requirements] = max(refused_until, queued.not_before)
        return Turn(
            queued,
            balances=(self.balances[queued.account_path[0]], *accounts),
            # what is committed to a job is its own: no other can be short of it
            budget_blocked_by=None if queued.committed else _first_of(queued, self.waiting_for_budget),
            refused_until=refused_until,
            gpus_blocked_by=_first_of(queued, self.waiting_for_gpus),
        )

    def _start(self, turn: Turn, start: Start) -> None:
        self.starts.append(start)
        queued, offer, nodes = turn.queued, start.offer, start.nodes
        self.room.take(offer, nodes)
        if (end := self.room.ends_by(queued, offer)) is not None:
            self.time_limits.add(end, offer.provider, nodes)
        hold = max(0, nodes * start.hold - queued.committed)
        rate, gpus = funding.rate_of(offer, nodes), gpus_of(offer, nodes)
        for balance in turn.balances[1:]:  # the job's own is no other's
            self.balances[balance.id] = balance.holding(hold, rate, 1, gpus)
        self.turns.balances_changed(turn.team.id)
        self.precedence.balances_changed()

    def _wait(self, turn: Turn, wait: Wait) -> None:
        self.waits.append(wait)
        if turn.budget_blocked_by:
            return  # another job starts before it, so it keeps neither slots nor budget from others
        team = turn.team
        guaranteed = team.guaranteed_rate > 0 and team.guarantees(self.room.lowest_rate(turn.queued))
        if guaranteed and isinstance(wait.detail, waits.MachinesInUse | waits.QuotaInUse):
            self._make_room(turn)
        self._hold_back_later_jobs(turn, wait, guaranteed)

    def _make_room(self, turn: Turn) -> None:
        """On the best offer where enough is about to be free, or others can be evicted."""
        made = next(filter(None, map(preemption.make_room, self._eviction_inputs(turn))), None)
        if made is None:
            return
        self.evictions += made.evictions
        # what its team is about to have doesn't run yet, so it makes none of what runs an excess over its rate
        self.running = [job for job in self.running if job.team != turn.team.id and job not in made.evicted]
        self.balances |= made.balances
        for account in made.balances:
            self.turns.balances_changed(account)
        self.precedence.balances_changed()

    def _eviction_inputs(self, turn: Turn) -> Iterator[preemption.EvictionInputs]:
        """For each offer that suits the job, best first, unless an earlier job waits for room there: what is freed is
        for the first that waits alone.
        """
        room, nodes = self.room, turn.queued.requirements.nodes
        for offer in room.placement(turn.queued.requirements).within_gpus(turn.most_gpus).best_by_quota:
            quota = quotas.quota_id(offer)
            if offer.provider in room.slots_blocked_by or quota in room.quotas_blocked:
                continue
            slots, vcpus = room.free_slots(offer), quotas.free_vcpus(offer, room.vcpus_in_use)
            slots_coming = self.about_to_be_free.slots[offer.provider]
            vcpus_coming = self.about_to_be_free.vcpus[quota] if quota else 0
            there = tuple(job for job in self.running if job.provider == offer.provider)
            yield preemption.EvictionInputs(
                claimant=turn.queued.job,
                rate=funding.rate_of(offer, nodes),
                team=turn.team,
                provider=offer.provider,
                slots_missing=0 if slots is None else max(0, nodes - slots - slots_coming),
                quota=quota,
                vcpus_missing=0 if vcpus is None else max(0, quotas.vcpus_of(offer, nodes) - vcpus - vcpus_coming),
                running=there,
                lenders=tuple(self.balances[team] for team in sorted({job.team for job in there})),
                now=room.now,
            )

    def _hold_back_later_jobs(self, turn: Turn, wait: Wait, guaranteed: bool) -> None:
        """Keep what the job waits for, from those behind it."""
        slots = [provider for provider in wait.providers if provider not in self.room.slots_blocked_by]
        quotas_ = [quota for quota in wait.quotas if quota not in self.room.quotas_blocked]
        if not (slots or quotas_ or wait.short_account or wait.capped_account):
            return
        blocker = Blocker(turn.queued.job, turn.balances, guaranteed)
        if slots or quotas_:
            nodes = turn.queued.requirements.nodes
            self.room.block(self.time_limits.blocked_by(blocker, nodes, self.room, slots), quotas_)
        if wait.short_account:
            account, name = wait.short_account
            self.waiting_for_budget.setdefault(account, (blocker, name))
        if wait.capped_account:
            account, name = wait.capped_account
            self.waiting_for_gpus.setdefault(account, (blocker, name))

    def _decision(self, complete: bool) -> SchedulingDecision:
        short = set(self.waiting_for_budget)
        if not complete:
            short |= {account for account, balance in self.balances.items() if balance.runs_all_it_may}
        return SchedulingDecision(
            tuple(self.starts), tuple(self.waits), frozenset(short), complete, tuple(self.evictions)
        )


def _first_of(queued: QueuedJob, waiting: Mapping[UUID, BlockedBy]) -> BlockedBy | None:
    """The earlier job that waits for one of this job's accounts, its own first."""
    if not waiting:
        return None
    return next((waiting[account] for account in queued.account_path if account in waiting), None)


def _has_only_stale_offers(offers: tuple[Offer, ...], provider: str, now: int) -> bool:
    """False without any: a provider may offer more when it knows what later jobs require."""
    own = [offer for offer in offers if offer.provider == provider]
    return bool(own) and all(is_stale(offer, now) for offer in own)
