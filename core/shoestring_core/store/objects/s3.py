# SPDX-License-Identifier: Apache-2.0
"""Objects in a bucket of S3, or of what speaks its API. Machines reach the bucket themselves, by presigned URLs.

sources  docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html     If-None-Match
         docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html   S3's own CRC-64/NVME
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from shoestring_core import wire
from shoestring_core.errors import Unavailable
from shoestring_core.store.objects.contract import (
    BLOCK_BYTES,
    ObjectInfo,
    exists,
    is_key,
    missing,
    require_key,
    require_small,
)
from shoestring_core.store.objects.s3_errors import explain, wrong_region

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, TRIES = 2.0, 10.0, 3
DEFAULT_REGION = "us-east-1"
LONGEST_URL_S = 7 * 86_400
"""docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html"""
NOT_THERE, EXISTS = {"404", "NoSuchKey"}, {"PreconditionFailed"}
FAILURES = (BotoCoreError, ClientError, RuntimeError)
"""The last is botocore's, when the credentials that it got in place of old ones have ended as well."""
PROBE, PROBE_CONTENT, PROBE_CRC64NVME = "shoestring-write-check", b"123456789", "ae8b14860a799888"
"""The check value of CRC-64/NVME, by which its definitions are compared."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")

T = TypeVar("T")


def open_s3(location: str, endpoint_url: str | None = None) -> S3Objects:
    """The store at s3://BUCKET/PREFIX, with the credentials and the region that boto3 finds. Raises Unavailable."""
    bucket, _, prefix = location.removeprefix("s3://").rstrip("/").partition("/")
    if not _BUCKET.fullmatch(bucket) or (prefix and not is_key(prefix)):
        raise Unavailable(
            f"{location!r} does not name a bucket.",
            hint="Set SHOESTRING_OBJECT_STORE to s3://BUCKET/PREFIX, with a bucket whose name has no dots.",
        )
    return S3Objects(bucket, f"{prefix}/" if prefix else "", endpoint_url)


