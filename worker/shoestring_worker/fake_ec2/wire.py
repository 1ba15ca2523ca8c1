# SPDX-License-Identifier: Apache-2.0
"""What requests and answers look like: EC2's Query protocol has form fields in a POST, and XML in the answer."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

Environ = dict[str, Any]

_CREDENTIAL = re.compile(r"Credential=([^/]+)/\d{8}/([a-z0-9-]+)/([a-z0-9-]+)/")


@dataclass(frozen=True)
class Call:
    """One request. `region`: of its signature, which nobody checks."""

    region: str
    action: str
    parameters: dict[str, str]


@dataclass(frozen=True)
class Answer:
    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def is_success(self) -> bool:
        return self.status.startswith("200")


def read_call(environ: Environ) -> Call:
    """The call in a request, whose body can be read again afterwards."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    if target := environ.get("HTTP_X_AMZ_TARGET"):  # a service that speaks JSON
        document = json.loads(body or b"{}")
        given = {name: value for name, value in document.items() if isinstance(value, str)}
        filters = {f"Filter.{one['Field']}": one["Value"] for one in document.get("Filters", ())}
        return Call(region(environ), target.rpartition(".")[2], given | filters)
    parameters = dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True))
    return Call(region(environ), parameters.pop("Action", ""), parameters)


def access_key_id(environ: Environ) -> str:
    """The key that a request is signed with; "" without a signature."""
    return _scope(environ)[0]


def region(environ: Environ) -> str:
    return _scope(environ)[1]


def service(environ: Environ) -> str:
    """The service that a request is signed for, such as ec2; "" without a signature."""
    return _scope(environ)[2]


def _scope(environ: Environ) -> tuple[str, str, str]:
    """Access key, region and service of a signature, in a header or in a presigned URL."""
    signed = environ.get("HTTP_AUTHORIZATION") or unquote(environ.get("QUERY_STRING", ""))
    found = _CREDENTIAL.search(signed)
    return (found[1], found[2], found[3]) if found else ("", "us-east-1", "")


def error_answer(status: int, code: str, message: str) -> Answer:
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html, "Example error response"."""
    error = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    return xml_answer(f"{status} ERROR", f"<Response><Errors>{error}</Errors><RequestID>fake</RequestID></Response>")


def json_answer(document: Mapping[str, Any]) -> Answer:
    body = json.dumps(document).encode()
    return Answer("200 OK", (("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(body)))), body)


def xml_answer(status: str, document: str) -> Answer:
    body = document.encode()
    return Answer(status, (("Content-Type", "text/xml"), ("Content-Length", str(len(body)))), body)


def json_error_answer(status: int, code: str, message: str) -> Answer:
    """smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html"""
    body = json.dumps({"__type": code, "message": message}).encode()
    return Answer(f"{status} ERROR", (("Content-Type", "application/x-amz-json-1.1"),), body)
