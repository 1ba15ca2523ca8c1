# SPDX-License-Identifier: Apache-2.0
"""The model of a job spec. The docstring of a field is its description in docs/spec.md and in the JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shoestring_core import money, recipes
from shoestring_core.durations import parse_duration
from shoestring_core.errors import InvalidSpec
from shoestring_core.spec.field_types import (
    MAX_NODES,
    S3_SCHEME,
    CheckpointInterval,
    DataLocation,
    Deadline,
    DiskSize,
    EnvName,
    EnvValue,
    Gpu,
    InitSource,
    JobName,
    MicroDollars,
    NodeCount,
    NotSupportedYet,
    Number,
    ParamValue,
    Percentage,
    Places,
    Script,
    Seconds,
    Slug,
    TagName,
    TagValue,
    Text,
    UniqueTuple,
    disk_bytes,
    split_node_range,
)
from shoestring_core.spec.gpus import GpuChoice, parse_gpus
from shoestring_core.spec.messages import problems_of

MAX_PARAMS = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Code(_Section):
    git: Text | None = None
    """Repository to clone."""
    ref: Text | None = None
    """Commit, tag or branch."""
    upload: Text | None = None
    """Folder to upload with the job."""
    image: Text | None = None
    """Container image, by digest."""


DataFormat = Literal[
    "imagefolder", "webdataset",
    "torchvision/CIFAR10", "torchvision/CIFAR100", "torchvision/Country211", "torchvision/DTD", "torchvision/EuroSAT",
    "torchvision/FER2013", "torchvision/FGVCAircraft", "torchvision/FashionMNIST", "torchvision/Flowers102",
    "torchvision/Food101", "torchvision/GTSRB", "torchvision/Imagenette", "torchvision/KMNIST", "torchvision/MNIST",
    "torchvision/OxfordIIITPet", "torchvision/RenderedSST2", "torchvision/STL10", "torchvision/SUN397",
    "torchvision/SVHN", "torchvision/StanfordCars", "torchvision/USPS",
]  # fmt: skip


class DataSource(_Section):
    train: DataLocation
    """Location of the training data: the absolute path of a folder, or `s3://BUCKET/PREFIX`; for shards also a pattern
    such as `/data/a-{000..127}.tar`. Each machine copies data from S3 to its disk before training starts, or with
    `stream` while it trains."""
    val: Annotated[
        Text | None, NotSupportedYet("the recipe holds out part of `train` for validation; leave it out")
    ] = None
    """Folder of the validation data."""
    format: DataFormat = "imagefolder"
    """Format of the data: `imagefolder` (one sub-folder of images per class), `webdataset` (tar shards), or a
    torchvision dataset as its download leaves it. A folder that `shoestring data prepare` has made is recognized by its
    index, in either of the first two. CIFAR-10 recipes take its binary or Python version."""
    stream: bool = False
    """Download the shards of a folder in S3 that `shoestring data prepare` has made while training, in the order of
    their use, instead of all of them before. Images are then shuffled among 16 shards at a time."""
    cache: DiskSize | None = None
    """Disk space of each machine for streamed shards, such as 200GB; the next ones to be used are kept. Without it,
    80 % of what is free."""

    @property
    def is_in_s3(self) -> bool:
        """Whether machines have to download the data; otherwise they read it from the path."""
        return self.train.startswith(S3_SCHEME)

    @property
    def cache_bytes(self) -> int | None:
        return None if self.cache is None else disk_bytes(self.cache)


class Disk(_Section):
    size: DiskSize | None = None
    """Such as 200GB. Default: what the provider's settings say, and so for the others."""
    iops: Annotated[int, Field(ge=100, le=256_000)] | None = None
    """Operations per second."""
    throughput: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """MiB per second."""

    @property
    def size_bytes(self) -> int | None:
        return None if self.size is None else disk_bytes(self.size)


