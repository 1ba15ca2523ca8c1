# SPDX-License-Identifier: Apache-2.0
"""The job spec: all fields are read, all mistakes are reported at once, nothing is ignored."""

from __future__ import annotations

import json
from decimal import Decimal

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core import document, money, recipes, spec
from shoestring_core.errors import InvalidSpec
from shoestring_core.spec import JobSpec
from shoestring_core.task import from_spec

QUICK = {"recipe": "digits/quickstart"}
FULL = """
name: digits over night
team: vision-course
recipe: digits/quickstart@1
params: {epochs: 16, lr: 5e-2, precision: fp32, seed: 7}
resources: {gpu: none, nodes: 2, procs: 1, spot: only, provider: local}
limits: {cost: 3.00, time: 1h30m}
goal: {metric: val/acc, reach: 0.97, then: stop}
checkpoint: {every: 30s}
retry: {on: [interruption], max: 8}
tags: {assignment: hw3, week: 3, share: 0.50, late: false}
priority: normal
on_budget: stop
"""


def problems(source) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as refused:
        spec.parse(source)
    assert len({problem.pointer for problem in refused.value.problems}) == len(refused.value.problems)
    return {problem.pointer: f"{problem.code}: {problem.message}" for problem in refused.value.problems}


def test_a_full_spec_is_read_field_by_field():
    job = spec.parse(FULL)
    assert (job.name, job.team, job.recipe) == ("digits over night", "vision-course", "digits/quickstart@1")
    assert (job.params["epochs"], job.params["lr"], job.params["seed"]) == (16, 0.05, 7)
    assert (job.resources.nodes, job.resources.spot) == (2, "only")
    assert (job.limits.cost, job.limits.time) == (3_000_000, 5_400.0)
    assert (job.goal.metric, job.goal.reach) == ("val/acc", 0.97)
    assert (job.checkpoint.every, job.retry.on, job.retry.max) == (30.0, ("interruption",), 8)
    assert job.tags == {"assignment": "hw3", "week": "3", "share": "0.50", "late": "false"}
    assert job.on_budget == "stop"


def test_the_smallest_spec_has_every_default_filled_in():
    job = spec.parse("recipe: digits/quickstart")
    assert job.name == "digits-quickstart"
    assert job.recipe == "digits/quickstart@1"
    assert job.params == recipes.resolve("digits/quickstart", {})
    assert (job.resources.nodes, job.resources.spot, job.on_budget, job.retry.max) == (1, "prefer", "pause", 5)
    assert set(job.resolved()) == set(JobSpec.model_fields)


@pytest.mark.parametrize(
    "text", [FULL, "recipe: digits/quickstart", "{recipe: imagefolder/resnet9, data: {train: /pics}}"]
)
def test_what_is_stored_is_json_and_reads_back_as_the_same_spec(text):
    job = spec.parse(text)
    stored = json.loads(json.dumps(job.resolved(), allow_nan=False))
    assert JobSpec.from_stored(stored) == job == spec.parse(stored) == spec.parse(json.dumps(stored))
    assert spec.parse(stored).resolved() == stored


def test_a_stored_spec_outlives_its_recipe():
    stored = spec.parse(QUICK).resolved() | {"recipe": "digits/gone@3", "params": {"gone": 1}}
    assert JobSpec.from_stored(stored).params == {"gone": 1}


def test_a_stored_spec_that_is_damaged_is_refused():
    with pytest.raises(InvalidSpec, match="no such field"):
        JobSpec.from_stored(spec.parse(QUICK).resolved() | {"colour": "red"})


def test_a_spec_can_not_be_changed():
    job = spec.parse(QUICK)
    with pytest.raises(ValueError, match="frozen"):
        job.name = "other"


@pytest.mark.parametrize(
    "text", ["3", "3.00", "0.1", "0.000001", "1234567.891234", "$2.50", '"3.00"', "1e2", "1000000000"]
)
def test_money_is_exactly_what_was_written(text):
    job = spec.parse(f"recipe: digits/quickstart\nlimits: {{cost: {text}}}")
    assert job.limits.cost == Decimal(text.strip('"$')) * 1_000_000
    assert job.resolved()["limits"]["cost"] == money.to_decimal(job.limits.cost)


