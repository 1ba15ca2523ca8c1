# SPDX-License-Identifier: Apache-2.0
"""The two servers an agent talks to, small but real: the service's side of `wire`, and the provider's metadata."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from uuid import UUID, uuid4

from pydantic import ValidationError
from shoestring_core.task import RecipeTask, TaskData
from shoestring_core.wire import (
    BootReport,
    CheckpointCommit,
    CheckpointDownload,
    CommitReply,
    LaunchConfig,
    MemberStatus,
    Order,
    RegisterRequest,
    Reply,
    ReportBatch,
    ReportRequest,
    UploadUrls,
    WheelhouseReply,
    WheelhouseRequest,
)

DROP, DROP_REPLY = "drop", "drop reply"  # before and after the request has had its effect


@dataclass
class Fault:
    """What happens to the next `times` requests whose path holds `path`: dropped, or answered with this status."""

    path: str
    what: int | str
    times: int
    code: str = "internal"


@dataclass
class Service:
    """One machine's service. Tests read what it stored, and turn `order`, `funding_lease_s` and `faults`.

    left_for_s  once the machine has reported a notice and the exit of its ranks
    """

    machine: UUID = field(default_factory=uuid4)
    boot_token: str = "boot-token-of-this-machine"
    session: str | None = None
    funding_lease_s: float = 60.0
    funded_until: float | None = None  # monotonic; from there on nothing is extended
    report_interval_s: float = 0.25
    left_for_s: float = 0
    order: Order = field(default_factory=lambda: Order(kind="wait"))
    batches: list[ReportBatch] = field(default_factory=list)
    members: list[MemberStatus] = field(default_factory=list)
    notices: set[float] = field(default_factory=set)
    commits: list[CheckpointCommit] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    boots: list[BootReport] = field(default_factory=list)
    wheelhouse: Callable[[WheelhouseRequest], WheelhouseReply] | None = None
    registrations: list[RegisterRequest] = field(default_factory=list)
    arrivals: list[tuple[float, ReportBatch]] = field(default_factory=list)
    refuse: Callable[[ReportBatch], int | None] = lambda batch: None

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.gone = False
        self.generation = 0
        self.etag = 0
        self.server = _listen(_ServiceHandler, self)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def acked(self) -> int:
        return len(self.batches)

    def say(self, order: Order) -> None:
        with self.changed:
            self.order, self.etag = order, self.etag + 1
            self.generation = max(self.generation, order.generation)
            self.changed.notify_all()

    def run(
        self,
        generation: int,
        *,
        nproc_per_node: int = 1,
        resume: CheckpointDownload | None = None,
        init: CheckpointDownload | None = None,
        data: str = "",
        stream: bool = False,
        **params: Any,
    ) -> None:
        task = RecipeTask(
            format=1, job="job", generation=generation, recipe="digits/quickstart", params=params,
            data=TaskData(train=data, stream=stream) if data else None,
        )  # fmt: skip
        place = {
            "node_rank": 0,
            "nnodes": 1,
            "nproc_per_node": nproc_per_node,
            "master_addr": "127.0.0.1",
            "master_port": 29500,
        }
        self.say(
            Order(kind="run", generation=generation, run=LaunchConfig(**place, task=task, resume=resume, init=init))
        )

    def fail(self, path: str, what: int | str, times: int = 1, code: str = "internal") -> None:
        self.faults.append(Fault(path, what, times, code))

    def stop(self) -> None:
        """The process is gone: connections are refused from here on."""
        self.server.shutdown()
        self.server.server_close()
        with self.changed:
            self.gone = True
            self.changed.notify_all()

    def start_again(self) -> None:
        self.gone = False
        port = self.server.server_address[1]
        self.server = _listen(_ServiceHandler, self, port)

    # what it stored

    def points(self, name: str) -> list[tuple[int, float]]:
        series = [series for batch in self.batches for series in batch.points if series.name == name]
        return [pair for each in series for pair in zip(each.steps, each.values, strict=True)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for batch in self.batches for event in batch.events if event.kind == kind]

    def log(self, rank: int) -> bytes:
        """The stream as stored; raises AssertionError if a byte is missing or came twice."""
        stream = b""
        for chunk in [chunk for batch in self.batches for chunk in batch.logs if chunk.rank == rank]:
            assert chunk.offset == len(stream)
            stream += base64.b64decode(chunk.data_b64)
        return stream

    def states(self) -> list[tuple[int, str]]:
        return [(member.generation, member.state) for member in self.members]

    def exits(self, generation: int) -> list[str]:
        ends = [member for member in self.members if member.generation == generation and member.state == "exited"]
        return [each.outcome for each in ends[-1].exits] if ends else []

    # what it does

    def register(self, register: RegisterRequest) -> Reply | tuple[int, dict[str, Any]]:
        if register.machine != self.machine or register.boot_token != self.boot_token:
            return 403, {"code": "agent-refused", "detail": "forged"}
        if self.session not in (None, register.session_secret):
            return 403, {"code": "agent-refused", "detail": "another session was first"}
        self.session = register.session_secret
        self.registrations.append(register)
        return self.reply()

    def report(self, report: ReportRequest) -> Reply | tuple[int, dict[str, Any]]:
        if batch := report.batch:
            self.arrivals.append((time.time(), batch))
            if status := self.refuse(batch):
                return status, {
                    "code": "too-large" if status == 413 else "invalid-request",
                    "detail": "refused by the test",
                }
            if batch.seq > self.acked + 1:
                return 409, {"code": "batch-gap", "detail": "a gap", "expected": self.acked + 1}
            if batch.seq == self.acked + 1:
                self.batches.append(batch)
        if report.member and report.member not in self.members:
            self.members.append(report.member)
        if report.notice_at:
            self.notices.add(report.notice_at)
        return self.reply()

    def commit(self, commit: CheckpointCommit) -> CommitReply | tuple[int, dict[str, Any]]:
        if commit.through_seq > self.acked:
            return 409, {"code": "batches-missing", "detail": "send the batches first"}
        if commit not in self.commits:
            place = f"g{commit.generation}-{commit.nonce}"
            manifest = self.objects[f"{place}.manifest"]
            assert hashlib.sha256(manifest).hexdigest() == commit.manifest_sha256
            assert hashlib.sha256(self.objects[f"{place}.data"]).hexdigest() == json.loads(manifest)["sha256"]
            self.commits.append(commit)
        return CommitReply(promoted=True, upload_urls=self.uploads())

    def reply(self) -> Reply:
        return Reply(
            etag=str(self.etag),
            order=self.order,
            acked_seq=self.acked,
            lease_s=30,
            funding_lease_s=self.funded_until - time.monotonic() if self.funded_until else self.funding_lease_s,
            report_interval_s=self.report_interval_s,
            left_for_s=self.left_for_s if self.notices and self.exits(self.generation) else 0,
            upload_urls=self.uploads(),
        )

    def uploads(self) -> UploadUrls:
        """Numbered within the generation, as the service does it."""
        nonce = str(sum(commit.generation == self.generation for commit in self.commits) + 1)
        place = f"{self.url}/objects/g{self.generation}-{nonce}"
        urls = {f"{part}_url": f"{place}.{part}" for part in ("data", "manifest")}
        return UploadUrls(generation=self.generation, nonce=nonce, **urls)

    def resume(self) -> CheckpointDownload:
        """The newest committed checkpoint."""
        commit = self.commits[-1]
        place = f"{self.url}/objects/g{commit.generation}-{commit.nonce}"
        urls = {f"{part}_url": f"{place}.{part}" for part in ("data", "manifest")}
        return CheckpointDownload(step=commit.step, manifest_sha256=commit.manifest_sha256, **urls)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, body: bytes = b"", kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _ServiceHandler(_Handler):
    owner: ClassVar[Service]

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError):
            self.close_connection = True

    def do_GET(self) -> None:
        self.serve(b"")

    def do_PUT(self) -> None:
        self.serve(self.body())

    def do_POST(self) -> None:
        self.serve(self.body())

    def serve(self, body: bytes) -> None:
        service = self.owner
        with service.changed:
            if service.gone:  # this connection is from before
                self.close_connection = True
                return None
            service.calls[self.path.partition("?")[0]] += 1
            fault = next((fault for fault in service.faults if fault.path in self.path), None)
            if fault:
                fault.times -= 1
                if fault.times == 0:
                    service.faults.remove(fault)
            if fault and fault.what == DROP:
                self.close_connection = True
                return None
            if fault and isinstance(fault.what, int):
                return self.answer(fault.what, json.dumps({"code": fault.code, "detail": "as the test wants"}).encode())
            status, answer = self.route(body)
            if fault and fault.what == DROP_REPLY:
                self.close_connection = True
                return None
        return self.answer(status, answer)

    def route(self, body: bytes) -> tuple[int, bytes]:
        service, path = self.owner, self.path.partition("?")[0]
        if path.startswith("/objects/"):
            return self.object(path.removeprefix("/objects/"), body)
        if (
            not path.endswith(("/register", "/boot", "/wheelhouse"))
            and self.headers["Authorization"] != f"Bearer {service.machine}.{service.session}"
        ):
            return 403, b'{"code":"agent-refused","detail":"not this machine\'s session"}'
        try:
            match path.removeprefix("/agent/v1"):
                case "/boot":
                    report = BootReport.model_validate_json(body)
                    assert (report.machine, report.boot_token) == (service.machine, service.boot_token)
                    service.boots.append(report)
                    return 204, b""
                case "/wheelhouse":
                    assert service.wheelhouse is not None
                    answer: Any = service.wheelhouse(WheelhouseRequest.model_validate_json(body))
                case "/register":
                    answer = service.register(RegisterRequest.model_validate_json(body))
                case "/report":
                    answer = service.report(ReportRequest.model_validate_json(body))
                case "/checkpoints":
                    answer = service.commit(CheckpointCommit.model_validate_json(body))
                case "/orders":
                    after = self.path.partition("after=")[2]
                    service.changed.wait_for(lambda: str(service.etag) != after, timeout=5)
                    answer = service.reply()
                case other:
                    raise AssertionError(other)
        except ValidationError as error:
            return 422, json.dumps({"code": "invalid-request", "detail": str(error)}).encode()
        if isinstance(answer, tuple):
            return answer[0], json.dumps(answer[1]).encode()
        return 200, answer.model_dump_json().encode()

    def object(self, name: str, body: bytes) -> tuple[int, bytes]:
        objects = self.owner.objects
        if self.command == "GET":
            return (200, objects[name]) if name in objects else (404, b"{}")
        assert self.headers["If-None-Match"] == "*"
        if name in objects:
            return 412, b'{"code":"precondition-failed","detail":"something lies there"}'
        objects[name] = body
        return 200, b""


@dataclass
class MetadataService:
    """IMDSv2. `documents` maps a path below /latest/ to its text; a token is good for `token_uses` reads."""

    documents: dict[str, str] = field(default_factory=dict)
    token_uses: int = 1_000_000

    def __post_init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        self.server = _listen(_MetadataHandler, self)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def notice(self, in_s: float, key: str = "action") -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + in_s))
        self.documents["meta-data/spot/instance-action"] = json.dumps({key: "terminate", "time": moment})

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _MetadataHandler(_Handler):
    owner: ClassVar[MetadataService]

    def do_PUT(self) -> None:
        assert "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        token = uuid4().hex
        self.owner.tokens[token] = self.owner.token_uses
        self.answer(200, token.encode(), "text/plain")

    def do_GET(self) -> None:
        token = self.headers.get("X-aws-ec2-metadata-token", "")
        if self.owner.tokens[token] <= 0:
            return self.answer(401)
        self.owner.tokens[token] -= 1
        text = self.owner.documents.get(self.path.removeprefix("/latest/"))
        self.answer(200, text.encode(), "text/plain") if text is not None else self.answer(404)


def _listen(handler: type[_Handler], owner: Any, port: int = 0) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (handler,), {"owner": owner}))
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server
