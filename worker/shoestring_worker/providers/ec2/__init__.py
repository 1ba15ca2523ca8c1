# SPDX-License-Identifier: Apache-2.0
"""Amazon EC2: machines are instances, one RunInstances call each.

What is asked and how the answers are read is pure: `run_instances.py`, `instances.py`, `errors.py`. `provider.py` makes
the calls, at the pace of `rate_limits.py`. docs/aws.md says how to configure it.
"""

from __future__ import annotations

from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.settings import WorkerSettings


def open_provider(name: str, settings: WorkerSettings) -> ManagedProvider:
    """Raises ValueError if it is not configured."""
    from shoestring_worker.providers.ec2 import provider  # a worker without EC2 needs no boto3, which loads slowly

    return provider.open_provider(name, settings)
