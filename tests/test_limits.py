# SPDX-License-Identifier: Apache-2.0
"""docs/limits.md names every bound of the code that a user, a machine or a file can meet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (
    "core/shoestring_core",
    "api/shoestring_api",
    "worker/shoestring_worker",
    "trainer/shoestring_trainer",
    "client/shoestring",
)
BOUND = re.compile(r"_?MAX_\w+|\w+_LIMIT")

DOCUMENTED = {
    "core/shoestring_core/document.py": {
        "MAX_BYTES": "256 KiB", "MAX_VALUES": "4,000", "MAX_DEPTH": "12", "MAX_KEY_CHARACTERS": "200 characters",
        "MAX_NUMBER_DIGITS": "30",
    },
    "core/shoestring_core/regular_files.py": {"MAX_TEXT_BYTES": "64 MiB", "MAX_RUN_BYTES": "1 GiB"},
    "core/shoestring_core/task.py": {"MAX_CHECKPOINT_BYTES": "8 GiB"},
    "core/shoestring_core/data_splits.py": {"MAX_CLASS_NAME": "255 characters"},
    "core/shoestring_core/rest/base.py": {"MAX_SENTENCE": "500; 100; 1,000 characters"},
    "core/shoestring_core/money.py": {"MAX_MICRO": "a billion dollars"},
    "core/shoestring_core/spec/model.py": {"MAX_PARAMS": "200; 64"},
    "core/shoestring_core/spec/field_types.py": {
        "MAX_NODES": "200; 64", "MAX_GPU_CHOICES": "16 alternatives", "MAX_SHARDS": "100,000",
        "_MAX_DURATION_S": "365 days",
    },
    "core/shoestring_core/spec/messages.py": {"MAX_PROBLEMS": "100"},
    "core/shoestring_core/wording/agents.py": {"MAX_MESSAGE": "1,000 characters"},
    "core/shoestring_core/decide/failures.py": {"MAX_RESTARTS_WITHOUT_CHECKPOINT": "3"},
    "core/shoestring_core/decide/retries.py": {"MAX_ATTEMPTS_WITHOUT_STEP": "8"},
    "core/shoestring_core/decide/queue.py": {"MAX_WEIGHT": "1,000", "MAX_CAP": "1,000,000"},
    "core/shoestring_core/decide/class_list.py": {"MAX_LINES": "1,000; 200,000; 366"},
    "core/shoestring_core/decide/soft_lines.py": {"MAX_LINES": "20 lines"},
    "core/shoestring_core/decide/quotes.py": {
        "MAX_MACHINE_COUNTS": "8; the best 50", "MAX_OFFERS": "50", "MAX_COMPARED_TYPES": "8 types",
    },
    "core/shoestring_core/decide/unmet.py": {"_MAX_KNOWN": "40 names"},
    "core/shoestring_core/decide/nan_recovery.py": {"MAX_RECOVERIES": "3"},
    "core/shoestring_core/store/events.py": {"MAX_BEHIND": "10,000"},
    "core/shoestring_core/store/budget_requests.py": {"MAX_OPEN": "20"},
    "core/shoestring_core/store/waste.py": {"MAX_WASTE_MACHINES": "5,000"},
    "core/shoestring_core/store/teams.py": {"MAX_TEAMS": "50"},
    "core/shoestring_core/store/identity.py": {"MAX_KEYS": "50"},
    "core/shoestring_core/store/kept_quotes.py": {"MAX_COMPARED_JOBS": "500 ended jobs"},
    "core/shoestring_core/decide/projection.py": {"MAX_ROUNDS": "60 times"},
    "core/shoestring_core/decide/what_ifs.py": {"MAX_CHANGES": "20 budgets and 20 jobs"},
    "core/shoestring_core/store/projection_inputs.py": {"MAX_QUEUED": "200 jobs", "MAX_RUNNING": "500 running"},
    "api/shoestring_api/serializers/queue.py": {"MAX_ALTERNATIVES": "20 of the team's jobs"},
    "core/shoestring_core/store/job_search.py": {"MAX_CHARACTERS": "500 characters", "MAX_VALUES": "32 values"},
    "core/shoestring_core/store/logs.py": {"MAX_LINE_BYTES": "64 KiB"},
    "core/shoestring_core/store/metrics.py": {"MAX_SERIES": "1,000"},
    "core/shoestring_core/store/quote_inputs.py": {"MAX_MACHINES": "500", "MAX_CHECKPOINTS": "50"},
    "core/shoestring_core/store/queries.py": {"MAX_QUEUE_POSITION": "100"},
    "core/shoestring_core/store/reports.py": {"MAX_EVENT_BYTES": "20,000 characters"},
    "core/shoestring_core/store/sessions.py": {"MAX_LOGIN_CODES": "20", "MAX_SESSIONS": "50"},
    "core/shoestring_core/store/sizing_inputs.py": {"MAX_JOBS": "200 jobs"},
    "core/shoestring_core/wire.py": {
        "MAX_BATCH_BYTES": "1 MiB", "MAX_MANIFEST_BYTES": "16 MB",
    },
    "core/shoestring_core/names.py": {"MAX_NAME": "100 characters"},
    "api/shoestring_api/data_folders.py": {
        "MAX_FOLDERS": "500; 20,000", "MAX_ENTRIES": "20,000", "MAX_INDEX_BYTES": "32 MiB",
    },
    "core/shoestring_core/store/objects/s3_data.py": {"MAX_OBJECTS": "3,000"},
    "api/shoestring_api/app.py": {"MAX_BODY_BYTES": "1 MiB"},
    "api/shoestring_api/routes/budgets.py": {"MAX_YEAR": "2100"},
    "api/shoestring_api/routes/agents.py": {"MAX_BODY_BYTES": "64 KiB for its frame"},
    "api/shoestring_api/routes/stream.py": {"MAX_STREAMS": "50", "MAX_DURATION_S": "30 minutes"},
    "trainer/shoestring_trainer/agent/ranks.py": {"MAX_EXIT_BYTES": "4 MiB", "TRACEBACK_LIMIT": "16,000 characters"},
    "trainer/shoestring_trainer/agent/spool.py": {"MAX_UNSENT_BYTES_WITH_LOGS": "256 MiB"},
    "trainer/shoestring_trainer/agent/rank_output.py": {"MAX_EVENTS_PER_HOUR": "2,000 events"},
    "trainer/shoestring_trainer/data_sync/datasets.py": {"MAX_NAME_BYTES": "255 bytes"},
    "client/shoestring/schedule_scenario.py": {"MAX_JOBS": "10,000", "MAX_NODES": "64"},
    "client/shoestring/cli/simulate.py": {"MAX_INTERVALS": "100,000; 1,000", "MAX_PRICE_RATIO": "1,000"},
    "worker/shoestring_worker/providers/ec2/settings.py": {"MAX_TAGS": "40 tags"},
    "trainer/shoestring_trainer/machinehost/http_server.py": {"MAX_BODY_BYTES": "256 KiB", "MAX_GRACE_S": "an hour"},
    "trainer/shoestring_trainer/machinehost/host.py": {"MAX_NOTICE_S": "an hour"},
    "trainer/shoestring_trainer/training/checkpoint/writer.py": {"MAX_LOCAL_CHECKPOINTS": "8"},
    "trainer/shoestring_trainer/training/data/image_files.py": {
        "MAX_PIXELS": "100 million", "MAX_FILE_BYTES": "512 MiB",
    },
    "trainer/shoestring_trainer/training/data/nvjpeg.py": {"MAX_GPU_PIXELS": "16.8 million"},
    "trainer/shoestring_trainer/training/data/confined_files.py": {"MAX_OPENED_BYTES": "16 GiB"},
    "trainer/shoestring_trainer/training/data/tar_samples.py": {
        "MAX_LABEL_BYTES": "1 MiB", "MAX_PADDING_BYTES": "64 MiB after its end mark",
    },
    "trainer/shoestring_trainer/training/hooks.py": {"MAX_VALUES": "500", "MAX_NAME_LENGTH": "200 characters"},
}  # fmt: skip
"""Each bound and how the table writes it."""

INTERNAL = {
    "api/shoestring_api/change_notifier.py": {"MAX_OUTBOX"},
    "api/shoestring_api/event_broadcast.py": {"MAX_CACHED_GROUPS", "MAX_CACHED_BYTES"},
    "client/shoestring/cli/login.py": {"MAX_KEY_CHARACTERS"},
    "client/shoestring/cli/terminal.py": {"MAX_WIDTH"},
    "client/shoestring/client.py": {"MAX_BACKOFF_S", "MAX_OUTAGE_BACKOFF_S", "MAX_STREAM_TRIES", "MAX_TRIES"},
    "client/shoestring/demo.py": {"MAX_RUN_FOLDERS"},
    "client/shoestring/embedded_redis.py": {"MAX_SOCKET_PATH_BYTES"},
    "core/shoestring_core/decide/audit.py": {"MAX_FAULTS"},
    "core/shoestring_core/decide/placement.py": {"MAX_OFFER_AGE"},
    "core/shoestring_core/decide/predictions.py": {"MAX_OBSERVATIONS", "MAX_INTERRUPTIONS"},
    "core/shoestring_core/decide/scaling.py": {"MAX_RUNS_PER_COUNT", "MAX_EXTRAPOLATION"},
    "core/shoestring_core/store/audit_seals.py": {"MAX_SEAL_BYTES"},
    "core/shoestring_core/store/ledger/forecasts.py": {"MAX_HISTORY"},
    "core/shoestring_core/store/sessions.py": {"MAX_BROWSER"},
    "core/shoestring_core/store/db.py": {"MAX_RUNS", "MAX_BATCH"},
    "core/shoestring_core/store/fleet/queue.py": {"MAX_PARAMETERS"},
    "core/shoestring_core/wheelhouse.py": {"MAX_MANIFEST_BYTES"},
    "trainer/shoestring_trainer/agent/agent.py": {"MAX_REJECTIONS"},
    "trainer/shoestring_trainer/agent/funding.py": {"MAX_MARGIN_S"},
    "trainer/shoestring_trainer/agent/service_client.py": {"DETAIL_LIMIT"},
    "trainer/shoestring_trainer/agent/spool.py": {"MAX_ITEMS", "MAX_POINTS"},
    "trainer/shoestring_trainer/data_sync/shard_requests.py": {"MAX_FILES", "MAX_ORDER_BYTES"},
    "trainer/shoestring_trainer/machinehost/launch_body.py": {"MAX_SCRIPT_BYTES"},
    "trainer/shoestring_trainer/machinehost/metadata.py": {"MAX_TTL_S"},
    "trainer/shoestring_trainer/run_files.py": {"MAX_STOP_S"},
    "trainer/shoestring_trainer/training/checkpoint/warm_start.py": {"MAX_NAMED"},
    "trainer/shoestring_trainer/training/data/decoding.py": {"MAX_VALUE"},
    "trainer/shoestring_trainer/training/optim/preconditioners.py": {"MAX_DIM"},
    "trainer/shoestring_trainer/training/results/exports.py": {"_MAX_SIDE", "_MAX_ZOOM"},
    "trainer/shoestring_trainer/training/results/sample_log.py": {"MAX_HEADER_BYTES", "MAX_MISSING_STEPS"},
    "worker/shoestring_worker/deadlines.py": {"MAX_POLICIES"},
    "worker/shoestring_worker/control_loop.py": {"MAX_ROUNDS"},
    "worker/shoestring_worker/launcher.py": {"MAX_CONCURRENT_LAUNCHES"},
    "worker/shoestring_worker/providers/ec2/user_data.py": {"MAX_BYTES"},
}
"""Bounds of what the code does by itself, and names that only look like bounds."""

UNITS = {" KiB": 2**10, " MiB": 2**20, " GiB": 2**30, " MB": 10**6, " million": 10**6, " days": 86_400, " minutes": 60}
WORDS = {"a billion dollars": 10**15, "an hour": 3600}


def bounds(file: Path) -> Iterator[tuple[str, float | None]]:
    """The names of bounds that a file assigns, and their values where these are plain arithmetic."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                pairs = list(zip(names, values, strict=True))
            case ast.Assign(targets=[name], value=value):
                pairs = [(name, value)]
            case _:
                continue
        for name, value in pairs:
            if isinstance(name, ast.Name) and BOUND.fullmatch(name.id):
                plain = not any(isinstance(part, ast.Name | ast.Call | ast.Attribute) for part in ast.walk(value))
                yield name.id, eval(ast.unparse(value)) if plain else None


