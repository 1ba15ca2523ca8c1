# SPDX-License-Identifier: Apache-2.0
"""The job spec that a user submits.

`parse` reads and validates all of it at once; nothing is ever silently ignored. Fields of features that aren't built
are validated, then refused. Money is integer micro-dollars in the model and a decimal string in `JobSpec.resolved()`.
"""

from shoestring_core.spec.arguments import from_arguments
from shoestring_core.spec.field_types import MAX_NODES, MAX_SHARDS, SHARD_RANGE, NotSupportedYet, count_shards
from shoestring_core.spec.messages import MAX_PROBLEMS, sections_of
from shoestring_core.spec.model import (
    MAX_PARAMS,
    DataFormat,
    DataSource,
    JobSpec,
    Resources,
    has_data_in_s3,
    has_deadline,
    json_schema,
    rate_limit_of_stored,
    reserved_time_of_stored,
)
from shoestring_core.spec.parsing import parse

__all__ = [
    "MAX_NODES",
    "MAX_PARAMS",
    "MAX_PROBLEMS",
    "MAX_SHARDS",
    "SHARD_RANGE",
    "DataFormat",
    "DataSource",
    "JobSpec",
    "NotSupportedYet",
    "Resources",
    "count_shards",
    "from_arguments",
    "has_data_in_s3",
    "has_deadline",
    "json_schema",
    "parse",
    "rate_limit_of_stored",
    "reserved_time_of_stored",
    "sections_of",
]