class Resources(_Section):
    gpu: Gpu = "none"
    """GPUs of each machine: a model such as `L4`, with a number (`A100:8`) or a memory size (`A100:80GB`); a memory
    size such as `24GB..` or `24GB..48GB`; `any`; or a list of alternatives, of which the cheapest is rented. Without a
    number, at least one. `none`: none is needed, so the cheapest machine is rented, with or without."""
    nodes: NodeCount = 1
    """Number of nodes (distributed training). A range such as `2..4` is short for `nodes: 4` with `min: 2`. If left out
    beside `limits.time`: the cheapest number that meets the limit, estimated from earlier runs; 1 if there are none."""
    min: Annotated[int, Field(ge=1, le=MAX_NODES)] | None = None
    """Elastic training: continue with at least this many nodes, and add replacements for lost ones. Default: all
    nodes are required."""
    procs: Annotated[int, Field(ge=1, le=64)] | None = None
    """Training processes per node, on machines with GPUs no more than they have. Default: one for each GPU, as far as
    there are samples in a batch for them; one without GPUs."""
    spot: Literal["only", "prefer", "never"] = "prefer"
    """Whether to use spot machines: only, if available (`prefer`), or never."""
    provider: Slug | None = None
    """Cloud provider. Default: the one that offers suitable machines at the lowest price."""
    regions: Places = ()
    """Regions to choose from; leave empty for any."""
    zones: Places = ()
    """Zones to choose from; leave empty for any."""
    instance: Slug | None = None
    """Machine type, as the provider names it."""
    disk: Disk | None = None
    """Disk of each node."""
    placement: Literal["cluster"] | None = None
    """`cluster`: place the nodes close together, in one zone, for the fastest network between them; with EFA on types
    that have it. Only machines that can be placed so are rented, and replacements come from the same zone."""

    _range = model_validator(mode="before")(split_node_range)

    @classmethod
    def of_stored(cls, spec: Mapping[str, Any]) -> Resources:
        """The resources of a stored spec, whatever else is in it. Raises ValueError or KeyError if it is damaged."""
        return cls.model_validate(spec["resources"])

    @property
    def min_nodes(self) -> int:
        """The smallest number of nodes that may train."""
        return self.nodes if self.min is None else self.min

    @property
    def gpu_choices(self) -> tuple[GpuChoice, ...]:
        """The alternatives of `gpu`; empty: none is needed."""
        return parse_gpus(self.gpu)

    @property
    def requested_nodes(self) -> int | None:
        """The number of nodes that the user asked for; None if `nodes` was left out."""
        return self.nodes if "nodes" in self.model_fields_set else None


class Idle(_Section):
    gpu_below: Percentage
    """GPU utilization below which it counts as idle, such as 10%."""
    window: Annotated[Seconds, Field(alias="for")]
    """How long it must have been idle."""


class Limits(_Section):
    cost: MicroDollars | None = None
    """Maximum cost of the job in dollars. Default: what the team's and the organization's budgets allow."""
    rate: MicroDollars | None = None
    """Maximum cost per hour in dollars, of all nodes together: dearer machines are not rented. What runs goes on when a
    spot price rises."""
    time: Seconds | None = None
    """Maximum run time: `90s`, `5m`, `2h`, `1d`, or plain seconds. The number of nodes is chosen to meet it."""
    deadline: Deadline | None = None
    """Time by which it must have finished, with a time zone, such as `2026-12-04T09:00+01:00`; or a duration from its
    submission, such as `12h`. It trains on spot machines as long as on-demand ones could still finish in time, and
    what these would cost is reserved when it is submitted. How long it takes is known from earlier runs, or from
    `time`."""
    idle: Annotated[Idle | None, NotSupportedYet("set limits.time")] = None
    """Stop the job when its GPUs have been idle."""


class Goal(_Section):
    metric: Text
    """The recipe's metric, such as `val/acc`."""
    reach: Number | None = None
    """Target value of the metric."""
    then: Literal["stop"] = "stop"
    """What to do when the target is reached."""
    best: Annotated[Literal["max", "min"] | None, NotSupportedYet("give the value to reach")] = None
    """Instead of `reach`: keep the checkpoint with the best value."""


