# SPDX-License-Identifier: Apache-2.0
"""Which machines train next in a gang that may lose some: a table of what can befall four of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoestring_core import wire
from shoestring_core.decide.failures import EndAttempt, Gang, KeepGoing, Restart, judge
from shoestring_core.decide.membership import Fate, muster, newcomers_wait
from shoestring_core.decide.timeouts import S, Terms
from shoestring_core.states import GenerationState, MachineState

NOW = 1_800_000_000 * S
TERMS = Terms()
DRAINED = (wire.RankExit(rank=0, outcome="drained", at=0.0),)


def member(slot: int, **more) -> Fate:
    known = {"redeemed_at": 1, "ready_at": 1, "last_report_at": NOW, "first": slot == 0, "trained": True}
    return Fate(slot, MachineState.UP, **known | more)


def gone(slot: int, ago: float = 5) -> Fate:
    return replace(member(slot), state=MachineState.GONE, end_cause="crashed", ended_at=NOW - round(ago * S))


def newcomer(slot: int, **more) -> Fate:
    return Fate(slot, MachineState.UP, **{"redeemed_at": NOW - S, "last_report_at": NOW, "part": False} | more)


def gang(*fates: Fate, least: int = 2, state: GenerationState = GenerationState.FORMED) -> Gang:
    return Gang(4, fates, opened_at=0, generation=3, state=state, generation_at=NOW - 31 * S, least=least)


FOUR = [member(slot) for slot in range(4)]
ALL_DRAINED = [member(slot, exited_at=NOW, exits=DRAINED) for slot in range(4)]


@pytest.mark.parametrize(
    ("fates", "expected"),
    [
        (FOUR, KeepGoing()),
        ([*FOUR[:3], gone(3)], Restart("The machine in slot 3 was lost (crashed).")),
        ([*FOUR[:2], gone(2), gone(3)], Restart("The machine in slot 2 was lost (crashed).")),
        ([FOUR[0], gone(1), gone(2), gone(3)], EndAttempt("lost", "The machine in slot 1 was lost (crashed).")),
        # the first survivor's last checkpoint is on its way
        ([*FOUR[:3], gone(3, ago=1)], KeepGoing()),
        ([member(0, exited_at=NOW, exits=()), *FOUR[1:3], gone(3, ago=1)], Restart),
        ([gone(0, ago=1), *FOUR[1:]], Restart("The machine in slot 0 was lost (crashed).")),
        # a machine that came since is lost before it was let in: nothing to anybody
        ([*FOUR, replace(gone(3), part=False, trained=False)], KeepGoing()),
        ([*FOUR[:3], gone(3), newcomer(3)], Restart),
        # the provider takes one back: its ranks drain with the others, and the others go on
        ([*FOUR[:3], member(3, notice_at=NOW, exited_at=NOW, exits=DRAINED)], KeepGoing()),
        ([*ALL_DRAINED[:3], replace(ALL_DRAINED[3], notice_at=NOW)], Restart("The provider takes a machine back.")),
        ([ALL_DRAINED[0], *(replace(one, notice_at=NOW) for one in ALL_DRAINED[1:])], EndAttempt),
        # room was made for newcomers
        (ALL_DRAINED, Restart),
    ],
)
def test_what_befalls_a_gang_that_may_lose_machines(fates, expected):
    verdict = judge(gang(*fates), NOW, TERMS)
    assert verdict == expected if not isinstance(expected, type) else isinstance(verdict, expected)


def test_a_machine_that_does_not_get_ready_is_ended_and_the_others_form_without_it():
    forming = [*FOUR[:3], replace(FOUR[3], ready_at=None)]
    verdict = judge(gang(*forming, state=GenerationState.FORMING), NOW, TERMS)
    assert verdict == Restart("The machine in slot 3 did not get ready in time.", expelled=(3,))
    assert isinstance(judge(gang(*forming, state=GenerationState.FORMING), NOW - 2 * S, TERMS), KeepGoing)
    assert isinstance(judge(gang(*forming, least=4, state=GenerationState.FORMING), NOW, TERMS), EndAttempt)


def test_those_that_came_begin_when_the_launch_window_is_over():
    waiting = Fate(3, MachineState.PLANNED)
    launching = Gang(4, (*FOUR[:3], waiting), opened_at=NOW - TERMS.launch_window, least=2)
    assert judge(launching, NOW, TERMS) == Restart("3 of 4 machines have come")
    assert judge(replace(launching, opened_at=NOW), NOW, TERMS) == KeepGoing()
    assert judge(replace(launching, least=4), NOW, TERMS).reason == "capacity"
    assert judge(replace(launching, fates=(FOUR[0], waiting)), NOW, TERMS).reason == "capacity"


@pytest.mark.parametrize(
    ("fates", "expected"),
    [
        (FOUR, (0, 1, 2, 3)),
        ([*FOUR[:2], gone(2), replace(FOUR[3], notice_at=1)], (0, 1)),
        ([*FOUR[:2], newcomer(2), newcomer(3, redeemed_at=None)], (0, 1, 2)),
        ([gone(0), gone(1), newcomer(2), newcomer(3)], (2, 3)),
        # one that is only silent might still train with others that are: somebody it trained with must have stopped
        ([replace(FOUR[0], state=MachineState.ENDING), newcomer(2), newcomer(3)], None),
        ([replace(FOUR[0], state=MachineState.ENDING), FOUR[1], newcomer(2)], (1, 2)),
        ([FOUR[0], gone(1)], ()),
    ],
)
def test_who_can_train_next(fates, expected):
    assert muster(fates, 2) == expected


def test_newcomers_are_let_in_together_and_do_not_wait_for_ever():
    coming = newcomer(3, redeemed_at=None)
    assert newcomers_wait([*FOUR[:3], newcomer(3)], NOW, TERMS)
    assert not newcomers_wait(FOUR, NOW, TERMS)
    assert not newcomers_wait([*FOUR[:3], coming], NOW, TERMS)
    assert not newcomers_wait([*FOUR[:2], newcomer(2), coming], NOW, TERMS)
    assert newcomers_wait([*FOUR[:2], newcomer(2, redeemed_at=NOW - TERMS.blame), coming], NOW, TERMS)
    assert not newcomers_wait([*FOUR[:3], newcomer(3, last_report_at=NOW - 11 * S)], NOW, TERMS)
    assert not newcomers_wait([*FOUR[:3], newcomer(3, notice_at=NOW)], NOW, TERMS)