@given(st.decimals("0.000001", "999999999", places=6))
def test_no_amount_changes_on_the_way(amount):
    text = f'{{"recipe": "digits/quickstart", "limits": {{"cost": {amount:f}}}}}'
    job = spec.parse(text)
    assert job.limits.cost == int(amount * 1_000_000)
    assert JobSpec.from_stored(json.loads(json.dumps(job.resolved()))).limits.cost == job.limits.cost


@pytest.mark.parametrize(
    "cost",
    [
        0,
        -3,
        "-3.00",
        "0.0000001",
        "1e-7",
        "1e12",
        "99999999999999",
        "three",
        "",
        "3,00",
        "٣",
        "NaN",
        ".inf",
        "1e999",
        True,
        [3],
        {"usd": 3},
    ],
)
def test_an_amount_that_is_none_is_refused(cost):
    assert list(problems(yaml.safe_dump({**QUICK, "limits": {"cost": cost}}).encode())) == ["/limits/cost"]


def test_money_as_a_float_is_refused_because_its_text_is_lost():
    assert 'as text, such as "0.10"' in problems({**QUICK, "limits": {"cost": 0.1}})["/limits/cost"]
    assert spec.parse({**QUICK, "limits": {"cost": Decimal("0.1")}}).limits.cost == 100_000


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (45, 45),
        ("45", 45),
        (1.5, 1.5),
    ],
)
def test_durations(written, seconds):
    assert spec.parse({**QUICK, "limits": {"time": written}}).limits.time == seconds


@pytest.mark.parametrize(
    "written", ["", "s", "0s", 0, 1e-9, "0.9s", -5, "-5m", "5x", "5 minutes", "400d", "30m2h", True, [5], "1e99", "٣s"]
)
def test_a_duration_that_is_none_is_refused(written):
    assert list(problems({**QUICK, "limits": {"time": written}})) == ["/limits/time"]


@pytest.mark.parametrize(
    ("written", "nodes", "least"),
    [
        ({"nodes": "2..4"}, 4, 2),
        ({"nodes": 4, "min": 2}, 4, 2),
        ({"nodes": 4}, 4, 4),
        ({"nodes": "4..4"}, 4, 4),
        ({}, 1, 1),
    ],
)
def test_a_gang_may_lose_machines_down_to_a_least_number(written, nodes, least):
    job = spec.parse(QUICK | {"resources": written})
    assert (job.resources.nodes, job.resources.min_nodes) == (nodes, least)
    assert JobSpec.from_stored(job.resolved()) == job


@pytest.mark.parametrize(
    ("written", "at"),
    [
        ({"nodes": "4..1"}, "/resources/nodes"),
        ({"nodes": "0..4"}, "/resources/nodes"),
        ({"nodes": "1..99"}, "/resources/nodes"),
        ({"nodes": "2.."}, "/resources/nodes"),
        ({"nodes": 2, "min": 3}, "/resources/min"),
        ({"nodes": "2..4", "min": 3}, "/resources/min"),
        ({"nodes": 2, "min": 0}, "/resources/min"),
        ({"nodes": 2, "min": "1"}, "/resources/min"),
    ],
)
def test_a_least_number_that_makes_no_sense_is_refused(written, at):
    assert list(problems(QUICK | {"resources": written})) == [at]


def test_a_deadline_is_a_time_with_its_zone_or_counts_from_the_submission():
    submitted_at = 1_790_000_000_000_000
    at_nine = spec.parse(QUICK | {"limits": {"deadline": "2026-12-04T09:00:00+01:00"}})
    assert at_nine.deadline_at(submitted_at) == 1_796_371_200_000_000
    in_half_a_day = spec.parse("recipe: digits/quickstart\nlimits: {deadline: 12h}")
    assert in_half_a_day.deadline_at(submitted_at) == submitted_at + 43_200_000_000
    stored = in_half_a_day.submitted_at(submitted_at).resolved()
    assert stored["limits"]["deadline"] == "2026-09-22T02:13:20Z"
    assert JobSpec.from_stored(stored).deadline_at(0) == submitted_at + 43_200_000_000


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("2026-12-04T09:00", "needs a time zone, such as 2026-12-04T09:00Z"),
        ("Friday 09:00", "must be a timestamp such as 2026-12-01T09:00Z"),
        ("0001-01-01T00:00+14:00", "must be a timestamp"),
        ("12 h", "must be a timestamp"),
        ("0s", "must be at least 1s"),
        ("400d", "at most 365d"),
        (-3600, "must be at least 1s"),
        (True, "must be a timestamp"),
        ([1], "must be a timestamp"),
    ],
)
def test_a_deadline_that_is_no_time_is_refused(written, said):
    assert said in problems(QUICK | {"limits": {"deadline": written}})["/limits/deadline"]