class Checkpoint(_Section):
    every: CheckpointInterval = "auto"
    """Checkpoint interval: `auto`, or a duration of at least one second."""
    keep: Annotated[Annotated[int, Field(ge=1, le=1_000)] | None, NotSupportedYet("leave it out")] = None
    """How many checkpoints to keep."""


class Retry(_Section):
    on: UniqueTuple[Literal["interruption", "capacity"]] = ("interruption", "capacity")
    """Failures after which the job is retried."""
    max: Annotated[int, Field(ge=0, le=1_000)] = 5
    """Maximum number of retries. Attempts that never trained a step don't count."""


class Outputs(_Section):
    export: UniqueTuple[Literal["safetensors", "onnx"]] = ()
    """Formats of the exported model besides `model.pt2`. `safetensors` is always written; `onnx` takes seconds."""
    push: Annotated[Text | None, NotSupportedYet("get the model with `shoestring artifacts get`")] = None
    """Where to upload the model."""


class Notify(_Section):
    slack: Text | None = None
    """Channel."""
    email: Text | None = None
    """Address."""
    webhook: Text | None = None
    """URL."""
    on: UniqueTuple[Literal["started", "goal", "finished", "failed", "paused", "over_pace"]] = ("finished", "failed")
    """Events to notify about."""


_OWN_CODE = "choose a recipe"


