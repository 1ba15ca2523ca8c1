# SPDX-License-Identifier: Apache-2.0
"""Types of the fields of a job spec: what a value may look like, and its JSON Schema.

Money is integer micro-dollars, durations are seconds. A validator raises PydanticCustomError with a phrase that
completes the sentence "<field> …".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, TypeGuard, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from shoestring_core import document, money, recipes
from shoestring_core.document import format_value
from shoestring_core.durations import parse_duration
from shoestring_core.names import one_spelling
from shoestring_core.spec.gpus import parse_gpu

MAX_NODES = 64
MAX_GPU_CHOICES = 16
"""Alternatives in `resources.gpu`."""
S3_SCHEME = "s3://"
"""Prefix of a location in S3."""
MAX_SHARDS = 100_000
SHARD_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}", re.ASCII)
"""The numbers in a pattern of shards, such as a-{000..127}.tar."""


@dataclass(frozen=True)
class NotSupportedYet:
    """Marks a field whose feature isn't built: it is validated like any other, then refused unless its value is one of
    `supported`. `instead` says what the user can do."""

    instead: str
    supported: tuple[object, ...] = (None,)

    def refuse(self, value: Any) -> Any:
        if value not in self.supported:
            raise not_supported_yet(self.instead)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.refuse, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"$comment": f"not supported yet: {self.instead}"}


@dataclass(frozen=True)
class Pattern:
    """Text that matches a regular expression as a whole; `description` says in words what it must be."""

    pattern: str
    description: str

    def check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise invalid_value(f"must be {self.description}, not {format_value(value)}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"pattern": f"^({self.pattern})$"}


def not_supported_yet(instead: str) -> PydanticCustomError:
    return PydanticCustomError("not-supported-yet", "{instead}", {"instead": instead})


def invalid_value(message: str) -> PydanticCustomError:
    return PydanticCustomError("invalid-value", "{message}", {"message": message})


def is_number(value: Any) -> TypeGuard[int | float | Decimal]:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


# --- validators -------------------------------------------------------------------------------------------


def _to_micro_dollars(value: Any) -> int:
    if isinstance(value, float):
        raise invalid_value(f'is money and must not pass through a float; give it as text, such as "{value:.2f}"')
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise invalid_value(f"must be dollars such as 3.00, not {format_value(value)}")
    try:
        micro = money.from_decimal(f"{value:f}" if isinstance(value, Decimal) else str(value))
    except ValueError:
        given = format_value(value)
        raise invalid_value(f"must be dollars with at most six decimals, such as 3.00, not {given}") from None
    if not 0 < micro <= money.MAX_MICRO:
        raise invalid_value(f"must be more than 0, not {format_value(value)}")
    return micro


_MAX_DURATION_S = 365 * 86_400


def _to_seconds(value: Any) -> float:
    given = document.parse_scalar(value.strip()) if isinstance(value, str) else value
    try:
        seconds = float(given) if is_number(given) else parse_duration(given)
    except (ValueError, TypeError):
        raise invalid_value(f"must be a duration such as 90s, 5m, 2h or 1d, not {format_value(value)}") from None
    if not 1 <= seconds <= _MAX_DURATION_S:
        raise invalid_value(f"must be at least 1s and at most 365d, not {format_value(value)}")
    return seconds


def _to_checkpoint_interval(value: Any) -> float | str:
    return "auto" if value == "auto" else _to_seconds(value)


def _to_number(value: Any) -> float:
    if not is_number(value):
        raise invalid_value(f"must be a number, not {format_value(value)}")
    return float(value)


def _to_utc(value: Any) -> datetime:
    try:
        timestamp = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        in_utc = timestamp.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter: a time zone moves it out of the calendar
        raise invalid_value(f"must be a timestamp such as 2026-12-01T09:00Z, not {format_value(value)}") from None
    if timestamp.tzinfo is None:
        raise invalid_value(f"needs a time zone, such as {timestamp.isoformat(timespec='minutes')}Z")
    return in_utc


def _to_deadline(value: Any) -> datetime | float:
    """A time; or the seconds of a duration, until it is known from when it counts."""
    is_duration = is_number(value) or (isinstance(value, str) and _DURATION.fullmatch(value.strip()))
    return _to_seconds(value) if is_duration else _to_utc(value)


_DURATION = re.compile(r"[0-9.]+([dhms][0-9.dhms]*)?")
_NODE_RANGE = re.compile(r"([0-9]{1,6})\.\.([0-9]{1,6})")


def _check_nodes(value: Any) -> int:
    if isinstance(value, str) and _NODE_RANGE.fullmatch(value):
        raise invalid_value(
            f"must be a range within 1..{MAX_NODES}, the smaller number first, not {format_value(value)}"
        )
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid_value(f"must be a whole number of machines, not {format_value(value)}")
    if not 1 <= value <= MAX_NODES:
        raise invalid_value(f"must be from 1 to {MAX_NODES}, not {format_value(value)}")
    return value


def split_node_range(resources: Any) -> Any:
    """Rewrite `nodes: 2..4` as `nodes: 4, min: 2`. Anything else is returned unchanged, for the fields to check."""
    bounds = parse_node_range(resources)
    return resources if bounds is None else resources | {"nodes": bounds[1], "min": bounds[0]}


def parse_node_range(resources: Any) -> tuple[int, int] | None:
    """(minimum, maximum) if `nodes` of this tree of resources is a valid range such as `2..4`, else None."""
    nodes = resources.get("nodes") if isinstance(resources, dict) else None
    bounds = _NODE_RANGE.fullmatch(nodes) if isinstance(nodes, str) else None
    if bounds is None or not 1 <= int(bounds[1]) <= int(bounds[2]) <= MAX_NODES:
        return None
    return int(bounds[1]), int(bounds[2])


def _check_gpu(value: Any) -> str:
    """Alternatives as one text, each in its usual form, so that equal choices are equal."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return "none"
    given = format_value(value)
    alternatives = value.split(",") if isinstance(value, str) else value
    if not isinstance(alternatives, list) or not 1 <= len(alternatives) <= MAX_GPU_CHOICES:
        alternatives = [None]
    try:
        choices = [parse_gpu(gpu.strip()).text for gpu in alternatives]
    except (ValueError, AttributeError):
        examples = "L4, A100:8, A100:80GB, 24GB.., any"
        raise invalid_value(f"must be none, or GPUs such as {examples}, or a list of them, not {given}") from None
    return ", ".join(_check_unique(tuple(choices)))


