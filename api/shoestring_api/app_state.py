# SPDX-License-Identifier: Apache-2.0
"""The objects that one API process opens at start and shares between requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import Unavailable
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.fleet import service_heartbeats
from shoestring_core.store.objects import Objects, open_objects
from shoestring_core.store.objects.s3_data import DataBuckets

from shoestring_api.change_notifier import ChangeNotifier
from shoestring_api.event_broadcast import EventBroadcaster
from shoestring_api.key_uses import KeyUses
from shoestring_api.queue_projection import SharedProjection
from shoestring_api.settings import ApiSettings
from shoestring_api.stream_authentication import StreamAuthentications
from shoestring_api.tick_hints import TickHints

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0


@dataclass
class AppState:
    settings: ApiSettings
    store: Store
    objects: Objects
    notifier: ChangeNotifier
    tick_hints: TickHints | None
    broadcaster: EventBroadcaster
    secret: str = field(repr=False)
    data_buckets: DataBuckets = field(default_factory=lambda: DataBuckets(os.environ), repr=False)
    open_streams: Counter[UUID] = field(default_factory=Counter)
    """Live streams by person."""
    key_uses: KeyUses = field(default_factory=KeyUses)
    projection: SharedProjection = field(default_factory=SharedProjection)
    stream_authentications: StreamAuthentications = field(default_factory=StreamAuthentications)

    @property
    def timeouts(self) -> Timeouts:
        return self.settings.timeouts

    @classmethod
    def open(cls, settings: ApiSettings, store: Store | None = None) -> AppState:
        """Connect to the object store and, unless `store` is given, to the database.

        Raises ValueError without a secret; Unavailable if the database can't be reached or has another schema version,
        and if the object store can't be used.
        """
        secret = settings.server_secret()
        store = store or open_store(settings.database_url)
        if not store.is_current():
            raise Unavailable(
                "The database's schema is older than this version of Shoestring.",
                hint="Migrate it: python -m shoestring_api.admin bootstrap --key-file FILE",
            )
        notifier = ChangeNotifier(settings.redis_url)
        tick_hints = TickHints(settings.redis_url) if settings.redis_url else None
        store.on_commit.append(notifier.on_commit)
        if tick_hints is not None:
            store.on_commit.append(tick_hints.on_commit)
        endpoint = settings.object_store_endpoint_url
        objects = open_objects(settings.object_store, secret, settings.agent_base_url(), endpoint)
        objects.prepare()
        broadcaster = EventBroadcaster(store, notifier)
        return cls(settings, store, objects, notifier, tick_hints, broadcaster, secret)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the background tasks (notifications, tick hints, heartbeat) while the process serves; then close."""
        await self.notifier.start()
        if self.tick_hints is not None:
            self.tick_hints.start()
        heartbeat = asyncio.create_task(self._heartbeat())
        try:
            yield
        finally:
            heartbeat.cancel()
            await self.notifier.stop()
            await self.broadcaster.close()
            if self.tick_hints is not None:
                await asyncio.to_thread(self.tick_hints.stop)
            self.store.close()

    async def _heartbeat(self) -> None:
        """Record that this process is alive: agents' leases expire only while an API could receive their reports."""
        gap = self.timeouts.machine_lease // 2
        while True:
            try:
                await asyncio.to_thread(
                    self.store.write, lambda db: service_heartbeats.record_heartbeat(db, "api", gap)
                )
            except Unavailable as error:
                log.warning("the heartbeat could not be written: %s", error)
            await asyncio.sleep(HEARTBEAT_S)
