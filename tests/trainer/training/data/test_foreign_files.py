# SPDX-License-Identifier: Apache-2.0
"""A slice of what `make soak ONLY=foreign_files` does: damaged files are read, or refused by name."""

from __future__ import annotations

from tests.soak.foreign_files import damage_pictures, read_damaged_data_sets


def test_a_damaged_picture_is_read_or_refused_by_name(seed: int):
    found = damage_pictures(seed, 1_500)
    assert found.faults == []
    assert min(found.outcomes["read"], found.outcomes["refused"]) > 200


def test_a_damaged_data_set_is_read_or_refused_by_name(seed: int):
    found = read_damaged_data_sets(seed, 150)
    assert found.faults == []
    assert min(found.outcomes["read"], found.outcomes["refused"]) > 15
