# SPDX-License-Identifier: Apache-2.0
"""Look into a job's data in S3 when the job is submitted, before a machine is paid for.

With the keys that machines are given for it (SHOESTRING_AGENT_AWS_…), and only where there are any: so nobody learns of
a bucket what a job of theirs could not read, and a service without them asks nobody. What is denied, silent, or too
much to list is left to the machine.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring_core.data_splits import LayoutError
from shoestring_core.shard_checks import SHARD_INDEX, expand_pattern, require_no_gap
from shoestring_core.spec import SHARD_RANGE, DataSource

if TYPE_CHECKING:
    from botocore.client import BaseClient

VARIABLES = "SHOESTRING_AGENT_AWS_"
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 2.0, 3.0
AT_ONCE = 2
"""Submissions that look into buckets at a time; others leave it to the machine, so that none waits for them."""
MAX_OBJECTS = 3_000
KEEP_S = 60.0
"""For so long a location without a problem, and a store that is silent, isn't asked again."""
MISSING_BUCKET = {"NoSuchBucket", "404"}


class DataBuckets:
    """The buckets that machines may read. `environment`: this process's, with the machines' variables."""

    def __init__(self, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        given = {name: value for name, value in environment.items() if name.startswith(VARIABLES) and value}
        self._settings = {name.removeprefix(VARIABLES): value for name, value in given.items()}
        self._clock = clock
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._sound: dict[DataSource, tuple[float, int]] = {}
        """Until when what was found of a location counts, and the bytes that it has at least."""
        self._silent_until = 0.0

    def find_problem(self, data: DataSource) -> str | None:
        """Return what is wrong with data in S3, in the machine's words; None if nothing is known to be."""
        now = self._clock()
        if not self._settings or now < max(self._silent_until, self._sound.get(data, (0.0, 0))[0]):
            return None
        if not self._turns.acquire(blocking=False):
            return None
        try:
            self._look(data)
        except LayoutError as error:
            return str(error)
        finally:
            self._turns.release()
        return None

    def least_bytes(self, data: DataSource) -> int:
        """How many bytes a machine copies at least, by what was found when it was looked at; 0: nothing is known."""
        return self._sound.get(data, (0.0, 0))[1]

    def _look(self, data: DataSource) -> None:
        from botocore import exceptions  # half a second, which only data in S3 are worth

        name, _, key = data.train.removeprefix("s3://").partition("/")
        least = 0
        try:
            least = _require_data(data, _Bucket(self._client(), name), key.strip("/"))
        except exceptions.ClientError as error:
            if error.response["Error"].get("Code") in MISSING_BUCKET:
                raise LayoutError(f"the bucket of {data.train} does not exist; correct data.train") from error
        except (exceptions.ConnectionError, exceptions.HTTPClientError):
            self._silent_until = self._clock() + KEEP_S
            return
        except (exceptions.BotoCoreError, OSError, RuntimeError, ValueError):
            pass  # whatever else keeps it from being listed, the machine says
        if len(self._sound) >= MAX_OBJECTS:
            self._sound.clear()
        self._sound[data] = self._clock() + KEEP_S, least

    def _client(self) -> BaseClient:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        given = self._settings
        config = Config(
            signature_version="s3v4" if "ACCESS_KEY_ID" in given else UNSIGNED,
            s3={"addressing_style": "path" if "ENDPOINT_URL" in given else "virtual"},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"total_max_attempts": 1},
            ignore_configured_endpoint_urls=True,  # those of the service; machines don't get them
        )
        return boto3.Session().client(
            "s3", region_name=given.get("REGION") or "us-east-1", endpoint_url=given.get("ENDPOINT_URL"), config=config,
            aws_access_key_id=given.get("ACCESS_KEY_ID"), aws_secret_access_key=given.get("SECRET_ACCESS_KEY"),
            aws_session_token=given.get("SESSION_TOKEN"),
        )  # fmt: skip


class _Bucket:
    def __init__(self, client: Any, name: str) -> None:
        self._client, self.name = client, name

    def objects(self, prefix: str) -> tuple[dict[str, int], bool]:
        """Return the bytes of the objects whose keys begin so, and whether that is all: not if they are too many."""
        found: dict[str, int] = {}
        more: dict[str, str] = {}
        while len(found) < MAX_OBJECTS:
            page = self._client.list_objects_v2(Bucket=self.name, Prefix=prefix, **more)
            found |= {each["Key"]: each["Size"] for each in page.get("Contents", ())}
            if not page.get("IsTruncated"):
                return found, True
            more = {"ContinuationToken": page["NextContinuationToken"]}
        return found, False

    def has_any(self, prefix: str) -> bool:
        return bool(self._client.list_objects_v2(Bucket=self.name, Prefix=prefix, MaxKeys=1).get("Contents"))


def _require_data(data: DataSource, bucket: _Bucket, key: str) -> int:
    """Raise LayoutError unless there are the objects that the location names. Returns the bytes to copy, at least."""
    pattern = SHARD_RANGE.search(key.rpartition("/")[2])
    folder = f"{key}/" if key else ""
    if pattern is not None:
        return _require_pattern(bucket, key, key[: key.rindex(pattern[0])])
    if not bucket.has_any(key if key.endswith(".tar") else folder):
        raise LayoutError(f"there are no objects in {data.train}; correct data.train, or upload the data first")
    if data.stream and not bucket.has_any(folder + SHARD_INDEX):
        raise LayoutError(
            f"{data.train} holds no {SHARD_INDEX}, so it can't be streamed; give the URL of a folder that "
            "`shoestring data prepare` has made, or leave stream out"
        )
    if data.stream or key.endswith(".tar"):
        return 0
    objects, is_all = bucket.objects(folder)
    if data.format == "webdataset" and is_all:
        _require_no_gap(bucket, folder, objects)
    return sum(objects.values())


def _require_pattern(bucket: _Bucket, key: str, begin: str) -> int:
    objects, is_all = bucket.objects(begin)
    if not is_all:
        return 0
    folder = key.rpartition("/")[0]
    sizes = {name: size for found, size in objects.items() for at, _, name in [found.rpartition("/")] if at == folder}
    with _named_as_given(bucket):
        shards = expand_pattern(_place(bucket, key), sizes.__contains__)
    return sum(sizes[shard.name] for shard in shards)


def _require_no_gap(bucket: _Bucket, folder: str, keys: Collection[str]) -> None:
    """Of a folder of shards without folders in it: of others the machine knows which shards it takes."""
    if not any("/" in found.removeprefix(folder) for found in keys):
        with _named_as_given(bucket):
            require_no_gap(_place(bucket, found) for found in keys if found.endswith(".tar"))


def _place(bucket: _Bucket, key: str) -> Path:
    """An object as a path, for what is checked of files alike."""
    return Path("/", bucket.name, key)


@contextlib.contextmanager
def _named_as_given(bucket: _Bucket) -> Iterator[None]:
    try:
        yield
    except LayoutError as error:
        raise LayoutError(str(error).replace(f"/{bucket.name}", f"s3://{bucket.name}", 1)) from error
