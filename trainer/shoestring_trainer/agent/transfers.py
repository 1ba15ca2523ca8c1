# SPDX-License-Identifier: Apache-2.0
"""Checkpoints between this machine and the object store: fetched, verified and kept; uploaded and committed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shoestring_core.wire import CheckpointCommit, CheckpointDownload, UploadUrls

from shoestring_trainer.agent.service import Refused, Service, Unreachable, pauses
from shoestring_trainer.agent.spool import Spool, write_durably

log = logging.getLogger(__name__)

LOOK_S = 0.05
FETCH_TRIES = 5
EXPIRED, TAKEN = {401, 403}, {409, 412}  # what an object store says of an address
UNREADY = {"points-missing", "batch-gap"}  # refusals of a commit that the next report cures


class Unfetchable(Exception):
    """What the generation should start from can't be had; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """One that the ranks have written. `through_seq`: the batch that holds the last point up to it."""

    generation: int
    step: int
    data: Path
    manifest: Path
    reason: Literal["periodic", "order", "final"]
    through_seq: int
    result: dict[str, Any] | None = None

    @property
    def last(self) -> bool:
        return self.reason != "periodic"


class Cache:
    """The newest checkpoint that passed through this machine, named by its manifest's SHA-256; and the one that ranks
    were given, which they may not have read yet when an older generation's upload is committed late."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._given = ""

    def keep(self, manifest_sha256: str, checkpoint: Checkpoint) -> None:
        """Take over the files of a committed checkpoint, so that a next generation here need not fetch them."""
        data, manifest = self._paths(manifest_sha256)
        Path(checkpoint.data).replace(data)
        Path(checkpoint.manifest).replace(manifest)
        for older in checkpoint.data.parent.iterdir():
            if older.name < checkpoint.data.name:
                older.unlink(missing_ok=True)
        self._forget_all_but(manifest_sha256, self._given)

    async def fetch(self, service: Service, resume: CheckpointDownload) -> tuple[Path, Path]:
        """The data and manifest files, verified. Tries again while the store can't be reached; raises Unfetchable."""
        data, manifest = self._paths(resume.manifest_sha256)
        self._given = resume.manifest_sha256
        if not (data.exists() and manifest.exists()):
            await self._download(service, resume, data, manifest)
            self._forget_all_but(resume.manifest_sha256)
        return data, manifest

    async def _download(self, service: Service, resume: CheckpointDownload, data: Path, manifest: Path) -> None:
        drafts = data.with_suffix(".data-part"), manifest.with_suffix(".json-part")
        why, wrong = "", 0
        for pause in pauses():
            try:
                if await service.download(resume.manifest_url, drafts[1]) != resume.manifest_sha256:
                    why = "its manifest is not the one that was committed"
                elif await service.download(resume.data_url, drafts[0]) != json.loads(drafts[1].read_text())["sha256"]:
                    why = "its data is not what its manifest says"
                else:
                    drafts[0].replace(data)
                    drafts[1].replace(manifest)
                    return
            except Unreachable as error:
                log.warning("checkpoint of step %d not fetched yet: %s", resume.step, error)
                await asyncio.sleep(pause)
                continue
            except (Refused, ValueError, KeyError, TypeError) as error:
                why = str(error)
            wrong += 1
            log.warning("checkpoint of step %d is wrong (try %d of %d): %s", resume.step, wrong, FETCH_TRIES, why)
            if wrong == FETCH_TRIES:
                raise Unfetchable(f"the checkpoint of step {resume.step} can't be used: {why}")
            await asyncio.sleep(pause)

    def _paths(self, manifest_sha256: str) -> tuple[Path, Path]:
        return self.folder / f"{manifest_sha256}.data", self.folder / f"{manifest_sha256}.json"

    def _forget_all_but(self, *kept: str) -> None:
        for path in self.folder.iterdir():
            if path.stem not in kept:
                path.unlink(missing_ok=True)


