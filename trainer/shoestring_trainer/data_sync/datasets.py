# SPDX-License-Identifier: Apache-2.0
"""Copies data sets from buckets to this machine's disk before its ranks start.

The whole data set is copied, because each epoch samples all of it, and before training, which then never waits for the
network. An interrupted copy resumes where it stopped, and a complete one is only compared with the bucket.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shoestring_core.wording.units import counted

from shoestring_trainer.agent.service_client import boottime
from shoestring_trainer.data_sync.errors import SCHEME, DataUnavailable

if TYPE_CHECKING:
    from obstore import ObjectMeta

    from shoestring_trainer.data_sync.buckets import Bucket

CONCURRENCY, PART_BYTES = 32, 8 << 20
"""Objects copied concurrently, and the size of the parts they are read in: memory use is at most the product."""
PROGRESS_INTERVAL_S, LOCK_POLL_S = 10.0, 0.2
MIB, GIB = 1 << 20, 1 << 30
SHARD_METADATA_SUFFIX = ".txt"
MAX_NAME_BYTES = 255
_NUMBER_RANGE = re.compile(r"\{\d+\.\.\d+\}")
_DRAFTS, _LOCK = ".drafts", ".lock"
"""Suffixes of what lies beside a copy: a bucket may hold an object of any name."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """An object in a bucket. `name` is its path in the copy, /-separated."""

    key: str
    name: str
    size: int
    last_modified: datetime
    etag: str | None


@dataclass
class CopyProgress:
    """The progress of a copy."""

    total_files: int
    total_bytes: int
    copied_files: int = 0
    copied_bytes: int = 0

    def __str__(self) -> str:
        files = f"{self.copied_files:,} of {counted(self.total_files, 'file')}"
        return f"{files}, {size_text(self.copied_bytes)} of {size_text(self.total_bytes)}"


def is_remote(source: str) -> bool:
    """Whether the data are in a bucket, so that they have to be copied."""
    return source.startswith(SCHEME)


async def sync_dataset(url: str, store: Path, environment: Mapping[str, str], report: Report, progress: Report) -> Path:
    """Update the copy of `url` in `store` to the bucket's content; return its path, or the pattern of its shards.

    url          s3://BUCKET/PREFIX for all objects below it, s3://BUCKET/SHARD.tar, or a pattern of shards such as
                 s3://BUCKET/train-{000..127}.tar, with which the text files in its folder (class names) are copied
    environment  may contain credentials, see `list_bucket`
    report       is called when a copy starts and when it is complete; `progress`, every PROGRESS_INTERVAL_S
    raises       DataUnavailable, with the URL and what to do
    """
    from shoestring_trainer.data_sync.buckets import list_bucket  # not at the top: it imports the S3 library

    name, _, key = url.removeprefix(SCHEME).partition("/")
    if key.strip("/") and not is_path(key.strip("/")):  # it could point outside the copy, where files would be deleted
        raise DataUnavailable(f"{url} is not a valid path; give a folder without empty parts, . and ..")
    prefix, is_wanted = split_pattern(key)
    copy = store / hashlib.sha256(url.encode()).hexdigest()[:12]
    folder = copy / name / prefix
    try:
        folder.mkdir(parents=True, exist_ok=True)
        async with locked(copy.with_suffix(_LOCK), progress):
            bucket, objects = await list_bucket(url, name, prefix, environment)
            missing = await asyncio.to_thread(_compare, folder, choose_files(url, objects, prefix, is_wanted))
            _check_disk_space(url, folder, missing)
            if missing:
                await _copy(bucket, missing, folder, copy.with_suffix(_DRAFTS), report, progress)
    except OSError as error:
        remedy = "free or enlarge that disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "correct that"
        raise DataUnavailable(f"{url} can't be written to {folder} ({error.strerror or error}); {remedy}") from error
    return folder / key.removeprefix(prefix).strip("/")


def split_pattern(key: str) -> tuple[str, Callable[[str], bool]]:
    """The folder of a key or of its shards, and a predicate for the names in it to copy."""
    key = key.strip("/")
    parent, _, last = key.rpartition("/")
    if not last.endswith(".tar"):
        return key, lambda _: True
    shards = re.compile(r"\d+".join(re.escape(part) for part in _NUMBER_RANGE.split(last)))
    return parent, lambda name: "/" not in name and bool(shards.fullmatch(name) or name.endswith(SHARD_METADATA_SUFFIX))


def choose_files(
    url: str, objects: Iterable[ObjectMeta], prefix: str, is_wanted: Callable[[str], bool]
) -> list[RemoteFile]:
    """Select the files to copy from a listing.

    Raises DataUnavailable if there is none, and for keys that can't be paths of files.
    """
    root = f"{prefix}/" if prefix else ""
    entries = [
        RemoteFile(each["path"], each["path"].removeprefix(root), each["size"], each["last_modified"], each["e_tag"])
        for each in objects
    ]
    folders = {parent for entry in entries for parent in _parents(entry.name)}
    files = [entry for entry in entries if entry.name not in folders or entry.size]  # an empty object may mark a folder
    wanted = [entry for entry in files if is_wanted(entry.name)]
    if not wanted:
        raise DataUnavailable(f"there are no objects in {url}; correct the URL, or upload the data first")
    if conflict := next((entry for entry in wanted if entry.name in folders), None):
        raise DataUnavailable(
            f"{conflict.key} in {url} is both an object and a folder, which a file system can't store; rename one"
        )
    if long := next((entry for entry in wanted if _longest_part(entry.name) > MAX_NAME_BYTES), None):
        message = f"{long.key} in {url} has a name of more than {MAX_NAME_BYTES} bytes, which a file system can't store"
        raise DataUnavailable(f"{message}; rename the object")
    if invalid := next((entry for entry in wanted if not is_path(entry.name)), None):
        raise DataUnavailable(f"the key {invalid.key!r} in {url} is not a valid path; rename the object")
    return wanted


def is_path(name: str) -> bool:
    return {"", ".", ".."}.isdisjoint(name.split("/"))


def _longest_part(name: str) -> int:
    return max(len(part.encode()) for part in name.split("/"))


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name


@asynccontextmanager
async def locked(path: Path, report: Report) -> AsyncIterator[None]:
    """One process at a time: ranks that the user starts with torchrun copy concurrently."""
    with path.open("w") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    report(f"another process holds {path}; waiting for it")
                waiting = True
                await asyncio.sleep(LOCK_POLL_S)
        yield


def _compare(folder: Path, entries: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The entries that the folder lacks. Files that are not in the bucket are deleted."""
    wanted = {entry.name: entry for entry in entries}
    present = set()
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            relative = str(file.relative_to(folder))
            stat, entry = file.stat(), wanted.get(relative)
            if entry and (stat.st_size, int(stat.st_mtime)) == (entry.size, int(entry.last_modified.timestamp())):
                present.add(relative)
            else:
                file.unlink()
    for path, _, _ in os.walk(folder, topdown=False):
        if path != str(folder) and not os.listdir(path):
            Path(path).rmdir()
    return [entry for entry in entries if entry.name not in present]