@pytest.mark.parametrize(
    ("tree", "at"),
    [
        ({"resources": {"spot": "only"}}, "/resources/spot"),
        ({"resources": {"nodes": "2..4"}}, "/resources/min"),
        ({"retry": {"on": ["capacity"]}}, "/retry/on"),
    ],
)
def test_what_forbids_to_keep_a_deadline_is_refused_beside_one(tree, at):
    assert list(problems(QUICK | tree | {"limits": {"deadline": "12h"}})) == [at]
    spec.parse(QUICK | tree)


# Every field whose feature isn't built: valid values are refused as such, wrong ones as wrong.
NOT_YET = {
    "/run": ({"recipe": None, "run": "python train.py"}, {"run": 5}),
    "/setup": ({"setup": "pip install x"}, {"setup": ["pip"]}),
    "/code": ({"code": {"git": "https://example.org/me/repo", "ref": "3f2a1c9"}}, {"code": "x"}),
    "/params/seed": ({"params": {"seed": [1, 2, 3]}}, {"params": {"seed": {"a": 1}}}),
    "/limits/idle": ({"limits": {"idle": {"gpu_below": "10%", "for": "15m"}}}, {"limits": {"idle": 3}}),
    "/goal/best": ({"goal": {"metric": "val/acc", "best": "max"}}, {"goal": {"metric": "val/acc", "best": "most"}}),
    "/checkpoint/keep": ({"checkpoint": {"keep": 2}}, {"checkpoint": {"keep": 0}}),
    "/env": ({"env": {"TOKENIZERS_PARALLELISM": "false"}}, {"env": ["A=1"]}),
    "/secrets": ({"secrets": ["HF_TOKEN"]}, {"secrets": "HF_TOKEN"}),
    "/outputs/push": ({"outputs": {"export": ["onnx"], "push": "hf://team/model"}}, {"outputs": {"push": 5}}),
    "/notify": ({"notify": {"slack": "#lab", "on": ["started"]}}, {"notify": "#lab"}),
    "/priority": ({"priority": "high"}, {"priority": "urgent"}),
    "/init": ({"init": "s3://bucket/model"}, {"init": "job/7"}),
    "/after": ({"after": ["0192"]}, {"after": "0192"}),
    "/data/train": (
        {"recipe": "imagefolder/resnet9", "data": {"train": "gs://bucket/pics"}},
        {"recipe": "imagefolder/resnet9", "data": {"train": "../pics"}},
    ),
    "/data/val": (
        {"recipe": "imagefolder/resnet9", "data": {"train": "/pics", "val": "/held-out"}},
        {"recipe": "imagefolder/resnet9", "data": {"train": "/pics", "val": 1}},
    ),
}


def test_a_job_that_is_to_finish_says_how_long_it_may_run():
    tree = {"recipe": "digits/quickstart", "on_budget": "finish"}
    for limits in ({}, {"limits": {"cost": "1.00"}}, {"limits": {"time": None}}):
        with pytest.raises(InvalidSpec) as refused:
            spec.parse(tree | limits)
        assert [(one.pointer, one.code) for one in refused.value.problems] == [("/on_budget", "missing")]
    job = spec.parse(tree | {"limits": {"time": "1h"}})
    assert job.reserved_time == spec.reserved_time_of_stored(job.resolved()) == 3_600_000_000
    assert spec.parse({"recipe": "digits/quickstart", "limits": {"time": "1h"}}).reserved_time == 0


@pytest.mark.parametrize("at", NOT_YET)
def test_a_field_that_is_not_built_is_checked_and_refused_never_ignored(at):
    valid, wrong = NOT_YET[at]
    found = problems(QUICK | valid)
    assert list(found) == [at]
    assert found[at].startswith("not-supported-yet: not supported yet; ")
    assert problems(QUICK | wrong)[at].startswith("invalid-value: ")