class S3Objects:
    """The objects below `prefix`, which is empty or ends with a slash."""

    def __init__(
        self, bucket: str, prefix: str, endpoint_url: str | None = None, *, read_timeout_s: float = READ_TIMEOUT_S
    ) -> None:
        self._bucket, self._prefix = bucket, prefix
        config = Config(
            signature_version="s3v4",
            # URLs name the bucket's region, so that none is redirected; other servers have one name for all buckets
            s3={"addressing_style": "path" if endpoint_url else "virtual", "us_east_1_regional_endpoint": "regional"},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_timeout_s,
            retries={"total_max_attempts": TRIES, "mode": "standard"},
            request_checksum_calculation="when_required",  # S3 computes its own, which is the one that is compared
            response_checksum_validation="when_required",
        )
        try:
            session = boto3.Session()  # of its own: the shared one keeps the credentials that it found first
            region = session.region_name or DEFAULT_REGION
            self._client = session.client("s3", region_name=region, endpoint_url=endpoint_url, config=config)
            self._credentials = session.get_credentials()
        except (BotoCoreError, ValueError) as error:
            raise explain(error, "read", self._bucket, self._prefix) from error

    def prepare(self) -> None:
        head = self._call("list", lambda: self._client.head_bucket(Bucket=self._bucket))
        configured, actual = self._client.meta.region_name, head.get("BucketRegion")
        if actual and actual != configured:
            raise wrong_region(self._bucket, actual, configured)
        self.head("shoestring-no-such-object")  # S3 says that it is forbidden, to who may not list
        self._put_once(PROBE, PROBE_CONTENT)
        if self._put_once(PROBE, PROBE_CONTENT):
            raise Unavailable(
                f"The store of bucket {self._bucket} overwrites objects in spite of `If-None-Match: *`.",
                hint="Use AWS S3, or a version of your store that has conditional writes.",
            )
        if self.head(PROBE) != ObjectInfo(len(PROBE_CONTENT), f"crc64nvme:{PROBE_CRC64NVME}"):
            raise Unavailable(
                f"Object {self._prefix}{PROBE} of bucket {self._bucket} is not what was stored.",
                hint="Delete it, and see that nothing else writes there.",
            )

    def urls_end_by(self) -> int | None:
        if self._credentials is None:
            raise explain(NoCredentialsError(), "sign URLs for", self._bucket, self._prefix)
        self._call("sign URLs for", self._credentials.get_frozen_credentials)  # renewed 15 minutes before their end
        end = getattr(self._credentials, "_expiry_time", None)  # botocore has no public name for it
        return None if end is None else int(end.timestamp())

    def put_url(self, key: str, expires_at: int, max_bytes: int) -> str:  # noqa: ARG002 - no URL of S3 limits it
        return self._signed("put_object", key, expires_at, IfNoneMatch="*")

    def start_multipart(self, key: str, expires_at: int, size: int) -> wire.MultipartUpload:
        place, part_bytes = self._place(key), wire.MULTIPART_BYTES
        checksum = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        begun = self._call("write to", lambda: self._client.create_multipart_upload(**place, **checksum))
        upload = {"UploadId": begun["UploadId"]}
        parts = range(1, max(1, -(-size // part_bytes)) + 1)
        return wire.MultipartUpload(
            part_bytes=part_bytes,
            part_urls=[self._signed("upload_part", key, expires_at, PartNumber=part, **upload) for part in parts],
            complete_url=self._signed("complete_multipart_upload", key, expires_at, IfNoneMatch="*", **upload),
        )

    def get_url(self, key: str, expires_at: int) -> str:
        return self._signed("get_object", key, expires_at)

    def head(self, key: str) -> ObjectInfo | None:
        place = self._place(key)
        head = self._find("read", lambda: self._client.head_object(**place, ChecksumMode="ENABLED"))
        if head is None:
            return None
        if "ChecksumCRC64NVME" not in head:
            raise Unavailable(
                f"The store of bucket {self._bucket} keeps no CRC-64/NVME of an object.",
                hint="Use AWS S3, or a version of your store that computes it.",
            )
        return ObjectInfo(head["ContentLength"], f"crc64nvme:{base64.b64decode(head['ChecksumCRC64NVME']).hex()}")

    def read(self, key: str, limit: int) -> bytes:
        def get() -> bytes:
            found = self._client.get_object(**place)
            require_small(key, found["ContentLength"], limit)
            content: bytes = found["Body"].read()
            return content

        place = self._place(key)
        content = self._find("read", get)
        if content is None:
            raise missing(key)
        return content

    def put(self, key: str, content: bytes) -> None:
        if not self._put_once(key, content):
            raise exists(key)

    def blocks(self, key: str, first: int, count: int) -> Iterator[bytes]:
        place = self._place(key) | {"Range": f"bytes={first}-{first + count - 1}"}
        if count <= 0:
            return
        found = self._find("read", lambda: self._client.get_object(**place))
        if found is None:
            raise missing(key)
        pieces = found["Body"].iter_chunks(BLOCK_BYTES)
        while block := self._call("read", lambda: next(pieces, b"")):
            yield block

    def _put_once(self, key: str, content: bytes) -> bool:
        """Whether it was stored; False: there is one already."""
        place = self._place(key) | {"Body": content, "IfNoneMatch": "*"}
        return self._find("write to", lambda: self._client.put_object(**place), EXISTS) is not None

    def _signed(self, method: str, key: str, expires_at: int, **parameters: str | int) -> str:
        ends = self.urls_end_by()
        seconds = min(expires_at, ends or expires_at) - int(time.time())
        seconds = min(max(1, seconds), LONGEST_URL_S)
        place = self._place(key) | parameters
        url: str = self._call(
            "sign URLs for", lambda: self._client.generate_presigned_url(method, Params=place, ExpiresIn=seconds)
        )
        return url

    def _place(self, key: str) -> dict[str, str]:
        require_key(key)
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _find(self, what: str, call: Callable[[], T], unless: Collection[str] = NOT_THERE) -> T | None:
        """What a call returns; None if it fails with one of these codes. Raises Unavailable for any other."""

        def attempt() -> T | None:
            try:
                return call()
            except ClientError as error:
                if error.response["Error"]["Code"] in unless:
                    return None
                raise

        return self._call(what, attempt)

    def _call(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except FAILURES as error:
            raise explain(error, what, self._bucket, self._prefix) from error