def all_bounds() -> dict[str, dict[str, float | None]]:
    files = sorted(file for folder in SOURCES for file in (ROOT / folder).rglob("*.py"))
    found = {str(file.relative_to(ROOT)): dict(bounds(file)) for file in files}
    return {file: names for file, names in found.items() if names}


def in_table(written: str) -> bool:
    """Whether a limit in the table is written so."""
    cells = [
        line.split("|")[2]
        for line in (ROOT / "docs/limits.md").read_text(encoding="utf-8").splitlines()
        if line.count("|") > 4
    ]
    return any(re.search(rf"(?<![\d,]){re.escape(written)}(?!\w|[,.]\d)", cell) for cell in cells)


def value_of(written: str) -> float:
    """The number that a limit's text says."""
    for words, value in WORDS.items():
        if written == words:
            return value
    number = re.match(r"[\d,.]+", written)
    assert number is not None
    unit = next((factor for unit, factor in UNITS.items() if written[number.end() :].startswith(unit)), 1)
    return float(number[0].replace(",", "")) * unit


def test_every_bound_is_in_the_table_or_is_no_limit_for_users() -> None:
    known = {file: set(DOCUMENTED.get(file, ())) | INTERNAL.get(file, set()) for file in {*DOCUMENTED, *INTERNAL}}
    assert {file: set(names) for file, names in all_bounds().items()} == known


@pytest.mark.parametrize("file", DOCUMENTED)
def test_the_table_says_what_the_code_says(file: str) -> None:
    values = dict(bounds(ROOT / file))
    for name, written in DOCUMENTED[file].items():
        assert in_table(written), (name, written)
        value = values[name]
        if value is not None and written not in ("200; 64",):
            assert value_of(written) == pytest.approx(value, rel=0.002), name