def test_a_warm_start_names_a_job_or_an_absolute_path():
    job = "0192f0c1-0000-7000-8000-000000000007"
    named = spec.parse(spec.from_arguments("digits/quickstart", [f"init=job/{job.upper()}"]))
    assert (named.init, str(named.init_job_id)) == (f"job/{job}", job)
    assert JobSpec.from_stored(named.resolved()).init_job_id == named.init_job_id
    placed = spec.parse(QUICK | {"init": "/models/digits"})
    assert (placed.init, placed.init_job_id) == ("/models/digits", None)
    assert "full id" in problems(QUICK | {"init": "job/0192"})["/init"]
    assert "absolute path" in problems(QUICK | {"init": "models/digits"})["/init"]


def test_data_lie_in_a_folder_or_in_a_bucket():
    def data(place):
        return {"recipe": "imagefolder/resnet9", "data": {"train": place}}

    for place in ("s3://my-bucket", "s3://a.b/images/", "s3://abc/cats and dogs/x-{000..127}.tar", "s3://abc/..a/.b"):
        assert spec.parse(data(place)).data.is_in_s3
    assert not spec.parse(data("/images")).data.is_in_s3
    for place in ("/data/a-{0..99999}.tar", "/data/{0..999999999}/images", "s3://abc/x-{000000..099999}.tar"):
        spec.parse(data(place))
    for place in ("/data/a-{0..100000}.tar", "s3://abc/x-{0..99999999999999}.tar", f"/data/a-{{0..{'9' * 4000}}}.tar"):
        assert "names more than 100,000 shards" in problems(data(place))["/data/train"]
    odd = ("s3://", "s3:///x", "s3://Ab/x", "s3://ab/x", "s3://user:key@abc/x", "s3://abc?x=1", "s3://abc/a\nb")
    for place in (*odd, "s3://abc/../x", "s3://abc/x/..", "s3://abc/./x", "s3://abc//x", "s3://abc/x//"):
        assert problems(data(place))["/data/train"].startswith("invalid-value: ")


def test_only_a_folder_in_a_bucket_is_streamed_and_only_streamed_data_have_a_cache():
    def data(**fields):
        return {"recipe": "imagefolder/resnet9", "data": {"train": "s3://abc/shards", **fields}}

    streamed = spec.parse(data(stream=True, cache="200GB"))
    assert (streamed.data.stream, streamed.data.cache_bytes) == (True, 200 * 10**9)
    assert JobSpec.from_stored(streamed.resolved()).data == streamed.data
    task = from_spec(streamed, job="j", generation=1)
    assert (task.data.stream, task.data.cache_bytes) == (True, 200 * 10**9)
    assert spec.parse(data()).data.cache_bytes is None
    for place in ("/data/shards", "s3://abc/x-{000..127}.tar"):
        assert "can be streamed" in problems(data(train=place, stream=True))["/data/stream"]
    assert "can't be streamed" in problems(data(stream=True, format="torchvision/MNIST"))["/data/stream"]
    assert "Add stream: true" in problems(data(cache="1TB"))["/data/cache"]
    assert "a size such as 200GB" in problems(data(stream=True, cache="200"))["/data/cache"]


def test_a_cache_fits_on_the_disk():
    def tree(cache, size):
        data = {"train": "s3://abc/shards", "stream": True, "cache": cache}
        return {"recipe": "imagefolder/resnet9", "data": data, "resources": {"disk": {"size": size}}}

    assert spec.parse(tree("200GB", "1TB")).resources.disk.size_bytes == 10**12
    assert "Raise resources.disk.size" in problems(tree("200GB", "200GB"))["/resources/disk/size"]
    assert "a size such as 200GB" in problems(tree("200GB", "1"))["/resources/disk/size"]


def test_the_list_of_what_is_not_built_is_complete():
    def later(model, prefix=""):
        for name, field in model.model_fields.items():
            if any(isinstance(mark, spec.NotSupportedYet) for mark in field.metadata):
                yield f"{prefix}/{name}"
            elif name in spec.sections_of(model):
                yield from later(spec.sections_of(model)[name], f"{prefix}/{name}")

    assert set(later(JobSpec)) <= set(NOT_YET)


