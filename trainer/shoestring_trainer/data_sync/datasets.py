# SPDX-License-Identifier: Apache-2.0
"""Data sets in buckets, brought to this machine's disk before its ranks start.

All of a set comes, because each epoch draws from all of it; and it comes first, because training never waits for the
network. A copy that was cut short goes on where it stopped, and one that is there is only compared with the bucket.
"""

from __future__ import annotations

import asyncio
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

from shoestring_trainer.agent.service_client import boottime
from shoestring_trainer.data_sync.errors import SCHEME, DataUnavailable

if TYPE_CHECKING:
    from obstore import ObjectMeta

    from shoestring_trainer.data_sync.buckets import Bucket

CONCURRENCY, PART_BYTES = 32, 8 << 20
"""So many objects are on their way together, each in such parts: a machine holds at most the product in memory."""
PROGRESS_INTERVAL_S, LOCK_POLL_S = 10.0, 0.2
MIB, GIB = 1 << 20, 1 << 30
BESIDE_SHARDS = ".txt"
_NUMBERS = re.compile(r"\{\d+\.\.\d+\}")
_DRAFTS, _LOCK = ".drafts", ".lock"

Report = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """An object of a bucket. `name` is where it belongs in the copy, /-separated."""

    key: str
    name: str
    size: int
    changed: datetime
    etag: str | None


@dataclass
class CopyProgress:
    """How far a copy is."""

    files: int
    bytes: int
    files_here: int = 0
    bytes_here: int = 0

    def __str__(self) -> str:
        return f"{self.files_here:,} of {self.files:,} files, {_size(self.bytes_here)} of {_size(self.bytes)}"


def is_remote(place: str) -> bool:
    """Whether data lie in a bucket, so that they have to be brought here."""
    return place.startswith(SCHEME)


async def sync_dataset(url: str, store: Path, environment: Mapping[str, str], report: Report, progress: Report) -> Path:
    """Make the copy of `url` below `store` what the bucket holds now; returns its path, or the pattern of its shards.

    url          s3://BUCKET/PREFIX for all that lies below it, s3://BUCKET/SHARD.tar, or a pattern of shards such as
                 s3://BUCKET/train-{000..127}.tar, which comes with the text files beside them (names of classes)
    environment  what to read it with, see `list_bucket`
    report         hears when a copy begins and when it is done; `progress`, how far it is, every PROGRESS_INTERVAL_S
    raises       DataUnavailable, naming the place and the remedy
    """
    from shoestring_trainer.data_sync.buckets import list_bucket  # its library, which most machines need not wait for

    name, _, key = url.removeprefix(SCHEME).partition("/")
    if key.strip("/") and not _is_path(key.strip("/")):  # it would lead elsewhere, and what is there be removed
        raise DataUnavailable(f"the place {url} is no path; name a folder in it without empty parts, . and ..")
    prefix, wanted = split_pattern(key)
    folder = store / hashlib.sha256(url.encode()).hexdigest()[:12] / name / prefix
    try:
        folder.mkdir(parents=True, exist_ok=True)
        async with _locked(folder, progress):
            bucket, objects = await list_bucket(url, name, prefix, environment)
            missing = await asyncio.to_thread(_compare, folder, choose_files(url, objects, prefix, wanted))
            _check_disk_space(url, folder, missing)
            if missing:
                await _copy(bucket, missing, folder, report, progress)
    except OSError as error:
        raise DataUnavailable(
            f"{url} can't be written to {folder} ({error.strerror}); free or enlarge that disk"
        ) from error
    return folder / key.removeprefix(prefix).strip("/")


def split_pattern(key: str) -> tuple[str, Callable[[str], bool]]:
    """The folder that a key names, or that its shards lie in; and which of the names below it are wanted."""
    key = key.strip("/")
    above, _, last = key.rpartition("/")
    if not last.endswith(".tar"):
        return key, lambda _: True
    shards = re.compile(r"\d+".join(re.escape(part) for part in _NUMBERS.split(last)))
    return above, lambda name: "/" not in name and bool(shards.fullmatch(name) or name.endswith(BESIDE_SHARDS))