def _check_disk_space(url: str, folder: Path, missing: Sequence[RemoteFile]) -> None:
    needed, free = sum(entry.size for entry in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise DataUnavailable(
            f"{url} needs another {size_text(needed)}, and the disk of {folder} has {size_text(free)} free; "
            "use less data, stream them (data.stream), or rent machines with a larger disk (resources.disk.size)"
        )


async def _copy(
    bucket: Bucket, missing: Sequence[RemoteFile], folder: Path, drafts: Path, report: Report, progress: Report
) -> None:
    counts = CopyProgress(len(missing), sum(entry.size for entry in missing))
    report(f"copying {bucket.url}: {counted(counts.total_files, 'file')}, {size_text(counts.total_bytes)}")
    drafts.mkdir(exist_ok=True)
    queue = iter(missing)  # shared, so that each object is copied once

    async def copy_from_queue(number: int) -> None:
        for entry in queue:
            await copy_object(bucket, entry, drafts / str(number), counts)
            path = folder / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            (drafts / str(number)).replace(path)
            counts.copied_files += 1

    async def report_progress() -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            progress(f"{bucket.url}: {counts}")

    started = boottime()
    reporting = asyncio.create_task(report_progress())
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(min(CONCURRENCY, len(missing))):
                group.create_task(copy_from_queue(number))
    except* (DataUnavailable, OSError) as group_error:
        raise _first_error(group_error) from None
    finally:
        reporting.cancel()
    drafts.rmdir()
    report(
        f"copied {bucket.url}: {counted(counts.total_files, 'file')}, {size_text(counts.total_bytes)}, "
        f"in {boottime() - started:.1f} s"
    )


async def copy_object(bucket: Bucket, entry: RemoteFile, draft: Path, counts: CopyProgress) -> None:
    """Copy an object to a file with the object's modification time, by which `_compare` recognizes it."""
    with draft.open("wb") as file:
        for start in range(0, entry.size, PART_BYTES):
            end = min(start + PART_BYTES, entry.size)
            content = await bucket.read(entry.key, entry.etag, start, end)
            await asyncio.to_thread(file.write, content)
            counts.copied_bytes += end - start
    at = entry.last_modified.timestamp()
    os.utime(draft, (at, at))


def size_text(count: int) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_error(first) if isinstance(first, BaseExceptionGroup) else first
