# SPDX-License-Identifier: Apache-2.0
"""The machine host's HTTP API, on loopback. Every request needs the key of machinehost.json."""

from __future__ import annotations

import hmac
import json
import logging
import math
import re
import secrets
import sys
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from shoestring_trainer.machinehost.clock import wall_us
from shoestring_trainer.machinehost.errors import RequestRejected, require
from shoestring_trainer.machinehost.host import MachineHost
from shoestring_trainer.machinehost.init import GRACE_S
from shoestring_trainer.machinehost.metadata import LoopbackServer

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 1024
MAX_GRACE_S = 3600.0


class HostServer(LoopbackServer):
    """Serves `host`, which is set before `serve_forever` runs."""

    host: MachineHost

    def __init__(self, port: int) -> None:
        super().__init__(port, _Handler)
        self.key = secrets.token_urlsafe(32)

    def handle_error(self, *_: object) -> None:
        log.warning("a connection failed: %r", sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    server: HostServer
    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._handle_request()

    def do_PUT(self) -> None:
        self._handle_request()

    def do_POST(self) -> None:
        self._handle_request()

    def do_DELETE(self) -> None:
        self._handle_request()

    def _handle_request(self) -> None:
        try:
            self._authenticate()
            request = self._read_body()
        except RequestRejected as rejection:
            self._reply(rejection.status, rejection.body)
            return
        try:
            status, body = self._route(request)
        except RequestRejected as rejection:
            status, body = rejection.status, rejection.body
        except RecursionError:
            status, body = 400, {"code": "bad-request", "detail": "the body is nested too deeply"}
        except OSError as error:
            detail = f"the machine host can't write to its folder ({error.strerror}): free disk space, then retry"
            status, body = 507, {"code": "storage", "detail": detail}
        except Exception:  # the client gets a reply, and the log the traceback
            log.exception("%s %s failed", self.command, self.path)
            status, body = 500, {"code": "internal", "detail": "internal error of the machine host; see its log"}
        self._reply(status, body)

    def _authenticate(self) -> None:
        sent = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(sent, f"Bearer {self.server.key}".encode()):
            detail = "send Authorization: Bearer with the key in machinehost.json, which changes at each start"
            raise RequestRejected(401, "unauthorized", detail)

    def _route(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        host, method = self.server.host, self.command
        path, _, query = self.path.partition("?")
        match [unquote(part) for part in path.split("/")[1:]]:
            case ["health"] if method == "GET":
                return 200, {"status": "ok", "slots": host.slots, "now": wall_us()}
            case ["network"] if method == "GET":
                return 200, asdict(host.network_status())
            case ["machines"] if method == "GET":
                return 200, host.list_machines()
            case ["machines", token] if method == "PUT":
                return host.launch(token, body)
            case ["machines", machine_id] if method == "GET":
                return 200, host.get_machine(machine_id)
            case ["machines", machine_id] if method == "DELETE":
                return 202, host.stop(machine_id, _parse_grace_s(query))
            case ["machines", machine_id, "preempt"] if method == "POST":
                return 202, host.preempt(machine_id, body)
            case ["machines", machine_id, "address"] if method == "POST":
                return 202, host.set_address(machine_id, body)
            case ["machines", machine_id, "rebalance"] if method == "POST":
                return 202, host.recommend_rebalance(machine_id)
            case ["health" | "network" | "machines"] | ["machines", _]:
                raise RequestRejected(405, "method-not-allowed", f"{method} is not allowed for this path")
            case ["machines", _, "preempt" | "rebalance" | "address"]:
                raise RequestRejected(405, "method-not-allowed", f"{method} is not allowed for this path")
        paths = "/health, /network, /machines, /machines/ID, …/preempt, …/rebalance and …/address"
        raise RequestRejected(404, "not-found", f"paths are {paths}")

    def _read_body(self) -> dict[str, Any]:
        """The request's JSON object; {} if it has none."""
        if "Transfer-Encoding" in self.headers:
            raise RequestRejected(411, "length-required", "send the body with a Content-Length")
        length = self.headers.get("Content-Length", "0")
        require(length.isascii() and length.isdigit(), "Content-Length must be a number")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise RequestRejected(413, "too-large", f"a body may have at most {MAX_BODY_BYTES} bytes")
        raw = self.rfile.read(int(length))
        require(len(raw) == int(length), "the body is shorter than its Content-Length")
        try:
            body = json.loads(raw or b"{}", parse_constant=_reject_constant)
        except (ValueError, RecursionError) as error:
            raise RequestRejected(400, "bad-request", f"the body is not JSON: {error}") from None
        require(isinstance(body, dict), "the body must be a JSON object")
        return dict(body)

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if status >= 400:  # the unread body of a rejected request must not be parsed as the next request
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors of http.server itself (malformed request lines, unknown methods), as JSON too."""
        self.close_connection = True
        self._reply(code, {"code": "bad-request", "detail": message or explain or f"HTTP status {code}"})

    def log_message(self, *_: object) -> None:
        """Launches and ends are logged; requests are not."""


def _parse_grace_s(query: str) -> float:
    """The `grace_s` of a query such as grace_s=20; GRACE_S without a query."""
    if not query:
        return GRACE_S
    name, _, value = query.partition("=")
    grace_s = float(value) if name == "grace_s" and re.fullmatch(r"\d{1,4}(\.\d{1,6})?", value) else math.inf
    require(grace_s <= MAX_GRACE_S, f"the query may be grace_s=0 to grace_s={MAX_GRACE_S:.0f} (seconds)")
    return grace_s


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
