# SPDX-License-Identifier: Apache-2.0
"""The command line and the Python client."""

from shoestring.client import Client, ServiceError, ServiceUnreachable

__all__ = ["Client", "ServiceError", "ServiceUnreachable"]
