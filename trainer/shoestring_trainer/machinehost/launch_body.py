# SPDX-License-Identifier: Apache-2.0
"""The body of a launch request, validated."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from shoestring_trainer.machinehost.errors import require

TYPE_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
PRICE_PATTERN = re.compile(r"\d{1,9}(\.\d{1,9})?")


@dataclass(frozen=True)
class LaunchBody:
    """A valid body. `body_sha256` distinguishes a repeated request from a different one with its token."""

    tags: dict[str, str]
    type: str
    market: str
    price: str
    user_data: dict[str, Any]
    body_sha256: str

    def journal_fields(self) -> dict[str, Any]:
        """The fields for the journal: all but the user data, which contain a secret and have a file of their own."""
        return {name: value for name, value in vars(self).items() if name != "user_data"}

    @classmethod
    def parse(cls, body: dict[str, Any]) -> LaunchBody:
        """Raises RequestRejected if a field is unknown, missing or invalid."""
        known = {"tags", "type", "market", "price", "user_data"}
        require(set(body) <= known, f"unknown fields {sorted(set(body) - known)}; known are {sorted(known)}")
        tags, user_data = body.get("tags", {}), body.get("user_data", {})
        machine_type, market, price = body.get("type"), body.get("market"), body.get("price")
        are_strings = isinstance(tags, dict) and all(isinstance(tag, str) for tag in tags.values())
        require(are_strings, "tags must map strings to strings")
        type_is_valid = isinstance(machine_type, str) and TYPE_PATTERN.fullmatch(machine_type)
        require(type_is_valid, 'type must be a name such as "local.cpu"')
        require(market in ("spot", "on_demand"), 'market must be "spot" or "on_demand"')
        price_is_valid = isinstance(price, str) and PRICE_PATTERN.fullmatch(price)
        require(price_is_valid, 'price must be a decimal string such as "0.158"')
        require(isinstance(user_data, dict), "user_data must be a JSON object")
        fields = {"tags": tags, "type": machine_type, "market": market, "price": price, "user_data": user_data}
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return cls(**fields, body_sha256=hashlib.sha256(canonical.encode()).hexdigest())
