# SPDX-License-Identifier: Apache-2.0
"""Which machines train next in an elastic gang: decisions for the cases of a gang of four."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoestring_core import wire
from shoestring_core.decide.failures import EndAttempt, GangStatus, NoAction, Restart, decide_attempt
from shoestring_core.decide.rendezvous import MachineStatus, select_members, should_admit_waiting
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.states import GenerationState, MachineState
from shoestring_core.wording import attempts

NOW = 1_800_000_000 * S
TIMEOUTS = Timeouts()
DRAINED = (wire.RankExit(rank=0, outcome="drained", at=0.0),)


def member(slot: int, **more) -> MachineStatus:
    known = {"registered_at": 1, "ready_at": 1, "last_report_at": NOW, "is_rank0": slot == 0, "was_member": True}
    return MachineStatus(slot, MachineState.RUNNING, **known | more)


def terminated(slot: int, ago: float = 5) -> MachineStatus:
    return replace(member(slot), state=MachineState.TERMINATED, end_cause="crashed", ended_at=NOW - round(ago * S))


def newcomer(slot: int, **more) -> MachineStatus:
    return MachineStatus(
        slot, MachineState.RUNNING, **{"registered_at": NOW - S, "last_report_at": NOW, "is_member": False} | more
    )


def gang(*machines: MachineStatus, min_nodes: int = 2, state: GenerationState = GenerationState.FORMED) -> GangStatus:
    return GangStatus(
        4,
        machines,
        opened_at=0,
        generation=3,
        generation_state=state,
        generation_opened_at=NOW - 31 * S,
        min_nodes=min_nodes,
    )


FOUR = [member(slot) for slot in range(4)]
ALL_DRAINED = [member(slot, exited_at=NOW, exits=DRAINED) for slot in range(4)]


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        (FOUR, NoAction()),
        ([*FOUR[:3], terminated(3)], Restart(attempts.MachineLost(3, "crashed"))),
        ([*FOUR[:2], terminated(2), terminated(3)], Restart(attempts.MachineLost(2, "crashed"))),
        (
            [FOUR[0], terminated(1), terminated(2), terminated(3)],
            EndAttempt("machine_lost", attempts.MachineLost(1, "crashed")),
        ),
        # the first survivor's last checkpoint is still being uploaded
        ([*FOUR[:3], terminated(3, ago=1)], NoAction()),
        ([member(0, exited_at=NOW, exits=()), *FOUR[1:3], terminated(3, ago=1)], Restart),
        ([terminated(0, ago=1), *FOUR[1:]], Restart(attempts.MachineLost(0, "crashed"))),
        # a newcomer is lost before it joined: no effect on the others
        ([*FOUR, replace(terminated(3), is_member=False, was_member=False)], NoAction()),
        ([*FOUR[:3], terminated(3), newcomer(3)], Restart),
        # one is preempted: its ranks drain with the others, and the others continue
        ([*FOUR[:3], member(3, notice_at=NOW, exited_at=NOW, exits=DRAINED)], NoAction()),
        ([*ALL_DRAINED[:3], replace(ALL_DRAINED[3], notice_at=NOW)], Restart(attempts.PreemptionNoticed())),
        ([ALL_DRAINED[0], *(replace(one, notice_at=NOW) for one in ALL_DRAINED[1:])], EndAttempt),
        # the gang was stopped to let newcomers join
        (ALL_DRAINED, Restart),
    ],
)
def test_decisions_for_an_elastic_gang(machines, expected):
    action = decide_attempt(gang(*machines), NOW, TIMEOUTS)
    assert action == expected if not isinstance(expected, type) else isinstance(action, expected)


def test_a_machine_that_does_not_get_ready_is_terminated_and_the_others_continue_without_it():
    forming = [*FOUR[:3], replace(FOUR[3], ready_at=None)]
    action = decide_attempt(gang(*forming, state=GenerationState.FORMING), NOW, TIMEOUTS)
    assert action == Restart(attempts.MachineNotReady(3), excluded=(3,))
    assert isinstance(decide_attempt(gang(*forming, state=GenerationState.FORMING), NOW - 2 * S, TIMEOUTS), NoAction)
    assert isinstance(
        decide_attempt(gang(*forming, min_nodes=4, state=GenerationState.FORMING), NOW, TIMEOUTS), EndAttempt
    )


def test_the_registered_machines_start_when_the_launch_window_is_over():
    waiting = MachineStatus(3, MachineState.PLANNED)
    launching = GangStatus(4, (*FOUR[:3], waiting), opened_at=NOW - TIMEOUTS.launch_window, min_nodes=2)
    assert decide_attempt(launching, NOW, TIMEOUTS) == Restart(attempts.FewerMachines(3, 4))
    assert decide_attempt(replace(launching, opened_at=NOW), NOW, TIMEOUTS) == NoAction()
    assert decide_attempt(replace(launching, min_nodes=4), NOW, TIMEOUTS).reason == "capacity"
    assert decide_attempt(replace(launching, machines=(FOUR[0], waiting)), NOW, TIMEOUTS).reason == "capacity"


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        (FOUR, (0, 1, 2, 3)),
        ([*FOUR[:2], terminated(2), replace(FOUR[3], notice_at=1)], (0, 1)),
        ([*FOUR[:2], newcomer(2), newcomer(3, registered_at=None)], (0, 1, 2)),
        ([terminated(0), terminated(1), newcomer(2), newcomer(3)], (2, 3)),
        # one that is only silent might still train with others that are: somebody it trained with must have stopped
        ([replace(FOUR[0], state=MachineState.TERMINATING), newcomer(2), newcomer(3)], None),
        ([replace(FOUR[0], state=MachineState.TERMINATING), FOUR[1], newcomer(2)], (1, 2)),
        ([FOUR[0], terminated(1)], ()),
    ],
)
def test_who_can_train_next(machines, expected):
    assert select_members(machines, 2) == expected


def test_newcomers_join_together_and_wait_a_limited_time():
    coming = newcomer(3, registered_at=None)
    assert should_admit_waiting([*FOUR[:3], newcomer(3)], NOW, TIMEOUTS)
    assert not should_admit_waiting(FOUR, NOW, TIMEOUTS)
    assert not should_admit_waiting([*FOUR[:3], coming], NOW, TIMEOUTS)
    assert not should_admit_waiting([*FOUR[:2], newcomer(2), coming], NOW, TIMEOUTS)
    assert should_admit_waiting(
        [*FOUR[:2], newcomer(2, registered_at=NOW - TIMEOUTS.join_window), coming], NOW, TIMEOUTS
    )
    assert not should_admit_waiting([*FOUR[:3], newcomer(3, last_report_at=NOW - 11 * S)], NOW, TIMEOUTS)
    assert not should_admit_waiting([*FOUR[:3], newcomer(3, notice_at=NOW)], NOW, TIMEOUTS)
