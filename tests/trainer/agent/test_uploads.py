# SPDX-License-Identifier: Apache-2.0
"""A checkpoint from an agent to S3, through the real service: in parts, and on after the service has gone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import wire
from shoestring_core.errors import Unavailable
from shoestring_core.store.objects import Objects
from shoestring_core.store.tables import CheckpointRow
from shoestring_trainer.agent.checkpoints import (
    CheckpointCache,
    CheckpointUploader,
    LocalCheckpoint,
    _with_store_checksum,
)
from shoestring_trainer.agent.service_client import ServiceClient
from shoestring_trainer.agent.spool import Spool
from sqlalchemy import select

from tests.api.deployment import Agent, Deployment
from tests.servers import PATIENCE_S, FaultProxy, until
from tests.shared_database import SharedDatabase
from tests.worker.providers.fake_aws import FakeAws

pytestmark = pytest.mark.any_database

PART_BYTES = 5 << 20


@pytest.fixture
def on_s3(
    migrated: SharedDatabase, tmp_path: Path, aws: FakeAws, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    monkeypatch.setattr(wire, "MULTIPART_BYTES", PART_BYTES)
    aws.s3().create_bucket(Bucket="models")
    place = {"object_store": "s3://models/team", "object_store_endpoint_url": aws.url}
    with Deployment(migrated.url, tmp_path, store=migrated.store(), **place) as deployment:
        yield deployment


def local_checkpoint(folder: Path, agent: Agent, step: int, content: bytes) -> LocalCheckpoint:
    """As rank 0 writes it."""
    (folder / "gen" / "1" / "ckpt").mkdir(parents=True, exist_ok=True)
    data = folder / "gen" / "1" / "ckpt" / f"step-{step:09}.data"
    data.write_bytes(content)
    manifest = {
        "format": 1, "job": str(agent.job), "generation": 1, "step": step, "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(), "parts": [],
    }  # fmt: skip
    data.with_suffix(".json").write_text(json.dumps(manifest))
    return LocalCheckpoint(1, step, data, data.with_suffix(".json"), "order", through_seq=0, write_s=100.0)


async def deliver(
    folder: Path, agent: Agent, checkpoint: LocalCheckpoint, url: str = "",
    meanwhile: Callable[[], None] = lambda: None, held: wire.UploadUrls | None = None,
) -> float:  # fmt: skip
    """What the agent does with a checkpoint; when it is committed, returns the seconds that saving one takes.

    url        of the service, as the agent sees it
    meanwhile  runs in a thread
    held       URLs that the agent got earlier
    """
    (folder / "cache").mkdir(exist_ok=True)
    service = ServiceClient(url or agent.deployment.url, agent.machine, agent.session_secret)
    spool = Spool(folder / "spool", folder / "rejected")

    def report() -> None:
        uploader.add_urls(agent.report().upload_urls)

    uploader = CheckpointUploader(service, spool, CheckpointCache(folder / "cache"), report)
    uploader.add_urls(held)
    if held is None:
        report()
    uploader.submit(checkpoint)
    running = asyncio.create_task(uploader.run())
    await asyncio.to_thread(meanwhile)
    async with asyncio.timeout(PATIENCE_S):
        while not uploader.idle:
            await asyncio.sleep(0.02)
    running.cancel()
    await service.close()
    return uploader.save_s


def stored(aws: FakeAws, job: UUID) -> dict[str, int]:
    """The objects of the job's first checkpoint, with their sizes."""
    listed = aws.s3().list_objects_v2(Bucket="models", Prefix=f"team/jobs/{job}/g/1/final/000001/")
    return {one["Key"].rpartition("/")[2]: one["Size"] for one in listed.get("Contents", [])}


def save_ms(deployment: Deployment, job: UUID) -> int | None:
    with deployment.store.read() as db:
        return db.sql.scalar(select(CheckpointRow.save_ms).where(CheckpointRow.job == job))


def test_an_upload_that_was_begun_before_measures_nothing(on_s3: Deployment, tmp_path: Path, aws: FakeAws) -> None:
    job, (agent,) = on_s3.running()
    urls = agent.points(range(1, 4)).upload_urls
    checkpoint = local_checkpoint(tmp_path, agent, 3, b"weights")
    manifest, _ = _with_store_checksum(checkpoint)
    claim = {"nonce": urls.nonce, "manifest_sha256": hashlib.sha256(manifest).hexdigest()}
    (tmp_path / "upload.json").write_text(json.dumps(claim))
    assert asyncio.run(deliver(tmp_path, agent, checkpoint)) == 0
    assert stored(aws, job)["data"] == 7
    assert save_ms(on_s3, job) is None


def test_large_data_go_up_in_parts_each_tried_again_by_itself(on_s3: Deployment, tmp_path: Path, aws: FakeAws) -> None:
    job, (agent,) = on_s3.running()
    agent.points(range(1, 4))
    content = os.urandom(2 * PART_BYTES + 1000)
    aws.fault("error", "UploadPart", code="SlowDown", status=503)
    aws.fault("lost_reply", "CompleteMultipartUpload")
    save_s = asyncio.run(deliver(tmp_path, agent, local_checkpoint(tmp_path, agent, 3, content)))
    assert agent.report().upload_urls.nonce == "000002", "committed"
    assert len(aws.calls("UploadPart")) == 3 + 1
    assert save_ms(on_s3, job) == round(1000 * save_s)
    assert save_ms(on_s3, job) >= 100_000, "with the time that ranks took to write it"
    assert stored(aws, job)["data"] == len(content)