@pytest.mark.parametrize(
    ("tree", "at", "suggestion"),
    [
        ({"recpie": "digits/quickstart"}, "/recpie", "recipe"),
        ({"project": "x"}, "/project", "team"),
        ({"limit": {"cost": 3}}, "/limit", "limits"),
        ({"limits": {"costs": 3}}, "/limits/costs", "cost"),
        ({"limits": {"idle": {"gpu_bellow": "10%"}}}, "/limits/idle/gpu_bellow", "gpu_below"),
        ({"resources": {"node": 2}}, "/resources/node", "nodes"),
        ({"resources": {"disk": {"iop": 3}}}, "/resources/disk/iop", "iops"),
        ({"resources": {"spot": "Prefered"}}, "/resources/spot", "prefer"),
        ({"goal": {"metrics": "val/acc"}}, "/goal/metrics", "metric"),
        ({"goal": {"metric": "val/ac", "reach": 0.9}}, "/goal/metric", "val/acc"),
        ({"checkpoint": {"evry": "auto"}}, "/checkpoint/evry", "every"),
        ({"retry": {"on": ["interuption"]}}, "/retry/on/0", "interruption"),
        ({"params": {"learning_rate": 1, "epoch": 3}}, "/params/epoch", "epochs"),
        ({"on_budget": "paus"}, "/on_budget", "pause"),
        (
            {"recipe": "imagefolder/any", "data": {"train": "/pics", "format": "torchvision/cifar100"}},
            "/data/format",
            "torchvision/CIFAR100",
        ),
        ({"epochs": 3}, "/epochs", "params.epochs"),
        ({"cost": 3}, "/cost", "limits.cost"),
        ({"params": {"nodes": 2}}, "/params/nodes", "resources.nodes"),
    ],
)
def test_a_misspelt_word_is_met_with_the_right_one(tree, at, suggestion):
    with pytest.raises(InvalidSpec) as refused:
        spec.parse(QUICK | tree)
    (problem,) = [problem for problem in refused.value.problems if problem.pointer == at]
    assert problem.suggestion == suggestion
    assert suggestion in problem.message


@pytest.mark.parametrize(
    ("tree", "at"),
    [
        ({"[key]": 1}, "/[key]"),
        ({"resources": {"[key]": 1}}, "/resources/[key]"),
        ({"env": {"A-B": "x"}}, "/env/A-B"),
        ({"tags": {"": "x"}}, "/tags/"),
        ({"tags": {"a\x1bb": "x"}}, "/tags/a\x1bb"),
        ({"tags": {"a": "x\ny"}}, "/tags/a"),
        ({"tags": {"[key]": [1]}}, "/tags/[key]"),
        ({"recipe": None}, "/recipe"),
        ({"recipe": 5}, "/recipe"),
        ({"recipe": ""}, "/recipe"),
        ({"recipe": "digits/none"}, "/recipe"),
        ({"run": "python x"}, "/run"),
        ({"name": ""}, "/name"),
        ({"name": 5}, "/name"),
        ({"name": "x" * 101}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"team": "two words"}, "/team"),
        ({"params": []}, "/params"),
        ({"params": {"epochs": -1}}, "/params/epochs"),
        ({"params": {"epochs": 10**20}}, "/params/epochs"),
        ({"data": {"train": "/pics"}}, "/data"),
        ({"recipe": "imagefolder/resnet9"}, "/data"),
        ({"recipe": "imagefolder/resnet9", "data": {}}, "/data/train"),
        ({"resources": "two"}, "/resources"),
        ({"params": {f"x{i}": i for i in range(201)}}, "/params"),
        ({"resources": {"nodes": 0}}, "/resources/nodes"),
        ({"resources": {"nodes": -2}}, "/resources/nodes"),
        ({"resources": {"nodes": 1.5}}, "/resources/nodes"),
        ({"resources": {"nodes": 10_000}}, "/resources/nodes"),
        ({"resources": {"nodes": True}}, "/resources/nodes"),
        ({"resources": {"nodes": "two"}}, "/resources/nodes"),
        ({"resources": {"procs": 0}}, "/resources/procs"),
        ({"goal": {"metric": "val/acc"}}, "/goal/reach"),
        ({"goal": {"metric": "val/acc", "reach": 97}}, "/goal/reach"),
        ({"goal": {"metric": "val/acc", "reach": "high"}}, "/goal/reach"),
        (
            {"recipe": "imagenet/cheap", "data": {"train": "/pics"}, "goal": {"metric": "val/acc_top5", "reach": 93}},
            "/goal/reach",
        ),
        ({"goal": {"reach": 0.9}}, "/goal/metric"),
        ({"checkpoint": {"every": "0.1s"}}, "/checkpoint/every"),
        ({"checkpoint": {"every": "often"}}, "/checkpoint/every"),
        ({"retry": {"max": -1}}, "/retry/max"),
        ({"retry": {"on": ["interruption", "interruption"]}}, "/retry/on"),
        ({"tags": {"a": [1]}}, "/tags/a"),
        ({"tags": {f"t{i}": "x" for i in range(51)}}, "/tags"),
    ],
)
def test_a_wrong_value_is_refused_where_it_stands(tree, at):
    assert list(problems(QUICK | tree)) == [at]


