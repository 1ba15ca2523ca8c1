# SPDX-License-Identifier: Apache-2.0
"""What all steps of a tick share: a transaction for each write, and one policy for failures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from shoestring_core.errors import Unavailable
from shoestring_core.store.db import Store, Write

from shoestring_worker.providers.base import OutcomeUnknown

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def run_step(step: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run a step. If the provider or the database is unavailable, the next tick repeats it and the others continue."""
    try:
        step(*args, **kwargs)
    except (OutcomeUnknown, Unavailable) as failure:
        log.warning("%s: %s", step.__name__.strip("_"), failure)


def write(store: Store, function: Callable[Concatenate[Write, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function of the store in its own transaction."""
    return store.write(lambda db: function(db, *args, **kwargs))
