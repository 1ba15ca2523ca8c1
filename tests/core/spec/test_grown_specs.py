# SPDX-License-Identifier: Apache-2.0
"""A slice of what `make soak ONLY=grown_specs` does: a changed spec is parsed, or refused by name."""

from __future__ import annotations

from tests.soak.grown_specs import parse_grown_specs


def test_a_spec_grown_from_a_valid_one_is_parsed_or_refused_by_the_name_of_its_field(seed: int):
    found = parse_grown_specs(seed, 600)
    assert found.faults == []
    assert min(found.outcomes["parsed"], found.outcomes["refused"]) > 60
