# SPDX-License-Identifier: Apache-2.0
"""Job specs as they come in: checked against who asks and what this service may read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring_core.errors import Forbidden, InvalidSpec, Problem
from shoestring_core.spec import DataSource, JobSpec, parse
from shoestring_core.store.identity import Principal

from shoestring_api.service import Service


def read(given: dict[str, Any] | str, caller: Principal, service: Service) -> JobSpec:
    """The spec, checked as a whole. Raises InvalidSpec, Forbidden."""
    spec = parse(given)
    _check_team(spec, caller)
    _check_paths(spec, service.settings.data_roots)
    return spec


def _check_team(spec: JobSpec, caller: Principal) -> None:
    if spec.team not in (None, caller.team_name):
        raise Forbidden(
            f"This key acts for team {caller.team_name}, not {spec.team}.",
            hint="Leave `team` out, or use that team's key.",
        )


def _check_paths(spec: JobSpec, roots: Sequence[Path]) -> None:
    """Missing and forbidden paths get one answer, so that nobody can feel their way around the disk."""
    problems = []
    if spec.data and not spec.data.is_in_s3 and not _folder(roots, spec.data):
        problems.append(("/data/train", f"{spec.data.train!r} is not a folder that jobs may read.", "data-not-found"))
    if spec.init and not spec.init_job_id and not _visible(roots, spec.init):
        problems.append(("/init", f"{spec.init!r} is no file or folder that jobs may read.", "init-not-found"))
    if problems:
        allowed = (
            "They lie under " + ", ".join(map(str, roots)) if roots else "Allow one: shoestring up --data-root DIR"
        )
        raise InvalidSpec([Problem(at, f"{message} {allowed}.", code) for at, message, code in problems])


def _folder(roots: Sequence[Path], data: DataSource) -> Path | None:
    """Where the data lie; shards may be named by a pattern."""
    if not _lies_under(roots, data.train):
        return None
    places = [data.train, str(Path(data.train).parent)] if data.format == "webdataset" else [data.train]
    return next((folder for place in places if (folder := _visible(roots, place)) and folder.is_dir()), None)


def _visible(roots: Sequence[Path], given: str) -> Path | None:
    """What stands at a path below one of the roots, links followed; None also for a path that can't be one."""
    if _lies_under(roots, given):
        with contextlib.suppress(OSError):  # no such file, a name that is too long, a folder that is closed to us
            Path(given).stat()
            return Path(given)
    return None


def _lies_under(roots: Sequence[Path], given: str) -> bool:
    path = Path(os.path.realpath(given))
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)
