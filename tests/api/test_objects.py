# SPDX-License-Identifier: Apache-2.0
"""What is the folder's alone among the object stores; what all promise is in core/store/test_object_stores.py."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest
from shoestring_core.errors import Forbidden, NotFound, PreconditionFailed, Unavailable
from shoestring_core.store.objects import ObjectInfo, open_objects
from shoestring_core.store.objects.local import LocalObjects

from tests.api.deployment import Deployment

pytestmark = pytest.mark.any_database

KEY = "jobs/j/g/1/final/000001/data"


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "objects", "secret", "http://127.0.0.1:1")


def test_a_url_takes_no_more_bytes_than_it_says(deployment: Deployment) -> None:
    put = deployment.state.objects.put_url(KEY, _later(), 3_000_000)
    answer = deployment.nobody.put(put, content=bytes(3_000_001))
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert deployment.state.objects.head(KEY) is None
    larger = put.replace("max_bytes=3000000", "max_bytes=4000000")
    assert deployment.nobody.put(larger, content=bytes(3_000_001)).status_code == 403
    assert deployment.nobody.put(put, content=bytes(3_000_000)).status_code == 201


def test_of_many_writers_one_wins_and_its_hash_is_kept(objects: LocalObjects) -> None:
    outcomes: list[bytes | None] = []

    def write(content: bytes) -> None:
        try:
            with objects.writer(KEY, 10**8) as writer:
                writer.write(content)
                writer.finish()
            outcomes.append(content)
        except PreconditionFailed:
            outcomes.append(None)

    threads = [Thread(target=write, args=(bytes([number]) * 100_000,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [content for content in outcomes if content is not None]
    assert objects.head(KEY) == ObjectInfo(len(winner), f"sha256:{hashlib.sha256(winner).hexdigest()}")
    assert [path.name for path in objects.path(KEY).parent.iterdir() if path.name.startswith(".data.")] == [
        ".data.sha256"
    ]


def test_an_upload_that_breaks_off_leaves_nothing(deployment: Deployment) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half of it"
        raise ConnectionResetError

    put = deployment.state.objects.put_url(KEY, _later(), 10**8)
    with pytest.raises(ConnectionResetError):
        deployment.nobody.put(put, content=broken())
    assert deployment.state.objects.head(KEY) is None
    assert httpx.put(put, content=b"all of it", trust_env=False).status_code == 201


def test_a_hash_that_was_never_noted_is_worked_out(objects: LocalObjects) -> None:
    with objects.writer(KEY, 10**8) as writer:
        writer.write(b"abc")
        head = writer.finish()
    (objects.path(KEY).parent / ".data.sha256").unlink()
    assert objects.head(KEY) == head
    assert (objects.path(KEY).parent / ".data.sha256").exists()


def test_a_full_or_forbidden_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    objects = LocalObjects(tmp_path / "file", "secret", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="could not be stored"), objects.writer(KEY, 10**8):
        pass
    for read in (objects.head, lambda key: objects.read(key, 10), lambda key: next(objects.blocks(key, 0, 1))):
        with pytest.raises(Unavailable, match="could not be read"):
            read(KEY)


def test_there_is_no_object_below_an_object(objects: LocalObjects) -> None:
    objects.put("jobs/j", b"abc")
    assert objects.head("jobs/j/data") is None
    with pytest.raises(NotFound):
        next(objects.blocks("jobs/j/data", 0, 1))
    with pytest.raises(Unavailable, match="could not be stored"):
        objects.put("jobs/j/data", b"abc")


def test_a_wrong_signature_is_forbidden(objects: LocalObjects) -> None:
    with pytest.raises(Forbidden):
        objects.check("GET", KEY, _later(), 0, "é", int(time.time()))


@pytest.mark.parametrize("location", ["gs://bucket", "s3://", "s3://Bucket", "s3://buc.ket/a", "s3://bucket/../a"])
def test_only_a_folder_or_a_bucket_is_an_object_store(location: str) -> None:
    with pytest.raises(Unavailable) as refused:
        open_objects(location, "secret", "http://127.0.0.1:1")
    assert "s3://BUCKET/PREFIX" in (refused.value.hint or "")


def _later() -> int:
    return int(time.time()) + 60
