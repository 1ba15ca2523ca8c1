# SPDX-License-Identifier: Apache-2.0
"""A local machine's metadata service, on loopback: the part of EC2's IMDSv2 that the agent needs.

source  "Use the Instance Metadata Service", "Spot Instance interruption notices" and "EC2 instance rebalance
        recommendations", Amazon EC2 User Guide
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socketserver
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from shoestring_trainer.machinehost.journal import MachineRecord
from shoestring_trainer.machinehost.network import METADATA_ADDRESS

TOKEN_HEADER, TTL_HEADER = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
MAX_TTL_S = 21600


def find_document(record: MachineRecord, user_data: str, path: str) -> str | None:
    """The document at `path`, or None. The spot documents exist from the preemption notice on."""
    if path == "/latest/user-data":
        return user_data or None
    documents = {
        "instance-id": record.id,
        "instance-type": record.type,
        "instance-life-cycle": "spot" if record.market == "spot" else "on-demand",
        "local-ipv4": record.address,
        "placement/availability-zone": "local",
    }
    if record.interface and record.interface.addresses[1:]:
        documents["public-ipv4"] = record.interface.addresses[1]
    if record.rebalance_at is not None:
        notice_time = _by_its_wall_clock(record, record.rebalance_at)
        documents["events/recommendations/rebalance"] = f'{{"noticeTime":"{notice_time}"}}'
    if record.preempt_at is not None:
        preempt_time = _by_its_wall_clock(record, record.preempt_at)
        documents["spot/instance-action"] = f'{{"action":"terminate","time":"{preempt_time}"}}'
        documents["spot/termination-time"] = preempt_time
    return (documents | record.metadata).get(path.removeprefix("/latest/meta-data/"))


def _by_its_wall_clock(record: MachineRecord, at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((at + record.clock.shift()) / 1e6))


class LoopbackServer(ThreadingHTTPServer):
    """An HTTP server, on loopback by default. It listens once constructed, and answers while `serve_forever` runs."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler], host: str = "127.0.0.1") -> None:
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Skip HTTPServer's reverse lookup of its own name, which may hang with DNS."""
        socketserver.TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"


class MetadataServer(LoopbackServer):
    """Serves the documents of `record`, which its owner may replace at any time."""

    def __init__(self, record: MachineRecord, user_data: str) -> None:
        if record.interface:  # where the machine alone reaches it
            super().__init__(80, _Handler, METADATA_ADDRESS)
            self.prefix = ""
        else:  # all that runs on this computer shares its loopback
            super().__init__(0, _Handler)
            self.prefix = "/" + secrets.token_urlsafe(16)
        self.record = record
        self.user_data = user_data
        self._secret = secrets.token_bytes(32)

    @property
    def url(self) -> str:
        """On loopback with a path that can't be guessed."""
        return super().url + self.prefix

    def issue_token(self, ttl_s: int) -> str:
        """A signed token that contains its expiry, so that none is stored."""
        expires = str(int(time.monotonic()) + ttl_s)
        return f"{expires}.{self._sign(expires)}"

    def is_valid(self, token: str) -> bool:
        expires, _, signature = token.partition(".")
        genuine = hmac.compare_digest(self._sign(expires).encode(), signature.encode())
        return genuine and time.monotonic() < int(expires)

    def _sign(self, expires: str) -> str:
        return hmac.new(self._secret, expires.encode(), hashlib.sha256).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: MetadataServer
    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        if self._path() != "/latest/api/token":
            self._reply(404, "no such document")
        elif "X-Forwarded-For" in self.headers:  # as EC2 does: a proxy must not obtain a token
            self._reply(403, "not through a proxy")
        elif ttl := _parse_ttl_s(self.headers.get(TTL_HEADER, "")):
            self._reply(200, self.server.issue_token(ttl), {TTL_HEADER: str(ttl)})
        else:
            self._reply(400, f"{TTL_HEADER} must be 1 to {MAX_TTL_S}")

    def do_GET(self) -> None:
        if not self.server.is_valid(self.headers.get(TOKEN_HEADER, "")):
            self._reply(401, f"send {TOKEN_HEADER}, from PUT /latest/api/token")
        elif document := find_document(self.server.record, self.server.user_data, self._path().rstrip("/")):
            self._reply(200, document)
        else:
            self._reply(404, "no such document")

    def _path(self) -> str:
        """Below the server's prefix; "" for others."""
        if not self.server.prefix:
            return self.path
        prefix, slash, path = self.path[1:].partition("/")
        return slash + path if hmac.compare_digest(f"/{prefix}".encode(), self.server.prefix.encode()) else ""

    def _reply(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status >= 400:  # the unread body of a rejected request must not be parsed as the next request
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """The agent polls every second or two: requests are not logged."""


def _parse_ttl_s(text: str) -> int | None:
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_TTL_S)) else 0
    return seconds if 1 <= seconds <= MAX_TTL_S else None