class Courier:
    """Uploads and commits the newest checkpoint, one at a time, while training goes on.

    It holds up to two pairs of upload addresses, so that one is left for the last checkpoint even if the service
    falls silent in the middle of an upload.
    """

    def __init__(self, service: Service, spool: Spool, cache: Cache, stirred: Callable[[], None]) -> None:
        self._service, self._spool, self._cache, self._stir = service, spool, cache, stirred
        self._pairs: dict[tuple[int, str], UploadUrls] = {}
        self._spent: set[tuple[int, str]] = set()
        self._next: Checkpoint | None = None
        self._current: Checkpoint | None = None

    @property
    def idle(self) -> bool:
        """Nothing is left to upload or commit."""
        return self._next is None and self._current is None

    def hold(self, pair: UploadUrls | None) -> None:
        """Keep a pair for later, two at most; those of newer generations stay."""
        if pair and _place(pair) not in self._spent:
            pairs = sorted({**self._pairs, _place(pair): pair}.values(), key=lambda each: each.generation)
            self._pairs = {_place(each): each for each in pairs[-2:]}

    def offer(self, checkpoint: Checkpoint) -> None:
        """Deliver this one next. It supersedes what has not begun to be uploaded."""
        self._next = checkpoint

    def forget(self, before_generation: int) -> None:
        """A generation that is over has nothing to commit any more."""
        if self._next and self._next.generation < before_generation:
            self._next = None

    async def run(self) -> None:
        while True:
            if self._next is None:
                await asyncio.sleep(LOOK_S)
                continue
            self._current, self._next = self._next, None
            try:
                await self._deliver(self._current)
            except Refused as refusal:
                log.warning("checkpoint of step %d is not wanted: %s", self._current.step, refusal)
                self._spool.event("warning", {"message": f"checkpoint refused: {refusal}"}, step=self._current.step)
            except OSError as error:
                log.warning("checkpoint of step %d can't be read: %s", self._current.step, error)
                self._spool.event("warning", {"message": f"checkpoint can't be read: {error}"}, step=self._current.step)
            finally:
                self._current = None

    async def _deliver(self, checkpoint: Checkpoint) -> None:
        """Points before checkpoint: the commit waits until the batches it stands on are stored.

        A periodic one waits even with its upload: then the service is there, and the pair is not spent in vain.
        """
        manifest_sha256 = hashlib.sha256(checkpoint.manifest.read_bytes()).hexdigest()
        size = checkpoint.data.stat().st_size
        if not checkpoint.last and not await self._stored(checkpoint):
            return
        pair = await self._upload(checkpoint, manifest_sha256)
        if pair is None:
            return
        await self._stored(checkpoint, whatever_comes=True)  # what is uploaded is committed; a newer one waits its turn
        commit = CheckpointCommit(
            generation=checkpoint.generation,
            step=checkpoint.step,
            nonce=pair.nonce,
            manifest_sha256=manifest_sha256,
            bytes=size,
            through_seq=checkpoint.through_seq,
            reason=checkpoint.reason,
            result=checkpoint.result,
        )
        await self._commit(commit)
        self._cache.keep(manifest_sha256, checkpoint)

    async def _stored(self, checkpoint: Checkpoint, *, whatever_comes: bool = False) -> bool:
        """True when every batch up to `through_seq` is acknowledged; False as soon as a newer one takes its place."""
        self._stir()
        while self._spool.acked < checkpoint.through_seq:
            if self._next and not whatever_comes:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def _upload(self, checkpoint: Checkpoint, manifest_sha256: str) -> UploadUrls | None:
        """Data, then manifest, to a pair that is unused; None if a newer checkpoint came before the first byte.

        Raises Refused if something else lies there, which no later try can change.
        """
        for pause in pauses(most_s=1.0):
            pair = next((pair for pair in self._pairs.values() if pair.generation == checkpoint.generation), None)
            if pair:
                del self._pairs[_place(pair)]
                self._spent.add(_place(pair))  # replies go on naming it until the commit
                again = self._claim(pair.nonce, manifest_sha256)
                try:
                    await self._put(checkpoint.data, pair.data_url, again)
                    await self._put(checkpoint.manifest, pair.manifest_url, again)
                    return pair
                except Refused as refusal:
                    if refusal.status not in EXPIRED:
                        raise
                    self._spent.discard(_place(pair))
                    log.warning("the upload addresses %s do not hold any more: %s", pair.nonce, refusal)
            if self._next:
                return None
            self._stir()
            await asyncio.sleep(pause)
        return None

    def _claim(self, nonce: str, manifest_sha256: str) -> bool:
        """Note on the disk which checkpoint goes where; True if the same one was begun to be sent there before."""
        path = self._cache.folder.parent / "upload.json"
        claim = {"nonce": nonce, "manifest_sha256": manifest_sha256}
        with suppress(OSError, ValueError):
            if json.loads(path.read_text()) == claim:
                return True
        write_durably(path, json.dumps(claim))
        return False

    async def _put(self, path: Path, url: str, again: bool) -> None:
        """Tries again while the store can't be reached. Raises Refused if it takes nothing at this address.

        An address takes one object only: after a lost reply, what lies there is this file.
        """
        for attempt, pause in enumerate(pauses(most_s=5.0)):
            try:
                return await self._service.upload(path, url)
            except Unreachable as error:
                log.warning("%s not uploaded yet: %s", path.name, error)
                await asyncio.sleep(pause)
            except Refused as refusal:
                if refusal.status in TAKEN and (again or attempt > 0):
                    return None
                raise

    async def _commit(self, commit: CheckpointCommit) -> None:
        for pause in pauses(most_s=5.0):
            try:
                committed = await self._service.commit(commit)
                log.info("checkpoint of step %d committed, pointer moved: %s", commit.step, committed.promoted)
                return self.hold(committed.upload_urls)
            except Unreachable as error:
                log.warning("checkpoint of step %d not committed yet: %s", commit.step, error)
            except Refused as refusal:
                if refusal.code not in UNREADY:
                    raise
                self._stir()
            await asyncio.sleep(pause)


def _place(pair: UploadUrls) -> tuple[int, str]:
    """What tells two pairs apart: nonces are numbered anew in each generation."""
    return pair.generation, pair.nonce
