# SPDX-License-Identifier: Apache-2.0
"""Launches the machines that the database intends, concurrently, each exactly once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from shoestring_core import wire
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import launches, observations

from shoestring_worker.providers.base import LaunchRefused, LaunchRequest, OutcomeUnknown, Provider
from shoestring_worker.steps import ItemRunner, write

log = logging.getLogger(__name__)

MAX_CONCURRENT_LAUNCHES = 8
"""The number of launch calls that a tick makes at once; it hands the other launches to `offload`."""


@dataclass
class Launcher:
    store: Store
    provider: Provider
    timeouts: Timeouts
    secret: str
    items: ItemRunner
    offload: Callable[[UUID], None] = lambda _: None
    """Asks another worker to launch a machine; if none does, the next tick launches it."""
    monotonic: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(MAX_CONCURRENT_LAUNCHES, thread_name_prefix="launch")

    def launch_pending(self) -> None:
        """Launch all machines that are planned, or whose last launch call had an unknown outcome."""
        with self.store.read() as db:
            machines = launches.load_launchable(db)
        for machine in machines[MAX_CONCURRENT_LAUNCHES:]:
            self.offload(machine)
        calls = [
            self._pool.submit(self.items.run, f"the launch of machine {machine}", self.launch, machine)
            for machine in machines[:MAX_CONCURRENT_LAUNCHES]
        ]
        for call in calls:
            call.result()

    def launch(self, machine: UUID) -> None:
        """Launch one machine. Of concurrent callers one makes the call; a repeated call returns the same machine."""
        begun = self.monotonic()
        call = write(self.store, launches.begin_launch, machine, self.timeouts)
        if call is None:
            return
        if (self.monotonic() - begun) * 1e6 > self.timeouts.launch_call / 5:
            return  # the commit took so long that the answer might come after call_deadline; the next tick calls
        body = call.request
        request = LaunchRequest(
            token=str(machine),
            region=call.region,
            zone=call.zone,
            tags=body["tags"],
            type=body["type"],
            market=body["market"],
            price=body["price"],
            user_data=body["user_data"] | {"boot_token": wire.derive_boot_token(self.secret, machine)},
        )
        try:
            launched = self.provider.launch(request)
        except LaunchRefused as refused:
            write(self.store, launches.record_refusal, call, refused.code, str(refused))
        except OutcomeUnknown as unknown:
            log.warning("launch of %s: %s", machine, unknown)
            write(self.store, launches.record_no_answer, call)
        else:
            write(self.store, observations.record_observation, machine, launched, self.timeouts)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
