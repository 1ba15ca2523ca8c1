# SPDX-License-Identifier: Apache-2.0
"""Room for more machines: what is left of providers' slots and quotas, and which earlier jobs wait for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from shoestring_core.decide import funding, quotas
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import Placement, rank_offers
from shoestring_core.decide.queue import AccountBalance, QueuedJob, RunningJob
from shoestring_core.decide.refusals import RecentRefusal
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.wording.waits import NoOffer, ProviderUnanswered, ProviderUnserved, WaitDetail


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
class Opening:
    """Where a job would start.

    offer     the best that has room, or if none has, the best
    has_room  if not, the providers in `full` have too few slots, and the quotas in `used_up` too few vCPUs
    storable  whether a machine that is launched now has time to store anything
    hold      micro-dollars that are held to start one machine
    """

    offer: Offer
    has_room: bool
    storable: bool
    hold: int
    full: tuple[str, ...] = ()
    used_up: tuple[str, ...] = ()


@dataclass
class Room:
    """What there is for the next job. The fields are as in `start.StartInputs`; those that change are replaced.

    What it says of a job it says of all that need the same, so it is worked out once until a job takes room or waits
    for it.
    """

    offers: tuple[Offer, ...]
    machines_in_use: dict[str, int]
    vcpus_in_use: dict[str, int]
    now: int
    refusals: tuple[RecentRefusal, ...]
    timeouts: dict[str, Timeouts]
    storage: funding.Storage
    slots_blocked_by: dict[str, Blocker] = field(default_factory=dict)
    quotas_blocked: tuple[str, ...] = ()
    unanswered: Mapping[str, str] = field(default_factory=dict)
    answered_at: Mapping[str, int] = field(default_factory=dict)
    _placements: dict[Requirements, Placement] = field(default_factory=dict)
    _openings: dict[tuple[Requirements, int | None, int | None], Opening | None] = field(default_factory=dict)

    def take(self, offer: Offer, nodes: int) -> None:
        """A job starts on so many machines."""
        used, quota = self.machines_in_use.get(offer.provider, 0), quotas.quota_id(offer)
        self.machines_in_use = self.machines_in_use | {offer.provider: used + nodes}
        if quota is not None:
            vcpus = self.vcpus_in_use.get(quota, 0) + quotas.vcpus_of(offer, nodes)
            self.vcpus_in_use = self.vcpus_in_use | {quota: vcpus}
        if offer.slots is not None or quota is not None:
            self._openings.clear()

    def block(self, slots: dict[str, Blocker], quotas_: Iterable[str]) -> None:
        """A job waits for slots of these providers, and for these quotas."""
        self.slots_blocked_by = self.slots_blocked_by | slots
        self.quotas_blocked = (*self.quotas_blocked, *quotas_)
        self._openings.clear()

    def placement(self, requirements: Requirements) -> Placement:
        found = self._placements.get(requirements)
        if found is None:
            found = rank_offers(self.offers, requirements, self.now, self.refusals)
            self._placements[requirements] = found
        return found

    def why_none(self, requirements: Requirements) -> WaitDetail:
        """Why no offer suits a job; where a provider that might have one has not answered, what to do about that."""
        why = self.placement(requirements).why_none
        if isinstance(why, ProviderUnanswered):
            return replace(why, problem=self.unanswered.get(why.provider, ""))
        if isinstance(why, NoOffer):
            if requirements.provider is not None and requirements.provider not in self.timeouts:
                return ProviderUnserved(requirements.provider, self.answered_at.get(requirements.provider))
            known = {offer.provider for offer in self.offers}
            for provider, problem in self.unanswered.items():
                if provider not in known and requirements.provider in (None, provider):
                    return ProviderUnanswered(provider, problem, yet=True)
        return why

    def lowest_rate(self, queued: QueuedJob) -> int:
        """Micro-dollars an hour of the job's machines on the best offer; 0 if none suits it."""
        best = self.placement(queued.requirements).best
        return funding.rate_of(best, queued.requirements.nodes) if best else 0

    def opening(self, queued: QueuedJob, most_gpus: int | None = None) -> Opening | None:
        """On machines that have no more GPUs together; None: however many. Without one no such offer suits the job."""
        need = queued.requirements, queued.time_limit, most_gpus
        found = self._openings.get(need)
        if found is None:
            found = self._openings[need] = self._find_opening(queued, most_gpus)
        return found

    def free_slots(self, offer: Offer) -> int | None:
        """None: no limit."""
        return None if offer.slots is None else max(0, offer.slots - self.machines_in_use.get(offer.provider, 0))

    def ends_by(self, queued: QueuedJob, offer: Offer) -> int | None:
        """When the job's time limit ends it if it starts now on this offer (µs UTC), with the time to start and end."""
        if queued.time_limit is None:
            return None
        timeouts = self.timeouts[offer.provider]
        starting = timeouts.boot + timeouts.launch_window + timeouts.forming
        return self.now + starting + queued.time_limit + timeouts.drain

    def _find_opening(self, queued: QueuedJob, most_gpus: int | None) -> Opening | None:
        placement = self.placement(queued.requirements).within_gpus(most_gpus)
        if placement.best is None:
            return None
        storable = self._can_store(placement.best)
        for offer in placement.best_by_quota:
            if self._has_room(queued, offer):
                return Opening(offer, True, storable, self._hold(queued, offer))
        full = tuple(name for name, one in placement.best_by_provider.items() if not self._has_free_slots(queued, one))
        named = [quotas.quota_id(offer) for offer in placement.best_by_quota if offer.provider not in full]
        used_up = tuple(dict.fromkeys(quota for quota in named if quota is not None))
        return Opening(placement.best, False, storable, self._hold(queued, placement.best), full, used_up)

    def _hold(self, queued: QueuedJob, offer: Offer) -> int:
        return funding.machine_hold(offer, queued.requirements, self.timeouts[offer.provider])

    def _can_store(self, offer: Offer) -> bool:
        until = funding.funded_until(self.now, self.timeouts[offer.provider], self.storage.until)
        return not self.storage.problem and until > self.now

    def _has_room(self, queued: QueuedJob, offer: Offer) -> bool:
        if not self._has_free_slots(queued, offer) or quotas.quota_id(offer) in self.quotas_blocked:
            return False
        free = quotas.free_vcpus(offer, self.vcpus_in_use)
        return free is None or quotas.vcpus_of(offer, queued.requirements.nodes) <= free

    def _has_free_slots(self, queued: QueuedJob, offer: Offer) -> bool:
        if (blocker := self.slots_blocked_by.get(offer.provider)) and not self._ends_before(queued, offer, blocker):
            return False
        free = self.free_slots(offer)
        return free is None or queued.requirements.nodes <= free

    def _ends_before(self, queued: QueuedJob, offer: Offer, blocker: Blocker) -> bool:
        """Whether the job has left the slots again when the one before it can have them: then it fills the gap."""
        end = self.ends_by(queued, offer)
        return end is not None and blocker.room_at is not None and end <= blocker.room_at


