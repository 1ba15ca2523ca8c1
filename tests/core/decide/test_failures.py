# SPDX-License-Identifier: Apache-2.0
"""Deaths have owners: a table of what can happen to a gang, and whose it is."""

from __future__ import annotations

from typing import get_args

import pytest
from shoestring_core import wire
from shoestring_core.decide.failures import (
    MAX_RESTARTS_WITHOUT_CHECKPOINT,
    USER_ERRORS,
    EndAttempt,
    EndJob,
    GangStatus,
    MachineStatus,
    NoAction,
    Restart,
    backoff,
    decide_attempt,
    refuse_retry,
)
from shoestring_core.decide.nan_recovery import next_skip
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.states import EndReason, GenerationState, MachineState
from shoestring_core.wording import attempts
from shoestring_trainer.training.errors import Kind

NOW = 1_800_000_000 * S
TIMEOUTS = Timeouts(funding_lease=60 * S)


def end(outcome: str, rank: int = 0, kind: str | None = None, at: float = 0.0) -> wire.RankExit:
    return wire.RankExit(rank=rank, outcome=outcome, at=at, kind=kind, message=f"rank {rank}: {outcome} {kind}")


def up(
    slot: int = 0, *, exits: tuple[wire.RankExit, ...] = (), ago: float = 0, reported: float = 0, **more
) -> MachineStatus:
    exited = NOW - round(ago * S) if exits else None
    last = NOW - round(reported * S)
    return MachineStatus(
        slot, MachineState.RUNNING, last_report_at=last, ready_at=1, exited_at=exited, exits=exits, **more
    )


def gang(*machines: MachineStatus, state: GenerationState | None = GenerationState.FORMED, **more) -> GangStatus:
    number = None if state is None else 3
    return GangStatus(
        2,
        machines,
        opened_at=NOW - 30 * S,
        generation=number,
        generation_state=state,
        generation_opened_at=NOW - 5 * S,
        **more,
    )


RUNNING = up(1)
CASES = {
    "all run": (gang(up(0), RUNNING), NoAction),
    "a machine is terminated": (gang(MachineStatus(0, MachineState.TERMINATED, "crashed"), RUNNING), EndAttempt),
    "a machine is terminating": (gang(MachineStatus(0, MachineState.TERMINATING), RUNNING), EndAttempt),
    "a rank was killed": (gang(up(0, exits=(end("signal"),)), RUNNING), Restart),
    "only peers were lost": (gang(up(0, exits=(end("error", 0, "infrastructure"),)), RUNNING), NoAction),
    "only peers were lost, for a while": (
        gang(up(0, exits=(end("error", 0, "infrastructure"),), ago=10), RUNNING),
        Restart,
    ),
    "an error, just now": (gang(up(0, exits=(end("error", 0, "user_code"),)), RUNNING), NoAction),
    "an error, all report on": (gang(up(0, exits=(end("error", 0, "user_code"),), ago=10), RUNNING), EndJob),
    "an error, a machine is silent": (
        gang(up(0, exits=(end("error", 0, "user_code"),), ago=10), up(1, reported=20)),
        NoAction,
    ),
    "an error beside a killed rank": (
        gang(up(0, exits=(end("error", 0, "user_code", 1.0),), ago=20), up(1, exits=(end("signal", 1, at=2.0),))),
        Restart,
    ),
    "drained after a notice": (
        gang(up(0, exits=(end("drained"),), notice_at=1), up(1, exits=(end("drained", 1),))),
        EndAttempt,
    ),
    "one drained after a notice": (gang(up(0, exits=(end("drained"),), notice_at=1), RUNNING), NoAction),
    "drained by themselves": (gang(up(0, exits=(end("drained"),)), up(1, exits=(end("drained", 1),))), EndAttempt),
    "finished, the last checkpoint on its way": (
        gang(up(0, exits=(end("finished"),)), up(1, exits=(end("finished", 1),))),
        NoAction,
    ),
    "finished, no last checkpoint": (
        gang(up(0, exits=(end("finished"),), ago=30), up(1, exits=(end("finished", 1),), ago=30)),
        Restart,
    ),
    "one left alone": (gang(up(0, exits=(end("finished"),), ago=30), RUNNING), Restart),
}


@pytest.mark.parametrize("name", CASES)
def test_each_exit_is_attributed_to_its_cause(name):
    given, expected = CASES[name]
    assert isinstance(decide_attempt(given, NOW, TIMEOUTS), expected)


@pytest.mark.parametrize("kind", ["user_code", "out_of_memory", "nan", "data"])
def test_a_user_error_keeps_its_kind_and_message(kind):
    action = decide_attempt(gang(up(0, exits=(end("error", 0, kind),), ago=10), RUNNING), NOW, TIMEOUTS)
    assert action == EndJob(EndReason(kind), attempts.TrainingFailed(0, kind, f"rank 0: error {kind}"))


def test_each_kind_of_error_that_a_rank_reports_ends_the_job_unless_the_infrastructure_is_blamed():
    assert {*USER_ERRORS, EndReason.INFRASTRUCTURE} == set(get_args(Kind))


