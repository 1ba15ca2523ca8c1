# SPDX-License-Identifier: Apache-2.0
"""A local machine's metadata service, on loopback: the part of EC2's IMDSv2 that an agent needs.

source  "Use the Instance Metadata Service" and "Spot Instance interruption notices", Amazon EC2 User Guide
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socketserver
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from shoestring_trainer.machinehost.journal import MachineRecord

TOKEN, TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
LONGEST_TTL_S = 21600


def lookup(record: MachineRecord, user_data: str, path: str) -> str | None:
    """The document at `path`, or None if there is none (yet): a spot notice exists from the notice on."""
    if path == "/latest/user-data":
        return user_data or None
    documents = {
        "instance-id": record.id,
        "instance-type": record.type,
        "instance-life-cycle": "spot" if record.market == "spot" else "on-demand",
        "local-ipv4": "127.0.0.1",
        "placement/availability-zone": "local",
    }
    if record.taken_at is not None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.taken_at / 1e6))
        documents["spot/instance-action"] = f'{{"action":"terminate","time":"{moment}"}}'
        documents["spot/termination-time"] = moment
    return documents.get(path.removeprefix("/latest/meta-data/"))


class LoopbackServer(ThreadingHTTPServer):
    """An HTTP server for this computer only. It listens from the start, and answers once `serve_forever` runs."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", port), handler)

    def server_bind(self) -> None:
        """Without HTTPServer's reverse look-up of its own name, which may hang where DNS does."""
        socketserver.TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class MetadataServer(LoopbackServer):
    """Shows what its `record` says at the moment."""

    def __init__(self, record: MachineRecord, user_data: str) -> None:
        super().__init__(0, _Handler)
        self.record = record
        self.user_data = user_data
        self._secret = secrets.token_bytes(32)

    def issue_token(self, ttl_s: int) -> str:
        """A token that says itself until when it holds, so that none need be kept."""
        until = str(int(time.monotonic()) + ttl_s)
        return f"{until}.{self._sign(until)}"

    def accepts(self, token: str) -> bool:
        until, _, signature = token.partition(".")
        genuine = hmac.compare_digest(self._sign(until).encode(), signature.encode())
        return genuine and time.monotonic() < int(until)

    def _sign(self, until: str) -> str:
        return hmac.new(self._secret, until.encode(), hashlib.sha256).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: MetadataServer
    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token":
            self._answer(404, "no such document")
        elif "X-Forwarded-For" in self.headers:  # as EC2 does: a token must not leave through a proxy
            self._answer(403, "not through a proxy")
        elif ttl := _ttl_s(self.headers.get(TTL, "")):
            self._answer(200, self.server.issue_token(ttl), {TTL: str(ttl)})
        else:
            self._answer(400, f"{TTL} must be 1 to {LONGEST_TTL_S}")

    def do_GET(self) -> None:
        if not self.server.accepts(self.headers.get(TOKEN, "")):
            self._answer(401, f"send {TOKEN}, from PUT /latest/api/token")
        elif document := lookup(self.server.record, self.server.user_data, self.path.rstrip("/")):
            self._answer(200, document)
        else:
            self._answer(404, "no such document")

    def _answer(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status >= 400:  # a refused request's body may lie unread on the connection
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """An agent asks every second or two; that is no news."""


def _ttl_s(text: str) -> int | None:
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(LONGEST_TTL_S)) else 0
    return seconds if 1 <= seconds <= LONGEST_TTL_S else None
