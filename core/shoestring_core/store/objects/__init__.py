# SPDX-License-Identifier: Apache-2.0
"""The object store: write-once blobs behind signed, expiring URLs; in a folder, or on S3 and what speaks its API.

Machines move objects by `put_url` and `get_url` alone; the service itself reads by key. An object appears complete or
not at all, and never changes.
"""

from __future__ import annotations

from pathlib import Path

from shoestring_core.errors import Unavailable
from shoestring_core.store.objects.contract import ObjectInfo, Objects
from shoestring_core.store.objects.local import LocalObjects

__all__ = ["ObjectInfo", "Objects", "open_objects"]


def open_objects(location: str, secret: str, base_url: str, endpoint_url: str | None = None) -> Objects:
    """The store at `location`: a folder, or s3://BUCKET/PREFIX. Raises Unavailable for anything else.

    secret        signs the URLs of a folder
    base_url      the service's address as machines reach it, for these URLs
    endpoint_url  a server that speaks S3's API, in place of AWS's
    """
    if location.startswith("s3://"):
        from shoestring_core.store.objects.s3 import open_s3  # imports boto3, which few need

        return open_s3(location, endpoint_url)
    if "://" in location:
        raise Unavailable(
            f"{location!r} is not supported as an object store.",
            hint="Set SHOESTRING_OBJECT_STORE to a folder, or to s3://BUCKET/PREFIX.",
        )
    return LocalObjects(Path(location), secret, base_url)
