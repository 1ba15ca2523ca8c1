# SPDX-License-Identifier: Apache-2.0
"""The local object store answers its signed URLs as S3 would: written once, whole or not at all, by who may."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest
from shoestring_core.errors import Forbidden, NotFound, PreconditionFailed, TooLarge, Unavailable
from shoestring_core.store.objects import LocalObjects, ObjectInfo, open_objects

from tests.api.deployment import Deployment

pytestmark = pytest.mark.any_database

KEY = "jobs/j/g/1/final/000001/data"


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "objects", "secret", "http://127.0.0.1:1")


def test_an_object_goes_up_and_comes_back(deployment: Deployment) -> None:
    content = bytes(range(256)) * 20_000
    objects = deployment.state.objects
    put, get = objects.put_url(KEY, _later(), 10**8), objects.get_url(KEY, _later())
    assert deployment.nobody.get(get).status_code == 404
    assert deployment.nobody.put(put, content=content).status_code == 201
    assert objects.head(KEY) == ObjectInfo(len(content), hashlib.sha256(content).hexdigest())
    assert deployment.nobody.get(get).content == content
    part = deployment.nobody.get(get, headers={"Range": "bytes=1000-1009"})
    assert (part.status_code, part.content) == (206, content[1000:1010])


def test_an_object_is_written_once(deployment: Deployment) -> None:
    put = deployment.state.objects.put_url(KEY, _later(), 10**8)
    assert deployment.nobody.put(put, content=b"first").status_code == 201
    answer = deployment.nobody.put(put, content=b"second")
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition-failed")
    assert deployment.state.objects.read(KEY, 100) == b"first"


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
    assert objects.head(KEY) == ObjectInfo(len(winner), hashlib.sha256(winner).hexdigest())
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


@pytest.mark.parametrize("change", ["signature=0", "expires=1", "method", "key"])
def test_a_url_is_good_for_one_thing_until_it_expires(deployment: Deployment, change: str) -> None:
    objects = deployment.state.objects
    put = objects.put_url(KEY, _later(), 10**8)
    if change == "method":
        answer = deployment.nobody.get(put)
    elif change == "key":
        answer = deployment.nobody.put(put.replace("000001", "000002"), content=b"x")
    elif change == "expires=1":
        answer = deployment.nobody.put(objects.put_url(KEY, 1, 10**8), content=b"x")
        assert "expired" in answer.json()["detail"]
    else:
        answer = deployment.nobody.put(put[:-64] + "0" * 64, content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert objects.head(KEY) is None


@pytest.mark.parametrize(
    "key", ["../secret", "a/../../b", "/etc/passwd", "a//b", "", ".hidden", "a/.data.sha256", "a" * 600]
)
def test_no_key_leads_out_of_the_folder(objects: LocalObjects, key: str) -> None:
    with pytest.raises(NotFound):
        objects.path(key)
    with pytest.raises(NotFound):
        objects.put_url(key, _later(), 10**8)


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


def test_small_objects_are_read_whole_and_large_ones_refused(objects: LocalObjects) -> None:
    with objects.writer(KEY, 10**8) as writer:
        writer.write(b"abcdef")
        writer.finish()
    assert objects.read(KEY, 6) == b"abcdef"
    assert b"".join(objects.blocks(KEY, 2, 3)) == b"cde"
    with pytest.raises(TooLarge):
        objects.read(KEY, 5)
    with pytest.raises(NotFound):
        objects.read("none", 5)


def test_a_wrong_signature_is_forbidden(objects: LocalObjects) -> None:
    with pytest.raises(Forbidden):
        objects.check("GET", KEY, _later(), 0, "é", int(time.time()))


def test_only_a_folder_is_supported_as_an_object_store() -> None:
    with pytest.raises(Unavailable, match="not supported as an object store"):
        open_objects("s3://bucket", "secret", "http://127.0.0.1:1")


def _later() -> int:
    return int(time.time()) + 60
