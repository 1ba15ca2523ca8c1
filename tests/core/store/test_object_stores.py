# SPDX-License-Identifier: Apache-2.0
"""What every object store promises, on each of them: a folder that the API serves, and S3 as the fake has it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from awscrt.checksums import crc64nvme
from shoestring_core import wire
from shoestring_core.errors import NotFound, TooLarge
from shoestring_core.store.objects import ObjectInfo, Objects, open_objects

from tests.api.deployment import Deployment
from tests.servers import PATIENCE_S, until
from tests.shared_database import SharedDatabase
from tests.worker.providers.fake_aws import FakeAws

pytestmark = pytest.mark.any_database

KEY = "jobs/j/g/1/final/000001/data"
ONCE = {"If-None-Match": "*"}
CONTENT = bytes(range(256)) * 10_000


@pytest.fixture
def folder(migrated: SharedDatabase, tmp_path: Path) -> Iterator[Objects]:
    with Deployment(migrated.url, tmp_path, store=migrated.store()) as deployment:
        yield deployment.state.objects


@pytest.fixture
def s3(aws: FakeAws) -> Objects:
    aws.s3().create_bucket(Bucket="models")
    objects = open_objects("s3://models/team/a", "secret", "http://127.0.0.1:1", aws.url)
    objects.prepare()
    return objects


@pytest.fixture(params=["folder", "s3"])
def objects(request: pytest.FixtureRequest, migrated: SharedDatabase) -> Objects:
    store: Objects = request.getfixturevalue(request.param)
    return store


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        yield client


def test_an_object_goes_up_and_comes_back(objects: Objects, http: httpx.Client) -> None:
    put, get = objects.put_url(KEY, _later(), 10**8), objects.get_url(KEY, _later())
    assert http.get(get).status_code == 404
    assert http.put(put, content=CONTENT, headers=ONCE).is_success
    assert objects.head(KEY) in (
        ObjectInfo(len(CONTENT), f"sha256:{sha256(CONTENT).hexdigest()}"),
        ObjectInfo(len(CONTENT), f"crc64nvme:{crc64nvme(CONTENT):016x}"),
    )
    assert http.get(get).content == CONTENT
    part = http.get(get, headers={"Range": "bytes=1000-1009"})
    assert (part.status_code, part.content) == (206, CONTENT[1000:1010])


def test_an_object_is_written_once(objects: Objects, http: httpx.Client) -> None:
    put = objects.put_url(KEY, _later(), 10**8)
    assert http.put(put, content=b"first", headers=ONCE).is_success
    assert http.put(put, content=b"second", headers=ONCE).status_code == 412
    assert objects.read(KEY, 100) == b"first"


def test_of_many_writers_one_wins_whole(objects: Objects, http: httpx.Client) -> None:
    put = objects.put_url(KEY, _later(), 10**8)

    def write(number: int) -> int | None:
        return number if http.put(put, content=bytes([number]) * 100_000, headers=ONCE).is_success else None

    with ThreadPoolExecutor(8) as threads:
        (winner,) = [number for number in threads.map(write, range(8)) if number is not None]
    assert objects.read(KEY, 10**6) == bytes([winner]) * 100_000


@pytest.mark.parametrize("change", ["signature", "expiry", "expired", "method", "key"])
def test_a_url_is_good_for_one_thing_until_it_expires(objects: Objects, http: httpx.Client, change: str) -> None:
    now = int(time.time())
    put = objects.put_url(KEY, now + 60, 10**8)
    if change == "method":
        answer = http.get(put)
    elif change == "key":
        answer = http.put(put.replace("000001", "000002"), content=b"x", headers=ONCE)
    elif change == "expired":
        get = objects.get_url(KEY, now)
        until(lambda: http.get(get).status_code == 403)  # a URL of S3 lives for a second at least
        return
    elif change == "expiry":
        changed = put.replace(f"expires={now + 60}", f"expires={now + 90}").replace("Expires=60", "Expires=90")
        answer = http.put(changed, content=b"x", headers=ONCE)
    else:
        answer = http.put(put[:-64] + "0" * 64, content=b"x", headers=ONCE)
    assert answer.status_code == 403
    assert objects.head(KEY) is None


@pytest.mark.parametrize(
    "key", ["../secret", "a/../../b", "/etc/passwd", "a//b", "", ".hidden", "a/.data.sha256", "a" * 600]
)
def test_no_key_leads_out_of_the_store(objects: Objects, key: str) -> None:
    for use in (lambda: objects.put_url(key, _later(), 1), lambda: objects.head(key), lambda: objects.read(key, 1)):
        with pytest.raises(NotFound):
            use()


def test_small_objects_are_read_whole_and_large_ones_refused(objects: Objects, http: httpx.Client) -> None:
    http.put(objects.put_url(KEY, _later(), 10**8), content=b"abcdef", headers=ONCE).raise_for_status()
    assert objects.read(KEY, 6) == b"abcdef"
    assert b"".join(objects.blocks(KEY, 2, 3)) == b"cde"
    assert b"".join(objects.blocks(KEY, 2, 0)) == b""
    with pytest.raises(TooLarge):
        objects.read(KEY, 5)
    for read in (lambda: objects.read("none", 5), lambda: list(objects.blocks("none", 0, 1))):
        with pytest.raises(NotFound):
            read()
    assert objects.head("none") is None


def test_a_store_takes_large_objects_in_parts_or_by_one_put(objects: Objects) -> None:
    begun = objects.start_multipart(KEY, _later(), 3 * wire.MULTIPART_BYTES + 1)
    assert begun is None or (begun.part_bytes, len(begun.part_urls)) == (wire.MULTIPART_BYTES, 4)
    assert objects.head(KEY) is None


def test_a_store_is_prepared_as_often_as_the_service_starts(objects: Objects) -> None:
    objects.prepare()
    objects.prepare()


def _later() -> int:
    return int(time.time()) + 60
