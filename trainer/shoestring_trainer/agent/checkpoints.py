# SPDX-License-Identifier: Apache-2.0
"""Checkpoints between this machine and the object store: fetched, verified and kept; uploaded and committed."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from awscrt.checksums import crc64nvme
from shoestring_core.task import MAX_CHECKPOINT_BYTES
from shoestring_core.wire import (
    MAX_MANIFEST_BYTES,
    CheckpointCommit,
    CheckpointDownload,
    UploadUrls,
)

from shoestring_trainer.agent.rank_files import open_file, open_folder, read_file
from shoestring_trainer.agent.service_client import (
    BLOCK_BYTES,
    RequestRejected,
    ServiceClient,
    Unreachable,
    backoff_delays,
)
from shoestring_trainer.agent.spool import Spool, write_durably
from shoestring_trainer.agent.uploads import upload_data, upload_file
from shoestring_trainer.run_files import CheckpointReason

log = logging.getLogger(__name__)

POLL_S = 0.05
CHECKPOINT_FILE = re.compile(r"step-\d+\.(data|json)(\.tmp)?")
"""What the trainer writes into the folder of checkpoints; a hook may keep files of its own there."""
FETCH_TRIES = 5
URL_EXPIRED = {401, 403}  # an object store's responses to an upload URL
CURED_BY_A_REPORT = {"batches-missing", "batch-gap"}  # refusals of a commit that the next report cures


class CheckpointUnavailable(Exception):
    """What the generation should start from is unavailable or damaged; the message contains the problem."""


@dataclass(frozen=True)
class LocalCheckpoint:
    """One that the ranks have written. `through_seq`: the batch that holds the last point up to it; `write_s`: from a
    request to stop until it would be written, None: not known."""

    generation: int
    step: int
    data: Path
    manifest: Path
    reason: CheckpointReason
    through_seq: int
    result: dict[str, Any] | None = None
    write_s: float | None = None

    @property
    def is_last(self) -> bool:
        return self.reason != "periodic"


class CheckpointCache:
    """The newest checkpoint that passed through this machine, named by its manifest's SHA-256; and the one that ranks
    were given, which they may not have read yet when an older generation's upload is committed late."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._in_use = ""

    def store(self, manifest_sha256: str, checkpoint: LocalCheckpoint) -> None:
        """Take over the files of a committed checkpoint, so that a next generation here need not fetch them.

        Its manifest is the agent's, its data lie where ranks can write.
        """
        folder = open_folder(checkpoint.data.parent)
        try:
            data, manifest = self._paths(manifest_sha256)
            os.replace(checkpoint.data.name, data, src_dir_fd=folder)
            os.chown(checkpoint.manifest, -1, self.folder.stat().st_gid)  # of ranks, which resume from it
            checkpoint.manifest.chmod(0o640)
            checkpoint.manifest.replace(manifest)
            for older in os.listdir(folder):
                if CHECKPOINT_FILE.fullmatch(older) and Path(older).stem <= checkpoint.data.stem:
                    with suppress(OSError):  # such as of a folder that a hook made
                        os.unlink(older, dir_fd=folder)
        finally:
            os.close(folder)
        self._remove_all_but(manifest_sha256, self._in_use)

    async def fetch(self, service: ServiceClient, resume: CheckpointDownload) -> tuple[Path, Path]:
        """The verified data and manifest files. Retries while the store can't be reached.

        Raises CheckpointUnavailable.
        """
        data, manifest = self._paths(resume.manifest_sha256)
        self._in_use = resume.manifest_sha256
        if not (data.exists() and manifest.exists()):
            await self._download(service, resume, data, manifest)
            self._remove_all_but(resume.manifest_sha256)
        return data, manifest

    async def _download(self, service: ServiceClient, resume: CheckpointDownload, data: Path, manifest: Path) -> None:
        drafts = data.with_suffix(".data-part"), manifest.with_suffix(".json-part")
        problem, wrong = "", 0
        for pause in backoff_delays():
            try:
                if await service.download(resume.manifest_url, drafts[1]) != resume.manifest_sha256:
                    problem = "its manifest is not the one that was committed"
                elif await service.download(resume.data_url, drafts[0]) != json.loads(drafts[1].read_text())["sha256"]:
                    problem = "its data does not match its manifest"
                else:
                    drafts[0].replace(data)
                    drafts[1].replace(manifest)
                    return
            except Unreachable as error:
                log.warning("checkpoint of step %d not fetched yet: %s", resume.step, error)
                await asyncio.sleep(pause)
                continue
            except (RequestRejected, ValueError, KeyError, TypeError, RecursionError) as error:
                problem = str(error)
            wrong += 1
            log.warning("checkpoint of step %d is wrong (try %d of %d): %s", resume.step, wrong, FETCH_TRIES, problem)
            if wrong == FETCH_TRIES:
                raise CheckpointUnavailable(f"the checkpoint of step {resume.step} can't be used: {problem}")
            await asyncio.sleep(pause)

    def _paths(self, manifest_sha256: str) -> tuple[Path, Path]:
        return self.folder / f"{manifest_sha256}.data", self.folder / f"{manifest_sha256}.json"

    def _remove_all_but(self, *kept: str) -> None:
        for path in self.folder.iterdir():
            if path.stem not in kept:
                path.unlink(missing_ok=True)


