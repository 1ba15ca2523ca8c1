# SPDX-License-Identifier: Apache-2.0
"""A leak is gone once the list that would have it lacks it: no other provider's, region's or kind's list says so."""

from __future__ import annotations

import pytest
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet import leaks

from tests.core.world import Fleet

LEAK = ("cloud", "a", "i-1", "machine", "3.60")


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("provider", "region", "kinds", "present", "gone"),
    [
        ("cloud", "a", ["machine", "volume"], ["i-2"], True),
        ("cloud", "a", ["machine"], ["i-1"], False),
        ("cloud", "a", ["volume"], [], False),
        ("cloud", "b", ["machine"], [], False),
        ("other", "a", ["machine"], [], False),
    ],
)
def test_a_leak_ends_with_the_list_that_lacks_it(
    fleet: Fleet, provider: str, region: str, kinds: list[str], present: list[str], gone: bool
) -> None:
    assert fleet.write(leaks.record_leak, *LEAK, fleet.clock.now - 100 * S)
    fleet.write(leaks.end_leaks, provider, region, kinds, present)
    assert fleet.read(leaks.load_open, "cloud") == (set() if gone else {"a"})
    fleet.clock.pass_(100)
    assert fleet.read(leaks.leaked) == (100_000 if gone else 200_000)


def test_a_leak_that_is_gone_costs_no_more_when_it_is_missing_again(fleet: Fleet) -> None:
    fleet.write(leaks.record_leak, *LEAK, fleet.clock.now - 100 * S)
    for _ in range(2):
        fleet.write(leaks.end_leaks, "cloud", "a", ["machine"], [])
        fleet.clock.pass_(100)
    assert fleet.read(leaks.leaked) == 100_000


def test_each_provider_has_leaks_of_its_own(fleet: Fleet) -> None:
    fleet.write(leaks.record_leak, *LEAK, fleet.clock.now)
    fleet.write(leaks.record_leak, "other", "b", *LEAK[2:], fleet.clock.now)
    assert fleet.read(leaks.load_open, "cloud") == {"a"}
    assert fleet.read(leaks.load_open, "other") == {"b"}
