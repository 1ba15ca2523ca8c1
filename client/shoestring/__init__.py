# SPDX-License-Identifier: Apache-2.0
"""The command line and the Python client.

`python -m shoestring` imports this first, while modules in the current folder still hide others, so it imports nothing.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shoestring.client import Client, ServiceError, ServiceUnreachable

__all__ = ["Client", "ServiceError", "ServiceUnreachable"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shoestring import client

    return getattr(client, name)
