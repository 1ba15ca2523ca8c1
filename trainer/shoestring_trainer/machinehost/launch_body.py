# SPDX-License-Identifier: Apache-2.0
"""The body of a launch request, validated."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from shoestring_trainer.machinehost.errors import require
from shoestring_trainer.machinehost.network import WantedNetwork

TYPE_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
COMMAND_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
PRICE_PATTERN = re.compile(r"\d{1,9}(\.\d{1,9})?")
MAX_SCRIPT_BYTES = 16_384  # as EC2: docs.aws.amazon.com/AWSEC2/latest/UserGuide/user-data.html


@dataclass(frozen=True)
class LaunchBody:
    """A valid body.

    user_data    an object for the agent, or a script that is executed in place of the agent: see user_data.py
    metadata     documents below /latest/meta-data/, by path, that replace the machine host's own
    commands     what is on the image of a machine that executes a script: scripts by name
    network      of its own; None: this computer's
    body_sha256  distinguishes a repeated request from a different one with its token
    """

    tags: dict[str, str]
    type: str
    market: str
    price: str
    user_data: dict[str, Any] | str
    metadata: dict[str, str]
    commands: dict[str, str]
    network: WantedNetwork | None
    body_sha256: str

    def journal_fields(self) -> dict[str, Any]:
        """The fields for the journal: all but those with files of their own; the user data contain a secret."""
        return {name: value for name, value in vars(self).items() if name not in ("user_data", "commands", "network")}

    @classmethod
    def parse(cls, body: dict[str, Any]) -> LaunchBody:
        """Raises RequestRejected if a field is unknown, missing or invalid."""
        known = {"tags", "type", "market", "price", "user_data", "metadata", "commands", "network"}
        require(set(body) <= known, f"unknown fields {sorted(set(body) - known)}; known are {sorted(known)}")
        tags, user_data = body.get("tags", {}), body.get("user_data", {})
        metadata, commands = body.get("metadata", {}), body.get("commands", {})
        machine_type, market, price = body.get("type"), body.get("market"), body.get("price")
        for name, mapping in (("tags", tags), ("metadata", metadata), ("commands", commands)):
            are_strings = isinstance(mapping, dict) and all(isinstance(value, str) for value in mapping.values())
            require(are_strings, f"{name} must map strings to strings")
        require(all(COMMAND_PATTERN.fullmatch(name) for name in commands), "commands have names such as nvidia-smi")
        type_is_valid = isinstance(machine_type, str) and TYPE_PATTERN.fullmatch(machine_type)
        require(type_is_valid, 'type must be a name such as "local.cpu"')
        require(market in ("spot", "on_demand"), 'market must be "spot" or "on_demand"')
        price_is_valid = isinstance(price, str) and PRICE_PATTERN.fullmatch(price)
        require(price_is_valid, 'price must be a decimal string such as "0.158"')
        is_script = isinstance(user_data, str) and user_data.startswith("#!")
        require(isinstance(user_data, dict) or is_script, "user_data must be a JSON object, or a script with #!")
        require(not is_script or len(user_data.encode()) <= MAX_SCRIPT_BYTES, f"a script has {MAX_SCRIPT_BYTES} bytes")
        require(is_script or not commands, "commands are for user_data that is a script")
        fields = {
            "tags": tags, "type": machine_type, "market": market, "price": price, "user_data": user_data,
            "metadata": metadata, "commands": commands,
        }  # fmt: skip
        network = body.get("network")
        hashed = fields | ({} if network is None else {"network": network})
        canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
        body_sha256 = hashlib.sha256(canonical.encode()).hexdigest()
        return cls(**fields, network=WantedNetwork.parse(network), body_sha256=body_sha256)
