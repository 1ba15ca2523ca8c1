# SPDX-License-Identifier: Apache-2.0
"""One provider's machines and ours: which regions are asked for what, who is missing since when, what is a leak."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG, MachineRef, ProviderMachine, TrackedMachine
from shoestring_core.decide.sweeps import CONFIGURED, ENABLED, IN_USE, Leftover
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.states import MachineState
from shoestring_core.store.fleet import leaks, observations, service_heartbeats
from shoestring_core.store.tables import LeakRow
from shoestring_worker import reconciler
from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.providers.sim import SimulatedProvider
from shoestring_worker.reconciler import Reconciler
from shoestring_worker.steps import ItemRunner
from sqlalchemy import select

from tests.worker.conftest import World

TAGS = {DEPLOYMENT_TAG: "d", PROVIDER_TAG: "far"}
MACHINE, OTHER = UUID(int=1), UUID(int=2)
START = 10**15


@dataclass
class Regions(SimulatedProvider):
    """Machines may be launched in the east; the account has a west too."""

    calls: Counter[str] = field(default_factory=Counter)
    leftovers: list[Leftover] = field(default_factory=list)

    @property
    def configured_regions(self) -> Collection[str]:
        return ("east",)

    def enabled_regions(self) -> Collection[str]:
        self.calls["enabled"] += 1
        return ("east", "west")

    def list_region(self, deployment: str, region: str) -> list[ProviderMachine]:
        self.calls[f"list {region}"] += 1
        return [machine for machine in self.list(deployment) if machine.region == region]

    def list_leftovers(self, deployment: str, region: str) -> list[Leftover]:
        self.calls[f"leftovers {region}"] += 1
        return [leftover for leftover in self.leftovers if leftover.region == region]

    def delete(self, leftover: Leftover) -> None:
        self.leftovers.remove(leftover)


@pytest.fixture
def regions(world: World) -> Regions:
    return Regions(lambda: world.clock.now, name="far")


@pytest.fixture
def reconcile(world: World, regions: Regions) -> Iterator[Callable[[float], None]]:
    """Reconcile the regions after so many seconds."""
    managed = ManagedProvider(regions, world.timeouts)
    made = Reconciler("far", managed, world.store, "d", ItemRunner(lambda: world.clock.now / S))

    def after(seconds: float) -> None:
        world.clock.pass_(seconds)
        made.reconcile(world.clock.now)

    yield after
    made.close()


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_accounts_regions_are_asked_for_at_start_each_hour_and_when_the_clock_is_set_back(
    regions: Regions, reconcile: Callable[[float], None]
):
    asked = []
    for seconds in (0, ENABLED / S - 1, 1, 1, -ENABLED / S - 1):
        reconcile(seconds)
        asked.append(regions.calls["enabled"])
    assert asked == [1, 1, 2, 2, 3]


def test_a_region_is_swept_when_that_is_due_and_only_listed_while_a_machine_there_changes(
    regions: Regions,
    reconcile: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(observations, "load_regions_in_use", lambda *_: {"east": True})
    seen = []
    for seconds in (0, 1, IN_USE / S - 1):
        reconcile(seconds)
        seen.append((regions.calls["list east"], regions.calls["leftovers east"], regions.calls["leftovers west"]))
    assert seen == [(1, 1, 1), (2, 1, 1), (3, 2, 1)]
    monkeypatch.setattr(observations, "load_regions_in_use", lambda *_: {})
    for seconds in (IN_USE / S, CONFIGURED / S - IN_USE / S):
        reconcile(seconds)
        seen.append((regions.calls["list east"], regions.calls["leftovers east"], regions.calls["leftovers west"]))
    assert seen[3:] == [(3, 2, 1), (4, 3, 1)]
    assert problems(caplog) == []


@pytest.mark.parametrize(("kind", "is_leak"), [("volume", True), ("placement_group", False)])
def test_what_a_machine_left_is_deleted_and_a_leak_unless_each_attempt_leaves_one_that_costs_nothing(
    world: World, regions: Regions, reconcile: Callable[[float], None], kind: str, is_leak: bool
):
    regions.leftovers.append(Leftover(kind, "far", "east", "left-1", TAGS, created_at=world.clock.now - 3_600 * S))
    for seconds in (0, 400, 400):
        reconcile(seconds)
    assert regions.leftovers == []
    with world.store.read() as db:
        assert leaks.leaked(db) == 0
        known = db.sql.scalars(select(LeakRow.kind)).all()
    assert known == ([kind] if is_leak else [])


def test_a_stray_machine_is_a_leak_told_once_that_lasts_until_it_has_ended(
    world: World,
    regions: Regions,
    reconcile: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    def leaking() -> set[str]:
        with world.store.read() as db:
            return leaks.load_open(db, "far")

    stray = regions.launch(LaunchRequest("stray", "east", "", TAGS, "sim", "spot", "0.158", {}))
    with monkeypatch.context() as patch:
        patch.setattr(regions, "terminate", lambda ref: None)  # accepted, and nothing happens for a while
        for seconds in (0, 30):
            reconcile(seconds)
            assert leaking() == {"east"}
    reconcile(30)
    assert (leaking(), regions.alive()) == ({"east"}, [])
    reconcile(30)
    assert leaking() == set(), "it is listed as ended"
    told = [one for one in problems(caplog) if "is ours and no job has it" in one]
    assert told == [f"far: machine {stray.id} in east is ours and no job has it: it is ended"]


# Without a database


@dataclass
class Rows:
    """What stands in the database about machines, and what is written."""

    tracked: list[TrackedMachine]
    writes: list[tuple[Any, ...]] = field(default_factory=list)
    answer: bool = True

    def write(self, _store: object, function: Callable[..., Any], *args: Any, **_: Any) -> bool:
        self.writes.append((function.__name__, *args))
        return self.answer

    def names(self) -> list[str]:
        """What was written since the last call."""
        names = [name for name, *_ in self.writes if name != "end_leaks"]
        self.writes.clear()
        return names

    @contextmanager
    def read(self) -> Iterator[object]:
        yield SimpleNamespace(now=START)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    made = Rows([])
    monkeypatch.setattr(reconciler, "write", made.write)
    monkeypatch.setattr(service_heartbeats, "leases_enforced", lambda *_: False)
    monkeypatch.setattr(observations, "load_regions_in_use", lambda *_: {"east": True, "west": True})
    monkeypatch.setattr(leaks, "load_open", lambda *_: set())

    def load(_db: object, _provider: str, region: str | None) -> list[TrackedMachine]:
        return [row for row in made.tracked if region in (None, row.region)]

    monkeypatch.setattr(observations, "load_tracked_machines", load)
    return made


def machine(id_: UUID, region: str = "sim", state: MachineState = MachineState.RUNNING) -> TrackedMachine:
    provider_id = None if state is MachineState.LAUNCHING else f"i-{id_}"
    return TrackedMachine(
        id=id_, region=region, state=state, provider_id=provider_id, wanted=True, unwanted_since=0, refused=False,
        registered=True, call_deadline=0, alive_until=None, funded_until=None,
    )  # fmt: skip


def listed(id_: UUID, region: str = "sim") -> ProviderMachine:
    return ProviderMachine("far", region, f"i-{id_}", str(id_), TAGS, "running", START)


def reconciler_of(rows: Rows, provider: SimulatedProvider, answers: dict[str, list[ProviderMachine]]) -> Reconciler:
    """`answers`: what is listed, by region."""
    provider.list = lambda _: [one for found in answers.values() for one in found]
    return Reconciler("far", ManagedProvider(provider, Timeouts()), rows, "d", ItemRunner(lambda: 0.0))


def test_a_machine_is_missing_from_the_first_list_that_lacks_it_and_no_longer_once_it_is_listed_again(rows: Rows):
    found: list[ProviderMachine] = [listed(MACHINE)]
    made = reconciler_of(rows, SimulatedProvider(lambda: START, name="far"), answers := {"sim": found})

    def written(after_s: float) -> list[str]:
        made.reconcile(START + round(after_s * S))
        return rows.names()

    rows.tracked = [machine(MACHINE, state=MachineState.LAUNCHING)]
    assert written(0) == ["record_observation"]
    rows.tracked, answers["sim"] = [machine(MACHINE)], []
    assert [written(after) for after in (10, 300, 309)] == [[], [], []]
    answers["sim"] = found
    assert written(310) == []
    answers["sim"] = []
    assert [written(after) for after in (320, 619, 620)] == [[], [], ["presume_terminated"]]
    assert made._not_listed_since == {}  # of years of machines nothing is kept


def test_a_machine_stays_missing_whatever_is_listed_in_another_region(rows: Rows):
    rows.tracked = [machine(MACHINE, "east"), machine(OTHER, "west")]
    answers = {"west": [listed(OTHER, "west")]}
    made = reconciler_of(rows, Regions(lambda: START, name="far"), answers)
    for after_s, written in ((0, []), (200, []), (300, ["presume_terminated"])):
        made.reconcile(START + after_s * S)
        assert rows.names() == written
    made.close()


@pytest.mark.parametrize("decided", [True, False])
def test_a_machine_is_terminated_only_if_the_database_agrees(rows: Rows, decided: bool):
    """Its lease may have been renewed since the decision."""
    ended: list[MachineRef] = []
    provider = SimulatedProvider(lambda: START, name="far")
    provider.terminate = ended.append
    made = reconciler_of(rows, provider, {"sim": [listed(MACHINE)]})
    rows.tracked, rows.answer = [machine(MACHINE, state=MachineState.TERMINATING)], decided
    made.reconcile(START)
    assert rows.names() == ["begin_termination"]
    assert ended == [MachineRef("sim", f"i-{MACHINE}")] * decided
