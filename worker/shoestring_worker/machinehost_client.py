# SPDX-License-Identifier: Apache-2.0
"""Calls to a machine host: the local provider's, and the fake EC2's, whose machines run there too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from shoestring_worker.providers.base import CALL_TIMEOUT_S, OutcomeUnknown


class MachineHostClient:
    """`address`: the file with the host's URL and key (machinehost.json)."""

    def __init__(self, address: Path) -> None:
        self._address = address
        self._client: httpx.Client | None = None

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """One request. A restarted host has another address and key: these are then read again, once.

        Raises OutcomeUnknown if it does not answer.
        """
        for connected in (self._client, None):
            client = connected or self._connect()
            try:
                reply = client.request(method, path, json=body)
            except httpx.ConnectError:
                self._client = None  # nothing was sent: retry at the host's current address
                continue
            except httpx.HTTPError as error:
                self._client = None
                raise OutcomeUnknown(f"the machine host did not answer: {error!r}") from error
            if reply.status_code != 401:
                return reply
            self._client = None
        raise OutcomeUnknown("the machine host can't be reached; `shoestring up` starts it again")

    def _connect(self) -> httpx.Client:
        try:
            address = json.loads(self._address.read_text(encoding="utf-8"))
            url, headers = address["url"], {"Authorization": f"Bearer {address['key']}"}
        except (OSError, ValueError, KeyError) as error:
            raise OutcomeUnknown(f"the machine host's address can't be read from {self._address}") from error
        self._client = httpx.Client(base_url=url, headers=headers, timeout=CALL_TIMEOUT_S, trust_env=False)
        return self._client
