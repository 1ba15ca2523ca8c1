# SPDX-License-Identifier: Apache-2.0
"""The projection of the queue, which all requests of a process share until something changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from shoestring_core import rest
from shoestring_core.decide.projection import Projection, project
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.store.fleet.offers import load_versions
from shoestring_core.store.fleet.queue import load_mark
from shoestring_core.store.projection_inputs import ProjectionInputs, load_projection_inputs
from shoestring_core.store.transactions import Read

SHARED_FOR_S = 10.0
"""Jobs that run make progress without a change that the scheduler would see."""


@dataclass(frozen=True)
class ProjectedQueue:
    """`by_team`: what was answered, by team."""

    inputs: ProjectionInputs
    projection: Projection
    by_team: dict[UUID, rest.Queue] = field(default_factory=dict)


class SharedProjection:
    """A long queue takes tenths of a second to project, and each viewer of it asks every few seconds."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic, self._lock = monotonic, threading.Lock()
        self._last: tuple[object, float, ProjectedQueue] | None = None

    def get(self, db: Read, timeouts: Timeouts) -> ProjectedQueue:
        mark, now = (load_mark(db), load_versions(db)), self._monotonic()
        with self._lock:
            if self._last is not None:
                last_mark, made_at, last = self._last
                if last_mark == mark and now < made_at + SHARED_FOR_S:
                    return last
            inputs = load_projection_inputs(db, timeouts)
            projection = project(
                inputs.snapshot, inputs.runs, inputs.offers, inputs.now, inputs.timeouts, inputs.expect
            )
            made = ProjectedQueue(inputs, projection)
            self._last = mark, now, made
            return made