def test_all_mistakes_are_said_at_once():
    found = problems("""
        recipe: digits/quickstart
        projct: x
        limits: {cost: -3, tim: 2h}
        resources: {nodes: 0, spot: prefr}
        params: {epochs: .nan, lrr: 1, seed: [1, 2]}
        goal: {metric: loss, reach: 5}
        env: {A: 1}
        name: x
        name: y
    """)
    assert set(found) == {
        "/projct",
        "/limits/cost",
        "/limits/tim",
        "/resources/nodes",
        "/resources/spot",
        "/params/epochs",
        "/params/lrr",
        "/params/seed",
        "/goal/metric",
        "/env",
        "/name",
    }


def test_a_thousand_mistakes_make_a_short_answer():
    with pytest.raises(InvalidSpec) as refused:
        spec.parse(QUICK | {f"x{i}": i for i in range(3_000)})
    assert len(refused.value.problems) <= spec.MAX_PROBLEMS + 2
    assert refused.value.problems[-1].code == "more"


@pytest.mark.parametrize("source", ["just words", "[1, 2]", "3.5", "null", b"[]", '"x"'])
def test_what_is_no_mapping_is_refused(source):
    assert "A job spec is a mapping" in problems(source)[""]


def test_the_wish_list_of_the_design_is_understood_to_the_last_field():
    found = problems("""
        name: resnet18-lr-0.4
        team: vision-course
        recipe: imagefolder/resnet9
        params: {epochs: 16, batch_size: 1024, lr: 0.4, precision: fp16, seed: [1, 2, 3]}
        data: {train: gs://bucket/imagenet, format: webdataset}
        resources: {gpu: [L4, A10G, T4], nodes: 1, spot: prefer, zones: [a], disk: {size: 1TB, iops: 3000}}
        limits: {cost: 3.00, rate: 1.20, time: 2h, deadline: 2026-12-01T09:00Z, idle: {gpu_below: 10%, for: 15m}}
        goal: {metric: val/acc, reach: 0.94, then: stop}
        checkpoint: {every: auto, keep: 2}
        retry: {on: [interruption, capacity], max: 5}
        env: {TOKENIZERS_PARALLELISM: "false"}
        secrets: [HF_TOKEN]
        outputs: {export: [safetensors, onnx], push: hf://team/model}
        notify: {slack: "#lab", on: [started, goal, failed, over_pace]}
        tags: {assignment: hw3}
        priority: normal
        on_budget: finish
        init: s3://bucket/resnet18
        after: [a, b]
    """)
    assert {text.partition(":")[0] for text in found.values()} == {"not-supported-yet"}


def test_arguments_make_the_same_spec_as_a_file():
    tree = spec.from_arguments(
        "digits/quickstart",
        [
            "epochs=3",
            "lr=5e-2",
            "precision=fp32",
            "resources.nodes=2",
            "limits.cost=3.10",
            "limits.time=2h",
            "team=vision",
            "tags.week=3",
        ],
    )
    json.dumps(tree)
    file = "{recipe: digits/quickstart, team: vision, params: {epochs: 3, lr: 0.05, precision: fp32}, tags: {week: 3},"
    assert spec.parse(tree) == spec.parse(file + "resources: {nodes: 2}, limits: {cost: 3.10, time: 2h}}")


def test_a_text_field_in_an_argument_needs_no_quotes():
    tree = spec.from_arguments("imagefolder/resnet9", ["name=2026", "team=7", "data.train=/data/1.50", "tags.a=true"])
    job = spec.parse(tree)
    assert (job.name, job.team, job.data.train, job.tags) == ("2026", "7", "/data/1.50", {"a": "true"})


def test_no_parameter_is_called_like_a_field_so_that_arguments_are_clear():
    assert not {name for recipe in recipes.all() for name in recipe.params} & set(JobSpec.model_fields)


