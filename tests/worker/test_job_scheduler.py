# SPDX-License-Identifier: Apache-2.0
"""When a schedule is made again: after any change that it depends on, and after one that was not applied whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from shoestring_core.decide.funding import Storage
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import MAX_OFFER_AGE, rank_offers
from shoestring_core.decide.preemption import MIN_RUN_TIME
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.start import Wait
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.errors import StaleTransition, Unavailable
from shoestring_core.spec.gpus import GpuChoice
from shoestring_core.store.fleet import queue
from shoestring_core.store.fleet.launches import PlannedMachine
from shoestring_core.store.fleet.queue import QueueMark
from shoestring_core.wording.jobs import ChangedMeanwhile
from shoestring_core.wording.waits import NoOffer, ProviderUnanswered, RetryDelayed
from shoestring_worker import job_scheduler
from shoestring_worker.job_scheduler import RECHECK_S, JobScheduler
from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.steps import ItemRunner

NOW = 10**15
OFFER = Offer("sim", "east", "", "small", "spot", "1", "2", None, "test", True)
MARK = QueueMark(True, plan_version=5, changes=7, attempts=1, deadlines=0)


@dataclass
class Scheduler:
    """A scheduler, what it reads, and what its writes answer: by name, in order.

    made  with which offers schedules were made
    """

    now: int = NOW
    mark: QueueMark = MARK
    offers: list[Offer] = field(default_factory=lambda: [OFFER])
    storage: Storage = field(default_factory=Storage)
    unanswered: dict[str, str] = field(default_factory=dict)
    queued: list[Any] = field(default_factory=list)
    running: list[Any] = field(default_factory=list)
    refusals: list[Any] = field(default_factory=list)
    starts: int = 0
    evictions: int = 0
    waits: int = 0
    answers: dict[str, list[Any]] = field(default_factory=dict)
    made: list[list[Offer]] = field(default_factory=list)
    offers_read: int = 0
    again: int = 0

    def __post_init__(self) -> None:
        nothing: Any = None
        store: Any = self
        self.items = ItemRunner(lambda: 0.0)
        self.do = JobScheduler(
            store, {"sim": ManagedProvider(nothing, Timeouts())}, nothing, Timeouts(), "http://a", "", "d", self.items,
            schedule_again=self._again, find_unanswered=lambda: self.unanswered, monotonic=lambda: self.now / S,
        )  # fmt: skip

    def schedule(self, mark: QueueMark = MARK, version: int = 1, after_s: float = 0) -> list[PlannedMachine]:
        self.now, self.mark = self.now + round(after_s * S), mark
        return self.do.schedule_jobs(mark, {"sim": version}, self.now)

    def _again(self) -> None:
        self.again += 1

    @contextmanager
    def read(self) -> Iterator[object]:
        yield SimpleNamespace(now=self.now)

    def load_queue(self, *_: object) -> Any:
        snapshot = SimpleNamespace(queue=self.queued, unreadable={}, refusals=self.refusals, running=self.running)
        return SimpleNamespace(snapshot=snapshot, mark=self.mark, waits={}, changed=lambda waits: waits)

    def decide(self, _snapshot: object, offers: Iterable[Offer], *_: object) -> Any:
        self.made.append(list(offers))
        starts = [SimpleNamespace(job=UUID(int=number), offer=OFFER) for number in range(self.starts)]
        evictions = [SimpleNamespace(job=UUID(int=number)) for number in range(self.evictions)]
        return SimpleNamespace(complete=True, starts=starts, evictions=evictions, waits=[None] * self.waits)

    def load_offers(self, _db: object) -> list[Offer]:
        self.offers_read += 1
        return self.offers

    def write(self, _store: object, function: Callable[..., Any], *_: object, **__: object) -> Any:
        answer = self.answers[function.__name__].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    made = Scheduler()
    monkeypatch.setattr(queue, "load_queue", made.load_queue)
    monkeypatch.setattr(job_scheduler, "schedule_jobs", made.decide)
    monkeypatch.setattr(job_scheduler, "load_offers", made.load_offers)
    monkeypatch.setattr(job_scheduler, "find_storage", lambda _: made.storage)
    monkeypatch.setattr(job_scheduler, "write", made.write)
    return made


def queued(number: int, not_before: int) -> Any:
    return SimpleNamespace(job=UUID(int=number), not_before=not_before, requirements=Requirements())


def test_nothing_is_read_while_no_job_is_queued(scheduler: Scheduler):
    assert scheduler.schedule(MARK._replace(queued=False)) == []
    assert (scheduler.made, scheduler.offers_read) == ([], 0)


def set_up_waits(scheduler: Scheduler) -> None:
    """What ends in 50 s at the earliest, and what has ended already."""
    scheduler.queued = [queued(1, 0), queued(2, NOW + 55 * S)]
    memory = RefusalKind.CAPACITY.memory
    scheduler.refusals = [SimpleNamespace(kind=RefusalKind.CAPACITY, at=NOW + 54 * S - memory)]
    scheduler.running = [SimpleNamespace(since=since) for since in (None, 0, NOW + 50 * S - MIN_RUN_TIME)]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, False),
        ({"after_s": 49}, False),
        ({"after_s": 50}, True),
        ({"mark": MARK._replace(changes=8)}, True),
        ({"version": 2}, False),
        ({"version": 2, "offers": [OFFER, replace(OFFER, price="2")]}, True),
        ({"offers": []}, False),  # no new version says so
        ({"storage": Storage(until=NOW)}, True),
        ({"unanswered": {"sim": "Set the clock."}}, True),
    ],
)
def test_a_schedule_is_made_again_when_what_it_depends_on_has_changed_or_a_wait_ends(
    scheduler: Scheduler, change: dict[str, Any], again: bool
):
    set_up_waits(scheduler)
    scheduler.schedule()
    assert scheduler.made == [[OFFER]]
    scheduler.offers = change.get("offers", scheduler.offers)
    scheduler.storage = change.get("storage", scheduler.storage)
    scheduler.unanswered = change.get("unanswered", scheduler.unanswered)
    asked = {name: value for name, value in change.items() if name in ("mark", "version", "after_s")}
    scheduler.schedule(**asked)
    assert len(scheduler.made) == 1 + again
    scheduler.schedule(**asked | {"after_s": 0})
    assert len(scheduler.made) == 1 + again, "until the next wait ends"


def test_without_any_wait_a_schedule_is_made_again_after_a_minute_or_when_an_offer_is_too_old(scheduler: Scheduler):
    scheduler.schedule()
    for after_s, made in ((RECHECK_S - 1, 1), (1, 2), (1, 2)):
        scheduler.schedule(after_s=after_s)
        assert len(scheduler.made) == made
    scheduler.offers = [replace(OFFER, fetched_at=scheduler.now + 10 * S - MAX_OFFER_AGE)]
    scheduler.schedule(version=2, after_s=1)
    for after_s, made in ((9, 2), (0.000001, 3), (1, 3)):
        scheduler.schedule(version=2, after_s=after_s)
        assert len(scheduler.made) == made, "its age isn't compared, that it became too old is"


STALE, BROKEN = StaleTransition(ChangedMeanwhile()), Unavailable("it is down")
MACHINES = [UUID(int=7)]


@pytest.mark.parametrize(
    ("name", "answers", "whole"),
    [
        ("record_start", [MACHINES, MACHINES], True),
        ("record_start", [STALE, MACHINES], False),
        ("record_start", [MACHINES, STALE], False),
        ("record_start", [BROKEN, MACHINES], False),
        ("record_start", [None, MACHINES], False),
        ("record_eviction", [True, True], True),
        ("record_eviction", [STALE, True], False),
        ("record_eviction", [True, STALE], False),
        ("record_eviction", [False, True], False),
        ("apply_waits", [True], True),
        ("apply_waits", [False], False),
        ("apply_waits", [BROKEN], False),
    ],
)
def test_a_schedule_that_was_not_applied_whole_is_made_again(
    scheduler: Scheduler, name: str, answers: list[Any], whole: bool
):
    kinds = {"record_start": "starts", "record_eviction": "evictions", "apply_waits": "waits"}
    setattr(scheduler, kinds[name], len(answers))
    scheduler.answers = {name: list(answers)}
    planned = scheduler.schedule()
    started = sum(answer is MACHINES for answer in answers)
    assert planned == [PlannedMachine("sim", UUID(int=7))] * started
    assert scheduler.again == answers.count(STALE)
    applied = sum(answer is True or answer is MACHINES for answer in answers)
    setattr(scheduler, kinds[name], 0)
    scheduler.schedule(MARK._replace(plan_version=MARK.plan_version + applied))
    assert len(scheduler.made) == 2 - whole


@pytest.mark.parametrize(
    "failed", [("record_start", "starts"), ("record_eviction", "evictions")], ids=["a start", "an eviction"]
)
def test_what_is_applied_afterwards_does_not_make_up_for_what_failed(scheduler: Scheduler, failed: tuple[str, str]):
    name, kind = failed
    setattr(scheduler, kind, 1)
    scheduler.waits = 1
    scheduler.answers = {name: [BROKEN], "apply_waits": [True]}
    scheduler.schedule()
    scheduler.waits = 0
    scheduler.answers = {name: [MACHINES]}
    scheduler.schedule(MARK._replace(plan_version=MARK.plan_version + 1))
    assert len(scheduler.made) == 2


def test_offers_are_read_when_they_have_changed_and_only_those_of_providers_that_this_worker_serves(
    scheduler: Scheduler,
):
    scheduler.offers = [replace(OFFER, provider="far"), OFFER]
    for version, read in ((1, 1), (1, 1), (2, 2)):
        scheduler.schedule(MARK._replace(changes=version), version)
        assert scheduler.offers_read == read
    assert scheduler.made == [[OFFER]] * 2


def test_that_no_job_starts_is_told_while_nothing_can_be_stored(scheduler: Scheduler, caplog: pytest.LogCaptureFixture):
    scheduler.schedule()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    scheduler.storage = Storage(problem="The credentials can't be renewed.")
    scheduler.schedule()
    assert "no job starts: The credentials can't be renewed." in caplog.text


def test_what_no_offer_of_this_worker_meets_is_left_to_a_worker_that_may_have_one():
    """The other worker has a machine without a GPU."""
    startable, told, untold, unanswered, delayed, ended = (UUID(int=number) for number in range(6))
    any_machine, gpu = Requirements(), Requirements(gpus=(GpuChoice("H100"),))
    needed = {startable: any_machine, told: gpu, untold: gpu, unanswered: gpu, delayed: any_machine}
    queue = [SimpleNamespace(job=job, requirements=each) for job, each in needed.items()]
    loaded: Any = SimpleNamespace(
        snapshot=SimpleNamespace(queue=queue, refusals=()), waits={told: ("capacity", {}), unanswered: ("capacity", {})}
    )
    unmet, silent, other = NoOffer(("gpu: H100",)), ProviderUnanswered("ours", ""), RetryDelayed()
    scheduler: Any = SimpleNamespace(_offers=[], _of_others=[replace(OFFER, fetched_at=NOW)])
    waits = [
        Wait(startable, unmet), Wait(told, unmet), Wait(untold, unmet), Wait(unanswered, silent),
        Wait(delayed, other), Wait(ended, unmet),
    ]  # fmt: skip
    left = JobScheduler._without_those_of_others(scheduler, waits, loaded, NOW)
    assert [wait.job for wait in left] == [untold, unanswered, delayed, ended]
    assert left[1:] == waits[3:]
    assert left[0].detail == rank_offers(scheduler._of_others, gpu, NOW).why_none != unmet
