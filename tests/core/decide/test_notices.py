# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint can be stored within a spot machine's notice, decided from what was measured or is offered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoestring_core.decide.notices import StoredCheckpoint, outlasted_notice, outlasts_notice
from shoestring_core.decide.offers import Disk, Hardware, Offer
from shoestring_core.decide.timeouts import S, Timeouts

NOTICE = Timeouts(notice=115 * S)
DISK = Disk("gp3", 100, 3_000, 250, (8, 3_000, 125), (16_384, 16_000, 1_000), 500, "0.25", "0.08", "0.005", "0.04")
SPOT = Offer("cloud", "east", "a", "small", "spot", "0.1", "0.5", None, "test", False, Hardware(4, 16_384))
GB = 1_000_000_000


def stored(seconds: float | None, type_: str = "small", size: int = 6 * GB) -> StoredCheckpoint:
    return StoredCheckpoint(type_, size, seconds)


def with_network(mbps: int, disk: Disk | None = None) -> Offer:
    return replace(SPOT, hardware=Hardware(4, 16_384, network_mbps=mbps), disk=disk)


def test_what_earlier_runs_took_on_such_machines_counts_in_the_middle_of_all_of_them() -> None:
    told = outlasts_notice([stored(120.0), stored(130.0), stored(4.0), stored(10.0, "other")], SPOT, NOTICE)
    assert told is not None
    assert (told.basis, told.type, told.bytes, told.needed_s, told.notice_s) == ("measured", "small", 6 * GB, 120, 115)
    assert outlasts_notice([stored(120.0), stored(20.0), stored(4.0)], SPOT, NOTICE) is None
    assert outlasts_notice([stored(115.0)], SPOT, NOTICE) is None, "just in time"


def test_without_such_machines_the_least_counts_that_network_and_disk_allow() -> None:
    elsewhere = [stored(3.0, "other")]
    told = outlasts_notice(elsewhere, with_network(400), NOTICE)
    assert told is not None
    assert (told.basis, told.needed_s) == ("offered", 120.0)
    assert outlasts_notice(elsewhere, with_network(500), NOTICE) is None, "96 s"
    told = outlasts_notice(elsewhere, with_network(500, DISK), NOTICE)
    assert told is not None
    assert told.needed_s == pytest.approx(96 + 6 * GB / (250 * 1024**2), abs=0.1)
    measured = [*elsewhere, stored(50.0)]
    assert outlasts_notice(measured, with_network(400), NOTICE) is None, "what was measured counts more"


def test_nothing_is_guessed() -> None:
    slow = [stored(500.0)]
    assert outlasts_notice([], with_network(1), NOTICE) is None, "no size"
    assert outlasts_notice([stored(None)], SPOT, NOTICE) is None, "no time, and no network"
    assert outlasts_notice([stored(None)], replace(SPOT, hardware=None), NOTICE) is None
    assert outlasts_notice(slow, SPOT, Timeouts()) is None, "no notice"
    assert outlasts_notice(slow, replace(SPOT, market="on_demand"), NOTICE) is None, "never interrupted"
    assert outlasted_notice(stored(500.0), "on_demand", NOTICE) is None
    assert outlasted_notice(stored(None), "spot", NOTICE) is None
    assert outlasted_notice(stored(500.0), "spot", Timeouts()) is None


def test_the_sentence_says_size_time_notice_and_what_to_do() -> None:
    told = outlasted_notice(stored(130.0), "spot", NOTICE)
    assert told is not None
    assert told.basis == "this_run"
    text = told.text()
    for part in ("6 GB", "2m10s", "1m55s", "small", "checkpoint.every", "resources.spot: never", "smaller model"):
        assert part in text