def test_a_list_in_an_argument_is_a_sweep():
    tree = spec.from_arguments("digits/quickstart", ["seed=[1, 2]"])
    assert problems(tree)["/params/seed"].startswith("not-supported-yet")


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        (["epochs"], ["invalid-argument"]),
        (["=3"], ["invalid-argument"]),
        (["limits.=3"], ["invalid-argument"]),
        (["a..b=3", "epochs"], ["invalid-argument", "invalid-argument"]),
        (["epochs=3", "epochs=3"], ["duplicate-key"]),
        (["team=x", "team.y=z"], ["duplicate-key"]),
        (["recipe=x"], ["duplicate-key"]),
        (["seed=[1, 2"], ["syntax"]),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(arguments, codes):
    with pytest.raises(InvalidSpec) as refused:
        spec.from_arguments("digits/quickstart", arguments)
    assert [problem.code for problem in refused.value.problems] == codes


def test_absurd_numbers_in_arguments_are_refused_by_the_spec():
    assert list(problems(spec.from_arguments("digits/quickstart", ["epochs=" + "9" * 999]))) == ["/params/epochs"]


def test_the_json_schema_takes_what_parse_takes_and_knows_the_recipes():
    schema = spec.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    check.validate(json.loads(json.dumps(document.read(FULL)[0], default=float)))
    check.validate(spec.parse(FULL).resolved())
    for valid, _ in NOT_YET.values():
        if "params" not in valid:
            check.validate({key: value for key, value in (QUICK | valid).items() if value is not None})
    assert not check.is_valid(QUICK | {"limit": {}})
    assert not check.is_valid(QUICK | {"params": {"epoch": 3}})
    assert not check.is_valid(QUICK | {"params": {"epochs": 0}})


