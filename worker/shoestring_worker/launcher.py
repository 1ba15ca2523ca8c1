# SPDX-License-Identifier: Apache-2.0
"""Launches the machines that the database intends at one provider, concurrently, each exactly once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import UUID

from shoestring_core import wire
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import launches, observations

from shoestring_worker.failpoints import around
from shoestring_worker.providers.base import LaunchRefused, ManagedProvider, OutcomeUnknown
from shoestring_worker.steps import ItemRunner, write

log = logging.getLogger(__name__)

MAX_CONCURRENT_LAUNCHES = 8
"""The number of launch calls of a worker to one provider at once; it hands the other launches to `offload`."""


@dataclass
class Launcher:
    name: str
    provider: ManagedProvider
    store: Store
    secret: str
    items: ItemRunner
    offload: Callable[[UUID], None] = lambda _: None
    """Asks another worker to launch a machine; if none does, the next tick launches it."""
    monotonic: Callable[[], float] = time.monotonic

    _calls: dict[UUID, Future[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(MAX_CONCURRENT_LAUNCHES, thread_name_prefix=f"launch-{self.name}")

    def begin(self, machines: Iterable[UUID]) -> list[Future[None]]:
        """Begin to launch machines, those aside whose call is in progress. Returns the calls that this began."""
        self._calls = {machine: call for machine, call in self._calls.items() if not call.done()}
        begun = []
        for machine in machines:
            if machine in self._calls:
                continue
            if len(self._calls) == MAX_CONCURRENT_LAUNCHES:
                self.offload(machine)
                continue
            item = f"the launch of {self.name} machine {machine}"
            self._calls[machine] = self._pool.submit(self.items.run, item, self.launch, machine)
            begun.append(self._calls[machine])
        return begun

    def launch(self, machine: UUID) -> None:
        """Launch one machine. Of concurrent callers one makes the call; a repeated call returns the same machine."""
        timeouts = self.provider.timeouts
        begun = self.monotonic()
        call = write(self.store, launches.begin_launch, machine, timeouts)
        if call is None:
            return
        if (self.monotonic() - begun) * 1e6 > timeouts.launch_call / 5:
            return  # the commit took so long that the answer might come after call_deadline; the next tick calls
        request = call.request.with_boot_token(wire.derive_boot_token(self.secret, machine))
        try:
            launched = around("launch", lambda: self.provider.adapter.launch(request))
        except LaunchRefused as refused:
            write(self.store, launches.record_refusal, call, refused.kind, str(refused))
        except OutcomeUnknown as unknown:
            write(self.store, launches.record_no_answer, call, str(unknown) if unknown.lasts else None)
            self.items.warn(f"the launch of {self.name} machine {machine}", str(unknown))
        else:
            write(self.store, observations.record_observation, machine, launched, timeouts)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