class RoomAboutToBeFree:
    """Slots by provider, and vCPUs by quota, of machines that their jobs don't want any more."""

    def __init__(self, room: Room, running: Iterable[RunningJob]) -> None:
        self.slots, self.vcpus = Counter(room.machines_in_use), Counter(room.vcpus_in_use)
        for job in running:
            self.slots[job.provider] -= job.slots
            self.vcpus.subtract(job.vcpus)


class TimeLimits:
    """When slots will be free at the latest, by provider, because time limits end what runs there."""

    def __init__(self, running: Iterable[RunningJob], about_to_be_free: Mapping[str, int]) -> None:
        self._ends = [(job.ends_by, job.provider, job.slots) for job in running if job.ends_by is not None]
        self._about_to_be_free = about_to_be_free

    def add(self, end: int, provider: str, slots: int) -> None:
        """Of a job that starts."""
        self._ends.append((end, provider, slots))

    def blocked_by(self, blocker: Blocker, nodes: int, room: Room, providers: Sequence[str]) -> dict[str, Blocker]:
        """What keeps later jobs from the slots of these providers, that `nodes` machines are waited for of."""
        free = {offer.provider: room.free_slots(offer) or 0 for offer in room.offers} if self._ends else {}
        return {
            provider: replace(blocker, room_at=self._room_at(provider, nodes, free[provider])) if free else blocker
            for provider in providers
        }

    def _room_at(self, provider: str, nodes: int, free: int) -> int | None:
        slots = free + self._about_to_be_free.get(provider, 0)
        for end, where, number in sorted(self._ends):
            if slots >= nodes:
                break  # the next schedule starts it
            if where == provider:
                slots += number
                if slots >= nodes:
                    return end
        return None