def test_the_reason_of_a_failed_job_is_one_line_without_the_traceback():
    message = "class a is empty:\nadd images\n\nTraceback (most recent call last):\n  File ..."
    error = wire.RankExit(rank=0, outcome="error", at=0.0, kind="data", message=message)
    action = decide_attempt(gang(up(0, exits=(error,), ago=10), RUNNING), NOW, TIMEOUTS)
    assert action == EndJob(EndReason.DATA, attempts.TrainingFailed(0, "data", "class a is empty: add images"))


def test_steps_with_a_nan_are_skipped_at_once_in_increasing_spans():
    broken = wire.RankExit(
        rank=0, outcome="error", at=2.0, kind="nan", message="the loss is nan\n\nTraceback", since=30
    )
    exits = (broken, end("signal", 1, at=1.0))  # a rank that was killed when its peer left
    spans: tuple[tuple[int, int], ...] = ()
    for span in ((30, 30), (27, 30), (15, 30)):
        action = decide_attempt(gang(up(0, exits=exits), RUNNING, skips=spans), NOW, TIMEOUTS)
        assert action == Restart(attempts.RolledBack("the loss is nan", *span), skip=span)
        spans += (span,)
    last = decide_attempt(gang(up(0, exits=exits), RUNNING, skips=spans), NOW, TIMEOUTS)
    assert last == EndJob(EndReason.NAN, attempts.NanPersisted("the loss is nan", spans))


def test_no_span_starts_before_the_first_step():
    assert next_skip(3, [(1, 1), (1, 2)]) == (1, 3)


def test_ranks_restart_three_times_without_a_new_checkpoint_then_the_infrastructure_is_blamed():
    for restarts in range(MAX_RESTARTS_WITHOUT_CHECKPOINT):
        assert isinstance(
            decide_attempt(gang(up(0, exits=(end("signal"),)), RUNNING, restarts=restarts), NOW, TIMEOUTS), Restart
        )
    last = decide_attempt(
        gang(up(0, exits=(end("signal"),)), RUNNING, restarts=MAX_RESTARTS_WITHOUT_CHECKPOINT), NOW, TIMEOUTS
    )
    assert isinstance(last, EndJob)
    assert last.reason is EndReason.INFRASTRUCTURE


@pytest.mark.parametrize(
    ("end_cause", "notice_at", "reason"),
    [
        ("preempted", None, "preempted"),
        ("exited", 1, "preempted"),
        ("crashed", None, "machine_lost"),
        ("capacity", None, "capacity"),
        ("quota", None, "quota"),
        ("account", None, EndReason.ACCOUNT),
        ("image", None, EndReason.IMAGE),
    ],
)
def test_an_attempt_or_a_job_ends_for_what_its_machine_ended_for(end_cause, notice_at, reason):
    ended = MachineStatus(0, MachineState.TERMINATED, end_cause, notice_at)
    assert decide_attempt(gang(ended, RUNNING), NOW, TIMEOUTS).reason == reason


@pytest.mark.parametrize(
    ("end_cause", "registered_at", "code"),
    [
        ("exited", None, "machine_never_registered"),
        ("exited", 1, "machine_lost"),
        ("crashed", None, "machine_lost"),
    ],
)
def test_a_machine_that_left_before_it_reached_the_service_is_told_apart(end_cause, registered_at, code):
    ended = MachineStatus(0, MachineState.TERMINATED, end_cause, registered_at=registered_at)
    decided = decide_attempt(gang(ended, RUNNING), NOW, TIMEOUTS)
    assert (decided.reason, decided.detail.code) == ("machine_lost", code)


def test_a_generation_that_does_not_form_in_time_ends_the_attempt():
    forming = gang(up(0), MachineStatus(1, MachineState.RUNNING), state=GenerationState.FORMING)
    assert decide_attempt(forming, NOW, TIMEOUTS) == NoAction()
    assert decide_attempt(forming, NOW + 25 * S, TIMEOUTS).reason == "not_ready"


def test_a_gang_that_is_incomplete_after_the_launch_window_ends_the_attempt():
    for second in ((), (MachineStatus(1, MachineState.LAUNCHING),)):
        launching = gang(up(0), *second, state=None)
        assert decide_attempt(launching, NOW + 29 * S, TIMEOUTS) == NoAction()
        assert decide_attempt(launching, NOW + 30 * S, TIMEOUTS).reason == "capacity"
    assert decide_attempt(gang(up(0), up(1), state=None), NOW + 30 * S, TIMEOUTS) == NoAction()


@pytest.mark.parametrize(
    ("reason", "trained", "in_vain", "on", "ends"),
    [
        ("preempted", 5, 0, ("interruption",), None),
        ("preempted", 6, 0, ("interruption",), EndReason.INFRASTRUCTURE),
        ("machine_lost", 1, 0, ("capacity",), EndReason.INFRASTRUCTURE),
        ("capacity", 0, 0, ("interruption",), EndReason.NO_CAPACITY),
        ("capacity", 0, 0, ("interruption", "capacity"), None),
        ("machine_lost", 0, 8, ("interruption",), EndReason.INFRASTRUCTURE),
    ],
)
def test_only_attempts_that_trained_count_as_retries(reason, trained, in_vain, on, ends):
    action = refuse_retry(reason, trained, in_vain, on, 5)
    assert (action and action.reason) == ends


def test_the_delay_doubles_up_to_a_launch_window():
    assert [backoff(number, TIMEOUTS) / S for number in (0, 1, 2, 3, 8, 99)] == [0, 0.5, 1, 2, 60, 60]
