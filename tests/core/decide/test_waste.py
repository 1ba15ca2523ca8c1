# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from shoestring_core.decide.waste import MachineTime, Stretch, add, split_cost, wasted


def test_time_before_the_first_step_is_set_up_and_after_the_last_idle() -> None:
    machine = MachineTime(0, 100, True, [Stretch(10, 30, 90, 0, 600)])
    assert split_cost(1000, machine) == {"set_up": 300, "training": 600, "idle": 100}


def test_steps_that_the_next_generation_repeated_are_lost() -> None:
    first, second = Stretch(0, 10, 50, 0, 40, resumed_at=30), Stretch(55, 60, 100, 30, 70)
    parts = split_cost(100, MachineTime(0, 100, True, [first, second]))
    assert parts == {"set_up": 15, "training": 70, "lost_steps": 10, "idle": 5}
    assert wasted(parts) == 30


def test_all_of_a_machine_that_ended_before_a_step_is_a_failed_launch() -> None:
    assert split_cost(7, MachineTime(0, 50, True, [])) == {"failed_launch": 7}
    assert split_cost(7, MachineTime(0, 50, True, [Stretch(10, None, 40, 0, None)])) == {"failed_launch": 7}
    assert split_cost(7, MachineTime(0, 0, True, [])) == {"failed_launch": 7}


def test_a_machine_that_still_starts_is_in_set_up_and_one_that_cost_nothing_in_nothing() -> None:
    assert split_cost(7, MachineTime(0, 50, False, [Stretch(10, None, None, 0, None)])) == {"set_up": 7}
    assert split_cost(0, MachineTime(0, 50, True, [])) == {}


def test_reports_are_added_by_use() -> None:
    assert add([{"idle": 1, "training": 2}, {"idle": 3}, {}]) == {"idle": 4, "training": 2}


times = st.integers(0, 1000)
stretches = st.builds(Stretch, times, st.none() | times, st.none() | times, times, st.none() | times, st.none() | times)


@given(st.integers(0, 10**12), times, times, st.booleans(), st.lists(stretches, max_size=5))
def test_whatever_was_reported_the_parts_are_positive_and_add_up_to_the_cost(
    cost: int, launched: int, until: int, ended: bool, of_machine: list[Stretch]
) -> None:
    parts = split_cost(cost, MachineTime(launched, until, ended, of_machine))
    assert sum(parts.values()) == cost
    assert all(amount >= 0 for amount in parts.values())
