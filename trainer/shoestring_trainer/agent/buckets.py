# SPDX-License-Identifier: Apache-2.0
"""Data sets in S3, or in a store that speaks its language: brought to this machine's disk before its ranks start.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
import obstore
from obstore import exceptions as refused
from obstore.store import S3Store

from shoestring_trainer.agent.metadata_watch import ENDPOINT, Metadata, MetadataUnavailable
from shoestring_trainer.agent.service import boottime, pauses

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, S3Config

SCHEME = "s3://"
AT_ONCE = 32
"""Objects on their way at the same time: one connection to S3 gives some 50 to 100 MB/s, and waits for each answer."""
PART_BYTES, PAGE = 8 << 20, 1000
GONE, OTHER = 404, 412
DENIED, BUSY = (401, 403), (408, 429)
PATIENCE_S, CONNECT_S, SILENCE_S, WHOLE_S = 120.0, 5.0, 30.0, 1800.0
TELL_S, LOCK_LOOK_S = 10.0, 0.2
GIB = 1 << 30
_NUMBERS = re.compile(r"\{\d+\.\.\d+\}")
_STATUS = re.compile(r"status code: (\d{3})")
_STATUS_OF = {
    refused.PermissionDeniedError: 403, refused.UnauthenticatedError: 401, refused.NotFoundError: 404,
    refused.PreconditionError: 412, refused.InvalidPathError: 400,
}  # fmt: skip
_BESIDE_SHARDS = ".txt"
_DRAFTS, _LOCK = ".drafts", ".lock"

T = TypeVar("T")


class NoData(Exception):
    """The data can't be had. `lasting`: not by trying again either; somebody has to change something first."""

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting


class _Refused(Exception):
    """The store's answer is no. The status is HTTP's."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


@dataclass(frozen=True)
class Entry:
    """An object of the bucket. `name` is where it belongs in the copy, /-separated."""

    key: str
    name: str
    size: int
    changed: datetime
    etag: str | None


@dataclass
class Tally:
    """How far a copy is."""

    files: int
    bytes: int
    files_here: int = 0
    bytes_here: int = 0

    def __str__(self) -> str:
        here, whole = self.bytes_here / GIB, self.bytes / GIB
        return f"{self.files_here:,} of {self.files:,} files, {here:,.2f} of {whole:,.2f} GiB"


def is_bucket(place: str) -> bool:
    """Whether data lie in a bucket, so that they have to be brought here."""
    return place.startswith(SCHEME)


async def bring(url: str, store: Path, environment: Mapping[str, str], tell: Callable[[str], None]) -> Path:
    """Make the copy of `url` below `store` what the bucket holds now; returns its path, or the pattern of its shards.

    url          s3://BUCKET/PREFIX for all that lies below it, s3://BUCKET/SHARD.tar, or a pattern of shards such as
                 s3://BUCKET/train-{000..127}.tar, which comes with the text files beside them (names of classes)
    environment  may hold AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL;
                 without keys the bucket is read as anybody may, or as the role of this machine may
    raises       NoData, naming the place and the remedy
    """
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    prefix, wanted = split_pattern(key)
    folder = store / hashlib.sha256(url.encode()).hexdigest()[:12] / bucket / prefix
    try:
        folder.mkdir(parents=True, exist_ok=True)
        async with _locked(folder, tell):
            remote, entries = await _list(url, _ways(bucket, environment), prefix, wanted)
            missing = await asyncio.to_thread(_compare, folder, entries)
            _check_room(url, folder, missing)
            if missing:
                await _copy(url, remote, missing, folder, tell)
    except OSError as error:
        raise NoData(f"{url} can't be written to {folder} ({error.strerror}); free or enlarge that disk") from error
    return folder / key.removeprefix(prefix).strip("/")


def split_pattern(key: str) -> tuple[str, Callable[[str], bool]]:
    """The folder that a key names, or that its shards lie in; and which of the names below it are wanted."""
    key = key.strip("/")
    above, _, last = key.rpartition("/")
    if not last.endswith(".tar"):
        return key, lambda _: True
    shards = re.compile(r"\d+".join(re.escape(part) for part in _NUMBERS.split(last)))
    return above, lambda name: "/" not in name and bool(shards.fullmatch(name) or name.endswith(_BESIDE_SHARDS))


def wanted_files(url: str, objects: Iterable[ObjectMeta], prefix: str, want: Callable[[str], bool]) -> list[Entry]:
    """What is to be copied of a listing. Raises NoData for nothing, and for keys that can't be files side by side."""
    above = f"{prefix}/" if prefix else ""
    found = [
        Entry(each["path"], each["path"].removeprefix(above), each["size"], each["last_modified"], each["e_tag"])
        for each in objects
    ]
    folders = {parent for entry in found for parent in _parents(entry.name)}
    files = [entry for entry in found if entry.name not in folders or entry.size]  # an empty one marks a folder
    kept = [entry for entry in files if want(entry.name)]
    if not kept:
        raise NoData(f"there is nothing in {url}; correct data.train, or upload the data first")
    if both := next((entry for entry in kept if entry.name in folders), None):
        raise NoData(f"{both.key} in {url} is an object and a folder of others; a disk can't hold both: rename one")
    if odd := next((entry for entry in kept if not set(entry.name.split("/")).isdisjoint(("", ".", ".."))), None):
        raise NoData(f"the key {odd.key!r} in {url} is no path; rename the object")
    return kept


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name