def _to_list(value: Any) -> Any:
    """A single text is a list of one."""
    return (value,) if isinstance(value, str) else value


def _check_param(value: Any) -> recipes.ParamValue:
    if isinstance(value, list):
        raise not_supported_yet("a list makes one job per value; submit one job per value yourself")
    if isinstance(value, dict):
        raise invalid_value("must be a single value, not a mapping")
    return float(value) if isinstance(value, Decimal) else value


def _to_text(value: Any) -> Any:
    """Numbers and booleans as written: `week: 3` is a tag like any other. Text in one spelling."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float | Decimal) else _spell_once(value)


def _spell_once(value: Any) -> Any:
    return one_spelling(value) if isinstance(value, str) else value


def _check_printable(value: str) -> str:
    if not value.isprintable():
        raise invalid_value("must have printable characters")
    return value


def _check_name(value: str) -> str:
    if not value.strip():
        raise invalid_value("must have printable characters")
    return _check_printable(value).strip()


def _check_absolute_path(value: str) -> str:
    if "://" in value:
        raise not_supported_yet("give a path on the machine where Shoestring runs")
    if not value.startswith("/"):
        raise invalid_value(f"must be an absolute path such as /data/images, not {format_value(value)}")
    return value


_S3_LOCATION = re.compile(S3_SCHEME + r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.{1,2}(/|$))[^/]+)*/?")


def _check_data_location(value: str) -> str:
    if value.startswith(S3_SCHEME):
        if not _S3_LOCATION.fullmatch(_check_printable(value)):
            given = format_value(value)
            raise invalid_value(f"must be s3://BUCKET/PREFIX, a bucket's name and a path in it, not {given}")
    elif "://" in value:
        raise not_supported_yet("give an absolute path such as /data/images, or s3://BUCKET/PREFIX")
    else:
        _check_absolute_path(value)
    if (shards := SHARD_RANGE.search(value.rpartition("/")[2])) and count_shards(shards) > MAX_SHARDS:
        raise invalid_value(f"names more than {MAX_SHARDS:,} shards; make them larger, or name fewer")
    return value


def count_shards(shards: re.Match[str]) -> int:
    """How many shards a SHARD_RANGE names; MAX_SHARDS + 1 for a number of more digits than any could have."""
    first, last = shards.groups()
    return MAX_SHARDS + 1 if max(len(first), len(last)) > 18 else int(last) - int(first) + 1


def _check_init_source(value: str) -> str:
    if value.startswith("job/"):
        try:
            return f"job/{UUID(value.removeprefix('job/'))}"
        except ValueError:
            given = format_value(value)
            raise invalid_value(f"must name a job by its full id, as `shoestring ls` shows it, not {given}") from None
    if "://" not in value and not value.startswith("/"):
        raise invalid_value(f"must be job/ID, or an absolute path such as /models/resnet18, not {format_value(value)}")
    return _check_absolute_path(value)


def _check_unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise invalid_value("has duplicate entries")
    return values


# --- types ------------------------------------------------------------------------------------------------


def _any_of(*schemas: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(schemas)})


_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_STRING = {"type": "string"}
_STRINGS = {"type": "array", "items": _STRING}
_SCALAR = _any_of(_STRING, {"type": "number"}, {"type": "boolean"})
_DURATION_SCHEMAS = ({"type": "number", "minimum": 1}, _STRING | {"pattern": "^[0-9.]+([dhms][0-9.dhms]*)?$"})

MicroDollars = Annotated[
    int,
    BeforeValidator(_to_micro_dollars),
    PlainSerializer(money.to_decimal, return_type=str, when_used="json"),
    _any_of(_POSITIVE, _STRING | {"pattern": r"^\$?[0-9]+(\.[0-9]+)?$"}),
]
Seconds = Annotated[float, BeforeValidator(_to_seconds), _any_of(*_DURATION_SCHEMAS)]
CheckpointInterval = Annotated[
    float | str, BeforeValidator(_to_checkpoint_interval), _any_of({"const": "auto"}, *_DURATION_SCHEMAS)
]
Deadline = Annotated[
    datetime | float,
    BeforeValidator(_to_deadline),
    _any_of(_STRING | {"format": "date-time"}, *_DURATION_SCHEMAS),
]
Number = Annotated[float, BeforeValidator(_to_number), WithJsonSchema({"type": "number"})]
NodeCount = Annotated[
    int,
    BeforeValidator(_check_nodes),
    _any_of({"type": "integer", "minimum": 1, "maximum": MAX_NODES}, _STRING | {"pattern": r"^[0-9]+\.\.[0-9]+$"}),
]
Gpu = Annotated[str, BeforeValidator(_check_gpu), _any_of(_STRING, _STRINGS, {"type": "null"})]
ParamValue = Annotated[Any, BeforeValidator(_check_param)]

Text = Annotated[str, Field(min_length=1, max_length=1_000)]
Script = Annotated[str, Field(min_length=1, max_length=65_536)]
JobName = Annotated[str, BeforeValidator(_spell_once), Field(max_length=100), AfterValidator(_check_name)]
Slug = Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "up to 63 letters, digits, dots and dashes")]
EnvName = Annotated[str, Pattern(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "the name of a variable, such as HF_TOKEN")]
EnvValue = Annotated[str, BeforeValidator(_to_text), Field(max_length=32_768), _SCALAR]
TagName = Annotated[
    str, BeforeValidator(_spell_once), Field(min_length=1, max_length=64), AfterValidator(_check_printable)
]
TagValue = Annotated[str, BeforeValidator(_to_text), Field(max_length=256), AfterValidator(_check_printable), _SCALAR]
Percentage = Annotated[str, Pattern(r"(100|[0-9]{1,2})%", "a percentage such as 10%")]
_DISK_SIZE = Pattern(r"[1-9][0-9]{0,6}(GB|TB)", "a size such as 200GB")
DiskSize = Annotated[str, _DISK_SIZE]


def is_disk_size(value: Any) -> TypeGuard[str]:
    """Whether a value in a tree is a valid `DiskSize`."""
    return isinstance(value, str) and re.fullmatch(_DISK_SIZE.pattern, value) is not None


def disk_bytes(size: str) -> int:
    """The number of bytes of a `DiskSize`."""
    return int(size[:-2]) * {"GB": 10**9, "TB": 10**12}[size[-2:]]


DataLocation = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_check_data_location)]
InitSource = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_check_init_source)]

Item = TypeVar("Item")
UniqueTuple = Annotated[tuple[Item, ...], Field(strict=False, max_length=64), AfterValidator(_check_unique)]
Places = Annotated[UniqueTuple[Slug], BeforeValidator(_to_list), _any_of(_STRING, _STRINGS)]
"""Regions or zones, as the provider names them."""
