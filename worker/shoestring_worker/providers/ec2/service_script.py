# SPDX-License-Identifier: Apache-2.0
"""What the service's machine runs when it boots, as root: its user data, with `boot_wheels.py`.

It installs the service's environment from the wheelhouse in the account's bucket, by the credentials of its role, and
runs the service to its end. Then, and when it fails, it powers the machine off. What failed is left in the bucket.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from shoestring_worker.providers.ec2.boot_wheels import (
    PHASE_S,
    RETRY_S,
    TRIES,
    Environment,
    PhaseFailed,
    open_url,
    power_off,
)

FOLDER = "/var/lib/shoestring"
METADATA = "http://169.254.169.254"
CALL_S, URL_S = 10.0, 900
COMMAND = "shoestring aws up"


def main(boot: dict[str, Any], python: str, wheelhouse: dict[str, str], module: str, login_key: str) -> None:
    """
    boot        the service's boot data, a ServiceBoot
    python      of the environment that the image has
    wheelhouse  the one to install in its place: its name, the key of its manifest, and how those of its files begin;
                {}: none
    module      runs the service
    login_key   of the object that says why it does not run
    """
    folder = Path(os.environ.get("SHOESTRING_MACHINE_DIR", FOLDER))
    bucket = Bucket(boot)
    try:
        if wheelhouse:
            python = install(bucket, wheelhouse, folder / "environments")
        run_service(boot, python, module)
    except (PhaseFailed, OSError, ValueError, subprocess.SubprocessError) as failure:
        print(f"shoestring: {failure}; powering off", file=sys.stderr, flush=True)
        bucket.leave(login_key, {"launch": boot["launch"], "state": "failed", "problem": str(failure)})
    finally:
        power_off()


def install(bucket: Bucket, wheelhouse: dict[str, str], environments: Path) -> str:
    """The Python of a wheelhouse's environment. Raises PhaseFailed, OSError, SubprocessError."""
    name = wheelhouse["name"]
    environment = Environment(environments / name, name, "shoestring", COMMAND, "use an image with a larger one")
    tell(environment.read(bucket.read(wheelhouse["manifest"])))
    if not environment.is_installed:
        files = environment.manifest["files"]
        tell(environment.download([bucket.sign("GET", wheelhouse["files"] + file["sha256"]) for file in files]))
        tell(environment.install())
    return str(environment.python)


def run_service(boot: dict[str, Any], python: str, module: str) -> None:
    """Run it to its end; it says itself why it can't."""
    service = subprocess.Popen([python, "-P", "-m", module], stdin=subprocess.PIPE, text=True)
    signal.signal(signal.SIGTERM, lambda *_: service.terminate())
    assert service.stdin is not None
    with service.stdin as given:
        given.write(json.dumps(boot))
    service.wait()


class Bucket:
    """The account's bucket, by the credentials of the machine's role."""

    def __init__(self, boot: dict[str, Any]) -> None:
        self.name, self.region = boot["bucket"], boot["region"]
        self.endpoint = boot["environment"].get("SHOESTRING_OBJECT_STORE_ENDPOINT_URL", "")
        self.credentials: dict[str, str] = {}

    def read(self, key: str) -> bytes:
        """An object. Raises PhaseFailed."""
        for left in reversed(range(TRIES)):
            try:
                with open_url(self.sign("GET", key), CALL_S) as answer:
                    content: bytes = answer.read()
                    return content
            except urllib.error.HTTPError as error:
                said = error.read(500).decode("utf-8", "replace")
                if error.code < 500 or not left:
                    raise PhaseFailed(f"{key} can't be read from {self.name}: {error}: {said}") from error
            except OSError as error:
                if not left:
                    raise PhaseFailed(f"{self.name} can't be reached: {error}", "network") from error
            time.sleep(RETRY_S)
        raise AssertionError

    def leave(self, key: str, content: dict[str, str]) -> None:
        """Write an object; what keeps it from that goes to the machine's console."""
        try:
            body = json.dumps(content).encode()
            headers = {"Content-Type": "application/json"}
            open_url(urllib.request.Request(self.sign("PUT", key), body, headers, method="PUT"), CALL_S).close()
        except (OSError, PhaseFailed) as error:
            print(f"shoestring: {key} can't be left in {self.name}: {error}", file=sys.stderr, flush=True)

    def sign(self, method: str, key: str) -> str:
        """A URL that is good for 15 minutes. Raises PhaseFailed."""
        self.credentials = self.credentials or ask_for_credentials()
        base = (
            f"{self.endpoint}/{self.name}" if self.endpoint else f"https://{self.name}.s3.{self.region}.amazonaws.com"
        )
        return presign(method, f"{base}/{quote(key)}", self.region, self.credentials, time.gmtime())


def presign(method: str, url: str, region: str, credentials: dict[str, str], now: time.struct_time) -> str:
    """AWS's signature in the query: docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html"""
    at, day = time.strftime("%Y%m%dT%H%M%SZ", now), time.strftime("%Y%m%d", now)
    scope = f"{day}/{region}/s3/aws4_request"
    query = urlencode(
        sorted(
            {
                "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
                "X-Amz-Credential": f"{credentials['AccessKeyId']}/{scope}",
                "X-Amz-Date": at,
                "X-Amz-Expires": str(URL_S),
                "X-Amz-Security-Token": credentials["Token"],
                "X-Amz-SignedHeaders": "host",
            }.items()
        ),
        quote_via=quote,
        safe="-_.~",
    )
    _, _, host, path = url.split("/", 3)
    request = "\n".join((method, f"/{path}", query, f"host:{host}", "", "host", "UNSIGNED-PAYLOAD"))
    text = "\n".join(("AWS4-HMAC-SHA256", at, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{credentials['SecretAccessKey']}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return f"{url}?{query}&X-Amz-Signature={hmac.new(key, text.encode(), hashlib.sha256).hexdigest()}"


def ask_for_credentials() -> dict[str, str]:
    """Of the machine's role, which may be known some seconds after it boots. Raises PhaseFailed.

    source  docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html
    """
    url = f"{os.environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT', METADATA).rstrip('/')}/latest"
    roles, deadline = f"{url}/meta-data/iam/security-credentials/", time.monotonic() + PHASE_S
    while True:
        try:
            asked = urllib.request.Request(
                f"{url}/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT"
            )
            headers = {"X-aws-ec2-metadata-token": read(asked)}
            role = read(urllib.request.Request(roles, headers=headers)).strip()
            found: dict[str, str] = json.loads(read(urllib.request.Request(roles + role, headers=headers)))
            return found
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise PhaseFailed(f"the machine has no credentials of a role: {error}") from error
        time.sleep(RETRY_S)


def read(request: urllib.request.Request) -> str:
    """Raises OSError."""
    with open_url(request, CALL_S) as answer:
        return str(answer.read().decode())


def tell(message: str) -> None:
    """On the machine's console."""
    print(f"shoestring: {message}", flush=True)
