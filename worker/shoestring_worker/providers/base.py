# SPDX-License-Identifier: Apache-2.0
"""The interface of every provider of machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine

CALL_TIMEOUT_S = 8.0
"""The timeout of each call of a provider. Shorter than `Timeouts.launch_call`, which fences the answer."""


class LaunchRefused(Exception):
    """The provider refused for good: this call launched no machine, and neither will a repetition."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OutcomeUnknown(Exception):
    """The provider did not answer, or its answer does not tell what happened."""


@dataclass(frozen=True)
class LaunchRequest:
    """A request for one machine. The idempotency token launches at most one, however often the request is sent."""

    token: str
    region: str
    zone: str
    tags: dict[str, str]
    type: str
    market: str
    price: str
    user_data: dict[str, Any]


class Provider(Protocol):
    """A provider of machines. Every method returns within CALL_TIMEOUT_S or raises OutcomeUnknown."""

    name: str

    def offers(self) -> list[Offer]:
        """Return what can be rented now, with prices."""

    def launch(self, request: LaunchRequest) -> ProviderMachine:
        """Launch a machine, or return the one that this token has launched. Raises LaunchRefused."""

    def list(self) -> list[ProviderMachine]:
        """Return every machine that the provider still knows, ended ones too."""

    def terminate(self, machine: str) -> None:
        """Request a machine's termination. Repeating it, or terminating an ended machine, changes nothing."""
