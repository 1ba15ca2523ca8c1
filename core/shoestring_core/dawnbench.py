# SPDX-License-Identifier: Apache-2.0
"""DAWNBench entries for training: a JSON file of metadata and a TSV file of epochs.

Source: stanford-futuredata/dawn-bench-entries, README.md and tests/test_submissions.py. Accuracies are percentages.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from shoestring_core.results import EpochResult, RunResult

VERSION = "v1.0"
TOP1, TOP5 = "top1Accuracy", "top5Accuracy"
_REQUIRED = ("version", "author", "authorEmail", "framework", "model", "hardware", "timestamp")


class InvalidEntry(ValueError):
    """The files are not a valid entry; the message says why."""


@dataclass(frozen=True)
class EpochRow:
    """An epoch: training time in hours, accuracies in percent."""

    epoch: float
    hours: float
    top1: float
    top5: float | None = None


@dataclass(frozen=True)
class Entry:
    author: str
    email: str
    framework: str
    model: str
    hardware: str
    submitted: date
    rows: tuple[EpochRow, ...]
    usd_per_hour: float | None = None
    code_url: str | None = None
    misc: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The name of both files, without extensions."""
        return "_".join(_slug(part) for part in (self.author, self.model, self.hardware, self.framework))


def write(entry: Entry) -> tuple[str, str]:
    """Return the JSON and the TSV file. Top-5 is written if every row has it: ImageNet needs it, CIFAR-10 doesn't."""
    metadata = {
        "version": VERSION,
        "author": entry.author,
        "authorEmail": entry.email,
        "framework": entry.framework,
        **({"codeURL": entry.code_url} if entry.code_url else {}),
        "model": entry.model,
        "hardware": entry.hardware,
        **({"costPerHour": round(entry.usd_per_hour, 6)} if entry.usd_per_hour is not None else {}),
        "timestamp": entry.submitted.isoformat(),
        "misc": dict(entry.misc),
    }
    with_top5 = bool(entry.rows) and all(row.top5 is not None for row in entry.rows)
    lines = ["\t".join(["epoch", "hours", TOP1, *([TOP5] if with_top5 else [])])]
    for row in entry.rows:
        cells = [f"{row.epoch:.6g}", f"{row.hours:.8f}", f"{row.top1:.2f}"]
        lines.append("\t".join([*cells, *([f"{row.top5:.2f}"] if with_top5 else [])]))
    return json.dumps(metadata, indent=2) + "\n", "\n".join(lines) + "\n"


def read(metadata: bytes, table: bytes) -> Entry:
    """Parse an entry from its JSON and TSV file. Raises InvalidEntry."""
    try:
        tree = json.loads(metadata.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidEntry(f"the JSON file can't be read: {error}") from error
    if not isinstance(tree, dict):
        raise InvalidEntry("the JSON file holds no object")
    if missing := [name for name in _REQUIRED if name not in tree]:
        raise InvalidEntry(f"the JSON file lacks {', '.join(missing)}")
    if tree["version"] != VERSION:
        raise InvalidEntry(f"the JSON file has version {tree['version']!r}; {VERSION} can be read")
    try:
        submitted = date.fromisoformat(str(tree["timestamp"]))
        price = None if tree.get("costPerHour") is None else float(tree["costPerHour"])
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidEntry(f"timestamp or costPerHour in the JSON file can't be read: {error}") from error
    return Entry(
        author=str(tree["author"]), email=str(tree["authorEmail"]), framework=str(tree["framework"]),
        model=str(tree["model"]), hardware=str(tree["hardware"]), submitted=submitted, rows=_rows(table),
        usd_per_hour=price, code_url=tree.get("codeURL"), misc=_misc(tree.get("misc")),
    )  # fmt: skip


def entry_from_run(
    run: RunResult, *, author: str, email: str, framework: str, submitted: date, top5: bool,
    misc: Mapping[str, Any] | None = None,
) -> Entry:  # fmt: skip
    """Return a run as an entry. Its accuracy is the run's metric, or plain top-1 beside top-5.

    Raises InvalidEntry if its training time isn't known, which an entry needs.
    """
    if any(epoch.train_s is None for epoch in run.epochs):
        raise InvalidEntry("its training time isn't known: it wrote too few lines of metrics; train for more steps")
    rows = tuple(
        EpochRow(
            epoch=epoch.epoch,
            hours=(epoch.train_s or 0.0) / 3600,
            top1=100 * (epoch.top1 if top5 and epoch.top1 is not None else epoch.score),
            top5=None if not top5 or epoch.top5 is None else 100 * epoch.top5,
        )
        for epoch in run.epochs
    )
    return Entry(author, email, framework, run.model, run.hardware, submitted, rows, run.usd_per_hour, misc=misc or {})


def run_from_entry(entry: Entry) -> RunResult:
    """Return an entry as a run to compare with. Its metric is top-5 if it has that, as for ImageNet."""
    has_top5 = bool(entry.rows) and all(row.top5 is not None for row in entry.rows)
    epochs = tuple(
        EpochResult(
            epoch=row.epoch,
            train_s=3600 * row.hours,
            score=(row.top5 if has_top5 and row.top5 is not None else row.top1) / 100,
            top1=row.top1 / 100,
            top5=None if row.top5 is None else row.top5 / 100,
        )
        for row in entry.rows
    )
    return RunResult(
        name=entry.author, model=entry.model, hardware=entry.hardware,
        metric="val/acc_top5" if has_top5 else "val/acc", epochs=epochs, usd_per_hour=entry.usd_per_hour,
    )  # fmt: skip


def _rows(table: bytes) -> tuple[EpochRow, ...]:
    try:
        return _parse_rows(table)
    except csv.Error as error:  # such as of a field without an end
        raise InvalidEntry(f"the TSV file can't be read: {error}") from error


def _parse_rows(table: bytes) -> tuple[EpochRow, ...]:
    try:
        text = table.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidEntry(f"the TSV file isn't text: {error}") from error
    reader = csv.DictReader(io.StringIO(text), delimiter="\t")
    columns = {(name or "").strip() for name in reader.fieldnames or ()}
    if columns not in ({"epoch", "hours", TOP1}, {"epoch", "hours", TOP1, TOP5}):
        raise InvalidEntry(
            f"the TSV file has the columns {', '.join(sorted(columns)) or 'of nothing'}; "
            f"it needs epoch, hours, {TOP1}, and for ImageNet {TOP5}"
        )
    rows = []
    for number, line in enumerate(reader, 2):
        cells = {(name or "").strip(): (value or "").strip() for name, value in line.items() if isinstance(value, str)}
        if not any(cells.values()):
            continue
        try:
            numbers = {name: float(cells[name]) for name in columns}
        except (KeyError, ValueError) as error:
            raise InvalidEntry(f"line {number} of the TSV file has a field that is not a number") from error
        if not all(math.isfinite(value) for value in numbers.values()):
            raise InvalidEntry(f"line {number} of the TSV file has a field that is not a number")
        rows.append(EpochRow(numbers["epoch"], numbers["hours"], numbers[TOP1], numbers.get(TOP5)))
    if not rows:
        raise InvalidEntry("the TSV file has no rows")
    return tuple(rows)


def _misc(value: Any) -> dict[str, Any]:
    """Some entries have a string, a list or nothing where the format requires an object."""
    return value if isinstance(value, dict) else {"notes": value} if value else {}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "unnamed"
