# SPDX-License-Identifier: Apache-2.0
"""One provider's share of each tick, in threads of its own: a provider that doesn't answer delays no other.

A tick asks every lane to list and to launch, and waits a moment for the answers. An answer that comes later is recorded
when it comes, and the next tick acts on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import UUID

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.requirements import Requirements
from shoestring_core.store.db import Store
from shoestring_core.store.fleet.offers import register_provider, save_offers

from shoestring_worker.failpoints import around
from shoestring_worker.launcher import Launcher
from shoestring_worker.providers.base import ManagedProvider, OutcomeUnknown
from shoestring_worker.reconciler import Reconciler
from shoestring_worker.steps import ItemRunner, write

POLL_INTERVAL_S = 10.0
"""How often a provider is polled when there is nothing to do: it may have machines that no row wants."""


@dataclass
class ProviderLane:
    """A provider with its reconciler and its launcher. `answer_wait_s`: how long a tick waits for its answers."""

    name: str
    provider: ManagedProvider
    store: Store
    deployment: str
    secret: str
    items: ItemRunner
    offload_launch: Callable[[UUID], None]
    monotonic: Callable[[], float]
    answer_wait_s: float

    problem: str = ""
    """Why it can't say what it offers until somebody acts, as a sentence."""
    _poll: Future[None] | None = None
    _polled_at: float = float("-inf")
    _registered: bool = False
    _prompt: bool = True
    """The last poll was answered in time; ticks don't wait for a provider that is slow."""
    _saved_offers: list[Offer] = field(default_factory=list)
    _saved_at: float = float("-inf")

    def __post_init__(self) -> None:
        self._reconciler = Reconciler(self.name, self.provider, self.store, self.deployment, self.items)
        self.launcher = Launcher(
            self.name, self.provider, self.store, self.secret, self.items, self._offload_launch, self.monotonic
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"poll-{self.name}")

    @property
    def has_answered(self) -> bool:
        """It has said what it offers."""
        return self._saved_at > float("-inf")

    @property
    def is_due(self) -> bool:
        return self.monotonic() >= self._polled_at + POLL_INTERVAL_S

    def begin_poll(self, requirements: Collection[Requirements], now: int) -> list[Future[None]]:
        """Begin to reconcile and to refresh the offers. Returns what to wait for."""
        if self._poll is not None and not self._poll.done():
            self.items.warn(f"provider {self.name}", "it has not answered the calls of an earlier tick yet")
            return []
        self._polled_at = self.monotonic()
        self._poll = self._thread.submit(self._poll_once, requirements, now)
        return [self._poll] if self._prompt else []

    def begin_launches(self, machines: Iterable[UUID]) -> list[Future[None]]:
        """Begin to launch machines of this provider. Returns what to wait for."""
        calls = self.launcher.begin(machines)
        return calls if self._prompt else []

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._reconciler.close()
        self.launcher.close()

    def _poll_once(self, requirements: Collection[Requirements], now: int) -> None:
        begun = time.monotonic()
        try:
            self.items.run(f"provider {self.name}", self._register)
            self.items.run(f"the list of {self.name} machines", self._reconciler.reconcile, now)
            self.items.run(f"the offers of {self.name}", self._refresh_offers, requirements)
        finally:
            self._prompt = time.monotonic() - begun < self.answer_wait_s

    def _register(self) -> None:
        if not self._registered:
            write(self.store, register_provider, self.name, self.provider.timeouts)
            self._registered = True

    def _offload_launch(self, machine: UUID) -> None:
        if self._prompt:  # other workers' threads would wait for it as well
            self.offload_launch(machine)

    def _refresh_offers(self, requirements: Collection[Requirements]) -> None:
        """Store the offers if they have changed, and every POLL_INTERVAL_S that the provider has answered."""
        try:
            offers = around("offers", lambda: self.provider.adapter.offers(requirements))
        except OutcomeUnknown as unknown:
            if unknown.lasts and not self.problem:  # the provider's words may differ each time
                self.problem = str(unknown)
            raise
        self.problem = ""
        if offers == self._saved_offers and self.monotonic() < self._saved_at + POLL_INTERVAL_S:
            return
        write(self.store, save_offers, self.name, offers, self.provider.timeouts)
        self._saved_offers, self._saved_at = offers, self.monotonic()


def wait_for_answers(calls: Iterable[Future[None]], wait_s: float) -> None:
    """Wait until the calls have been answered, at most `wait_s` in all. Raises what they raise."""
    for call in futures.wait(list(calls), wait_s).done:
        call.result()