class CheckpointUploader:
    """Uploads and commits the newest checkpoint, one at a time, while training continues.

    It holds up to two newest of upload addresses, so that one is left for the last checkpoint even if the service
    falls silent in the middle of an upload.

    save_s  seconds from a request to stop until the object store had the checkpoint, by the last one of which that was
            measured; 0: none
    """

    def __init__(
        self, service: ServiceClient, spool: Spool, cache: CheckpointCache, wake_reporter: Callable[[], None]
    ) -> None:
        self._service, self._spool, self._cache, self._wake_reporter = service, spool, cache, wake_reporter
        self._unused_urls: dict[tuple[int, str], UploadUrls] = {}
        self._offered = True
        self._used: set[tuple[int, str]] = set()
        self._next: LocalCheckpoint | None = None
        self._current: LocalCheckpoint | None = None
        self.save_s = 0.0

    @property
    def idle(self) -> bool:
        """Nothing is left to upload or commit."""
        return self._next is None and self._current is None

    def add_urls(self, urls: UploadUrls | None) -> None:
        """Keep a urls for later, two at most; those of newer generations stay. None: the service could sign none."""
        self._offered = urls is not None
        if urls and _key(urls) not in self._used:
            newest = sorted({**self._unused_urls, _key(urls): urls}.values(), key=lambda each: each.generation)
            self._unused_urls = {_key(each): each for each in newest[-2:]}

    def submit(self, checkpoint: LocalCheckpoint) -> None:
        """Deliver this one next. It supersedes what has not begun to be uploaded."""
        self._next = checkpoint

    def discard_before(self, generation: int) -> None:
        """A generation that is over has nothing to commit any more."""
        if self._next and self._next.generation < generation:
            self._next = None

    async def run(self) -> None:
        while True:
            if self._next is None:
                await asyncio.sleep(POLL_S)
                continue
            self._current, self._next = self._next, None
            try:
                await self._upload_and_commit(self._current)
            except RequestRejected as rejection:
                log.warning("checkpoint of step %d is not wanted: %s", self._current.step, rejection)
                self._spool.add_event(
                    "warning", {"message": f"checkpoint refused: {rejection}"}, step=self._current.step
                )
            except (OSError, ValueError, RecursionError) as error:
                log.warning("checkpoint of step %d can't be read: %s", self._current.step, error)
                self._spool.add_event(
                    "warning", {"message": f"checkpoint can't be read: {error}"}, step=self._current.step
                )
            finally:
                self._current = None

    async def _upload_and_commit(self, checkpoint: LocalCheckpoint) -> None:
        """Points before checkpoint: the commit waits until the batches it stands on are stored.

        A periodic one waits even with its upload: then the service is reachable, and the URLs are not wasted.
        """
        began = time.monotonic()
        manifest, size = await asyncio.to_thread(_with_store_checksum, checkpoint)
        manifest_sha256 = hashlib.sha256(manifest).hexdigest()
        checkpoint = replace(checkpoint, manifest=self._cache.folder.parent / "manifest.json")
        write_durably(checkpoint.manifest, manifest.decode())
        read_s = time.monotonic() - began
        if not checkpoint.is_last and not await self._wait_until_points_are_stored(checkpoint):
            return
        uploaded = await self._upload(checkpoint, size, manifest_sha256)
        if uploaded is None:
            return
        urls, upload_s = uploaded
        save_s = None if checkpoint.write_s is None or upload_s is None else checkpoint.write_s + read_s + upload_s
        self.save_s = save_s or self.save_s
        await self._wait_until_points_are_stored(
            checkpoint, even_if_superseded=True
        )  # what is uploaded is committed; a newer one waits its turn
        commit = CheckpointCommit(
            generation=checkpoint.generation,
            step=checkpoint.step,
            nonce=urls.nonce,
            manifest_sha256=manifest_sha256,
            bytes=size,
            through_seq=checkpoint.through_seq,
            reason=checkpoint.reason,
            save_s=save_s,
            result=checkpoint.result,
        )
        await self._commit(commit)
        self._cache.store(manifest_sha256, checkpoint)

    async def _wait_until_points_are_stored(
        self, checkpoint: LocalCheckpoint, *, even_if_superseded: bool = False
    ) -> bool:
        """True when every batch up to `through_seq` is acknowledged; False as soon as a newer one takes its place."""
        self._wake_reporter()
        while self._spool.acked < checkpoint.through_seq:
            if self._next and not even_if_superseded:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def _upload(
        self, checkpoint: LocalCheckpoint, size: int, manifest_sha256: str
    ) -> tuple[UploadUrls, float | None] | None:
        """Data, then manifest, to a urls that is unused; None if a newer checkpoint came before the first byte.

        Returns the seconds that it took too, unless a part of it was there already.

        Raises RequestRejected if another object exists there; retrying can't help.
        """
        for pause in backoff_delays(most_s=1.0):
            urls = next((urls for urls in self._unused_urls.values() if urls.generation == checkpoint.generation), None)
            if urls and (self._offered or checkpoint.is_last):  # else it may be the only one for the last checkpoint
                del self._unused_urls[_key(urls)]
                self._used.add(_key(urls))  # replies keep offering it until the commit
                again = self._record_target(urls.nonce, manifest_sha256)
                began = time.monotonic()
                try:
                    await upload_data(self._service, checkpoint.data, size, urls, again=again)
                    await upload_file(self._service, checkpoint.manifest, urls.manifest_url, again=again)
                    return urls, None if again else time.monotonic() - began
                except RequestRejected as rejection:
                    if rejection.status not in URL_EXPIRED:
                        raise
                    self._used.discard(_key(urls))
                    log.warning("the upload addresses %s do not hold any more: %s", urls.nonce, rejection)
            if self._next:
                return None
            self._wake_reporter()
            await asyncio.sleep(pause)
        return None

    def _record_target(self, nonce: str, manifest_sha256: str) -> bool:
        """Note on the disk which checkpoint goes where; True if the same one was begun to be sent there before."""
        path = self._cache.folder.parent / "upload.json"
        claim = {"nonce": nonce, "manifest_sha256": manifest_sha256}
        with suppress(OSError, ValueError):
            if json.loads(path.read_text()) == claim:
                return True
        write_durably(path, json.dumps(claim))
        return False

    async def _commit(self, commit: CheckpointCommit) -> None:
        for pause in backoff_delays(most_s=5.0):
            try:
                committed = await self._service.commit(commit)
                log.info("checkpoint of step %d committed, pointer moved: %s", commit.step, committed.promoted)
                return self.add_urls(committed.upload_urls)
            except Unreachable as error:
                log.warning("checkpoint of step %d not committed yet: %s", commit.step, error)
            except RequestRejected as rejection:
                if rejection.code not in CURED_BY_A_REPORT:
                    raise
                self._wake_reporter()
            await asyncio.sleep(pause)


def _with_store_checksum(checkpoint: LocalCheckpoint) -> tuple[bytes, int]:
    """The manifest, with the checksum that S3 keeps of the data; and the data's size.

    Raises OSError, and ValueError or RecursionError for a manifest that is no JSON object.
    """
    checksum = size = 0
    with os.fdopen(open_file(checkpoint.data), "rb") as data:
        while block := data.read(BLOCK_BYTES):
            # whatever is left to read: a hook may leave a sparse file, or append without end
            if max(size + len(block), os.fstat(data.fileno()).st_size) > MAX_CHECKPOINT_BYTES:
                raise OSError(errno.EFBIG, f"larger than {MAX_CHECKPOINT_BYTES:,} bytes", str(checkpoint.data))
            checksum, size = crc64nvme(block, checksum), size + len(block)
    manifest = json.loads(read_file(checkpoint.manifest, MAX_MANIFEST_BYTES))
    if not isinstance(manifest, dict):
        raise ValueError("the manifest is no JSON object")
    return json.dumps(manifest | {"crc64nvme": f"{checksum:016x}"}).encode(), size


def _key(urls: UploadUrls) -> tuple[int, str]:
    """Identifies the newest checkpoint: nonces restart in each generation."""
    return urls.generation, urls.nonce
