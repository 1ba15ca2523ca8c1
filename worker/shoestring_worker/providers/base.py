# SPDX-License-Identifier: Apache-2.0
"""What the worker asks of a provider of machines, whoever that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine

CALL_TIMEOUT_S = 8.0
"""Each call of a provider is over by then. Shorter than `Timeouts.call`, which fences its answer."""


class Refused(Exception):
    """The provider refused for good: this call made no machine, and neither will the same call again."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Unknown(Exception):
    """The provider did not answer, or not so that it is clear what happened."""


@dataclass(frozen=True)
class Intent:
    """A launch request. The token buys at most one machine, whatever is sent how often."""

    token: str
    region: str
    zone: str
    tags: dict[str, str]
    type: str
    market: str
    price: str
    user_data: dict[str, Any]


class Cloud(Protocol):
    """A provider. Every verb is over within CALL_TIMEOUT_S and raises Unknown when it can't say."""

    name: str

    def offers(self) -> list[Offer]:
        """What can be rented now, with prices."""

    def launch(self, intent: Intent) -> ProviderMachine:
        """Buy a machine, or return the one that this token has bought. Raises Refused."""

    def list(self) -> list[ProviderMachine]:
        """Every machine that the provider still knows, ended ones too."""

    def terminate(self, machine: str) -> None:
        """Ask for a machine's end; again, or after its end, changes nothing."""
