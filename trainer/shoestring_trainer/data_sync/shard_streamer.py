# SPDX-License-Identifier: Apache-2.0
"""Download the shards of a data set in a bucket while ranks train on them, in the order in which they are used.

One process serves a folder of shards: the agent, or beside runs by hand one of their streaming processes; the others
wait to take its place. Memory is bounded by
DOWNLOADS parts of objects, disk space by the cache's limit. Shards appear in the folder complete and verified.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shoestring_core.wording.units import counted

from shoestring_trainer import processes
from shoestring_trainer.data_sync.buckets import Bucket, list_bucket
from shoestring_trainer.data_sync.datasets import (
    CopyProgress,
    RemoteFile,
    Report,
    choose_files,
    copy_object,
    is_path,
    locked,
    size_text,
)
from shoestring_trainer.data_sync.errors import SCHEME, DataUnavailable
from shoestring_trainer.data_sync.shard_cache_plan import plan_cache
from shoestring_trainer.data_sync.shard_requests import FAILED_FILE, read_requests
from shoestring_trainer.training.data.shard_list import (
    INDEX_FILE,
    SAMPLES_FILE,
    ShardIndex,
    least_streaming_bytes,
    read_shard_index,
)
from shoestring_trainer.training.errors import DataError

DOWNLOADS, POLL_S = 8, 0.05
SHARE_OF_FREE_SPACE = 0.8
_DRAFTS, _LOCK, _REQUESTS = ".drafts", ".lock", ".requests"
_INDEX_DRAFTS, _INDEX_LOCK = ".index", ".index-lock"
_IN_FOLDER = "; upload the prepared folder again, as a whole"


@dataclass(frozen=True)
class ShardStream:
    """A prepared folder in a bucket whose index is on this machine.

    folder    of the index, where the shards appear
    requests  what ranks ask for
    objects   the shards in the bucket, by number
    limit     bytes that the shards on this machine may take
    """

    bucket: Bucket
    folder: Path
    requests: Path
    index: ShardIndex
    objects: list[RemoteFile]
    limit: int


async def open_stream(
    url: str, store: Path, environment: Mapping[str, str], report: Report, *, cache_bytes: int | None,
    requests: Path | None = None,
) -> ShardStream:  # fmt: skip
    """Download the index of the shards in `url` to a folder below `store`, and compare it with the bucket.

    environment  may contain credentials, see `list_bucket`
    cache_bytes  None: a share of what is free
    requests     folder below which ranks write their requests; None: beside the shards
    raises       DataUnavailable, with the URL and what to do
    """
    name, _, prefix = url.removeprefix(SCHEME).partition("/")
    prefix = prefix.strip("/")
    if prefix and not is_path(prefix):
        raise DataUnavailable(f"{url} is not a valid path; give a folder without empty parts, . and ..")
    digest = hashlib.sha256(f"stream {url}".encode()).hexdigest()[:12]
    folder = store / digest
    asked = (requests or store) / f"{digest}{_REQUESTS}"
    try:
        for needed in (folder, folder.with_suffix(_DRAFTS), folder.with_suffix(_INDEX_DRAFTS), asked):
            needed.mkdir(parents=True, exist_ok=True)
        bucket, listed = await list_bucket(url, name, prefix, environment)
        found = {entry.name: entry for entry in choose_files(url, listed, prefix, lambda name: "/" not in name)}
        async with locked(folder.with_suffix(_INDEX_LOCK), report):  # ranks that torchrun starts do this at once
            index = await _fetch_index(bucket, found, folder)
        objects = [_find(url, found, shard.name, shard.bytes) for shard in index.shards]
        limit = _limit(url, folder, index, cache_bytes)
    except OSError as error:
        raise DataUnavailable(_disk_message(url, folder, error)) from error
    whole = size_text(sum(shard.bytes for shard in index.shards))
    report(f"streaming {url}: {counted(len(objects), 'shard')}, {whole}; up to {size_text(limit)} are kept on disk")
    return ShardStream(bucket, folder, asked, index, objects, limit)


async def _fetch_index(bucket: Bucket, found: Mapping[str, RemoteFile], folder: Path) -> ShardIndex:
    """Download the index; shards of another one are deleted."""
    if INDEX_FILE not in found or SAMPLES_FILE not in found:
        raise DataUnavailable(
            f"{bucket.url} holds no {INDEX_FILE} and {SAMPLES_FILE}, so it can't be streamed; give the URL of a folder "
            "that `shoestring data prepare` has made, or leave stream out"
        )
    before = (folder / INDEX_FILE).read_bytes() if (folder / INDEX_FILE).exists() else None
    for name in (SAMPLES_FILE, INDEX_FILE):
        draft = folder.with_suffix(_INDEX_DRAFTS) / name
        await copy_object(bucket, found[name], draft, CopyProgress(0, 0))
        draft.replace(folder / name)
    try:
        index = await asyncio.to_thread(read_shard_index, folder)
    except DataError as error:
        raise DataUnavailable(f"{bucket.url}: {error}") from error
    if before != (folder / INDEX_FILE).read_bytes():
        for old in set(folder.iterdir()) - {folder / INDEX_FILE, folder / SAMPLES_FILE}:
            old.unlink()
    return index


def _find(url: str, found: Mapping[str, RemoteFile], name: str, size: int) -> RemoteFile:
    if name not in found:
        raise DataUnavailable(f"the shard {name} is missing in {url}{_IN_FOLDER}")
    if found[name].size != size:
        raise DataUnavailable(
            f"the shard {name} in {url} has {counted(found[name].size, 'byte')} instead of {size:,}: it is truncated "
            f"or of another data set{_IN_FOLDER}"
        )
    return found[name]


def _limit(url: str, folder: Path, index: ShardIndex, cache_bytes: int | None) -> int:
    if not any(shard.split == "val" for shard in index.shards):
        raise DataUnavailable(
            f"{url} has no shards of validation images, which streaming needs; prepare a folder with train/ and val/, "
            "or leave stream out"
        )
    present = sum(path.stat().st_size for path in folder.glob("*.tar"))
    free = shutil.disk_usage(folder).free + present
    limit = int(SHARE_OF_FREE_SPACE * free) if cache_bytes is None else cache_bytes
    least = least_streaming_bytes(index.shards)
    if limit < least:
        raise DataUnavailable(
            f"{url} is shuffled and evaluated in parts of up to {size_text(least)}, and the cache may take "
            f"{size_text(limit)}; raise data.cache, rent machines with a larger disk, or prepare smaller shards with "
            "--images-per-shard"
        )
    if limit > free:
        raise DataUnavailable(
            f"data.cache is {size_text(limit)}, and the disk of {folder} has {size_text(free)} free; lower it, or rent "
            "machines with a larger disk (resources.disk.size)"
        )
    return limit


class ShardStreamer:
    """Serves the requests for the shards of one stream. `report` is told what people should know."""

    def __init__(self, stream: ShardStream, report: Report) -> None:
        self._stream, self._report = stream, report
        self._downloads: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Serve until this is cancelled, or a shard can't be had: then the waiting ranks are told why."""
        stream = self._stream
        async with locked(stream.folder.with_suffix(_LOCK), self._report):
            (stream.folder / FAILED_FILE).unlink(missing_ok=True)
            try:
                present = self._scan()
                while True:
                    await self._serve(present)
                    if self._downloads:
                        await asyncio.wait(self._downloads.values(), timeout=POLL_S, return_when="FIRST_COMPLETED")
                    else:
                        await asyncio.sleep(POLL_S)
            except DataUnavailable as error:
                self._fail(str(error))
            except OSError as error:
                self._fail(_disk_message(stream.bucket.url, stream.folder, error))
            except Exception as error:  # noqa: BLE001 - whatever it is, ranks must not wait forever
                self._fail(f"shards of {stream.bucket.url} can't be streamed: {error!r}")
            finally:
                for download in self._downloads.values():
                    download.cancel()
                await asyncio.gather(*self._downloads.values(), return_exceptions=True)

    async def _serve(self, present: set[int]) -> None:
        """Take over what has been downloaded, and begin what is asked for."""
        stream, sizes = self._stream, [shard.bytes for shard in self._stream.index.shards]
        for number, download in list(self._downloads.items()):
            if download.done():
                del self._downloads[number]
                download.result()
                present.add(number)
        requests = await asyncio.to_thread(read_requests, stream.requests, len(sizes))
        plan = plan_cache(
            sizes, present=present, loading=self._downloads.keys(), orders=requests.orders, awaited=requests.awaited,
            limit=stream.limit,
        )  # fmt: skip
        for number in plan.evict:
            (stream.folder / stream.index.shards[number].name).unlink(missing_ok=True)
            present.discard(number)
        for number in plan.fetch[: DOWNLOADS - len(self._downloads)]:
            self._downloads[number] = asyncio.create_task(self._download(number))

    def _scan(self) -> set[int]:
        """Return the shards that are there; what is left of interrupted downloads is deleted."""
        stream = self._stream
        for draft in stream.folder.with_suffix(_DRAFTS).iterdir():
            draft.unlink()
        present = set()
        for number, shard in enumerate(stream.index.shards):
            file = stream.folder / shard.name
            if file.exists() and file.stat().st_size == shard.bytes:
                present.add(number)
            else:
                file.unlink(missing_ok=True)
        return present

    async def _download(self, number: int) -> None:
        """Download one shard, however long its store can't be reached. Raises DataUnavailable if it is another one."""
        stream, shard = self._stream, self._stream.index.shards[number]
        draft = stream.folder.with_suffix(_DRAFTS) / shard.name
        for _ in range(2):  # the first copy may have been damaged on its way
            await self._copy(stream.objects[number], draft)
            if await asyncio.to_thread(_sha256, draft) == shard.sha256:
                draft.replace(stream.folder / shard.name)
                return
        raise DataUnavailable(
            f"the shard {shard.name} in {stream.bucket.url} has another SHA-256 than {INDEX_FILE} says: it is damaged "
            f"or of another data set{_IN_FOLDER}"
        )

    async def _copy(self, entry: RemoteFile, draft: Path) -> None:
        while True:
            try:
                return await copy_object(self._stream.bucket, entry, draft, CopyProgress(0, 0))
            except DataUnavailable as error:  # after retries with growing delays
                if error.permanent:
                    raise
                self._report(f"{error}; trying again")

    def _fail(self, message: str) -> None:
        self._report(message)
        draft = self._stream.folder.with_suffix(_DRAFTS) / FAILED_FILE
        with suppress(OSError):
            draft.write_text(message)
            draft.replace(self._stream.folder / FAILED_FILE)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _disk_message(url: str, folder: Path, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "lower data.cache, or rent machines with a larger disk" if full else "correct that"
    return f"shards of {url} can't be written to {folder} ({error.strerror or error}); {remedy}"


def main(arguments: list[str]) -> int:
    """Stream as a process of its own: URL, folder, bytes of the cache or "", id of the rank's process."""
    url, store, cache_bytes, parent = arguments
    processes.die_with_parent(int(parent))

    async def serve() -> None:
        limit = int(cache_bytes) if cache_bytes else None
        stream = await open_stream(url, Path(store), os.environ, _ignore, cache_bytes=limit)
        await ShardStreamer(stream, _print).run()

    asyncio.run(serve())
    return 0


def _print(message: str) -> None:
    print(message, flush=True)


def _ignore(message: str) -> None:
    """Discard what the rank has reported."""
