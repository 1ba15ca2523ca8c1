# SPDX-License-Identifier: Apache-2.0
"""Parse submitted job specs and check what they may use: the caller's team and the readable folders."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.requirements import GIB, Requirements
from shoestring_core.errors import Forbidden, InvalidSpec, Problem
from shoestring_core.isolation import IsolationStatus
from shoestring_core.spec import DataSource, JobSpec, parse
from shoestring_core.store.fleet.offers import load_known, load_timeouts
from shoestring_core.store.identity import Principal

from shoestring_api.app_state import AppState
from shoestring_api.data_folders import find_layout_problem
from shoestring_api.settings import ApiSettings


def parse_spec(source: dict[str, Any] | str, caller: Principal, state: AppState) -> JobSpec:
    """Return the validated spec of a tree or YAML text. Raises InvalidSpec, Forbidden."""
    spec = parse(source)
    _check_team(spec, caller)
    _check_provider(spec, state)
    _check_paths(spec, state.settings.data_roots)
    _check_hooks(spec, state.settings)
    if problem := find_layout_problem(spec, state.settings.data_roots):
        raise InvalidSpec([Problem("/data/train", problem, "data-layout")])
    if spec.data and spec.data.is_in_s3 and (problem := state.data_buckets.find_problem(spec.data)):
        raise InvalidSpec([Problem("/data/train", problem, "data-layout")])
    _check_disk(spec, state)
    return spec


def _check_team(spec: JobSpec, caller: Principal) -> None:
    if spec.team not in (None, caller.team_name):
        raise Forbidden(
            f"This API key belongs to team {caller.team_name}, not {spec.team}.",
            hint="Leave out `team`, or use that team's key.",
        )


def _check_provider(spec: JobSpec, state: AppState) -> None:
    """Refuse a provider that no worker serves; while none has started, any is accepted."""
    if spec.resources.provider is None:
        return
    with state.store.read() as db:
        known = list(load_timeouts(db))
    if known and spec.resources.provider not in known:
        message = f"There is no provider {spec.resources.provider!r} here. Use {' or '.join(known)}."
        raise InvalidSpec([Problem("/resources/provider", message, "unknown-provider")])


def _check_disk(spec: JobSpec, state: AppState) -> None:
    """Refuse data that are larger than the disk of every machine that the job could get."""
    least = state.data_buckets.least_bytes(spec.data) if spec.data and spec.data.is_in_s3 else 0
    if not spec.data or not least:
        return
    with state.store.read() as db:
        offers = rank_offers(load_known(db).offers, Requirements.of(spec.resources)).ranked
    disks = {offer.disk.gib if offer.disk else None for offer in offers}
    largest = max((gib for gib in disks if gib is not None), default=0)
    if None not in disks and 0 < largest * GIB < least:
        message = (
            f"{spec.data.train} has at least {least / GIB:,.1f} GiB, and the machines' disks have {largest:,} GiB."
        )
        advice = "Raise resources.disk.size, or stream prepared shards (data.stream)."
        raise InvalidSpec([Problem("/resources/disk/size", f"{message} {advice}", "disk-too-small")])


def _check_paths(spec: JobSpec, roots: Sequence[Path]) -> None:
    """Report missing and forbidden paths alike outside the data roots, so that nobody can probe the file system."""
    problems = []
    if spec.data and not spec.data.is_in_s3 and not _find_folder(roots, spec.data):
        problems.append(("/data/train", _why_not(roots, spec.data.train, "folder"), "data-not-found"))
    if spec.init and not spec.init_job_id and not _find_path(roots, spec.init):
        problems.append(("/init", _why_not(roots, spec.init, "file or folder"), "init-not-found"))
    if problems:
        allowed = (
            "Readable folders: " + ", ".join(map(str, roots))
            if roots
            else "Make a folder readable: shoestring up --data-root DIR"
        )
        raise InvalidSpec([Problem(at, f"{message} {allowed}.", code) for at, message, code in problems])


def _why_not(roots: Sequence[Path], given: str, wanted: str) -> str:
    if _lies_under(roots, given):
        return f"There is no {wanted} {given!r}."
    return f"{given!r} is not a {wanted} that jobs may read."


def _check_hooks(spec: JobSpec, settings: ApiSettings) -> None:
    """Refuse hooks but those in the operator's folders, and outside those of data, which jobs may have written.

    Hooks run with the rights of the training processes, so that these have to be isolated.
    """
    file = spec.params.get("hooks_file")
    if not file:
        return
    roots = settings.hooks_roots
    if roots and settings.machinehost_file and (isolation := _isolation(settings.machinehost_file)).problem:
        raise InvalidSpec([Problem("/params/hooks_file", isolation.hooks_refusal(), "hooks-not-allowed")])
    path = str(file)
    if Path(path).is_absolute() and not _lies_under(settings.data_roots, path):
        found = _find_path(roots, path)
        if found and found.is_file():
            return
    allowed = (
        "Give the absolute path of a file below " + " or ".join(map(str, roots))
        if roots
        else "Hooks are off; the operator can name a folder for them: shoestring up --hooks-root DIR"
    )
    message = f"{path!r} is not a hooks file that jobs may run. {allowed}."
    raise InvalidSpec([Problem("/params/hooks_file", message, "hooks-not-allowed")])


def _isolation(machinehost_file: Path) -> IsolationStatus:
    """What the machine host says; while it starts again nothing is known, and its machines decide."""
    try:
        return IsolationStatus.of(json.loads(machinehost_file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return IsolationStatus()


def _find_folder(roots: Sequence[Path], data: DataSource) -> Path | None:
    """Return the folder of the data, whose shards may be given as a pattern; None if it is not readable."""
    if not _lies_under(roots, data.train):
        return None
    places = [data.train, str(Path(data.train).parent)] if data.format == "webdataset" else [data.train]
    return next((folder for place in places if (folder := _find_path(roots, place)) and folder.is_dir()), None)


def _find_path(roots: Sequence[Path], given: str) -> Path | None:
    """Return the path if it exists below one of the roots, with links resolved; otherwise None."""
    if _lies_under(roots, given):
        with contextlib.suppress(OSError):  # missing, too long, or without permission
            Path(given).stat()
            return Path(given)
    return None


def _lies_under(roots: Sequence[Path], given: str) -> bool:
    path = Path(os.path.realpath(given))
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)