def choose_files(url: str, objects: Iterable[ObjectMeta], prefix: str, want: Callable[[str], bool]) -> list[RemoteFile]:
    """Select what to copy from a listing.

    Raises DataUnavailable if that is nothing, and for keys that can't be files side by side.
    """
    above = f"{prefix}/" if prefix else ""
    found = [
        RemoteFile(each["path"], each["path"].removeprefix(above), each["size"], each["last_modified"], each["e_tag"])
        for each in objects
    ]
    folders = {parent for entry in found for parent in _parents(entry.name)}
    files = [entry for entry in found if entry.name not in folders or entry.size]  # an empty one marks a folder
    kept = [entry for entry in files if want(entry.name)]
    if not kept:
        raise DataUnavailable(f"there is nothing in {url}; correct data.train, or upload the data first")
    if both := next((entry for entry in kept if entry.name in folders), None):
        raise DataUnavailable(
            f"{both.key} in {url} is an object and a folder of others; a disk can't hold both: rename one"
        )
    if odd := next((entry for entry in kept if not _is_path(entry.name)), None):
        raise DataUnavailable(f"the key {odd.key!r} in {url} is no path; rename the object")
    return kept


def _is_path(name: str) -> bool:
    return {"", ".", ".."}.isdisjoint(name.split("/"))


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name


@asynccontextmanager
async def _locked(folder: Path, report: Report) -> AsyncIterator[None]:
    """One process at a time: ranks that torchrun starts by hand come here together."""
    with (folder / _LOCK).open("w") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    report(f"another process is bringing {folder} up to date; waiting for it")
                waiting = True
                await asyncio.sleep(LOCK_POLL_S)
        yield


def _compare(folder: Path, entries: Sequence[RemoteFile]) -> list[RemoteFile]:
    """What the folder lacks. What the bucket doesn't hold any more is removed."""
    wanted = {entry.name: entry for entry in entries}
    here = set()
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            known = str(file.relative_to(folder))
            if known == _LOCK:
                continue
            found, entry = file.stat(), wanted.get(known)
            if entry and (found.st_size, int(found.st_mtime)) == (entry.size, int(entry.changed.timestamp())):
                here.add(known)
            else:
                file.unlink()
    for path, _, _ in os.walk(folder, topdown=False):
        if path != str(folder) and not os.listdir(path):
            Path(path).rmdir()
    return [entry for entry in entries if entry.name not in here]


def _check_disk_space(url: str, folder: Path, missing: Sequence[RemoteFile]) -> None:
    needed, free = sum(entry.size for entry in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise DataUnavailable(
            f"{url} still needs {_size(needed)}, and the disk under {folder} has {_size(free)} left; "
            "use fewer data, or rent machines with a larger disk"
        )


async def _copy(bucket: Bucket, missing: Sequence[RemoteFile], folder: Path, report: Report, progress: Report) -> None:
    progress_so_far = CopyProgress(len(missing), sum(entry.size for entry in missing))
    report(f"fetching {bucket.url}: {progress_so_far.files:,} files, {_size(progress_so_far.bytes)}")
    drafts = folder / _DRAFTS
    drafts.mkdir(exist_ok=True)
    queue = iter(missing)  # one for all: each object is taken once

    async def fetch_from_queue(number: int) -> None:
        for entry in queue:
            await _fetch(bucket, entry, drafts / str(number), progress_so_far)
            place = folder / entry.name
            place.parent.mkdir(parents=True, exist_ok=True)
            (drafts / str(number)).replace(place)
            progress_so_far.files_here += 1

    async def report_progress() -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            progress(f"{bucket.url}: {progress_so_far}")

    began = boottime()
    reporting = asyncio.create_task(report_progress())
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(min(CONCURRENCY, len(missing))):
                group.create_task(fetch_from_queue(number))
    except* (DataUnavailable, OSError) as several:
        raise _first(several) from None
    finally:
        reporting.cancel()
    drafts.rmdir()
    report(
        f"{bucket.url} is here: {progress_so_far.files:,} files, {_size(progress_so_far.bytes)}, "
        f"in {boottime() - began:.1f} s"
    )


async def _fetch(bucket: Bucket, entry: RemoteFile, draft: Path, progress_so_far: CopyProgress) -> None:
    """One object into a file with the object's date, by which it is known again."""
    with draft.open("wb") as file:
        for start in range(0, entry.size, PART_BYTES):
            end = min(start + PART_BYTES, entry.size)
            content = await bucket.read(entry.key, entry.etag, start, end)
            await asyncio.to_thread(file.write, content)
            progress_so_far.bytes_here += end - start
    at = entry.changed.timestamp()
    os.utime(draft, (at, at))


def _size(count: int) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    first = several.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
