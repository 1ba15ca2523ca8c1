# SPDX-License-Identifier: Apache-2.0
"""The access keys that roles give to instances. What they allow of S3 their policies say, as far as they are inline.

A role whose policies allow anything of EC2 is the service's: it gives the key with which this fake does everything.
"""

from __future__ import annotations

import fnmatch
import hmac
import secrets
from typing import Any

from shoestring_worker.fake_ec2 import moto_backend
from shoestring_worker.fake_ec2.wire import Call

ACTIONS = {"GetBucket": "s3:ListBucket", "HeadBucket": "s3:ListBucket", "HeadObject": "s3:GetObject"}
"""Of IAM, by the names of calls; of others they are the same."""


class RoleKeys:
    """`access_key`: with which everything is allowed."""

    def __init__(self, access_key: str) -> None:
        self._access_key = access_key
        self._given: dict[str, str] = {}
        """Roles by key."""

    def key_of(self, role: str) -> str:
        """Raises KeyError for an unknown role."""
        if any(action.startswith("ec2:") for one in _allowed(role) for action in _texts(one["Action"])):
            return self._access_key
        self._given[key := f"ASIA{secrets.token_hex(8)}"] = role
        return key

    def allows(self, key: str, call: Call) -> bool:
        """Whether this is a role's key that allows this call of S3."""
        role = next((role for given, role in self._given.items() if hmac.compare_digest(given, key)), None)
        if role is None:
            return False
        action = ACTIONS.get(call.action, f"s3:{call.action}")
        bucket, path = call.parameters.get("Bucket", ""), call.parameters.get("Key", "")
        resource = f"arn:aws:s3:::{bucket}" + (f"/{path}" if path else "")
        return any(
            _matches(action, one["Action"]) and _matches(resource, one["Resource"]) for one in _allowed(role)
        )  # fmt: skip


def _allowed(role: str) -> list[dict[str, Any]]:
    """The statements of a role's policies; their conditions are not looked at."""
    statements = [one for policy in moto_backend.inline_policies(role) for one in policy["Statement"]]
    return [one for one in statements if one["Effect"] == "Allow"]


def _matches(text: str, patterns: Any) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in _texts(patterns))


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
