# SPDX-License-Identifier: Apache-2.0
"""Data in S3 are copied completely to the machine's disk before its ranks start, or an error says why not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring_trainer.data_sync import buckets
from shoestring_trainer.data_sync.datasets import CONCURRENCY, PART_BYTES, sync_dataset
from shoestring_trainer.data_sync.errors import DataUnavailable

from tests.servers import until
from tests.soak.transfers import copy_buckets
from tests.trainer.agent.services import MetadataService
from tests.trainer.data_sync.bucket_server import BUCKET, Bucket, Object, serving

ALL = f"s3://{BUCKET}"
ODD_NAMES = ("cats and dogs/é.jpg", "a%20b/#1?.jpg", "~x/[1]{2}.jpg", "b+c/=&.jpg")


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serving() as bucket:
        yield bucket


def sync(bucket: Bucket, url: str, store: Path, **environment: str) -> Path:
    return asyncio.run(sync_dataset(url, store, bucket.environment | environment, ignore, ignore))


def ignore(message: str) -> None:
    """Discard a report."""


def read_files(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_all_objects_below_a_prefix_are_copied_page_by_page(bucket: Bucket, tmp_path: Path) -> None:
    bucket.page_size = 2
    wanted = {f"train/{name}": os.urandom(1000 + number) for number, name in enumerate(ODD_NAMES)}
    wanted["classes.txt"] = b""
    for name, part in wanted.items():
        bucket.put(f"set/{name}", part)
    bucket.put("set/train/", b"")  # as the AWS console creates for an empty folder
    bucket.put("setting/other.jpg", b"another set")
    path = sync(bucket, f"{ALL}/set/", tmp_path)
    assert read_files(path) == wanted
    assert path.parts[-2:] == (BUCKET, "set")


def test_a_large_object_is_read_in_parts(bucket: Bucket, tmp_path: Path) -> None:
    whole = os.urandom(2 * PART_BYTES + 12_345)
    bucket.put("train.tar", whole)
    bucket.put("beside.jpg", b"not asked for")
    shard = sync(bucket, f"{ALL}/train.tar", tmp_path)
    assert shard.read_bytes() == whole
    assert bucket.requested_keys == ["train.tar"] * 3


def test_a_pattern_copies_its_shards_and_the_class_names(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("s/a-000.tar", "s/a-001.tar", "s/b-000.tar", "s/classes.txt", "s/deep/a-002.tar", "s/a-x.tar"):
        bucket.put(name, name.encode())
    pattern = sync(bucket, f"{ALL}/s/a-{{000..001}}.tar", tmp_path)
    assert pattern.name == "a-{000..001}.tar"
    assert set(read_files(pattern.parent)) == {"a-000.tar", "a-001.tar", "classes.txt"}


def test_unchanged_files_are_not_copied_again_and_changed_ones_are(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("same", "changed", "gone/deep", "grown"):
        bucket.put(name, b"first " + name.encode())
    path = sync(bucket, ALL, tmp_path)
    bucket.requested_keys.clear()
    assert read_files(sync(bucket, ALL, tmp_path)) == read_files(path)
    assert bucket.requested_keys == []

    bucket.objects["changed"] = Object(b"other changed", bucket.objects["changed"].last_modified + 1)
    bucket.objects["grown"] = Object(b"first grown up", bucket.objects["grown"].last_modified)
    del bucket.objects["gone/deep"]
    sync(bucket, ALL, tmp_path)
    assert read_files(path) == {"same": b"first same", "changed": b"other changed", "grown": b"first grown up"}
    assert sorted(bucket.requested_keys) == ["changed", "grown"]
    assert not (path / "gone").exists()


def test_503s_and_broken_connections_are_retried(bucket: Bucket, tmp_path: Path) -> None:
    bucket.unavailable, bucket.truncated = 3, 3
    wanted = {f"{number}.jpg": os.urandom(50_000) for number in range(8)}
    for name, part in wanted.items():
        bucket.put(name, part)
    assert read_files(sync(bucket, ALL, tmp_path)) == wanted
    assert len(bucket.requested_keys) == len(wanted) + 6


def test_retries_end_after_a_time_limit(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "RETRY_FOR_S", 0.3)
    bucket.put("x.jpg", b"x")
    bucket.unavailable = 1_000_000
    with pytest.raises(DataUnavailable, match=r"x\.jpg in .* can't be reached for .* 503") as away:
        sync(bucket, ALL, tmp_path)
    assert not away.value.permanent
    bucket.url = "http://127.0.0.1:9"
    with pytest.raises(DataUnavailable, match="can't be reached") as away:
        sync(bucket, ALL, tmp_path)
    assert not away.value.permanent


def test_an_interrupted_copy_resumes_where_it_stopped(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(CONCURRENCY + 8):
        bucket.put(f"{number:02}.jpg", b"x" * (number + 1))

    async def stopped() -> None:
        bucket.unblocked_requests = 5
        bucket.unblocked.clear()
        copying = asyncio.create_task(sync_dataset(ALL, tmp_path, bucket.environment, ignore, ignore))
        await asyncio.to_thread(until, lambda: len(list(tmp_path.rglob("*.jpg"))) == 5)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying

    asyncio.run(stopped())
    here = {path.name for path in tmp_path.rglob("*.jpg")}
    assert len(here) == 5
    bucket.requested_keys.clear()
    bucket.unblocked.set()
    assert len(read_files(sync(bucket, ALL, tmp_path))) == len(bucket.objects)
    assert set(bucket.requested_keys) == set(bucket.objects) - here


def test_two_processes_make_one_copy(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(10):
        bucket.put(f"{number}.jpg", b"x")
    messages: list[str] = []

    async def both() -> None:
        bucket.unblocked.clear()
        first = asyncio.create_task(sync_dataset(ALL, tmp_path, bucket.environment, ignore, ignore))
        await asyncio.to_thread(until, lambda: bucket.requested_keys)
        second = asyncio.create_task(sync_dataset(ALL, tmp_path, bucket.environment, ignore, messages.append))
        while not messages:
            await asyncio.sleep(0.01)
        bucket.unblocked.set()
        assert await first == await second

    asyncio.run(both())
    assert sorted(bucket.requested_keys) == sorted(bucket.objects)
    assert "waiting for it" in messages[0]


def test_a_private_bucket_needs_keys_and_the_error_says_so(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x.jpg", b"x")
    bucket.access_key = "AKIATEST"
    with pytest.raises(
        DataUnavailable, match=r"may not read s3://images .*AWS_ACCESS_KEY_ID.*SHOESTRING_AGENT_"
    ) as denied:
        sync(bucket, ALL, tmp_path)
    assert denied.value.permanent
    keys = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert read_files(sync(bucket, ALL, tmp_path, **keys)) == {"x.jpg": b"x"}
    with pytest.raises(DataUnavailable, match="may not read"):
        sync(bucket, ALL, tmp_path / "other", **keys | {"AWS_ACCESS_KEY_ID": "AKIAOTHER"})


def test_a_private_bucket_can_be_read_with_the_machines_role(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x.jpg", b"x")
    bucket.access_key = "ASIAROLE"
    metadata = MetadataService()
    role = "meta-data/iam/security-credentials"
    temporary = {
        "AccessKeyId": "ASIAROLE", "SecretAccessKey": "secret", "Token": "token", "Expiration": "2099-01-01T00:00:00Z",
    }  # fmt: skip
    metadata.documents |= {f"{role}/": "trainers", f"{role}/trainers": json.dumps(temporary)}
    try:
        path = sync(bucket, ALL, tmp_path, AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url)
        bucket.access_key = "AKIAOTHER"
        with pytest.raises(DataUnavailable, match=r"nor with its role trainers \(.*allow s3:ListBucket") as denied:
            sync(bucket, ALL, tmp_path / "other", AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url)
    finally:
        metadata.stop()
    assert read_files(path) == {"x.jpg": b"x"}
    assert denied.value.permanent


def test_a_role_that_ec2_may_not_assume_is_told_and_one_whose_keys_come_late_is_waited_for(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("x.jpg", b"x")
    bucket.access_key = "ASIAROLE"
    role = "meta-data/iam/security-credentials"
    keys = {"AccessKeyId": "ASIAROLE", "SecretAccessKey": "s", "Token": "t", "Expiration": "2099-01-01T00:00:00Z"}

    class ComesLate(dict[str, str]):
        def get(self, path: str, default: str | None = None) -> str | None:
            text = super().get(path, default)
            if path == f"{role}/trainers":
                self[path] = json.dumps(keys)
            return text

    failed = {f"{role}/": "trainers", f"{role}/trainers": '{"Code": "AssumeRoleUnauthorizedAccess"}'}
    metadata = MetadataService(failed)
    try:
        with monkeypatch.context() as patient:
            patient.setattr(buckets, "ROLE_KEYS_S", 0.0)
            with pytest.raises(DataUnavailable, match=r"the role trainers, but AWS gives it no keys .*sts:AssumeRole"):
                sync(bucket, ALL, tmp_path, AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url)
        metadata.documents = ComesLate(failed)
        path = sync(bucket, ALL, tmp_path, AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url)
    finally:
        metadata.stop()
    assert read_files(path) == {"x.jpg": b"x"}


def test_the_region_of_a_bucket_is_requested_with_retries(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "GLOBAL_ENDPOINT", bucket.url)
    bucket.unavailable = 2

    async def first_store(name: str) -> dict[str, object]:
        store, _ = await anext(buckets._stores(name, {}, writes=False))
        return dict(store.config)

    assert asyncio.run(first_store(BUCKET))["region"] == "eu-north-1"
    assert bucket.head_requests == 3
    with pytest.raises(DataUnavailable, match="the bucket nobodys does not exist"):
        asyncio.run(first_store("nobodys"))


def test_a_public_bucket_is_read_without_a_signature(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x.jpg", b"x")
    sync(bucket, ALL, tmp_path)
    assert set(bucket.authorizations) == {""}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "no objects in s3://images"),
        (["a", "a/b"], "is both an object and a folder"),
    ],
)
def test_a_bucket_that_cannot_be_stored_as_a_folder_is_rejected(
    bucket: Bucket, tmp_path: Path, keys: list[str], message: str
) -> None:
    for key in keys:
        bucket.put(key, b"x")
    with pytest.raises(DataUnavailable, match=message):
        sync(bucket, ALL, tmp_path)


@pytest.mark.parametrize("where", ["../../..", "a/../../..", "a//b", "./a"])
def test_a_url_that_points_outside_the_copy_is_rejected(bucket: Bucket, tmp_path: Path, where: str) -> None:
    (tmp_path / "precious").write_text("kept")
    bucket.put(f"{where}/x.jpg", b"x")
    with pytest.raises(DataUnavailable, match="is not a valid path"):
        sync(bucket, f"{ALL}/{where}", tmp_path / "store")
    assert (tmp_path / "precious").exists()


def test_keys_that_point_outside_the_copy_are_rejected(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("set/../../../../precious", b"overwritten")
    with pytest.raises(DataUnavailable, match="set"):
        sync(bucket, f"{ALL}/set", tmp_path / "store")
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_objects_named_like_our_own_files_are_copied(bucket: Bucket, tmp_path: Path) -> None:
    wanted = {name: name.encode() for name in (".lock", ".drafts/0", "0")}
    for name, content in wanted.items():
        bucket.put(name, content)
    assert read_files(sync(bucket, ALL, tmp_path)) == wanted


def test_odd_keys_are_copied_or_refused_and_write_nothing_outside_the_copy(seed: int) -> None:
    found = copy_buckets(seed, 60)
    assert found.faults == []
    assert min(found.outcomes["copied"], found.outcomes["refused"]) > 3


def test_a_name_that_is_too_long_for_a_file_is_reported(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(f"cat/{'é' * 128}", b"x")
    with pytest.raises(DataUnavailable, match=f"^cat/é+ in {ALL} has a name of more than 255 bytes"):
        sync(bucket, ALL, tmp_path)


def test_a_bucket_that_does_not_exist_is_reported(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"the bucket of s3://image does not exist; correct the URL"):
        sync(bucket, "s3://image", tmp_path)


def test_an_object_that_changes_during_the_copy_is_reported(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x.jpg", os.urandom(2 * PART_BYTES))

    async def changing() -> None:
        bucket.unblocked.clear()
        copying = asyncio.create_task(sync_dataset(ALL, tmp_path, bucket.environment, ignore, ignore))
        await asyncio.to_thread(until, lambda: bucket.requested_keys)
        bucket.put("x.jpg", os.urandom(2 * PART_BYTES))
        bucket.unblocked.set()
        with pytest.raises(DataUnavailable, match="changed while it was copied"):
            await copying

    asyncio.run(changing())


def test_a_disk_that_is_too_small_is_reported_before_anything_is_copied(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("x.jpg", b"x" * 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _DiskUsage)
    with pytest.raises(DataUnavailable, match=r"needs another 0\.0 MiB, and the disk .* larger disk"):
        sync(bucket, ALL, tmp_path)
    assert bucket.requested_keys == []


class _DiskUsage:
    free = 999
