# SPDX-License-Identifier: Apache-2.0
"""The providers that a worker can serve, by the name in job specs and rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shoestring_worker.providers import ec2, local, sim
from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.settings import WorkerSettings

PROVIDERS: Mapping[str, Callable[[str, WorkerSettings], ManagedProvider]] = {
    "ec2": ec2.open_provider,
    "local": local.open_provider,
    "sim": sim.open_provider,
}


def open_providers(settings: WorkerSettings) -> dict[str, ManagedProvider]:
    """The providers that SHOESTRING_PROVIDERS names. Raises ValueError for an unknown one."""
    if unknown := set(settings.providers) - set(PROVIDERS):
        raise ValueError(f"SHOESTRING_PROVIDERS names {sorted(unknown)}; there are {', '.join(PROVIDERS)}.")
    return {name: PROVIDERS[name](name, settings) for name in settings.providers}
