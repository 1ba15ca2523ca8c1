# SPDX-License-Identifier: Apache-2.0
"""What the fake changes in moto's memory: its API can't end an instance for EC2's own reasons."""

from __future__ import annotations

from datetime import UTC, datetime

from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.base_backend import BackendDict
from moto.core.model_instances import reset_model_data
from moto.ec2.models.instances import Instance, StateReason


def has_ended(region: str, instance: str) -> bool:
    found = _find(region, instance)
    return found is not None and found.state == "terminated"


def end_instance(region: str, instance: str, code: str, message: str) -> None:
    """Raises KeyError if there is none that runs."""
    found = _find(region, instance)
    if found is None or found.state == "terminated":
        raise KeyError(instance)
    found.terminate()
    found._reason = f"Service initiated ({datetime.now(UTC):%Y-%m-%d %H:%M:%S} GMT)"
    found.state_reason = StateReason(f"{code}: {message}", code)


def reset() -> None:
    """Forget everything."""
    BackendDict.reset()
    reset_model_data()


def _find(region: str, instance: str) -> Instance | None:
    reservations = get_backend("ec2")[DEFAULT_ACCOUNT_ID][region].reservations.values()
    return next((one for reservation in reservations for one in reservation.instances if one.id == instance), None)
