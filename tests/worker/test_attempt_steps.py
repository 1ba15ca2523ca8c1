# SPDX-License-Identifier: Apache-2.0
"""What each step writes for an attempt in which state, and which machine it asks for: without a database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import spec
from shoestring_core.decide import failures
from shoestring_core.decide.funding import MachineFunding, Storage
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.errors import BudgetExceeded, Unavailable
from shoestring_core.store import checkpoints
from shoestring_core.store.fleet import billing, launches, rows
from shoestring_core.store.fleet.launches import PlannedMachine
from shoestring_core.wording.budget import PayerOverdrawn
from shoestring_worker import attempt_steps
from shoestring_worker.attempt_steps import AttemptSteps
from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.steps import ItemRunner

JOB = UUID(int=1)
NOW = 10**15
TIMEOUTS = Timeouts()
OFFER = Offer("sim", "east", "", "small", "spot", "1", "2", None, "test", True)


@dataclass
class Steps:
    """The steps, and what they wrote. `answers`: what the store's functions return, or raise, by name."""

    answers: dict[str, Any] = field(default_factory=dict)
    writes: list[tuple[Any, ...]] = field(default_factory=list)
    asked: list[Requirements] = field(default_factory=list)
    offer: Offer | None = None
    storage: Storage = field(default_factory=Storage)
    objects: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nothing: Any = None
        store: Any = self
        managed = {"sim": ManagedProvider(nothing, TIMEOUTS)}
        self.do = AttemptSteps(store, managed, store, "http://a", "", "d", ItemRunner(lambda: 0.0))

    def write(self, _store: object, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        self.writes.append((function.__name__, *args, *more.values()))
        answer = self.answers.get(function.__name__)
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def written(self) -> list[str]:
        return [name for name, *_ in self.writes]

    def rank(self, _offers: object, wanted: Requirements, *_: object) -> Any:
        self.asked.append(wanted)
        return SimpleNamespace(best=self.offer)

    def head(self, key: str) -> Any:
        return self.objects.get(key)

    @contextmanager
    def read(self) -> Iterator[object]:
        yield None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    made = Steps()
    monkeypatch.setattr(attempt_steps, "write", made.write)
    monkeypatch.setattr(attempt_steps, "rank_offers", made.rank)
    monkeypatch.setattr(attempt_steps, "load_offers", lambda _: [])
    monkeypatch.setattr(launches, "load_refusals", lambda _: [])
    monkeypatch.setattr(attempt_steps, "find_storage", lambda _: made.storage)
    monkeypatch.setattr(checkpoints, "find_stranded_upload", lambda *_: None)
    monkeypatch.setattr(billing, "hourly_cost", lambda machine: machine.rate)
    monkeypatch.setattr(rows, "offered_hardware", lambda machine: Hardware(8, 32_768, "T4", machine.gpus, 16_384))
    return made


def machine(number: int = 1, **changed: Any) -> Any:
    made = {"market": "spot", "zone": "a", "rate": 100, "gpus": 0} | changed
    return SimpleNamespace(id=UUID(int=number), provider="sim", region="east", type="big", **made)


def active(
    *, job: str = "running", attempt: str = "open", at_work: bool = True, on_budget: str = "pause",
    limits: dict[str, Any] | None = None, **changed: Any,
) -> Any:  # fmt: skip
    """An attempt that trains on one machine."""
    limited = {"time": None, "deadline": None, "rate": None} | (limits or {})
    parsed = spec.parse({"recipe": "digits/quickstart", "resources": {"nodes": 2, "gpu": "T4"}})
    made = {
        "job": SimpleNamespace(id=JOB, state=job, wait_detail=None, sizing=None),
        "attempt": SimpleNamespace(number=1, state=attempt),
        "at_work": at_work,
        "wanted": True,
        "provider": "sim",
        "machines": [machine()],
        "live_machines": [],
        "generation": None,
        "trained_us": 60 * S,
        "spec": SimpleNamespace(limits=SimpleNamespace(**limited), on_budget=on_budget, resources=parsed.resources),
        "empty_slots": lambda *_: [1],
        "gang_status": lambda: None,
    }
    return SimpleNamespace(**made | changed)


@pytest.mark.parametrize(
    ("states", "written"),
    [
        (("running", "open", True), []),
        (("running", "open", False), []),
        (("stopping", "open", True), ["begin_stopping"]),
        (("stopping", "closing", True), []),
        (("stopping", "closing", False), ["finish_attempt"]),
        (("queued", "closing", True), []),
        (("queued", "closing", False), ["finish_attempt"]),
    ],
)
def test_an_attempt_closes_when_its_job_stops_and_is_finished_when_no_machine_is_at_work(
    steps: Steps, states: tuple[str, str, bool], written: list[str]
):
    job, attempt, at_work = states
    steps.do.close(active(job=job, attempt=attempt, at_work=at_work))
    assert steps.written == written


@pytest.mark.parametrize("data", [None, b"weigh", b"weights"])
def test_an_upload_that_is_whole_is_adopted_before_its_attempt_is_finished(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, data: bytes | None
):
    manifest = SimpleNamespace(describes=lambda found: len(found) == len(b"weights"))
    monkeypatch.setattr(checkpoints, "find_stranded_upload", lambda *_: SimpleNamespace(key="final/1"))
    monkeypatch.setattr(checkpoints, "read_manifest", lambda _objects, _key: (manifest, "sha"))
    steps.objects = {} if data is None else {"final/1/data": data}
    steps.do.close(active(job="queued", attempt="closing", at_work=False))
    assert steps.written == ["adopt_upload"] * (data == b"weights") + ["finish_attempt"]


@pytest.mark.parametrize(
    ("limit", "wanted", "written"), [(60, True, ["stop"]), (61, True, []), (None, True, []), (60, False, [])]
)
def test_a_job_is_stopped_once_it_has_trained_as_long_as_it_may(
    steps: Steps, limit: int | None, wanted: bool, written: list[str]
):
    steps.do.enforce_time_limit(active(limits={"time": limit}, wanted=wanted))
    assert steps.written == written


@pytest.mark.parametrize(
    ("decided", "wanted", "written"), [("restart", True, ["apply_action"]), (None, True, []), ("restart", False, [])]
)
def test_a_decision_about_a_failure_is_written_if_there_is_one_and_the_job_is_to_run(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, decided: object, wanted: bool, written: list[str]
):
    monkeypatch.setattr(failures, "decide_attempt", lambda *_: decided or failures.NoAction())
    steps.do.handle_failures(active(wanted=wanted), NOW)
    assert steps.written == written


# The machine that a slot is filled with


def asked_for(steps: Steps, attempt: Any) -> dict[str, Any]:
    """What the offers had to be, where it is more than the provider, the region and the spec's GPU."""
    assert steps.do.refill_slots(attempt, NOW) == []
    usual = Requirements.of(attempt.spec.resources)
    usual = replace(usual, nodes=1, provider="sim", regions=("east",))
    (wanted,) = steps.asked
    return {name: value for name, value in vars(wanted).items() if value != vars(usual)[name]}


@pytest.mark.parametrize(
    ("latest", "wanted"),
    [
        ({"zone": "a"}, {"type": "big", "zones": ("a",), "spot": "only"}),
        ({"zone": ""}, {"type": "big", "spot": "only"}),
        ({"zone": "a", "market": "on_demand"}, {"type": "big", "spot": "never"}),
    ],
)
def test_with_a_deadline_a_slot_gets_the_type_zone_and_market_that_were_decided_on(
    steps: Steps, latest: dict[str, str], wanted: dict[str, object]
):
    assert asked_for(steps, active(limits={"deadline": NOW}, machines=[machine(**latest)])) == wanted


def test_without_a_deadline_or_an_hourly_limit_or_other_machines_a_slot_gets_any_that_suits_the_spec(steps: Steps):
    assert asked_for(steps, active()) == {}


def test_a_slot_gets_as_many_gpus_as_the_machines_that_train(steps: Steps):
    wanted = asked_for(steps, active(live_machines=[machine(gpus=4)]))
    assert [one.count for one in wanted.pop("gpus")] == [4]
    assert wanted == {}


@pytest.mark.parametrize(("rate", "left"), [(500, 100), (300, 0), (100, 0)])
def test_the_slots_share_what_is_left_of_the_hourly_limit(steps: Steps, rate: int, left: int):
    living = [machine(rate=100), machine(rate=200)]
    wanted = asked_for(steps, active(limits={"rate": rate}, live_machines=living, empty_slots=lambda *_: [2, 3]))
    assert wanted == {"rate": left}


@pytest.mark.parametrize("changed", [{"wanted": False}, {"empty_slots": lambda *_: []}])
def test_nothing_is_asked_for_where_no_slot_is_to_be_filled(steps: Steps, changed: dict[str, Any]):
    steps.offer = OFFER
    assert steps.do.refill_slots(active(**changed), NOW) == []
    assert (steps.asked, steps.writes) == ([], [])


def test_slots_get_the_best_offer_if_checkpoints_can_be_stored_and_there_is_money(steps: Steps):
    short = BudgetExceeded(PayerOverdrawn("team vision"))
    empty = active(empty_slots=lambda *_: [1, 2, 3])
    assert steps.do.refill_slots(empty, NOW) == [], "nobody offers a machine"
    steps.offer, steps.storage = OFFER, Storage(problem="The credentials can't be renewed.")
    assert steps.do.refill_slots(empty, NOW) == []
    assert steps.writes == []
    steps.storage = Storage()
    steps.answers["refill_slot"] = [UUID(int=7), short, UUID(int=9)]
    assert steps.do.refill_slots(empty, NOW) == [PlannedMachine("sim", UUID(int=7)), PlannedMachine("sim", UUID(int=9))]
    assert [(name, slot) for name, _, _, slot, *_ in steps.writes] == [("refill_slot", slot) for slot in (1, 2, 3)]


# The funding


def work(left_s: float = 200, **changed: Any) -> Any:
    """Machine 1 has funding for so many seconds; the lease is 120 s."""
    fundings = {UUID(int=1): MachineFunding("1", 10**6, NOW + round(left_s * S))}
    return SimpleNamespace(**{"now": NOW, "overdrawn": {}, "fundings": fundings} | changed)


LONG, DUE = 100, 50
EXTENDED = ["post_cost", "extend_funding"]


@pytest.mark.parametrize(
    ("left_s", "changed", "written"),
    [(LONG, {}, []), (DUE, {}, EXTENDED), (DUE, {"wanted": False}, []), (DUE, {"machines": [machine(2)]}, [])],
)
def test_the_funding_of_machines_that_are_wanted_is_extended_when_it_is_due(
    steps: Steps, left_s: int, changed: dict[str, Any], written: list[str]
):
    steps.do.extend_holds(active(**changed), work(left_s))
    assert steps.written == written


@pytest.mark.parametrize(
    ("reserves", "overdrawn", "written"),
    [
        ({}, True, ["stop"]),
        ({}, False, EXTENDED),
        ({"on_budget": "finish"}, True, EXTENDED),
        ({"on_budget": "finish"}, False, EXTENDED),
        ({"limits": {"deadline": NOW}}, True, EXTENDED),
    ],
)
def test_a_job_stops_when_its_account_is_overdrawn_unless_its_money_is_reserved(
    steps: Steps, reserves: dict[str, Any], overdrawn: bool, written: list[str]
):
    steps.do.extend_holds(active(**reserves), work(DUE, overdrawn={JOB: "team vision"} if overdrawn else {}))
    assert steps.written == written
    if written == ["stop"]:
        assert PayerOverdrawn("team vision") in steps.writes[0]


@pytest.mark.parametrize(
    ("storage", "told", "written"),
    [
        (Storage(), False, EXTENDED),
        (Storage(), True, ["tell_storage", *EXTENDED]),
        (Storage(problem="out of reach"), False, ["tell_storage"]),
        (Storage(problem="out of reach"), True, []),
        (Storage(until=NOW + DUE * S), False, ["tell_storage"]),
        (Storage(until=NOW + DUE * S), True, []),
    ],
)
def test_what_can_be_stored_no_longer_is_told_once_and_funded_no_longer(
    steps: Steps, storage: Storage, told: bool, written: list[str]
):
    attempt = active()
    attempt.job.wait_detail, steps.storage = {"code": "nothing_storable"} if told else None, storage
    steps.do.extend_holds(attempt, work(DUE))
    assert steps.written == written


def test_a_provider_that_this_worker_does_not_serve_is_named(steps: Steps):
    with pytest.raises(Unavailable, match="provider far is not served"):
        steps.do.handle_failures(active(provider="far"), NOW)