@asynccontextmanager
async def _locked(folder: Path, tell: Callable[[str], None]) -> AsyncIterator[None]:
    """One process at a time: ranks that torchrun starts by hand come here together."""
    with (folder / _LOCK).open("w") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    tell(f"another process is bringing {folder} up to date; waiting for it")
                waiting = True
                await asyncio.sleep(LOCK_LOOK_S)
        yield


async def _ways(bucket: str, environment: Mapping[str, str]) -> AsyncIterator[S3Store]:
    """This machine's ways into a bucket, to be tried in turn: by its keys; or as anybody, then by its role."""
    endpoint = environment.get("AWS_ENDPOINT_URL")
    if endpoint:
        config: S3Config = {"region": environment.get("AWS_REGION", "us-east-1"), "endpoint": endpoint}
    else:
        config = {"region": await _patiently(lambda: _region(bucket), f"{SCHEME}{bucket}")}
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_S), "read_timeout": timedelta(seconds=SILENCE_S),
        "timeout": timedelta(seconds=WHOLE_S), "allow_http": bool(endpoint and endpoint.startswith("http://")),
    }  # fmt: skip

    def way(**by: Any) -> S3Store:
        # calls are made again by `_patiently` alone, so that an outage has one clock
        chosen = cast("S3Config", {**config, **by})
        return S3Store(bucket, config=chosen, client_options=options, retry_config={"max_retries": 0})

    if key := environment.get("AWS_ACCESS_KEY_ID"):
        token = environment.get("AWS_SESSION_TOKEN")
        secret = environment.get("AWS_SECRET_ACCESS_KEY", "")
        yield way(access_key_id=key, secret_access_key=secret, **({"session_token": token} if token else {}))
        return
    yield way(skip_signature=True)
    metadata = Metadata(environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)
    try:
        role = await metadata.role()
    except MetadataUnavailable:  # this computer is none of EC2's
        role = None
    finally:
        await metadata.close()
    if role:
        yield way(metadata_endpoint=metadata.endpoint)


