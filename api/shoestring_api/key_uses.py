# SPDX-License-Identifier: Apache-2.0
"""When API keys were last used: written down by each process at most every ten minutes for each key."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from uuid import UUID

from shoestring_core.errors import Unavailable
from shoestring_core.store import identity
from shoestring_core.store.db import Store

log = logging.getLogger(__name__)

REMEMBERED = 10_000
"""Keys, the newest; one that is forgotten is written down once more."""


class KeyUses:
    """monotonic: s."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._noted_at: dict[UUID, float] = {}

    def note(self, store: Store, key: UUID) -> None:
        """A request used the key. It doesn't fail if that can't be written now: the next one is."""
        now = self._monotonic()
        if now < self._noted_at.get(key, float("-inf")) + identity.USE_NOTED_EVERY / 1e6:
            return
        self._noted_at.pop(key, None)
        self._noted_at[key] = now
        while len(self._noted_at) > REMEMBERED:
            self._noted_at.pop(next(iter(self._noted_at)))
        try:
            store.write(partial(identity.record_use, key=key), batch=True)
        except Unavailable as error:
            log.warning("the use of key %s was not written down: %s", key, error)
