# SPDX-License-Identifier: Apache-2.0
"""The interface of every provider of machines. docs/add-a-provider.md explains how to write one."""

from __future__ import annotations

import builtins
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import MachineRef, ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.sweeps import Leftover
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.launch_request import LaunchRequest

CALL_TIMEOUT_S = 8.0
"""The timeout of each call of a provider. Shorter than `Timeouts.launch_call`, which fences the answer."""


class LaunchRefused(Exception):
    """The provider refused: this call launched no machine. `kind` decides what becomes of the job."""

    def __init__(self, kind: RefusalKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class OutcomeUnknown(Exception):
    """The provider did not answer, or its answer does not tell what happened.

    lasts  every call will be answered so until somebody acts, and the message says how; jobs show it
    """

    def __init__(self, message: str, *, lasts: bool = False) -> None:
        super().__init__(message)
        self.lasts = lasts


class Provider(Protocol):
    """A provider of machines. Every method returns within CALL_TIMEOUT_S or raises OutcomeUnknown.

    Methods are called from several threads at once, by several workers, and by one that was killed and has restarted.
    """

    def offers(self, requirements: Collection[Requirements]) -> builtins.list[Offer]:
        """Return what can be rented now, with prices. Called in every tick in which jobs wait, else every few seconds.

        requirements  those of the jobs that wait. A provider with a large catalogue returns all that suits one of them,
                      and one offer of each other type: a job is refused that requires what nobody offers
        """

    def launch(self, request: LaunchRequest) -> ProviderMachine:
        """Launch a machine, or return the one that the request's token has launched. Raises LaunchRefused.

        Repeated with the same request until the outcome is known. The token must be remembered at least as long as
        the machine is listed: for one that has ended meanwhile, return it or raise OutcomeUnknown.
        """

    def list(self, deployment: str) -> builtins.list[ProviderMachine]:
        """Return every machine of the deployment in all regions, those that ended in the last hours too.

        deployment  the value of DEPLOYMENT_TAG on its machines

        All or nothing: if one region does not answer, raise OutcomeUnknown, because a machine that is missing counts as
        terminated after `Timeouts.presumed_terminated_after`. A machine may be missing for
        `Timeouts.consistency_window` after its launch.
        """

    def terminate(self, ref: MachineRef) -> None:
        """Request a machine's termination. Repeating it, or terminating an ended machine, changes nothing."""


@runtime_checkable
class RegionalProvider(Provider, Protocol):
    """A provider whose machines are in regions that are listed one by one, and leave something behind.

    `list` is never called.
    """

    @property
    def configured_regions(self) -> Collection[str]:
        """Where machines may be launched."""

    def enabled_regions(self) -> Collection[str]:
        """Every region in which the account could have machines."""

    def list_region(self, deployment: str, region: str) -> builtins.list[ProviderMachine]:
        """As `list`, of one region."""

    def list_leftovers(self, deployment: str, region: str) -> builtins.list[Leftover]:
        """What of the deployment is in the region besides machines, and is attached to none. All or nothing."""

    def delete(self, leftover: Leftover) -> None:
        """Delete it. Repeating it changes nothing."""


@dataclass(frozen=True)
class ManagedProvider:
    """A provider that a worker serves, and the durations that hold for its machines."""

    adapter: Provider
    timeouts: Timeouts
