# SPDX-License-Identifier: Apache-2.0
"""What a user installs: the command line and the Python client."""

from shoestring.client import Client, ServiceError, Unreachable

__all__ = ["Client", "ServiceError", "Unreachable"]
