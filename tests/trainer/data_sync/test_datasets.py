# SPDX-License-Identifier: Apache-2.0
"""Data in S3 are on the machine's disk before its ranks start: all of them, as they are, or a word why not."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring_trainer.data_sync import buckets, datasets
from shoestring_trainer.data_sync.datasets import CONCURRENCY, PART_BYTES, sync_dataset
from shoestring_trainer.data_sync.errors import DataUnavailable

from tests.servers import until
from tests.trainer.agent.services import MetadataService
from tests.trainer.data_sync.bucket_server import BUCKET, Bucket, Object, serving

ALL = f"s3://{BUCKET}"
ODD_NAMES = ("cats and dogs/é.jpg", "a%20b/#1?.jpg", "~x/[1]{2}.jpg", "b+c/=&.jpg")


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serving() as bucket:
        yield bucket


def get(bucket: Bucket, url: str, store: Path, **environment: str) -> Path:
    return asyncio.run(sync_dataset(url, store, bucket.environment | environment, quiet, quiet))


def quiet(news: str) -> None:
    """Nobody listens."""


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_all_below_a_prefix_is_brought_page_by_page(bucket: Bucket, tmp_path: Path) -> None:
    bucket.page = 2
    wanted = {f"train/{name}": os.urandom(1000 + number) for number, name in enumerate(ODD_NAMES)}
    wanted["classes.txt"] = b""
    for name, part in wanted.items():
        bucket.put(f"set/{name}", part)
    bucket.put("set/train/", b"")  # what consoles put there for an empty folder
    bucket.put("setting/other.jpg", b"another set")
    place = get(bucket, f"{ALL}/set/", tmp_path)
    assert content(place) == wanted
    assert place.parts[-2:] == (BUCKET, "set")


def test_a_large_object_comes_in_parts(bucket: Bucket, tmp_path: Path) -> None:
    whole = os.urandom(2 * PART_BYTES + 12_345)
    bucket.put("train.tar", whole)
    bucket.put("beside.jpg", b"not asked for")
    shard = get(bucket, f"{ALL}/train.tar", tmp_path)
    assert shard.read_bytes() == whole
    assert bucket.asked == ["train.tar"] * 3


def test_a_pattern_brings_its_shards_and_the_names_of_classes(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("s/a-000.tar", "s/a-001.tar", "s/b-000.tar", "s/classes.txt", "s/deep/a-002.tar", "s/a-x.tar"):
        bucket.put(name, name.encode())
    pattern = get(bucket, f"{ALL}/s/a-{{000..001}}.tar", tmp_path)
    assert pattern.name == "a-{000..001}.tar"
    assert set(content(pattern.parent)) == {"a-000.tar", "a-001.tar", "classes.txt"}


def test_what_is_here_is_not_fetched_again_and_what_changed_is(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("same", "changed", "gone/deep", "grown"):
        bucket.put(name, b"first " + name.encode())
    place = get(bucket, ALL, tmp_path)
    bucket.asked.clear()
    assert content(get(bucket, ALL, tmp_path)) == content(place)
    assert bucket.asked == []

    bucket.objects["changed"] = Object(b"other changed", bucket.objects["changed"].changed + 1)
    bucket.objects["grown"] = Object(b"first grown up", bucket.objects["grown"].changed)
    del bucket.objects["gone/deep"]
    get(bucket, ALL, tmp_path)
    assert content(place) == {"same": b"first same", "changed": b"other changed", "grown": b"first grown up"}
    assert sorted(bucket.asked) == ["changed", "grown"]
    assert not (place / "gone").exists()


def test_a_busy_store_and_cut_connections_only_take_longer(bucket: Bucket, tmp_path: Path) -> None:
    bucket.busy, bucket.cut = 3, 3
    wanted = {f"{number}.jpg": os.urandom(50_000) for number in range(8)}
    for name, part in wanted.items():
        bucket.put(name, part)
    assert content(get(bucket, ALL, tmp_path)) == wanted
    assert len(bucket.asked) == len(wanted) + 6


def test_a_store_that_stays_away_is_given_up(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "RETRY_FOR_S", 0.3)
    bucket.put("x.jpg", b"x")
    bucket.busy = 1_000_000
    with pytest.raises(DataUnavailable, match=r"x\.jpg in .* can't be reached for .* 503") as away:
        get(bucket, ALL, tmp_path)
    assert not away.value.permanent
    bucket.url = "http://127.0.0.1:9"
    with pytest.raises(DataUnavailable, match="can't be reached") as away:
        get(bucket, ALL, tmp_path)
    assert not away.value.permanent


def test_one_that_is_stopped_goes_on_where_it_was(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(CONCURRENCY + 8):
        bucket.put(f"{number:02}.jpg", b"x" * (number + 1))

    async def stopped() -> None:
        bucket.free = 5
        bucket.held.clear()
        copying = asyncio.create_task(sync_dataset(ALL, tmp_path, bucket.environment, quiet, quiet))
        await asyncio.to_thread(until, lambda: len(list(tmp_path.rglob("*.jpg"))) == 5)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying

    asyncio.run(stopped())
    here = {path.name for path in tmp_path.rglob("*.jpg")}
    assert len(here) == 5
    bucket.asked.clear()
    bucket.held.set()
    assert len(content(get(bucket, ALL, tmp_path))) == len(bucket.objects)
    assert set(bucket.asked) == set(bucket.objects) - here


def test_two_processes_share_one_copy(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(10):
        bucket.put(f"{number}.jpg", b"x")
    told: list[str] = []

    async def both() -> None:
        bucket.held.clear()
        first = asyncio.create_task(sync_dataset(ALL, tmp_path, bucket.environment, quiet, quiet))
        await asyncio.to_thread(until, lambda: bucket.asked)
        second = asyncio.create_task(sync_dataset(ALL, tmp_path, bucket.environment, quiet, told.append))
        while not told:
            await asyncio.sleep(0.01)
        bucket.held.set()
        assert await first == await second

    asyncio.run(both())
    assert sorted(bucket.asked) == sorted(bucket.objects)
    assert "waiting for it" in told[0]


def test_keys_open_a_private_bucket_and_their_lack_is_told(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x.jpg", b"x")
    bucket.key = "AKIATEST"
    with pytest.raises(
        DataUnavailable, match=r"may not read s3://images .*AWS_ACCESS_KEY_ID.*SHOESTRING_AGENT_"
    ) as denied:
        get(bucket, ALL, tmp_path)
    assert denied.value.permanent
    keys = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert content(get(bucket, ALL, tmp_path, **keys)) == {"x.jpg": b"x"}
    with pytest.raises(DataUnavailable, match="may not read"):
        get(bucket, ALL, tmp_path / "other", **keys | {"AWS_ACCESS_KEY_ID": "AKIAOTHER"})


def test_a_machines_role_opens_a_bucket_that_is_not_public(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x.jpg", b"x")
    bucket.key = "ASIAROLE"
    metadata = MetadataService()
    role = "meta-data/iam/security-credentials"
    temporary = {
        "AccessKeyId": "ASIAROLE", "SecretAccessKey": "secret", "Token": "token", "Expiration": "2099-01-01T00:00:00Z",
    }  # fmt: skip
    metadata.documents |= {f"{role}/": "trainers", f"{role}/trainers": json.dumps(temporary)}
    try:
        place = get(bucket, ALL, tmp_path, AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url)
    finally:
        metadata.stop()
    assert content(place) == {"x.jpg": b"x"}


def test_the_region_of_a_bucket_is_asked_for_and_asked_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "GLOBAL_ENDPOINT", bucket.url)
    bucket.busy = 2

    async def first_way(name: str) -> dict[str, object]:
        return dict((await anext(buckets._ways_in(name, {}))).config)

    assert asyncio.run(first_way(BUCKET))["region"] == "eu-north-1"
    assert bucket.heads == 3
    with pytest.raises(DataUnavailable, match="there is no bucket nobodys"):
        asyncio.run(first_way("nobodys"))


def test_a_public_bucket_is_read_without_a_signature(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x.jpg", b"x")
    get(bucket, ALL, tmp_path)
    assert set(bucket.credentials) == {""}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], "nothing in s3://images"),
        (["a", "a/b"], "is an object and a folder of others"),
    ],
)
def test_a_bucket_that_is_no_folder_is_told(bucket: Bucket, tmp_path: Path, keys: list[str], said: str) -> None:
    for key in keys:
        bucket.put(key, b"x")
    with pytest.raises(DataUnavailable, match=said):
        get(bucket, ALL, tmp_path)


@pytest.mark.parametrize("where", ["../../..", "a/../../..", "a//b", "./a"])
def test_a_place_that_would_lead_out_of_the_copy_is_refused(bucket: Bucket, tmp_path: Path, where: str) -> None:
    (tmp_path / "precious").write_text("kept")
    bucket.put(f"{where}/x.jpg", b"x")
    with pytest.raises(DataUnavailable, match="is no path"):
        get(bucket, f"{ALL}/{where}", tmp_path / "store")
    assert (tmp_path / "precious").exists()


def test_keys_that_would_lead_out_of_the_copy_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("set/../../../../precious", b"overwritten")
    with pytest.raises(DataUnavailable, match="set"):
        get(bucket, f"{ALL}/set", tmp_path / "store")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_a_bucket_that_does_not_exist_is_told(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"there is no bucket for s3://image; correct data\.train"):
        get(bucket, "s3://image", tmp_path)


def test_an_object_that_changes_meanwhile_is_told(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x.jpg", os.urandom(2 * PART_BYTES))

    async def changing() -> None:
        bucket.held.clear()
        copying = asyncio.create_task(sync_dataset(ALL, tmp_path, bucket.environment, quiet, quiet))
        await asyncio.to_thread(until, lambda: bucket.asked)
        bucket.put("x.jpg", os.urandom(2 * PART_BYTES))
        bucket.held.set()
        with pytest.raises(DataUnavailable, match="changed as it was fetched"):
            await copying

    asyncio.run(changing())


def test_a_disk_that_is_too_small_is_told_before_anything_comes(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("x.jpg", b"x" * 1000)
    monkeypatch.setattr(datasets.shutil, "disk_usage", lambda _: _Free)
    with pytest.raises(DataUnavailable, match=r"still needs 0\.0 MiB, and the disk .* larger disk"):
        get(bucket, ALL, tmp_path)
    assert bucket.asked == []


class _Free:
    free = 999
