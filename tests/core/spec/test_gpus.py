# SPDX-License-Identifier: Apache-2.0
"""What `resources.gpu` may say, and which machines it means."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from shoestring_core import spec
from shoestring_core.errors import InvalidSpec
from shoestring_core.spec import JobSpec
from shoestring_core.spec.gpus import GpuChoice, parse_gpu

A10G, A100, L4 = ("A10G", 24, 1), ("A100", 40, 8), ("L4", 24, 4)


def resources(**fields: Any) -> spec.Resources:
    return spec.parse({"recipe": "digits/quickstart", "resources": fields}).resources


@pytest.mark.parametrize(
    ("text", "choice", "accepted"),
    [
        ("A10G", GpuChoice("A10G"), [A10G]),
        ("a10g", GpuChoice("a10g"), [A10G]),
        ("A100:8", GpuChoice("A100", count=8), [A100]),
        ("A100:4", GpuChoice("A100", count=4), []),
        ("A100:40GB:8", GpuChoice("A100", 40, 40, 8), [A100]),
        ("A100:80GB", GpuChoice("A100", 80, 80), []),
        ("24GB", GpuChoice(None, 24, 24), [A10G, L4]),
        ("24gb..", GpuChoice(None, 24, None), [A10G, A100, L4]),
        ("25GB..", GpuChoice(None, 25, None), [A100]),
        ("16GB..24GB:4", GpuChoice(None, 16, 24, 4), [L4]),
        ("any", GpuChoice(), [A10G, A100, L4]),
        ("ANY:1", GpuChoice(count=1), [A10G]),
    ],
)
def test_a_choice_names_a_model_a_memory_and_a_number(text: str, choice: GpuChoice, accepted: list[Any]):
    assert parse_gpu(text) == choice == parse_gpu(choice.text)
    assert [gpu for gpu in (A10G, A100, L4) if choice.accepts(*gpu)] == accepted
    assert not choice.accepts(None, 0, 0)


@pytest.mark.parametrize(
    "text",
    ["", ":", "8", "A100:", "A100:0", "A100:100", ":8", "24GB..16GB", "24 GB", "A100:8:8", "A100:x", "L4,", "٣GB"],
)
def test_what_is_no_choice_is_refused(text: str):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_gpu(text)
    with pytest.raises(InvalidSpec) as refused:
        resources(gpu=text)
    assert refused.value.problems[0].pointer == "/resources/gpu"
    assert "L4, A100:8" in refused.value.problems[0].message


@pytest.mark.parametrize(
    "wrong", [5, 2.5, True, [], {"L4": 1}, ["L4", 5], ["L4", "none"], [["L4"]], ["L4", "L4"], ["L4"] * 17]
)
def test_gpus_are_a_text_or_a_list_of_different_ones(wrong: Any):
    with pytest.raises(InvalidSpec) as refused:
        resources(gpu=wrong)
    assert [problem.pointer for problem in refused.value.problems] == ["/resources/gpu"]


def test_alternatives_are_stored_as_one_text_that_reads_back():
    job = spec.parse({"recipe": "digits/quickstart", "resources": {"gpu": ["A10G", "a100:8", "24GB.."]}})
    assert job.resources.gpu == "A10G, a100:8, 24GB.."
    assert job.resources.gpu_choices == (GpuChoice("A10G"), GpuChoice("a100", count=8), GpuChoice(None, 24))
    stored = json.loads(json.dumps(job.resolved()))
    assert JobSpec.from_stored(stored) == spec.parse(stored) == job
    by_argument = spec.parse(spec.from_arguments("digits/quickstart", ["resources.gpu=A10G,a100:8,24GB.."]))
    assert by_argument.resources.gpu == job.resources.gpu


@pytest.mark.parametrize("none", [{}, {"gpu": "none"}, {"gpu": "None"}, {"gpu": None}])
def test_without_a_choice_no_gpu_is_needed(none: dict[str, Any]):
    assert (resources(**none).gpu, resources(**none).gpu_choices) == ("none", ())


def test_one_region_or_zone_needs_no_list():
    chosen = resources(regions="us-east-1", zones=["us-east-1a", "us-east-1b"], instance="g5.xlarge")
    assert (chosen.regions, chosen.zones, chosen.instance) == (
        ("us-east-1",),
        ("us-east-1a", "us-east-1b"),
        "g5.xlarge",
    )
