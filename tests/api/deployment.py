# SPDX-License-Identifier: Apache-2.0
"""A real API process's parts in this one: uvicorn in a thread on a free port, and what a worker would do beside it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
import uvicorn
from awscrt.checksums import crc64nvme
from shoestring_api.app import create_app
from shoestring_api.app_state import AppState
from shoestring_api.settings import ApiSettings
from shoestring_core import rest, wire
from shoestring_core.decide import schedule
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.store import identity
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import launches, observations, planning, queue
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.transactions import Write

from tests.servers import PATIENCE_S, free_port, until

SECRET = "a secret that only this test has"
SPEC = {"recipe": "digits/quickstart", "resources": {"nodes": 1}}
OFFER = Offer("local", "local", "", "local.cpu", "spot", "0.158", "0.526", None, "test", True)


class _Server(uvicorn.Server):
    """Lets streams go when it ends, in its event loop, as the process does at a signal."""

    def __init__(self, config: uvicorn.Config, state: AppState) -> None:
        super().__init__(config)
        self._state = state

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.notifier.close()
        await super().shutdown(sockets)


class Deployment:
    """`admin`, `member` and `stranger` (of another team) are HTTP clients with keys; `nobody` has none.

    store  the database of `database_url`, if it is open already
    """

    def __init__(self, database_url: str, folder: Path, *, store: Store | None = None, **settings: Any) -> None:
        self.port = free_port()
        self.settings = ApiSettings(
            database_url=database_url,
            secret=SECRET,
            port=self.port,
            data_roots=str(folder / "data"),
            hooks_roots=str(folder / "hooks"),
            **{"object_store": str(folder / "objects")} | settings,
        )
        self.state = AppState.open(self.settings, store)
        self.store: Store = self.state.store
        self.url = f"http://127.0.0.1:{self.port}"
        self.keys = self.store.write(_people)
        self.refresh_offers()
        config = uvicorn.Config(
            create_app(self.state), port=self.port, log_level="warning", timeout_graceful_shutdown=3
        )
        self.server = _Server(config, self.state)
        self.thread = threading.Thread(target=self.server.run, name="api")

    def __enter__(self) -> Self:
        self.thread.start()
        until(lambda: self.server.started or not self.thread.is_alive())
        assert self.server.started
        self.nobody = self.client()
        self.admin, self.member, self.stranger = (self.client(key) for key in self.keys)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in (self.nobody, self.admin, self.member, self.stranger):
            client.close()
        self.server.should_exit = True
        self.thread.join(timeout=PATIENCE_S)
        assert not self.thread.is_alive()

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # No certificates, which take longer to read than most tests take otherwise: nothing here speaks TLS.
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, verify=False, headers=headers)

    def refresh_offers(self) -> None:
        """The provider answers, as it does every few seconds where a worker runs."""
        self.store.write(lambda db: save_offers(db, OFFER.provider, [OFFER], self.state.timeouts))

    def submit(self, **fields: Any) -> UUID:
        answer = self.member.post("/v1/jobs", json={"spec": SPEC | fields})
        assert answer.status_code == 201, answer.text
        return UUID(answer.json()["id"])

    def job(self, job: UUID) -> rest.Job:
        return rest.Job.model_validate_json(self.member.get(f"/v1/jobs/{job}").content)

    def launch(self, job: UUID) -> list[Agent]:
        """What scheduler and launcher do: an attempt for the job, its machines running."""
        timeouts = self.state.timeouts

        def plan(db: Write) -> list[UUID]:
            snapshot = queue.load_queue(db, timeouts, {}).snapshot
            starts = schedule.schedule_jobs(snapshot, [OFFER], db.now, {OFFER.provider: timeouts}).starts
            start = next(start for start in starts if start.job == job)
            machines = planning.record_start(db, start, snapshot.plan_version, agent_url=self.url, deployment="test")
            assert machines is not None
            return machines

        def call(db: Write, machine: UUID) -> None:
            assert launches.begin_launch(db, machine, timeouts) is not None
            seen = ProviderMachine("local", "local", f"lm-{machine.hex[-17:]}", str(machine), {}, "running", db.now)
            observations.record_observation(db, machine, seen, timeouts)

        machines = self.store.write(plan)
        for machine in machines:
            self.store.write(lambda db, machine=machine: call(db, machine))
        return [Agent(self, job, machine) for machine in machines]

    def running(self, **fields: Any) -> tuple[UUID, list[Agent]]:
        """A job whose first generation has formed."""
        job = self.submit(**fields)
        agents = self.launch(job)
        for agent in agents:
            agent.register()
        for agent in agents:
            agent.report(member={"generation": 1, "state": "ready", "port": 29500})
        return job, agents

    @contextlib.contextmanager
    def stream(self, topics: str, cursor: str | None = None) -> Iterator[Iterator[ServerSentEvent]]:
        """The events of a live stream of the member's."""
        params = {"topics": topics} | ({"cursor": cursor} if cursor else {})
        timeout = httpx.Timeout(10, read=20)
        with self.member.stream("GET", "/v1/stream", params=params, timeout=timeout) as answer:
            assert answer.status_code == 200, answer.read()
            yield events(answer.iter_lines())


@dataclass
class ServerSentEvent:
    """One server-sent event."""

    name: str
    data: Any
    cursor: str | None


