# SPDX-License-Identifier: Apache-2.0
"""A client of the instance metadata service: user data, address, preemption notices.

source  "Use the Instance Metadata Service" and "Spot Instance interruption notices", Amazon EC2 User Guide (IMDSv2)
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

import httpx

ENDPOINT = "http://169.254.169.254"
TOKEN, TTL, TTL_S = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds", 21_600
NOTICE_S = 120.0  # how far ahead EC2 tells, where a notice names no time


class MetadataUnavailable(Exception):
    """The metadata service did not answer as it should."""


class RoleWithoutKeys(MetadataUnavailable):
    """The machine has a role, but no keys of it: so soon after its launch, or because EC2 may not assume it."""


class MetadataClient:
    """A client of the metadata service."""

    def __init__(self, endpoint: str = ENDPOINT) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(2.0), trust_env=False)
        self._token: str | None = None

    @property
    def local(self) -> bool:
        return httpx.URL(self.endpoint).host in ("127.0.0.1", "localhost", "::1")

    async def user_data(self) -> dict[str, Any]:
        """Raises MetadataUnavailable if there is none, or it is not ours."""
        text = await self._read("user-data")
        try:
            document = json.loads(text or "")
        except ValueError as error:
            raise MetadataUnavailable(f"the user data is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise MetadataUnavailable("the user data is not a JSON object")
        return document

    async def local_address(self) -> str:
        return await self._read("meta-data/local-ipv4") or "127.0.0.1"

    async def notice_at(self) -> float | None:
        """Unix time at which the provider will terminate the machine; None without a preemption notice."""
        text = await self._read("meta-data/spot/instance-action")
        return notice_time(text, time.time()) if text else None

    async def rebalance_recommendation(self) -> str | None:
        """The provider's rebalance recommendation: a preemption notice has become more likely."""
        return await self._read("meta-data/events/recommendations/rebalance")

    async def role(self) -> str | None:
        """The role whose temporary keys the service hands out; None if this machine has none.

        Raises RoleWithoutKeys, MetadataUnavailable.
        """
        path = "meta-data/iam/security-credentials/"
        role = (await self._read(path) or "").partition("\n")[0]
        if role and "AccessKeyId" not in (await self._read(path + role) or ""):
            raise RoleWithoutKeys(role)
        return role or None

    async def close(self) -> None:
        await self._http.aclose()

    async def _read(self, path: str) -> str | None:
        """None if there is no such document (yet)."""
        try:
            for _ in range(2):
                if self._token is None:
                    got = await self._http.put(f"{self.endpoint}/latest/api/token", headers={TTL: str(TTL_S)})
                    self._token = got.raise_for_status().text
                answer = await self._http.get(f"{self.endpoint}/latest/{path}", headers={TOKEN: self._token})
                if answer.status_code != 401:
                    break
                self._token = None  # it ran out
            if answer.status_code == 404:
                return None
            return answer.raise_for_status().text
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise MetadataUnavailable(f"{self.endpoint}: {error!r}") from error


def notice_time(text: str, now: float) -> float | None:
    """Unix time of a spot notice, whose key is `action` or `instance-action`; None for other documents.

    A notice whose time can't be read still is one: it counts from now.
    """
    try:
        notice = json.loads(text)
        if not (notice.get("action") or notice.get("instance-action")):
            return None
        return datetime.fromisoformat(notice["time"].replace("Z", "+00:00")).timestamp()
    except (ValueError, KeyError, AttributeError):
        return now + NOTICE_S if "action" in text else None
