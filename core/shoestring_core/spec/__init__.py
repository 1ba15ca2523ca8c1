# SPDX-License-Identifier: Apache-2.0
"""The job spec: what a user submits. `parse` reads and checks all of it at once; nothing is ever silently ignored.

A field marked `Later` is checked like any other, then refused with "not supported yet". Money is integer micro-dollars
in the model and a decimal string in `resolved()`; durations are seconds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from shoestring_core import document, money, recipes
from shoestring_core.document import shown
from shoestring_core.errors import InvalidSpec, Problem

MAX_PROBLEMS = 100
MAX_PARAMS = 200
BUCKETS = "s3://"
"""How a place in S3 begins."""


def parse(source: str | bytes | Mapping[str, Any]) -> JobSpec:
    """The job spec in YAML or JSON text, or in a tree of plain values, with every default filled in.

    In a tree money is text, int or Decimal: a float has lost what was written. Raises InvalidSpec with all problems.
    """
    tree, problems = document.read(source)
    if not isinstance(tree, dict):
        message = f"A job spec is a mapping such as `recipe: digits/quickstart`, not {shown(tree)}."
        raise InvalidSpec([Problem("", message, "invalid-type")])
    tree = {key: value for key, value in tree.items() if value is not None or key not in JobSpec.model_fields}
    recipe = _recipe(tree, problems)
    if recipe is not None:
        tree = _filled(tree, recipe, problems)
    spec, faults = _validated(tree)
    problems += faults + _contradictions(tree, recipe)
    if spec is None or problems:
        raise InvalidSpec(_first_at_each_place(problems))
    return spec


def from_arguments(recipe: str, arguments: list[str]) -> dict[str, Any]:
    """The spec tree for `submit RECIPE k=v…`: JSON-able, for `parse` or for the API.

    A key is a parameter of the recipe; a dotted one (`limits.cost=3`) or the name of a field (`team=vision`) sets the
    spec.
    Raises InvalidSpec for an argument that isn't key=value, or a key given twice.
    """
    tree: dict[str, Any] = {"recipe": recipe}
    problems: list[Problem] = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not all(key.split(".")):
            message = f"{shown(argument)} isn't of the form key=value, such as epochs=3 or limits.cost=2.50."
            problems.append(Problem("", message, "invalid-argument"))
            continue
        path = key.split(".") if "." in key or key in JobSpec.model_fields else ["params", key]
        if not _placed(tree, path, _argument_value(text, is_text=path[0] in _TEXT_FIELDS)):
            problems.append(Problem("/" + "/".join(path), f"{shown(key)} is given twice. Keep one.", "duplicate-key"))
    if problems:
        raise InvalidSpec(problems)
    return tree


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the spec, for completion in editors; parameters as the named recipe has them."""
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


@dataclass(frozen=True)
class Later:
    """Marks a field whose feature isn't built: any other value than those already `built` is refused."""

    instead: str
    built: tuple[object, ...] = (None,)

    def refuse(self, value: Any) -> Any:
        if value not in self.built:
            raise _later(self.instead)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.refuse, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"$comment": f"not supported yet: {self.instead}"}


def _later(instead: str) -> PydanticCustomError:
    return PydanticCustomError("not-supported-yet", "{instead}", {"instead": instead})


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("invalid-value", "{message}", {"message": message})


# What a value may look like.


def _money(value: Any) -> int:
    if isinstance(value, float):
        raise _wrong(f'is money and must not pass through a float; give it as text, such as "{value:.2f}"')
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise _wrong(f"must be dollars such as 3.00, not {shown(value)}")
    try:
        micro = money.micro(f"{value:f}" if isinstance(value, Decimal) else str(value))
    except ValueError:
        raise _wrong(f"must be dollars with at most six decimals, such as 3.00, not {shown(value)}") from None
    if not 0 < micro <= money.MAX_MICRO:
        raise _wrong(f"must be more than nothing, not {shown(value)}")
    return micro


_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?){unit})?" for unit in _UNITS_S))
_MAX_DURATION_S = 365 * 86_400


