# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import threading
from uuid import UUID

import pytest
from shoestring_core import events as models
from shoestring_core import wire
from shoestring_core.errors import InvalidRequest
from shoestring_core.events import (
    AgentReport,
    Alarm,
    BatchStored,
    BudgetRequestChange,
    CheckpointStored,
    ConcurrencyChange,
    CostChange,
    EventData,
    ForecastAlert,
    GenerationChange,
    GuaranteedRateChange,
    JobChange,
    LimitChange,
    MachineChange,
    MachinesChosen,
    Overdraft,
    SoftLineReached,
    SoftLinesChange,
    StorageChange,
    WaitChange,
    WeightChange,
)
from shoestring_core.states import DesiredState, EndReason, GenerationState, JobState, MachineState
from shoestring_core.store import events
from shoestring_core.store.db import Store
from shoestring_core.store.tables import EventRow, TeamRow
from shoestring_core.store.transactions import Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording.jobs import Submitted
from sqlalchemy import delete, insert

from tests.servers import PATIENCE_S


@pytest.fixture
def teams(store: Store) -> list[UUID]:
    ids = [uuid7(), uuid7()]
    store.write(lambda db: db.sql.execute(insert(TeamRow), [{"id": i, "name": str(i), "feed_seq": 0} for i in ids]))
    return ids


def test_numbers_have_no_gaps_and_a_reader_misses_no_event(store: Store, teams: list[UUID], seed: int) -> None:
    """Writers race on two teams while a reader follows one of them by cursor; some writes fail and leave no number."""
    generator = random.Random(seed)
    plans = [[(generator.randrange(1, 4), generator.random() < 0.2) for _ in range(15)] for _ in range(4)]
    done, seen = threading.Event(), []

    def follow() -> None:
        while True:
            finished = done.wait(0.01)
            with store.read() as db:
                seen.extend(event.seq for event in events.load_events(db, teams[0], seen[-1] if seen else 0, 10))
                if finished and len(seen) == events.latest_seq(db, teams[0]):
                    return

    def run(plan: list[tuple[int, bool]]) -> None:
        for count, fails in plan:
            try:
                store.write(lambda db, n=count, f=fails: _append(db, teams, n, f))
            except ZeroDivisionError:
                assert fails

    reader = threading.Thread(target=follow)
    writers = [threading.Thread(target=run, args=(plan,)) for plan in plans]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join(timeout=PATIENCE_S)
    written = sum(count for plan in plans for count, fails in plan if not fails)
    assert seen == list(range(1, written + 1))


def _append(db: Write, teams: list[UUID], count: int, fails: bool) -> None:
    for number in range(count):
        for team in teams:
            db.event(BatchStored(source=team, seq=number), team=team, actor="test")
    if fails:
        raise ZeroDivisionError


def test_an_event_is_read_as_it_was_written(store: Store, teams: list[UUID]) -> None:
    job = uuid7()
    store.write(
        lambda db: db.event(
            JobChange(from_state=JobState.QUEUED, to=JobState.ENDED, end_reason=EndReason.USER_STOP),
            team=teams[0], actor="ann", reason=Submitted(), job=job, attempt=1, generation=2,
        )
    )  # fmt: skip
    with store.read() as db:
        (event,) = events.load_events(db, teams[0], 0, 10)
        assert events.load_events(db, teams[1], 0, 10) == []
    assert (event.seq, event.kind, event.actor, event.job) == (1, "job", "ann", job)
    assert event.reason == {"code": "submitted", "facts": {}}
    assert (event.attempt, event.generation) == (1, 2)
    assert event.data == {"from": "queued", "to": "ended", "end_reason": "user_stop"}
    assert event.at > 0


ID = uuid7()
EXIT = wire.RankExit(rank=1, outcome="error", step=3, at=2.0, code=1, kind="nan", message="x", since=3)
EVENTS: list[EventData] = [
    JobChange(from_state=None, to=JobState.QUEUED),
    JobChange(from_state=JobState.STOPPING, to=JobState.STOPPING, desired_state=DesiredState.PAUSE),
    JobChange(from_state=JobState.RUNNING, to=JobState.ENDED, end_reason=EndReason.NAN),
    WaitChange(from_reason=None, to="slots"),
    WaitChange(from_reason="slots", to="budget"),
    MachinesChosen(outcome="measured", nodes=2, type="local.cpu"),
    MachinesChosen(outcome="unmeasured", nodes=1, type=None),
    MachineChange(machine=ID, state=MachineState.TERMINATED, cause="preempted"),
    MachineChange(machine=ID, state="registered"),
    GenerationChange(state=GenerationState.FORMED),
    GenerationChange(state="exited", machine=ID, exits=(EXIT, EXIT)),
    CheckpointStored(checkpoint=ID, step=3, bytes=1, promoted=True, final=True),
    BatchStored(source=ID, seq=1),
    CostChange(action="held", machine=ID, amount="0.010959"),
    CostChange(action="job_settled"),
    LimitChange(account=ID, limit=None, before="1.5"),
    WeightChange(account=ID, weight=2, before=1),
    GuaranteedRateChange(account=ID, rate="2.00", before="0.00"),
    ConcurrencyChange(account=ID, max_jobs=4, max_gpus=None),
    SoftLineReached(account=ID, percent=80, limit="10.00", used="8.25"),
    SoftLinesChange(account=ID, percents=(50, 100)),
    ForecastAlert(account=ID, expected="12.50", limit="10.00"),
    BudgetRequestChange(request=ID, account=ID, amount="2.5", state="open"),
    Alarm(alarm="overrun", overdrawn=(Overdraft(account="team a", overdraft="0.1"),)),
    Alarm(alarm="wrong_session", machine=ID),
    StorageChange(lost=True),
    AgentReport.model_validate({"event": "started", "machine": ID, "at": 1.5, "step": None, "steps_total": 7}),
]


def test_the_data_of_each_kind_of_event_are_read_as_they_were_written(store: Store, teams: list[UUID]) -> None:
    assert {event.kind for event in EVENTS} == set(models.MODELS)
    for event in EVENTS:
        store.write(lambda db, event=event: db.event(event, team=teams[0], actor="test"))
    with store.read() as db:
        rows = events.load_events(db, teams[0], 0, len(EVENTS))
    assert [models.from_stored(row.kind, row.data) for row in rows] == EVENTS


def test_a_cursor_is_valid_for_its_team_alone(teams: list[UUID]) -> None:
    assert events.from_cursor(teams[0], events.to_cursor(teams[0], 1234)) == 1234
    for wrong in (events.to_cursor(teams[1], 5), "", "5", "é", "AAAA", "a" * 10_000):
        with pytest.raises(InvalidRequest) as refused:
            events.from_cursor(teams[0], wrong)
        assert refused.value.hint


def test_a_reader_that_is_too_far_behind_must_start_again(store: Store, teams: list[UUID]) -> None:
    for _ in range(3):
        store.write(lambda db: db.event(BatchStored(source=teams[0], seq=1), team=teams[0], actor="machine"))
    with store.read() as db:
        assert [events.is_too_old(db, teams[0], after) for after in range(5)] == [False, False, False, False, True]
    store.write(lambda db: db.sql.execute(delete(EventRow).where(EventRow.seq == 2)))
    with store.read() as db:
        assert [events.is_too_old(db, teams[0], after) for after in range(4)] == [True, True, False, False]