async def _region(bucket: str) -> str:
    """Where a bucket lies, which S3 tells everybody. Raises NoData if there is none of this name."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S)) as http:
        answer = await http.head(f"https://s3.amazonaws.com/{bucket}")
    if answer.status_code == 404:
        raise NoData(f"there is no bucket {bucket}; correct data.train")
    if region := answer.headers.get("x-amz-bucket-region"):
        return str(region)
    raise httpx.HTTPError(f"HTTP {answer.status_code}, and no word of the region")


async def _list(
    url: str, ways: AsyncIterator[S3Store], prefix: str, want: Callable[[str], bool]
) -> tuple[S3Store, list[Entry]]:
    """The first way that the bucket accepts, and what is to be copied by it."""
    said = ""
    async for remote in ways:

        async def pages(remote: S3Store = remote) -> list[ObjectMeta]:
            return [entry async for page in obstore.list(remote, prefix or None, chunk_size=PAGE) for entry in page]

        try:
            return remote, wanted_files(url, await _patiently(pages, url), prefix, want)
        except _Refused as refusal:
            if refusal.status == GONE:
                raise NoData(f"there is no bucket for {url}; correct data.train") from refusal
            if refusal.status not in DENIED:
                raise NoData(f"{url} can't be listed ({refusal}); correct data.train") from refusal
            said = str(refusal)
    raise NoData(
        f"this machine may not read {url} ({said}); make it public, or set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY (`aws configure export-credentials --format env` prints them); for the machines of a "
        "local service, start `shoestring up` with SHOESTRING_AGENT_ before each of these names"
    )


def _compare(folder: Path, entries: Sequence[Entry]) -> list[Entry]:
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


def _check_room(url: str, folder: Path, missing: Sequence[Entry]) -> None:
    needed, free = sum(entry.size for entry in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise NoData(
            f"{url} still needs {needed / GIB:,.2f} GiB, and the disk under {folder} has {free / GIB:,.2f} GiB left; "
            "use fewer data, or rent machines with a larger disk"
        )


async def _copy(url: str, remote: S3Store, missing: Sequence[Entry], folder: Path, tell: Callable[[str], None]) -> None:
    tally = Tally(len(missing), sum(entry.size for entry in missing))
    tell(f"bringing {url} to {folder}: {tally.files:,} files, {tally.bytes / GIB:,.2f} GiB")
    drafts = folder / _DRAFTS
    drafts.mkdir(exist_ok=True)
    queue = iter(missing)  # one for all: each object is taken once

    async def take_in_turn(number: int) -> None:
        for entry in queue:
            await _fetch(url, remote, entry, drafts / str(number), tally)
            place = folder / entry.name
            place.parent.mkdir(parents=True, exist_ok=True)
            (drafts / str(number)).replace(place)
            tally.files_here += 1

    async def tell_now_and_then() -> None:
        while True:
            await asyncio.sleep(TELL_S)
            tell(f"{url}: {tally}")

    began = boottime()
    telling = asyncio.create_task(tell_now_and_then())
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(min(AT_ONCE, len(missing))):
                group.create_task(take_in_turn(number))
    except* (NoData, OSError) as several:
        raise _first(several) from None
    finally:
        telling.cancel()
    drafts.rmdir()
    tell(f"{url} is here: {tally} in {boottime() - began:.1f} s")


async def _fetch(url: str, remote: S3Store, entry: Entry, draft: Path, tally: Tally) -> None:
    """One object into a file with the object's date, by which it is known again."""
    with draft.open("wb") as file:
        for start in range(0, entry.size, PART_BYTES):
            end = min(start + PART_BYTES, entry.size)

            async def part(start: int = start, end: int = end) -> obstore.Bytes:
                options: GetOptions = {"range": (start, end), "if_match": entry.etag}
                found = await obstore.get_async(remote, entry.key, options=options)
                content = await found.bytes_async()
                if len(content) != end - start:
                    raise ConnectionError(f"{len(content)} bytes came instead of {end - start}")
                return content

            try:
                content = await _patiently(part, f"{entry.key} in {url}")
            except _Refused as refusal:
                if refusal.status in (GONE, OTHER):
                    why = f"{entry.key} in {url} changed as it was fetched; submit again once it rests"
                else:
                    why = f"this machine may list {url} but not read {entry.key} ({refusal})"
                raise NoData(why) from refusal
            await asyncio.to_thread(file.write, content)
            tally.bytes_here += end - start
    at = entry.changed.timestamp()
    os.utime(draft, (at, at))


async def _patiently(call: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of a call that is made again while the store can't be reached.

    Raises _Refused when that has no use, and NoData when it takes long.
    """
    deadline = boottime() + PATIENCE_S
    for pause in pauses():
        try:
            return await call()
        except (httpx.HTTPError, refused.BaseError, ConnectionError) as error:
            said = (str(error).splitlines() or [repr(error)])[0][:400]  # obstore's go on with how it came about
            status = _status(error)
            if 400 <= status < 500 and status not in BUSY:
                raise _Refused(status, said) from error
            if boottime() + pause > deadline:
                raise NoData(f"{what} can't be reached for {PATIENCE_S:.0f} s: {said}", lasting=False) from error
        await asyncio.sleep(pause)
    raise AssertionError


def _status(error: Exception) -> int:
    """The status of the answer that an error stands for; 0: none came. obstore has types for few, words for all."""
    for kind, status in _STATUS_OF.items():
        if isinstance(error, kind):
            return status
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    first = several.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