WORDS = st.sampled_from(
    [
        *JobSpec.model_fields,
        "cost",
        "nodes",
        "gpu",
        "metric",
        "reach",
        "every",
        "on",
        "max",
        "train",
        "lr",
        "seed",
        "for",
    ]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.text(max_size=20)
    | st.sampled_from(["digits/quickstart", "imagefolder/resnet9", "auto", "1..4", "5m", "3.00", "none", "/pics"])
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


def accepted_or_refused(source):
    try:
        job = spec.parse(source)
    except InvalidSpec as error:
        refused = error.problems
    else:
        refused = None
    if refused is None:
        assert JobSpec.from_stored(json.loads(json.dumps(job.resolved(), allow_nan=False))) == job
    else:
        assert 0 < len(refused) <= 1_000
        assert all(problem.message and len(problem.message) < 2_000 for problem in refused)


@given(st.dictionaries(WORDS | st.text(max_size=8), TREES, max_size=6))
def test_no_tree_raises_anything_but_invalid_spec(tree):
    accepted_or_refused(tree)
    accepted_or_refused({"recipe": "digits/quickstart"} | tree)


@given(st.text() | st.binary() | st.text("{}[]:,&*!|>-?#%@'\"\\ \n\tab01.e", max_size=60))
def test_no_text_raises_anything_but_invalid_spec(text):
    accepted_or_refused(text)


@given(st.integers(0, len(FULL)), st.integers(0, 30), st.text(max_size=6))
def test_no_damaged_spec_raises_anything_but_invalid_spec(start, cut, inserted):
    accepted_or_refused(FULL[:start] + inserted + FULL[start + cut :])


@given(st.lists(st.text(max_size=12) | st.text("ab.=[1,", max_size=12), max_size=4))
def test_no_argument_raises_anything_but_invalid_spec(arguments):
    try:
        tree = spec.from_arguments("digits/quickstart", arguments)
    except InvalidSpec:
        return
    accepted_or_refused(tree)


@pytest.mark.parametrize(
    ("params", "resources", "message"),
    [
        (
            {"batch_size": 1},
            {"procs": 2},
            "batch_size is 1, less than the 2 processes that share it (nodes: 1, procs: 2)",
        ),
        ({"batch_size": 7}, {"nodes": 4, "procs": 2}, "batch_size is 7, less than the 8 processes"),
        ({"batch_size": 7}, {"nodes": "2..4", "procs": 2}, "batch_size is 7, less than the 8 processes"),
    ],
)
def test_a_batch_with_fewer_images_than_processes_is_refused_at_submission(params, resources, message):
    with pytest.raises(InvalidSpec) as refused:
        spec.parse({"recipe": "digits/quickstart", "params": params, "resources": resources})
    (problem,) = refused.value.problems
    assert problem.pointer == "/params/batch_size"
    assert message in problem.message


@pytest.mark.parametrize(
    ("name", "schedule", "message"),
    [
        ("lr_schedule", "0:1 fast:0", "can't be parsed"),
        ("lr_schedule", "1:0 0:1", "increasing positions"),
        ("batch_size_schedule", "1/2:2", "must begin at 0"),
        ("batch_size_schedule", "0:1 2:2", "end by 1"),
        ("image_size_schedule", "0:128 1/0:2", "can't be parsed"),
        ("image_size_schedule", "0:128 1/2:1", "from 16 to 1024, not 1"),
        ("image_size_schedule", "0:-128", "from 16 to 1024, not -128"),
        ("lr_schedule", "0:1 1:-0.1", "from 0 to 1000, not -0.1"),
        ("momentum_schedule", "0:0.9 1/2:1", "from 0 to 0.9999, not 1"),
        ("crop_scale_schedule", "0:0.08 1/2:2", "from 0 to 1, not 2"),
        ("rectangular_eval_schedule", "0:0 1/2:2", "from 0 to 1, not 2"),
        ("batch_size_schedule", "0:0 1/2:1", "factor 0 of batch_size"),
        ("batch_size_schedule", "0:-1", "makes no batch of 1 to 65,536 images"),
        ("batch_size_schedule", "0:1 1/2:1e12", "makes no batch of 1 to 65,536 images"),
    ],
)
def test_a_schedule_that_cannot_be_trained_is_refused_at_submission(name, schedule, message):
    with pytest.raises(InvalidSpec, match=message) as refused:
        spec.parse({"recipe": "imagenet/alibaba-1", "data": {"train": "/data"}, "params": {name: schedule}})
    assert [problem.pointer for problem in refused.value.problems] == [f"/params/{name}"]


@pytest.mark.parametrize("side", [1, 15])
def test_validation_images_that_are_too_small_to_see_are_refused_at_submission(side: int):
    tree = {"recipe": "imagefolder/any", "data": {"train": "/data"}}
    with pytest.raises(InvalidSpec, match=f"must be 0 or at least 16, not {side}") as refused:
        spec.parse(tree | {"params": {"eval_image_size": side}})
    assert [problem.pointer for problem in refused.value.problems] == ["/params/eval_image_size"]
    for accepted in (0, 16):
        spec.parse(tree | {"params": {"eval_image_size": accepted}})


def test_the_smallest_batch_of_a_schedule_counts():
    smallest = {"batch_size": 8, "batch_size_schedule": "0:1/4 1/2:1"}
    tree = {"recipe": "imagenet/imagenet18", "data": {"train": "/data"}, "params": smallest, "resources": {"nodes": 4}}
    with pytest.raises(InvalidSpec, match="batch_size is 2 at its smallest, less than the 4 processes"):
        spec.parse(tree)
    spec.parse(tree | {"resources": {"nodes": 2}})


def test_a_parameter_of_another_recipe_is_named_with_the_recipes_that_have_it() -> None:
    with pytest.raises(InvalidSpec) as refused:
        spec.parse({"recipe": "digits/quickstart", "params": {"flip": False}})
    (problem,) = refused.value.problems
    assert problem.pointer == "/params/flip"
    assert "digits/quickstart has no parameter 'flip'. Recipes that have it: cifar10/" in problem.message
    assert "params.flip" not in problem.message
    with pytest.raises(InvalidSpec, match=r"Did you mean resources\.nodes"):
        spec.parse({"recipe": "digits/quickstart", "params": {"nodes": 2}})


@pytest.mark.parametrize(
    ("recipe", "params", "said"),
    [
        ("digits/quickstart", {}, "sum_loss is true"),
        ("cifar10/airbench94", {"noise_scale_every_steps": 10}, "too coarse"),
        ("cifar10/airbench94", {}, None),
    ],
)
def test_full_half_precision_that_cannot_learn_is_refused_before_a_machine_is_paid_for(recipe, params, said):
    tree = {"recipe": recipe, "params": params | {"precision": "fp16-true"}}
    if recipe.startswith("cifar10"):
        tree["data"] = {"train": "/data"}
    if said is None:
        assert spec.parse(tree).params["precision"] == "fp16-true"
        return
    with pytest.raises(InvalidSpec) as refused:
        spec.parse(tree)
    (problem,) = refused.value.problems
    assert (problem.pointer, said in problem.message) == ("/params/precision", True)