def _seconds(value: Any) -> float:
    given = document.scalar(value.strip()) if isinstance(value, str) else value
    if _is_number(given):
        seconds = float(given)
    elif isinstance(given, str) and given and (parts := _DURATION.fullmatch(given)):
        seconds = sum(float(part or 0) * unit for part, unit in zip(parts.groups(), _UNITS_S.values(), strict=True))
    else:
        raise _wrong(f"must be a duration such as 90s, 5m, 2h or 1d, not {shown(value)}")
    if not 1 <= seconds <= _MAX_DURATION_S:
        raise _wrong(f"must be at least 1s and at most 365d, not {shown(value)}")
    return seconds


def _cadence(value: Any) -> float | str:
    return "auto" if value == "auto" else _seconds(value)


def _number(value: Any) -> float:
    if not _is_number(value):
        raise _wrong(f"must be a number, not {shown(value)}")
    return float(value)


def _moment(value: Any) -> datetime:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise _wrong(f"must be a moment such as 2026-12-01T09:00Z, not {shown(value)}") from None
    if moment.tzinfo is None:
        raise _wrong(f"needs a time zone, such as {moment.isoformat(timespec='minutes')}Z")
    return moment.astimezone(UTC)


MAX_NODES = 64
_NODE_RANGE = re.compile(r"([0-9]{1,6})\.\.([0-9]{1,6})")


