# SPDX-License-Identifier: Apache-2.0
"""Upload a folder that `prepare_shards` has made to a bucket.

The index goes last: a folder with one is complete. Until then a marker says which preparation it is, so that the same
one, begun again, uploads what is missing, and no other one writes there. What an earlier run has uploaded and this one
has made anew, from an image that was replaced, may have the same size: it is deleted first.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shoestring_core.regular_files import read_regular
from shoestring_core.wording.units import counted

from shoestring_trainer.data_sync.buckets import Bucket, list_bucket
from shoestring_trainer.data_sync.datasets import Report, is_path, size_text
from shoestring_trainer.data_sync.errors import SCHEME, DataUnavailable
from shoestring_trainer.training.data.shard_list import INDEX_FILE, read_shard_index

if TYPE_CHECKING:
    from obstore import ObjectMeta

MARKER = ".preparing/plan"
UPLOADS = 4
MARKER_BYTES = 1 << 10
"""At most: the plan and the index's SHA-256."""


async def require_place_for_shards(url: str, environment: Mapping[str, str]) -> None:
    """Raise DataUnavailable if `url` can't take shards: it can't be reached, or holds other objects."""
    await _open(url, environment)


async def upload_shards(folder: Path, url: str, environment: Mapping[str, str], report: Report) -> None:
    """Upload the files that `url` lacks, and then compare what is there with the folder. Raises DataUnavailable."""
    bucket, prefix, found = await _open(url, environment)
    files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != INDEX_FILE}
    await _claim(bucket, prefix, found, folder, files)
    missing = [name for name, size in files.items() if name not in found or found[name]["size"] != size]
    report(f"uploading to {url}: {counted(len(missing), 'file')}, {size_text(sum(files[name] for name in missing))}")
    queue = iter(sorted(missing))  # shared, so that each file is uploaded once

    async def upload_from_queue() -> None:
        for name in queue:
            await bucket.write(prefix + name, folder / name)
            report(f"uploaded {name}")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(UPLOADS):
                group.create_task(upload_from_queue())
    except* DataUnavailable as failures:
        raise failures.exceptions[0] from None
    _, _, stored = await _open(url, environment)
    for name, size in files.items():
        if name not in stored or stored[name]["size"] != size:
            raise DataUnavailable(f"{name} was uploaded to {url} and isn't there; run the same command again")
    await bucket.write(prefix + INDEX_FILE, folder / INDEX_FILE)
    await bucket.delete(prefix + MARKER)


async def _open(url: str, environment: Mapping[str, str]) -> tuple[Bucket, str, dict[str, ObjectMeta]]:
    """Return the bucket, the prefix of the keys, and the objects by what follows it."""
    name, _, folder = url.removeprefix(SCHEME).partition("/")
    folder = folder.strip("/")
    if not name or (folder and not is_path(folder)):
        raise DataUnavailable(f"{url} is not a valid place; give s3://BUCKET/FOLDER without empty parts, . and ..")
    bucket, listed = await list_bucket(url, name, folder, environment, writes=True)
    prefix = f"{folder}/" if folder else ""
    found = {entry["path"].removeprefix(prefix): entry for entry in listed if entry["path"].startswith(prefix)}
    if found and not {INDEX_FILE, MARKER} & found.keys():
        raise DataUnavailable(
            f"{url} holds other objects, such as {min(found)}; give a new or an empty place for the shards"
        )
    return bucket, prefix, found


async def _claim(
    bucket: Bucket, prefix: str, found: dict[str, ObjectMeta], folder: Path, files: Iterable[str]
) -> None:  # fmt: skip
    """Note whose shards these are, and delete those of them that the folder's index describes otherwise.

    Raises DataUnavailable if they are of other images, or made with other options.
    """
    index, content = read_shard_index(folder), read_regular(folder / INDEX_FILE)
    marker = f"{index.plan} {hashlib.sha256(content).hexdigest()}".encode()
    noted = await _read(bucket, found.get(MARKER), MARKER_BYTES)
    stored = await _read(bucket, found.get(INDEX_FILE))
    if (noted is not None and noted.partition(b" ")[0] != index.plan.encode()) or (
        noted is None and stored is not None and _plan_in(stored) != index.plan
    ):
        raise DataUnavailable(
            f"{bucket.url} holds shards of other images, or made with other options; give another place, or remove them"
        )
    if stored == content or (stored is None and noted == marker):
        return
    kept = _hashes_in(stored) & {(shard.name, shard.sha256) for shard in index.shards}
    for name in sorted(found.keys() & set(files) - {name for name, _ in kept}):
        await bucket.delete(prefix + name)
        del found[name]
    await bucket.write(prefix + MARKER, marker)
    if stored is not None:  # last: until then it says which shards are kept
        await bucket.delete(prefix + INDEX_FILE)


async def _read(bucket: Bucket, entry: ObjectMeta | None, most: int | None = None) -> bytes | None:
    """Return an object's content, at most so many bytes; None: it isn't there."""
    if entry is None:
        return None
    size = entry["size"] if most is None else min(entry["size"], most)
    return bytes(await bucket.read(entry["path"], entry["e_tag"], 0, size))


def _plan_in(index: bytes) -> str:
    """Return the plan in an index; nothing if it is none of ours."""
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(index)["plan"])
    return ""


def _hashes_in(index: bytes | None) -> set[tuple[str, str]]:
    """Return name and hash of the shards in an index; none if it is none of ours."""
    with suppress(ValueError, KeyError, TypeError):
        return {(str(shard["name"]), str(shard["sha256"])) for shard in json.loads(index or b"")["shards"]}
    return set()