class JobSpec(_Section):
    """A training job as the user wants it, with every default filled in."""

    name: JobName | None = None
    """Name of the job. Default: the recipe's name."""
    team: Slug | None = None
    """Team that owns the job: its budget pays, its members see it. Default: the team of the API key."""
    recipe: Text | None = None
    """Recipe to train: its name, or `name@version`."""
    run: Annotated[Script | None, NotSupportedYet(_OWN_CODE)] = None
    """Instead of a recipe: the command that runs your own script."""
    params: Annotated[dict[str, ParamValue], Field(max_length=MAX_PARAMS)] = Field(default_factory=dict)
    """Hyperparameters of the recipe; the others get its defaults. A list of values (sweep) is not supported yet."""
    code: Annotated[Code | None, NotSupportedYet(_OWN_CODE)] = None
    """Source of your own script."""
    setup: Annotated[Script | None, NotSupportedYet(_OWN_CODE)] = None
    """Command that prepares a machine for your own script."""
    data: DataSource | None = None
    """Training data, unless the recipe has its own."""
    resources: Resources = Resources()
    """Machines to train on."""
    limits: Limits = Limits()
    """Limits of cost and time."""
    goal: Goal | None = None
    """Metric target that ends the job early."""
    checkpoint: Checkpoint = Checkpoint()
    """How often to save checkpoints."""
    retry: Retry = Retry()
    """When to retry."""
    env: Annotated[dict[EnvName, EnvValue], NotSupportedYet("leave it out", ({},))] = Field(default_factory=dict)
    """Environment variables of the training processes."""
    secrets: Annotated[UniqueTuple[EnvName], NotSupportedYet("leave it out", ((),))] = ()
    """Names of secrets to pass to the training processes."""
    outputs: Outputs | None = None
    """Model export."""
    notify: Annotated[Notify | None, NotSupportedYet("follow the job with `shoestring watch`")] = None
    """Notifications."""
    tags: Annotated[dict[TagName, TagValue], Field(max_length=50)] = Field(default_factory=dict)
    """Labels to filter jobs by."""
    priority: Annotated[
        Literal["low", "normal", "high"],
        NotSupportedYet("your jobs start in the order of submission; leave it out", ("normal",)),
    ] = "normal"
    """Priority in the queue."""
    on_budget: Literal["pause", "stop", "finish"] = "pause"
    """What to do when the budget is exhausted: save a checkpoint and pause until it is raised, or save it and `stop`.
    `finish`: go on. For that the cost of `limits.time` is reserved before the job starts, at the highest price, and
    starting waits until the budget has so much."""
    init: InitSource | None = None
    """Initialize the weights from `job/ID` (its latest checkpoint at submission), or from an absolute path: the folder
    of a run, a folder with model.safetensors or network.safetensors, or a .safetensors file. Weights whose name or
    shape doesn't match stay random and are listed in the log."""
    after: Annotated[UniqueTuple[Text], NotSupportedYet("submit this job when the others have finished", ((),))] = ()
    """Jobs that must finish before this one starts."""

    @property
    def reserved_time(self) -> int:
        """µs of training that are paid for in advance; 0: a funding lease at a time, or what a deadline commits."""
        reserves = self.on_budget == "finish" and self.limits.deadline is None
        return round((self.limits.time or 0) * 1e6) if reserves else 0

    @property
    def init_job_id(self) -> UUID | None:
        """The job that the weights are initialized from, if `init` names one."""
        return UUID(self.init.removeprefix("job/")) if self.init and self.init.startswith("job/") else None

    def deadline_at(self, submitted_at: int) -> int | None:
        """limits.deadline of a job that was submitted then, µs UTC; None: it has none."""
        deadline = self.limits.deadline
        if deadline is None or isinstance(deadline, float):
            return None if deadline is None else submitted_at + round(deadline * 1e6)
        return round((deadline - _EPOCH) / timedelta(microseconds=1))

    def submitted_at(self, now: int) -> JobSpec:
        """Return the same spec with its deadline as a time."""
        at = self.deadline_at(now)
        if at is None:
            return self
        limits = self.limits.model_copy(update={"deadline": _EPOCH + timedelta(seconds=at // 1_000_000)})
        return self.model_copy(update={"limits": limits})

    def with_nodes(self, nodes: int) -> JobSpec:
        """Return the same spec with another number of nodes."""
        return self.model_copy(update={"resources": self.resources.model_copy(update={"nodes": nodes})})

    def resolved(self) -> dict[str, Any]:
        """Return every field with its value, JSON-serializable: money as decimal strings, durations in seconds. `parse`
        accepts it."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> JobSpec:
        """Return the spec whose `resolved()` was stored, without loading its recipe, which may have changed."""
        try:
            return cls.model_validate(stored)
        except ValidationError as error:
            raise InvalidSpec(problems_of(error, cls)) from None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the spec for editors; `params` depends on the recipe that is named."""
    known = recipes.all()
    schema = JobSpec.model_json_schema()
    schema["properties"]["recipe"] |= {"examples": [recipe.name for recipe in known]}
    schema["allOf"] = [
        {
            "if": {"properties": {"recipe": {"enum": [recipe.name, recipe.reference]}}, "required": ["recipe"]},
            "then": {"properties": {"params": recipe.params_schema()}},
        }
        for recipe in known
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def rate_limit_of_stored(spec: Mapping[str, Any]) -> int | None:
    """`limits.rate` of a stored spec, micro-dollars an hour, whatever else is in it. Raises ValueError, TypeError if
    damaged."""
    rate = (spec.get("limits") or {}).get("rate")
    return None if rate is None else money.from_decimal(rate)


def has_deadline(spec: object) -> bool:
    """Whether a stored spec has limits.deadline, whatever else is in it: a damaged one has none."""
    limits = spec.get("limits") if isinstance(spec, Mapping) else None
    return isinstance(limits, Mapping) and limits.get("deadline") is not None


def has_data_in_s3(spec: object) -> bool:
    """Whether machines download the data of a stored spec, whatever else is in it: a damaged one has none."""
    data = spec.get("data") if isinstance(spec, Mapping) else None
    places = (data.get("train"), data.get("val")) if isinstance(data, Mapping) else ()
    return any(isinstance(place, str) and place.startswith(S3_SCHEME) for place in places)


def reserved_time_of_stored(spec: Mapping[str, Any]) -> int:
    """`JobSpec.reserved_time` of a stored spec, whatever else is in it. Raises ValueError, TypeError if damaged."""
    if spec.get("on_budget") != "finish" or has_deadline(spec):
        return 0
    limit = (spec.get("limits") or {}).get("time")
    return round(parse_duration(limit) * 1e6) if isinstance(limit, str) else round((limit or 0) * 1e6)