def test_a_machine_that_is_cut_off_from_the_service_finishes_its_upload_alone(
    on_s3: Deployment, tmp_path: Path, aws: FakeAws, fault_proxy: Callable[[int], FaultProxy]
) -> None:
    job, (agent,) = on_s3.running()
    agent.points(range(1, 4))
    content = os.urandom(2 * PART_BYTES + 1000)
    proxy = fault_proxy(on_s3.port)

    def cut_off() -> None:
        until(lambda: aws.calls("UploadPart"))
        proxy.refuse = True
        proxy.cut()
        until(lambda: set(stored(aws, job)) == {"data", "manifest.json"})
        proxy.refuse = False

    checkpoint = local_checkpoint(tmp_path, agent, 3, content)
    asyncio.run(deliver(tmp_path, agent, checkpoint, f"http://127.0.0.1:{proxy.port}", cut_off))
    assert len(aws.calls("CompleteMultipartUpload")) == 1
    assert agent.report().upload_urls.nonce == "000002", "committed"


def test_without_the_service_s_word_large_data_go_up_in_one_piece(
    on_s3: Deployment, tmp_path: Path, aws: FakeAws, fault_proxy: Callable[[int], FaultProxy]
) -> None:
    job, (agent,) = on_s3.running()
    agent.points(range(1, 4))
    proxy = fault_proxy(on_s3.port)
    proxy.refuse = True

    def come_back() -> None:
        until(lambda: set(stored(aws, job)) == {"data", "manifest.json"})
        proxy.refuse = False

    checkpoint = local_checkpoint(tmp_path, agent, 3, os.urandom(PART_BYTES + 1))
    asyncio.run(deliver(tmp_path, agent, checkpoint, f"http://127.0.0.1:{proxy.port}", come_back))
    assert aws.calls("UploadPart") == []
    assert agent.report().upload_urls.nonce == "000002", "committed"


def test_an_object_whose_receipt_was_lost_is_taken_for_what_was_sent(
    on_s3: Deployment, tmp_path: Path, aws: FakeAws
) -> None:
    _, (agent,) = on_s3.running()
    agent.points(range(1, 4))
    aws.fault("lost_reply", "PutObject")
    asyncio.run(deliver(tmp_path, agent, local_checkpoint(tmp_path, agent, 3, b"weights")))
    assert agent.report().upload_urls.nonce == "000002", "committed"


def test_a_url_whose_credentials_have_ended_is_replaced(on_s3: Deployment, tmp_path: Path, aws: FakeAws) -> None:
    job, (agent,) = on_s3.running()
    agent.points(range(1, 4))
    aws.fault("error", "PutObject", code="ExpiredToken", status=400)
    asyncio.run(deliver(tmp_path, agent, local_checkpoint(tmp_path, agent, 3, b"weights")))
    assert sum(call["parameters"]["Key"].endswith("/data") for call in aws.calls("PutObject")) == 2
    assert agent.report().upload_urls.nonce == "000002", "committed"
    assert stored(aws, job)["data"] == 7


def test_while_the_credentials_are_expired_machines_go_on_and_upload_with_what_they_hold(
    on_s3: Deployment, tmp_path: Path, aws: FakeAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, (agent,) = on_s3.running()
    held = agent.points(range(1, 4))
    assert held.order.kind == "run"
    monkeypatch.setattr(on_s3.state, "objects", ExpiredCredentials(on_s3.state.objects))
    told = agent.points(range(4, 7))
    assert (told.order.kind, told.upload_urls, told.acked_seq) == ("wait", None, agent.seq)
    assert told.funding_lease_s > 0

    def sign_in_again() -> None:
        until(lambda: set(stored(aws, job)) == {"data", "manifest.json"})
        monkeypatch.setattr(on_s3.state, "objects", on_s3.state.objects.before)

    checkpoint = local_checkpoint(tmp_path, agent, 6, b"weights")
    asyncio.run(deliver(tmp_path, agent, checkpoint, meanwhile=sign_in_again, held=held.upload_urls))
    assert agent.report().order.kind == "run"
    assert agent.report().upload_urls.nonce == "000002", "committed"


def test_while_the_credentials_are_expired_the_urls_that_it_holds_are_kept_for_the_last_checkpoint(
    on_s3: Deployment, tmp_path: Path, aws: FakeAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, (agent,) = on_s3.running()
    held = agent.points(range(1, 4))
    monkeypatch.setattr(on_s3.state, "objects", ExpiredCredentials(on_s3.state.objects))
    assert agent.points(range(4, 7)).upload_urls is None
    periodic = replace(local_checkpoint(tmp_path, agent, 5, b"periodic"), reason="periodic")
    last = local_checkpoint(tmp_path, agent, 6, b"the last one")

    async def play() -> None:
        (tmp_path / "cache").mkdir()
        service = ServiceClient(on_s3.url, agent.machine, agent.session_secret)
        spool, waited = Spool(tmp_path / "spool", tmp_path / "rejected"), asyncio.Event()
        uploader = CheckpointUploader(service, spool, CheckpointCache(tmp_path / "cache"), waited.set)
        uploader.add_urls(held.upload_urls)
        uploader.add_urls(None)
        uploader.submit(periodic)
        running = asyncio.create_task(uploader.run())
        async with asyncio.timeout(PATIENCE_S):
            await waited.wait()
            uploader.submit(last)
            while set(await asyncio.to_thread(stored, aws, job)) != {"data", "manifest.json"}:
                await asyncio.sleep(0.02)
        running.cancel()
        await service.close()

    asyncio.run(play())
    assert stored(aws, job)["data"] == len(b"the last one")


class ExpiredCredentials:
    """A store whose every use fails as S3Objects does then: test_s3_objects.py shows that it does."""

    def __init__(self, before: Objects) -> None:
        self.before = before

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: object) -> None:
            raise Unavailable("The credentials can't be renewed.", hint="Sign in again.")

        return refuse
