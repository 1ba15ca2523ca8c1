# SPDX-License-Identifier: Apache-2.0
"""When a region is swept, and which leftovers are deleted there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG, ProviderMachine
from shoestring_core.decide.sweeps import Leftover, due_regions, stray_leftovers
from shoestring_core.decide.timeouts import S, Timeouts

NOW = 1_800_000_000 * S
TIMEOUTS = Timeouts(consistency_window=300 * S)
OURS = {DEPLOYMENT_TAG: "us", PROVIDER_TAG: "cloud"}
VOLUME = Leftover("volume", "cloud", "a", "vol-1", OURS, created_at=NOW - 3_600 * S)
REQUEST = Leftover("spot_request", "cloud", "a", "sir-1", OURS, machine="i-1", created_at=NOW - 3_600 * S)
ADDRESS = Leftover("address", "cloud", "a", "eip-1", OURS)
MACHINE = ProviderMachine("cloud", "a", "i-1", "token", OURS, "running", NOW - 60 * S)


@pytest.mark.parametrize(
    ("in_use", "ago", "due"),
    [
        ({}, {}, {"a": True, "b": True, "c": True}),  # a worker that starts
        ({}, {"a": 299, "b": 3_599, "c": 3_599}, {}),
        ({}, {"a": 300, "b": 3_599, "c": 3_600}, {"a": True, "c": True}),
        ({"b": False}, {"a": 0, "b": 29, "c": 0}, {}),
        ({"b": False}, {"a": 0, "b": 30, "c": 0}, {"b": True}),
        ({"b": True}, {"a": 0, "b": 1, "c": 0}, {"b": False}),  # a machine begins or ends: listed, not swept
        ({"d": False}, {"a": 0, "b": 0, "c": 0}, {"d": True}),  # no longer enabled, and still with a machine
        ({}, {"a": -300, "b": 0, "c": 0}, {"a": True}),  # the clock was set back
    ],
)
def test_regions_with_machines_are_swept_each_30_s_configured_ones_each_5_min_and_all_each_hour(in_use, ago, due):
    swept_at = {region: NOW - seconds * S for region, seconds in ago.items()}
    assert due_regions(in_use, ["a"], ["a", "b", "c"], swept_at, NOW) == due


def sweeps(one: Leftover, *at_s: int, machines: tuple[ProviderMachine, ...] = ()) -> list[int]:
    """At which of these sweeps (seconds from now) the leftover is deleted."""
    since: dict[str, int] = {}
    deleted = []
    for seconds in at_s:
        due, since = stray_leftovers([one], machines, since, "cloud", "us", NOW + seconds * S, TIMEOUTS)
        deleted += [seconds] * len(due)
    return deleted


def test_what_is_older_than_the_consistency_window_is_deleted_in_the_second_sweep():
    for one in (VOLUME, replace(REQUEST, machine=None), REQUEST):
        assert sweeps(one, 0, 30) == [30]


def test_what_is_young_or_of_unknown_age_is_deleted_after_the_consistency_window():
    assert sweeps(replace(VOLUME, created_at=NOW - 100 * S), 0, 30, 199, 200) == [200]
    assert sweeps(ADDRESS, 0, 299, 300) == [300]


def test_what_belongs_to_a_machine_that_lives_stays():
    assert sweeps(REQUEST, 0, 400, machines=(MACHINE,)) == []
    assert sweeps(REQUEST, 0, 400, machines=(replace(MACHINE, state="stopping"),)) == []
    assert sweeps(REQUEST, 0, 400, machines=(replace(MACHINE, state="ended"),)) == [400]


def test_a_placement_group_stays_while_a_machine_of_its_attempt_lives():
    attempt = OURS | {"job": "j", "attempt": "2"}
    group = Leftover("placement_group", "cloud", "a", "shoestring-j-2", attempt)
    member = replace(MACHINE, tags=attempt | {"slot": "0"})
    assert sweeps(group, 0, 400, machines=(member,)) == []
    assert sweeps(group, 0, 400, machines=(replace(member, state="ended"),)) == [400]
    assert sweeps(group, 0, 400, machines=(replace(member, tags=attempt | {"attempt": "1"}),)) == [400]
    assert sweeps(replace(VOLUME, tags=attempt), 0, 400, machines=(member,)) == [400], "it is attached to none"


@pytest.mark.parametrize("tags", [{}, {DEPLOYMENT_TAG: "others"}, OURS | {PROVIDER_TAG: "another"}])
def test_what_is_not_ours_is_never_deleted(tags):
    assert sweeps(replace(VOLUME, tags=tags), 0, 400, 4_000) == []


def test_what_was_not_stray_in_the_last_sweep_begins_anew():
    since: dict[str, int] = {}
    for seconds, machines, expected in ((0, (), 0), (30, (MACHINE,), 0), (60, (), 0), (90, (), 1)):
        due, since = stray_leftovers([REQUEST], machines, since, "cloud", "us", NOW + seconds * S, TIMEOUTS)
        assert len(due) == expected
