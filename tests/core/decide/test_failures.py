# SPDX-License-Identifier: Apache-2.0
"""Deaths have owners: a table of what can happen to a gang, and whose it is."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args
from uuid import UUID

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
    decide_attempt,
)
from shoestring_core.decide.nan_recovery import next_skip
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.retries import JITTER, RULES, backoff, refuse_retry, retry_delay
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.states import EndReason, GenerationState, MachineState
from shoestring_core.wording import attempts, machines
from shoestring_trainer.training.errors import Kind, classify_error

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
LAUNCHING = MachineStatus(1, MachineState.LAUNCHING)
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
    "one drained after a notice, and is left to its provider": (
        gang(up(0, exits=(end("drained"),), ago=29, notice_at=1, is_left=True), RUNNING),
        NoAction,
    ),
    "one drained after a notice, and its peers hang": (
        gang(up(0, exits=(end("drained"),), ago=30, notice_at=1, is_left=True), RUNNING),
        EndAttempt,
    ),
    "one that is left to its provider is to join again": (
        gang(up(0, notice_at=1, is_left=True), RUNNING, state=GenerationState.FORMING),
        EndAttempt,
    ),
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
    assert {*USER_ERRORS, EndReason.HARDWARE, EndReason.INFRASTRUCTURE} == set(get_args(Kind))


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
        ("price", None, "price"),
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


HELLO = TIMEOUTS.model_copy(update={"hello": 300 * S})


def test_a_machine_that_powered_off_without_reaching_the_service_ends_the_job():
    """Another one would not reach it either. That is certain only where user data says hello first."""
    mute = MachineStatus(1, MachineState.TERMINATING, "exited")
    assert decide_attempt(gang(up(0), mute, state=None), NOW, TIMEOUTS).reason == "machine_lost"
    ended = decide_attempt(gang(up(0), mute, state=None), NOW, HELLO)
    assert ended == EndJob(EndReason.NETWORK, machines.ServiceUnreachable(1))
    for heard in ({"hello_at": 1}, {"registered_at": 1}, {"notice_at": 1}):
        said = MachineStatus(1, MachineState.TERMINATED, "exited", **heard)
        assert isinstance(decide_attempt(gang(up(0), said, state=None), NOW, HELLO), EndAttempt)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("image", EndJob), ("network", EndJob), ("hardware", EndAttempt), ("boot", EndAttempt)],
)
def test_a_boot_that_failed_is_the_image_s_the_network_s_the_gpu_s_or_the_machine_s_fault(kind, expected):
    failed = MachineStatus(0, MachineState.TERMINATED, "exited", hello_at=1, boot_failure=(kind, "driver", "no GPU"))
    action = decide_attempt(gang(failed, up(1), state=None), NOW, HELLO)
    assert action == expected(kind, machines.BootFailed(0, kind, "driver", "no GPU"))


def test_a_machine_whose_user_data_reports_nothing_is_given_up():
    mute = MachineStatus(0, MachineState.RUNNING, launched_at=NOW - 300 * S)
    assert decide_attempt(gang(mute, up(1), state=None), NOW, HELLO).detail == machines.MachineSilent(0, 300)
    for other in ({"launched_at": NOW - 299 * S}, {"hello_at": 1}, {"registered_at": 1}):
        fine = replace(mute, **other)
        assert decide_attempt(gang(fine, up(1), state=None), NOW, HELLO) == NoAction()
    assert decide_attempt(gang(mute, up(1), state=None), NOW, TIMEOUTS) == NoAction()


def test_a_broken_gpu_is_nobody_s_error_and_its_machine_is_given_back():
    exits = (end("error", 1, "hardware"),)
    lost_peer = up(0, exits=(end("error", 0, "infrastructure"),))
    action = decide_attempt(gang(lost_peer, up(1, exits=exits)), NOW, TIMEOUTS)
    assert action == EndAttempt("hardware", attempts.HardwareFailed(1, 1, "rank 1: error hardware"))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA error: uncorrectable ECC error encountered", "hardware"),
        ("NCCL error: uncorrectable NVLink error detected during the execution", "hardware"),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", "hardware"),
        ("CUDA error: device-side assert triggered", "user_code"),
        ("NCCL error: remote process exited or there was a network error", "infrastructure"),
    ],
)
def test_a_broken_gpu_is_told_from_an_error_of_the_code_and_from_a_lost_peer(message, kind):
    assert classify_error(RuntimeError(message), has_peers=True) == kind


def test_a_gang_refused_for_the_price_of_spot_waits_for_that():
    refused = gang(up(0), state=None, refusals=((RefusalKind.PRICE, "too low"),))
    assert decide_attempt(refused, NOW + 30 * S, TIMEOUTS).reason == "price"


def test_a_role_that_the_provider_does_not_know_yet_ends_the_job_only_after_the_launch_window():
    unknown, full = (RefusalKind.ROLE, "no such profile"), (RefusalKind.CAPACITY, "full")
    refused = gang(up(0), state=None, refusals=(full, unknown))
    assert decide_attempt(refused, NOW + 29 * S, TIMEOUTS) == NoAction()
    action = decide_attempt(refused, NOW + 30 * S, TIMEOUTS)
    assert action == EndJob(EndReason.ACCOUNT, machines.LaunchRefused(RefusalKind.ROLE, "no such profile"))
    since = (replace(refused, refusals=(unknown, full)), replace(refused, machines=(up(0), LAUNCHING)))
    assert [decide_attempt(one, NOW + 30 * S, TIMEOUTS).reason for one in since] == ["capacity", "capacity"]


def test_a_region_that_is_refused_ends_the_attempt_at_once_and_no_job():
    refused = gang(up(0), state=None, refusals=((RefusalKind.REGION, "OptInRequired"),))
    assert decide_attempt(refused, NOW, TIMEOUTS) == EndAttempt(
        "region", machines.LaunchRefused(RefusalKind.REGION, "OptInRequired")
    )


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
    ("reason", "trained", "in_vain", "same", "on", "ends"),
    [
        ("preempted", 5, 0, 0, ("interruption",), None),
        ("preempted", 6, 0, 0, ("interruption",), EndReason.INFRASTRUCTURE),
        ("machine_lost", 1, 0, 0, ("capacity",), EndReason.INFRASTRUCTURE),
        ("capacity", 0, 0, 0, ("interruption",), EndReason.NO_CAPACITY),
        ("capacity", 0, 0, 0, ("interruption", "capacity"), None),
        ("price", 0, 0, 0, ("interruption",), EndReason.NO_CAPACITY),
        ("quota", 0, 0, 0, ("interruption",), EndReason.QUOTA),
        ("machine_lost", 0, 7, 7, ("interruption",), None),
        ("machine_lost", 0, 8, 8, ("interruption",), EndReason.INFRASTRUCTURE),
        ("machine_lost", 0, 8, 1, ("interruption",), EndReason.INFRASTRUCTURE),
        ("boot", 0, 2, 2, ("interruption",), None),
        ("boot", 0, 3, 3, ("interruption",), EndReason.BOOT),
        ("hardware", 0, 7, 2, ("interruption",), None),
        ("hardware", 0, 3, 3, ("interruption",), EndReason.HARDWARE),
    ],
)
def test_each_class_of_failure_has_its_own_retries(reason, trained, in_vain, same, on, ends):
    action = refuse_retry(reason, attempts.AttemptEnded(), trained, in_vain, same, on, 5)
    assert (action and action.reason) == ends


@pytest.mark.parametrize("reason", RULES)
def test_delays_are_longer_by_a_jitter_that_is_the_same_whenever_it_is_computed(reason):
    for failures in (1, 4, 30):
        delays = {job: retry_delay(UUID(int=job), reason, failures, TIMEOUTS) for job in range(100)}
        assert delays == {job: retry_delay(UUID(int=job), reason, failures, TIMEOUTS) for job in delays}
        least = backoff(failures, TIMEOUTS, RULES[reason].first_delay)
        assert least <= min(delays.values()) <= max(delays.values()) <= least * (1 + JITTER)
        assert len(set(delays.values())) > 90 or not least


def test_the_delay_doubles_up_to_a_launch_window():
    assert [backoff(number, TIMEOUTS) / S for number in (0, 1, 2, 3, 8, 99)] == [0, 0.5, 1, 2, 60, 60]