def _nodes(value: Any) -> int:
    if isinstance(value, str) and _NODE_RANGE.fullmatch(value):
        raise _wrong(f"must be a range within 1..{MAX_NODES}, the smaller number first, not {shown(value)}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(f"must be a whole number of machines, not {shown(value)}")
    if not 1 <= value <= MAX_NODES:
        raise _wrong(f"must be from 1 to {MAX_NODES}, not {shown(value)}")
    return value


def _split_range(resources: Any) -> Any:
    """`nodes: 2..4` says `nodes: 4, min: 2` in one word. What makes no sense is left for the fields to refuse."""
    span = _node_range(resources)
    return resources if span is None else resources | {"nodes": span[1], "min": span[0]}


def _node_range(resources: Any) -> tuple[int, int] | None:
    nodes = resources.get("nodes") if isinstance(resources, dict) else None
    span = _NODE_RANGE.fullmatch(nodes) if isinstance(nodes, str) else None
    if span is None or not 1 <= int(span[1]) <= int(span[2]) <= MAX_NODES:
        return None
    return int(span[1]), int(span[2])


_GPU = re.compile(r"any|[A-Za-z][A-Za-z0-9_-]{0,30}(:[1-9][0-9]?)?|[1-9][0-9]{0,3}GB(\.\.([1-9][0-9]{0,3}GB)?)?")


def _gpu(value: Any) -> str:
    if value in (None, "none"):
        return "none"
    wanted = value if isinstance(value, list) else [value]
    if not wanted or not all(isinstance(gpu, str) and _GPU.fullmatch(gpu) for gpu in wanted):
        raise _wrong(f"must be none, or GPUs such as L4, A100:8, 24GB.. or a list of them, not {shown(value)}")
    return ", ".join(wanted)


def _param(value: Any) -> recipes.ParamValue:
    if isinstance(value, list):
        raise _later("a list makes one job per value; submit one job per value yourself")
    if isinstance(value, dict):
        raise _wrong("must be a single value, not a mapping")
    return float(value) if isinstance(value, Decimal) else value


def _as_text(value: Any) -> Any:
    """Numbers and truth values as written: `week: 3` is a tag like any other."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float | Decimal) else value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise _wrong("must have printable characters")
    return value


def _name(value: str) -> str:
    if not value.strip():
        raise _wrong("must have printable characters")
    return _printable(value).strip()


def _absolute(value: str) -> str:
    if "://" in value:
        raise _later("give a path on the machine where Shoestring runs")
    if not value.startswith("/"):
        raise _wrong(f"must be an absolute path such as /data/pictures, not {shown(value)}")
    return value


_BUCKET = re.compile(BUCKETS + r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.{1,2}(/|$))[^/]+)*/?")


def _place(value: str) -> str:
    if value.startswith(BUCKETS):
        if not _BUCKET.fullmatch(_printable(value)):
            raise _wrong(f"must be s3://BUCKET/PREFIX, a bucket's name and a path in it, not {shown(value)}")
    elif "://" in value:
        raise _later("give an absolute path such as /data/pictures, or s3://BUCKET/PREFIX")
    else:
        _absolute(value)
    return value


def _start(value: str) -> str:
    if value.startswith("job/"):
        try:
            return f"job/{UUID(value.removeprefix('job/'))}"
        except ValueError:
            raise _wrong(f"must name a job by its whole id, as `shoestring ls` shows it, not {shown(value)}") from None
    if "://" not in value and not value.startswith("/"):
        raise _wrong(f"must be job/ID, or an absolute path such as /models/resnet18, not {shown(value)}")
    return _absolute(value)


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise _wrong("names something twice")
    return values


# The types of fields.


@dataclass(frozen=True)
class Shape:
    """Text that matches a pattern as a whole, described in words."""

    pattern: str
    words: str

    def check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise _wrong(f"must be {self.words}, not {shown(value)}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"pattern": f"^({self.pattern})$"}


def _either(*kinds: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(kinds)})


_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_STRING = {"type": "string"}
_STRINGS = {"type": "array", "items": _STRING}
_WORD = _either(_STRING, {"type": "number"}, {"type": "boolean"})
_DURATION_SHAPES = ({"type": "number", "minimum": 1}, _STRING | {"pattern": "^[0-9.]+([dhms][0-9.dhms]*)?$"})

Micro = Annotated[
    int,
    BeforeValidator(_money),
    PlainSerializer(money.text, return_type=str, when_used="json"),
    _either(_POSITIVE, _STRING | {"pattern": r"^\$?[0-9]+(\.[0-9]+)?$"}),
]
Seconds = Annotated[float, BeforeValidator(_seconds), _either(*_DURATION_SHAPES)]
Cadence = Annotated[float | str, BeforeValidator(_cadence), _either({"const": "auto"}, *_DURATION_SHAPES)]
Moment = Annotated[datetime, BeforeValidator(_moment)]
Number = Annotated[float, BeforeValidator(_number), WithJsonSchema({"type": "number"})]
Nodes = Annotated[
    int,
    BeforeValidator(_nodes),
    _either({"type": "integer", "minimum": 1, "maximum": MAX_NODES}, _STRING | {"pattern": r"^[0-9]+\.\.[0-9]+$"}),
]
Gpu = Annotated[str, BeforeValidator(_gpu), _either(_STRING, _STRINGS, {"type": "null"})]
Param = Annotated[Any, BeforeValidator(_param)]

Text = Annotated[str, Field(min_length=1, max_length=1_000)]
Script = Annotated[str, Field(min_length=1, max_length=65_536)]
Name = Annotated[str, Field(max_length=100), AfterValidator(_name)]
Slug = Annotated[str, Shape(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "up to 63 letters, digits, dots and dashes")]
Variable = Annotated[str, Shape(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "the name of a variable, such as HF_TOKEN")]
Setting = Annotated[str, BeforeValidator(_as_text), Field(max_length=32_768), _WORD]
TagName = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]
TagValue = Annotated[str, BeforeValidator(_as_text), Field(max_length=256), AfterValidator(_printable), _WORD]
Share = Annotated[str, Shape(r"(100|[0-9]{1,2})%", "a share such as 10%")]
Size = Annotated[str, Shape(r"[1-9][0-9]{0,6}(GB|TB)", "a size such as 200GB")]
Place = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_place)]
Start = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_start)]

Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], Field(strict=False, max_length=64), AfterValidator(_unique)]


# The model. A field's docstring is its description in docs/spec.md and in the JSON Schema.


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Code(_Section):
    git: Text | None = None
    """Repository to clone."""
    ref: Text | None = None
    """Its commit, tag or branch."""
    upload: Text | None = None
    """Folder to send along."""
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
    train: Place
    """Where the training data lie: the absolute path of a folder, or `s3://BUCKET/PREFIX`; for shards also a pattern
    such as `/data/a-{000..127}.tar`. What lies in S3, each machine copies to its disk before its training starts."""
    val: Annotated[Text | None, Later("the recipe holds out a share of `train` itself; leave it out")] = None
    """Folder of the held-out data."""
    format: DataFormat = "imagefolder"
    """How the data lies there: one sub-folder of pictures per class, WebDataset shards (tar files), or a data set of
    torchvision's, as its download leaves it. Recipes for CIFAR-10 take its binary or Python version as it is."""

    @property
    def in_bucket(self) -> bool:
        """Whether machines have to fetch the data; else they find them at the path."""
        return self.train.startswith(BUCKETS)


class Disk(_Section):
    size: Size | None = None
    """Such as 200GB."""
    iops: Annotated[int, Field(ge=100, le=256_000)] | None = None
    """Operations per second."""
    throughput: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """MiB per second."""


_LOCAL = "the local provider's machines are all alike; leave it out"


class Resources(_Section):
    gpu: Annotated[Gpu, Later("the local provider rents CPU machines; use none", ("none",))] = "none"
    """A GPU such as `L4` or `A100:8`, a memory size such as `24GB..`, `any`, `none`, or a list of alternatives."""
    nodes: Nodes = 1
    """Machines that train together. A range such as `2..4` is short for `nodes: 4` with `min: 2`. Left out beside
    `limits.time`: the cheapest number that keeps the limit, by what earlier runs took; one while nothing is known."""
    min: Annotated[int, Field(ge=1, le=MAX_NODES)] | None = None
    """Go on training while at least so many machines are left, and take in those that are rented for the lost ones.
    Left out: all are needed."""
    procs: Annotated[int, Field(ge=1, le=64)] = 1
    """Training processes on each machine."""
    spot: Literal["only", "prefer", "never"] = "prefer"
    """Whether to rent spot machines."""
    provider: Annotated[Literal["local", "ec2"], Later("use local", ("local",))] = "local"
    """Who rents the machines out."""
    regions: Annotated[Several[Slug], Later(_LOCAL, ((),))] = ()
    """Regions to choose from; empty means any."""
    zones: Annotated[Several[Slug], Later(_LOCAL, ((),))] = ()
    """Zones to choose from; empty means any."""
    instance: Annotated[Slug | None, Later(_LOCAL)] = None
    """Machine type, by the provider's name."""
    disk: Annotated[Disk | None, Later(_LOCAL)] = None
    """Disk of each machine."""

    _range = model_validator(mode="before")(_split_range)

    @property
    def least(self) -> int:
        """How many machines it takes to train."""
        return self.nodes if self.min is None else self.min

    @property
    def named(self) -> int | None:
        """How many machines somebody asked for; None if `nodes` was left out."""
        return self.nodes if "nodes" in self.model_fields_set else None


class Idle(_Section):
    gpu_below: Share
    """Use of the GPU that counts as idle, such as 10%."""
    window: Annotated[Seconds, Field(alias="for")]
    """How long it must be idle."""


class Limits(_Section):
    cost: Micro | None = None
    """The most that the job may cost, in dollars. Left out: what the budgets above it allow."""
    rate: Annotated[Micro | None, Later("set limits.cost")] = None
    """The most that it may cost per hour, in dollars."""
    time: Seconds | None = None
    """The longest that it may run: `90s`, `5m`, `2h`, `1d`, or plain seconds. Machines are chosen to keep it."""
    deadline: Annotated[Moment | None, Later("set limits.time")] = None
    """When it must have finished, with a time zone."""
    idle: Annotated[Idle | None, Later("set limits.time")] = None
    """Stop when its GPUs have idled for so long."""


class Goal(_Section):
    metric: Text
    """The recipe's metric, such as `val/acc`."""
    reach: Number | None = None
    """The value that is good enough."""
    then: Literal["stop"] = "stop"
    """What happens when it is reached."""
    best: Annotated[Literal["max", "min"] | None, Later("give the value to reach")] = None
    """Instead of `reach`: keep the best checkpoint."""


class Checkpoint(_Section):
    every: Cadence = "auto"
    """`auto`, or a duration of at least a second."""
    keep: Annotated[Annotated[int, Field(ge=1, le=1_000)] | None, Later("leave it out")] = None
    """How many to keep."""


class Retry(_Section):
    on: Several[Literal["interruption", "capacity"]] = ("interruption", "capacity")
    """What is answered with another attempt."""
    max: Annotated[int, Field(ge=0, le=1_000)] = 5
    """At most so many further attempts. Those that never trained don't count."""


class Outputs(_Section):
    export: Several[Literal["safetensors", "onnx"]] = ()
    """Formats of the model beside `model.pt2`. `safetensors` is always there; `onnx` takes some seconds more."""
    push: Annotated[Text | None, Later("get the model with `shoestring artifacts get`")] = None
    """Where to send it."""


class Notify(_Section):
    slack: Text | None = None
    """Channel."""
    email: Text | None = None
    """Address."""
    webhook: Text | None = None
    """URL."""
    on: Several[Literal["started", "goal", "finished", "failed", "paused", "over_pace"]] = ("finished", "failed")
    """What to tell."""


_OWN_CODE = "choose a recipe"


class JobSpec(_Section):
    """A training job as its user wants it, with every default filled in."""

    name: Name | None = None
    """What people call the job. Left out: the recipe's name."""
    team: Slug | None = None
    """Whose budget pays and who sees it. Left out: the team of the key."""
    recipe: Text | None = None
    """What to train: the name of a recipe, or `name@version`."""
    run: Annotated[Script | None, Later(_OWN_CODE)] = None
    """Instead of a recipe: the command of an own script."""
    params: Annotated[dict[str, Param], Field(max_length=MAX_PARAMS)] = Field(default_factory=dict)
    """Parameters of the recipe; the others get its defaults. A list of values is not supported yet."""
    code: Annotated[Code | None, Later(_OWN_CODE)] = None
    """Where an own script comes from."""
    setup: Annotated[Script | None, Later(_OWN_CODE)] = None
    """Command that prepares a machine for an own script."""
    data: DataSource | None = None
    """What to train on, where the recipe doesn't bring its own."""
    resources: Resources = Resources()
    """The machines."""
    limits: Limits = Limits()
    """What the job may use up."""
    goal: Goal | None = None
    """When the result is good enough."""
    checkpoint: Checkpoint = Checkpoint()
    """How often to save."""
    retry: Retry = Retry()
    """When to try again."""
    env: Annotated[dict[Variable, Setting], Later("leave it out", ({},))] = Field(default_factory=dict)
    """Environment variables of the training processes."""
    secrets: Annotated[Several[Variable], Later("leave it out", ((),))] = ()
    """Names of the secrets that the training processes get."""
    outputs: Outputs | None = None
    """What becomes of the model."""
    notify: Annotated[Notify | None, Later("follow the job with `shoestring watch`")] = None
    """Whom to tell."""
    tags: Annotated[dict[TagName, TagValue], Field(max_length=50)] = Field(default_factory=dict)
    """Labels to find the job by."""
    priority: Annotated[
        Literal["low", "normal", "high"],
        Later("jobs start in the order they came; leave it out", ("normal",)),
    ] = "normal"
    """Its place in the queue."""
    on_budget: Annotated[
        Literal["pause", "stop", "finish"],
        Later("nothing can be finished with money that isn't there; use pause or stop", ("pause", "stop")),
    ] = "pause"
    """What follows the last checkpoint when the money has run out: wait for more, or end."""
    init: Start | None = None
    """Start with the weights of `job/ID`, as of its newest checkpoint at the submission, or with those at an absolute
    path: a run's folder, a folder with model.safetensors or network.safetensors, or a .safetensors file. Weights that
    don't fit stay fresh and are named in the log."""
    after: Annotated[Several[Text], Later("submit it when the others have finished", ((),))] = ()
    """Jobs that must finish first."""

    @property
    def init_job(self) -> UUID | None:
        """The job whose weights it starts with, if `init` names one."""
        return UUID(self.init.removeprefix("job/")) if self.init and self.init.startswith("job/") else None

    def on_machines(self, nodes: int) -> JobSpec:
        """The same job on so many machines."""
        return self.model_copy(update={"resources": self.resources.model_copy(update={"nodes": nodes})})

    def resolved(self) -> dict[str, Any]:
        """Every field with its value, JSON-able: money as decimal strings, durations in seconds; `parse` reads it."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> JobSpec:
        """The spec whose `resolved()` was stored. Asks no recipe: its parameters stand, whatever the recipe became."""
        spec, problems = _validated(dict(stored))
        if spec is None:
            raise InvalidSpec(problems)
        return spec


# From tree to model.


def _recipe(tree: Mapping[str, Any], problems: list[Problem]) -> recipes.Recipe | None:
    if not isinstance(tree.get("recipe"), str) or not tree["recipe"]:
        return None
    try:
        return recipes.load(tree["recipe"])
    except InvalidSpec as unknown:
        problems += unknown.problems
        return None


def _filled(tree: dict[str, Any], recipe: recipes.Recipe, problems: list[Problem]) -> dict[str, Any]:
    """The tree with what its recipe says where the tree is silent."""
    filled = tree | {"recipe": recipe.reference}
    if tree.get("name") is None:
        filled["name"] = recipe.name.replace("/", "-")
    given = tree.get("params", {})
    if isinstance(given, dict) and len(given) <= MAX_PARAMS:
        several = {name: value for name, value in given.items() if isinstance(value, list | dict)}
        values, faults = recipe.resolve({name: value for name, value in given.items() if name not in several})
        problems += [_relocated(fault) for fault in faults]
        filled["params"] = values | several
    if isinstance(resources := tree.get("resources", {}), dict):
        filled["resources"] = recipe.defaults.model_dump(exclude_unset=True) | resources
    return filled


def _validated(tree: dict[str, Any]) -> tuple[JobSpec | None, list[Problem]]:
    try:
        return JobSpec.model_validate(tree), []
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
        problems = [_problem(error) for error in errors[:MAX_PROBLEMS]]
        if len(errors) > MAX_PROBLEMS:
            problems.append(Problem("", f"There are {len(errors) - MAX_PROBLEMS} more problems.", "more"))
        return None, problems


def _contradictions(tree: Mapping[str, Any], recipe: recipes.Recipe | None) -> list[Problem]:
    """What each field allows and all together don't. Fields of a wrong shape are reported already."""
    problems: list[Problem] = []
    has_recipe, has_run = tree.get("recipe") is not None, tree.get("run") is not None
    if not has_recipe and not has_run:
        names = ", ".join(known.name for known in recipes.all())
        problems.append(Problem("/recipe", f"Say what to train: a recipe ({names}).", "missing"))
    if has_recipe and has_run:
        problems.append(Problem("/run", "Give recipe or run, not both.", "contradiction"))
    if recipe is not None:
        problems += _data_problems(tree.get("data"), recipe)
    if isinstance(goal := tree.get("goal"), dict):
        problems += _goal_problems(goal, recipe)
    if isinstance(resources := tree.get("resources"), dict):
        problems += _membership_problems(resources)
    return problems


def _membership_problems(resources: Mapping[str, Any]) -> list[Problem]:
    nodes, least = resources.get("nodes", 1), resources.get("min")
    if least is not None and _node_range(resources) is not None:
        return [Problem("/resources/min", f"nodes: {nodes} says it already. Leave min out.", "contradiction")]
    if isinstance(least, int) and isinstance(nodes, int) and least > nodes:
        message = f"At least {least} machines of {nodes} can't be. Give min a number up to {nodes}."
        return [Problem("/resources/min", message, "contradiction")]
    return []


def _data_problems(data: Any, recipe: recipes.Recipe) -> list[Problem]:
    if recipe.data.kind == "digits" and data is not None:
        return [Problem("/data", f"{recipe.name} brings its own data. Leave data out.", "contradiction")]
    if recipe.data.kind != "digits" and data is None:
        what = "one sub-folder per class" if recipe.data.kind == "imagefolder" else "the files of CIFAR-10"
        message = f"{recipe.name} needs pictures: data: {{train: /path/to/folder}}, with {what}."
        return [Problem("/data", message, "missing")]
    return []


def _goal_problems(goal: Mapping[str, Any], recipe: recipes.Recipe | None) -> list[Problem]:
    problems: list[Problem] = []
    metric, reach = goal.get("metric"), goal.get("reach")
    if reach is None and goal.get("best") is None:
        problems.append(Problem("/goal/reach", "Give the value to reach, such as reach: 0.97.", "missing"))
    if reach is not None and goal.get("best") is not None:
        problems.append(Problem("/goal/best", "Give reach or best, not both.", "contradiction"))
    if recipe is not None and isinstance(metric, str) and metric != recipe.metric:
        message = f"{recipe.name} can't stop at {shown(metric)}. Use {recipe.metric}."
        problems.append(Problem("/goal/metric", message, "invalid-value", recipe.metric))
    if _is_number(reach) and _ACCURACY.search(str(metric)) and not 0 < reach <= 1:
        message = f"An accuracy is a share between 0 and 1, such as 0.97, not {shown(reach)}."
        problems.append(Problem("/goal/reach", message, "invalid-value"))
    return problems


_ACCURACY = re.compile(r"/acc(_\w+)?$")


def _is_number(value: Any) -> TypeGuard[int | float | Decimal]:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _first_at_each_place(problems: list[Problem]) -> list[Problem]:
    """What is said about a place after the first problem there only follows from it."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.pointer, problem)
    return list(first.values())


# From pydantic's errors to sentences.

_SENTENCES = {
    "missing": "is required",
    "string_type": "must be text, not {given}",
    "int_type": "must be a whole number, not {given}",
    "tuple_type": "must be a list, not {given}",
    "dict_type": "must be a mapping, not {given}",
    "model_type": "must be a mapping, not {given}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "greater_than_equal": "must be at least {ge}, not {given}",
    "less_than_equal": "must be at most {le}, not {given}",
    "literal_error": "must be {expected}, not {given}",
    "not-supported-yet": "not supported yet; {instead}",
    "invalid-value": "{message}",
}


def _problem(error: ErrorDetails) -> Problem:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    path = list(error["loc"])
    if kind != "extra_forbidden" and len(path) > 2 and path[-1] == "[key]":
        path.pop()  # pydantic's mark of a key that is wrong itself
    at = ""
    for part in path:
        at = document.pointer(at, part)
    if kind == "extra_forbidden":
        return _unknown_field(at, path)
    sentence = _SENTENCES.get(kind, "{otherwise}").format(given=shown(given), otherwise=error["msg"], **context)
    code = kind if kind in ("missing", "not-supported-yet") else "invalid-value"
    near = _nearest(given, re.findall(r"'([^']*)'", context["expected"])) if kind == "literal_error" else None
    return Problem(at, f"{sentence}." + (f" Did you mean {near}?" if near else ""), code, near)


def _unknown_field(at: str, path: list[int | str]) -> Problem:
    known = _fields_at(path[:-1])
    near = (_place_of(str(path[-1])) if len(path) == 1 else None) or _nearest(path[-1], known)
    then = f"Did you mean {near}?" if near else f"Known: {', '.join(known)}."
    return Problem(at, f"There is no such field. {then}", "unknown-field", near)


def _relocated(fault: Problem) -> Problem:
    """A parameter that no recipe has may be a field: `nodes=2` means resources.nodes."""
    place = _place_of(fault.pointer.removeprefix("/params/")) if fault.code == "unknown-parameter" else None
    if place is None:
        return fault
    return Problem(fault.pointer, f"The recipe has no such parameter. Did you mean {place}?", fault.code, place)


def _place_of(name: str) -> str | None:
    """Where a field or parameter called `name` stands, if it does so one level down."""
    for section, model in sections(JobSpec).items():
        if name in model.model_fields:
            return f"{section}.{name}"
    return f"params.{name}" if any(name in recipe.params for recipe in recipes.all()) else None


def _fields_at(path: list[int | str]) -> list[str]:
    model: type[BaseModel] = JobSpec
    for part in path:
        model = next(section for name, section in sections(model).items() if name == part)
    return [field.alias or name for name, field in model.model_fields.items()]


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Field name → the model of its value, for the fields that are mappings of fields."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[field.alias or name] = kind
    return found


_ELSEWHERE = {"project": "team"}  # what other tools call it


def _nearest(given: Any, known: list[str]) -> str | None:
    if not isinstance(given, str):
        return None
    words = {name.lower(): name for name in known} | {word: name for word, name in _ELSEWHERE.items() if name in known}
    near = difflib.get_close_matches(given[:64].lower(), words, n=1, cutoff=0.55)
    return words[near[0]] if near else None


# From arguments to tree.

_TEXT_FIELDS = ("name", "team", "limits", "data", "tags", "env", "init")


def _argument_value(text: str, *, is_text: bool) -> Any:
    """The value as YAML would read it, JSON-able; as it stands where the field is text, or a literal (money)."""
    if is_text:
        return text
    if text.startswith(("[", "{")):
        tree, problems = document.read(text)
        if problems:
            raise InvalidSpec(problems)
        return _jsonable(tree)
    return "" if text == "" else _jsonable(document.scalar(text))


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return float(value) if isinstance(value, Decimal) else value


def _placed(tree: dict[str, Any], path: list[str], value: Any) -> bool:
    """Put `value` at `path`; False where something stands already."""
    place: Any = tree
    for key in path[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            return False
    if path[-1] in place:
        return False
    place[path[-1]] = value
    return True
