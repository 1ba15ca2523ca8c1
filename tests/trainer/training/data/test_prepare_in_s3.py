# SPDX-License-Identifier: Apache-2.0
"""Shards are prepared from S3 to S3 as from a folder to a folder, whatever the store does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image
from shoestring_trainer.data_sync import buckets
from shoestring_trainer.training.cli.prepare import print_preparation
from shoestring_trainer.training.data.shard_plan import PrepareOptions
from shoestring_trainer.training.errors import UserError

from tests.trainer.data_sync.bucket_server import BUCKET, Bucket, serving
from tests.trainer.training.data.sample_images import COLOURS, save_image

OPTIONS = PrepareOptions(side=32, quality=90, images_per_shard=4, skip_damaged=False)
SOURCE, DESTINATION = f"s3://{BUCKET}/raw", f"s3://{BUCKET}/shards"
KEY = "AKIAPREPARES"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(18):
        name, colour = sorted(COLOURS.items())[number % 3]
        save_image(tmp_path / "source" / name / f"{number:02d}.png", colour, number)
    return tmp_path / "source"


@pytest.fixture
def bucket(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Holds the source, and takes writes with the keys in the environment."""
    with serving() as bucket:
        bucket.put_folder(source, "raw/")
        bucket.access_key = KEY
        variables = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        for name, value in {**bucket.environment, **variables}.items():
            monkeypatch.setenv(name, value)
        yield bucket


def prepare(source: str = SOURCE, destination: str = DESTINATION, options: PrepareOptions = OPTIONS) -> None:
    print_preparation(source, destination, options, processes=1, as_json=True)


def stored(bucket: Bucket, prefix: str = "shards/") -> dict[str, bytes]:
    found = {key: one.content for key, one in bucket.objects.items()}
    return {key.removeprefix(prefix): content for key, content in found.items() if key.startswith(prefix)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "shoestring").iterdir())


def test_from_s3_to_s3_come_the_files_of_a_folder_and_nothing_is_left_behind(
    bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every fifth request refused, and shards in several parts."""
    monkeypatch.setattr(buckets, "UPLOAD_PART_BYTES", 4096)
    bucket.fails_every = 5
    prepare(str(source), str(tmp_path / "here"))
    capsys.readouterr()
    prepare()
    printed = capsys.readouterr()
    assert stored(bucket) == contents(tmp_path / "here")
    assert max(map(len, stored(bucket).values())) > 4096
    assert bucket.written_keys[-1] == "shards/shards.json"
    assert left(tmp_path) == []
    assert json.loads(printed.out)["folder"] == DESTINATION
    assert json.loads(printed.out)["images"] == {"train": 18}


def test_interrupted_it_goes_on_where_it_stopped(bucket: Bucket, source: Path, tmp_path: Path) -> None:
    bucket.refuses_after = 3
    with pytest.raises(UserError, match=r"may list s3://images/shards but not write shards/.*s3:PutObject"):
        prepare()
    before = stored(bucket)
    assert "shards.json" not in before
    bucket.refuses_after = None
    bucket.requested_keys.clear()
    bucket.written_keys.clear()
    prepare()
    assert not [key for key in bucket.requested_keys if key.startswith("raw/")]
    assert not {key.removeprefix("shards/") for key in bucket.written_keys} & before.keys()
    prepare(str(source), str(tmp_path / "here"))
    assert stored(bucket) == contents(tmp_path / "here")
    bucket.written_keys.clear()
    prepare()  # all is there
    assert bucket.written_keys == ["shards/shards.json"]


@pytest.mark.parametrize("complete", [True, False])
def test_a_shard_that_was_made_anew_is_uploaded_though_its_size_is_the_same(
    bucket: Bucket, source: Path, tmp_path: Path, *, complete: bool
) -> None:
    """Over a complete folder the others stay; where an upload was interrupted, the marker tells of it."""
    image = source / "red" / f"{next(number for number in range(18) if sorted(COLOURS)[number % 3] == 'red'):02d}.png"
    Image.new("RGB", (20, 24), (250, 0, 0)).save(image, "BMP")
    bucket.refuses_after = None if complete else 5
    with nullcontext() if complete else pytest.raises(UserError):
        prepare(str(source))
    before = stored(bucket)
    bucket.put("shards/notes.txt", b"mine")
    bucket.refuses_after = None
    Image.new("RGB", (20, 24), (0, 250, 0)).save(image, "BMP")
    bucket.written_keys.clear()
    prepare(str(source))
    prepare(str(source), str(tmp_path / "here"))
    assert stored(bucket) == contents(tmp_path / "here") | {"notes.txt": b"mine"}
    tars = {key for key, content in stored(bucket).items() if key.endswith(".tar") and before.get(key) != content}
    written = {key.removeprefix("shards/") for key in bucket.written_keys}
    assert not complete or {key for key in written if key.endswith(".tar")} == tars
    assert not complete or len(tars) == 1
    bucket.written_keys.clear()
    prepare(str(source))
    assert bucket.written_keys == ["shards/shards.json"]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"shards/notes.txt": b"mine"}, r"holds other objects, such as notes\.txt"),
        ({"shards/shards.json": b'{"plan": "another"}'}, "made with other options"),
        ({"shards/shards.json": b"damaged"}, "made with other options"),
        ({"shards/.preparing/plan": b"another"}, "made with other options"),
    ],
)
def test_what_is_in_the_bucket_already_is_kept(bucket: Bucket, there: dict[str, bytes], message: str) -> None:
    for key, content in there.items():
        bucket.put(key, content)
    with pytest.raises(UserError, match=message):
        prepare()
    assert bucket.written_keys == []


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        (f"{SOURCE}/shards", "lie in each other"),
        (f"s3://{BUCKET}", "lie in each other"),
        (f"s3://{BUCKET}/../shards", "is not a valid place"),
        ("s3:///shards", "is not a valid place"),
    ],
)
def test_a_place_that_cant_be_written_to_is_refused_before_anything_is_read(
    bucket: Bucket, destination: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(destination=destination)
    assert bucket.requested_keys == []


def test_without_credentials_nothing_is_written(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(
        UserError, match=r"can't be written to without credentials \(there are none\); set AWS_ACCESS_KEY_ID"
    ):
        prepare()
    assert bucket.requested_keys == []