STREAM_S = 120.0
"""Then a stream whose expected message never came fails its test: pings would keep it waiting forever."""


def events(lines: Iterator[str]) -> Iterator[ServerSentEvent]:
    name, data, cursor = "message", "", None
    ends_at = time.monotonic() + STREAM_S
    for line in lines:
        assert time.monotonic() < ends_at, "the expected message didn't come"
        if line == "":
            if data:
                yield ServerSentEvent(name, json.loads(data), cursor)
            name, data = "message", ""
        elif line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("id:"):
            cursor = line[3:].strip()
        elif line.startswith("data:"):
            data += line[5:].strip()


@dataclass
class Agent:
    """The requests of a machine's agent."""

    deployment: Deployment
    job: UUID
    machine: UUID
    session_secret: str = "s" * 40
    seq: int = 0
    offsets: dict[int, int] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.machine}.{self.session_secret}"}

    def register(self, **fields: Any) -> httpx.Response:
        body = {
            "machine": str(self.machine),
            "boot_token": wire.derive_boot_token(SECRET, self.machine),
            "session_secret": self.session_secret,
            "address": "127.0.0.1",
        }
        return self.deployment.nobody.post("/agent/v1/register", json=body | fields)

    def boot(self, **fields: Any) -> httpx.Response:
        """What the machine's user data reports."""
        token = wire.derive_boot_token(SECRET, self.machine)
        body = {"machine": str(self.machine), "boot_token": token, "phase": "boot"}
        return self.deployment.nobody.post("/agent/v1/boot", json=body | fields)

    def wheelhouse(self, name: str, **fields: Any) -> httpx.Response:
        """What the machine's user data asks."""
        token = wire.derive_boot_token(SECRET, self.machine)
        body = {"machine": str(self.machine), "boot_token": token, "wheelhouse": name}
        return self.deployment.nobody.post("/agent/v1/wheelhouse", json=body | fields)

    def post(self, content: bytes) -> httpx.Response:
        return self.deployment.nobody.post("/agent/v1/report", content=content, headers=self.headers)

    def report(self, **fields: Any) -> wire.Reply:
        answer = self.post(json.dumps(fields).encode())
        assert answer.status_code == 200, answer.text
        return wire.Reply.model_validate_json(answer.content)

    def batch(self, **fields: Any) -> dict[str, Any]:
        self.seq += 1
        return {"seq": self.seq, "generation": 1} | fields

    def points(self, steps: range, name: str = "train/loss", generation: int = 1) -> wire.Reply:
        """Points whose value tells the step and the generation."""
        values = [step + generation / 10 for step in steps]
        series = {"name": name, "steps": list(steps), "times": [1e9 + step for step in steps], "values": values}
        return self.report(batch=self.batch(points=[series], generation=generation))

    def log(self, data: bytes, rank: int = 0) -> wire.Reply:
        offset = self.offsets.get(rank, 0)
        self.offsets[rank] = offset + len(data)
        chunk = {"rank": rank, "offset": offset, "data_b64": base64.b64encode(data).decode()}
        return self.report(batch=self.batch(logs=[chunk]))

    def orders(self, after: str = "", timeout: float = 30) -> wire.Reply:
        answer = self.deployment.nobody.get(
            "/agent/v1/orders", params={"after": after}, headers=self.headers, timeout=timeout
        )
        assert answer.status_code == 200, answer.text
        return wire.Reply.model_validate_json(answer.content)

    def checkpoint(
        self,
        step: int,
        files: dict[str, bytes],
        *,
        reason: str = "periodic",
        generation: int = 1,
        flaw: dict[str, Any] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        """Upload a checkpoint to the URLs that the service offers, and commit it. `flaw`: of its manifest."""
        uploads = self.report().upload_urls
        assert uploads is not None
        data = b"".join(files.values())
        parts, offset = [], 0
        for name, content in files.items():
            digest = hashlib.sha256(content).hexdigest()
            parts.append({"name": name, "offset": offset, "bytes": len(content), "sha256": digest})
            offset += len(content)
        manifest = {
            "format": 1, "job": str(self.job), "generation": generation, "step": step, "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(), "crc64nvme": f"{crc64nvme(data):016x}", "parts": parts,
        }  # fmt: skip
        text = json.dumps(manifest | (flaw or {})).encode()
        for url, content in ((uploads.data_url, data), (uploads.manifest_url, text)):
            assert self.deployment.nobody.put(url, content=content, headers={"If-None-Match": "*"}).is_success
        commit = {
            "generation": generation, "step": step, "nonce": uploads.nonce, "bytes": len(data), "reason": reason,
            "manifest_sha256": hashlib.sha256(text).hexdigest(), "through_seq": self.seq,
        }  # fmt: skip
        return self.deployment.nobody.post("/agent/v1/checkpoints", json=commit | fields, headers=self.headers)


def _people(db: Write) -> tuple[str, str, str]:
    """Keys of an admin, a member of the same team, and somebody of another."""
    ada = identity.ensure_admin(db, "lab", "vision", "ada")
    ben = identity.ensure_member(db, "lab", "vision", "ben")
    cem = identity.ensure_admin(db, "lab", "speech", "cem")
    ada_key, ben_key, cem_key = (identity.create_key(db, "pat", one, None)[1] for one in (ada, ben, cem))
    return ada_key, ben_key, cem_key
