# SPDX-License-Identifier: Apache-2.0
"""A slice of what `make soak ONLY=grown_specs` does: a changed spec is parsed, or refused with sentences."""

from __future__ import annotations

from tests.soak.grown_specs import parse_grown_specs


def test_a_spec_grown_from_a_valid_one_is_parsed_or_refused_with_sentences(seed: int):
    faults, outcomes = parse_grown_specs(seed, 600)
    assert faults == []
    assert min(outcomes["parsed"], outcomes["refused"]) > 60
