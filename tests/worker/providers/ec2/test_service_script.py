# SPDX-License-Identifier: Apache-2.0
"""The user data of the service's machine, executed: by the credentials of its role it installs what the bucket has."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from botocore.config import Config
from shoestring_core.wheelhouse import WheelFile, Wheelhouse, file_key, manifest_key
from shoestring_worker.fake_ec2.s3 import SECRET_ACCESS_KEY
from shoestring_worker.providers.ec2 import service_boot
from shoestring_worker.providers.ec2.service_boot import LOGIN_KEY, ServiceBoot, ServiceLogin
from shoestring_worker.providers.ec2.service_script import presign

from tests.servers import PATIENCE_S
from tests.worker.providers.ec2.test_user_data import PYTHON, make_wheel
from tests.worker.providers.fake_aws import REGION, FakeAws

BUCKET = f"shoestring-123456789012-{REGION}"
ROLE = {"AccessKeyId": "any", "SecretAccessKey": SECRET_ACCESS_KEY, "Token": "a+token/with=signs"}
SERVICE = """
import os, pathlib, sys
folder = pathlib.Path(os.environ["SHOESTRING_MACHINE_DIR"])
(folder / "service-got").write_text(sys.stdin.read())
(folder / "service-ran").write_text(sys.executable)
"""


@pytest.fixture
def metadata() -> Iterator[str]:
    """The metadata service of a machine that has a role, which is asked as IMDSv2 is."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            assert self.path == "/latest/api/token"
            assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
            self.answer("session")

        def do_GET(self) -> None:
            assert self.headers["X-aws-ec2-metadata-token"] == "session"
            path = "/latest/meta-data/iam/security-credentials/"
            self.answer({path: "service\n", f"{path}service": json.dumps(ROLE)}[self.path])

        def answer(self, content: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


class Machine:
    """A folder with `poweroff`, and a bucket with a wheelhouse."""

    def __init__(self, folder: Path, metadata: str, aws: FakeAws) -> None:
        self.folder, self.metadata, self.aws = folder, metadata, aws
        poweroff = folder / "bin" / "poweroff"
        poweroff.parent.mkdir()
        poweroff.write_text(f"#!/bin/sh\n: > {folder}/off\n")
        poweroff.chmod(0o700)
        aws.s3().create_bucket(Bucket=BUCKET)
        self.boot_data = ServiceBoot(
            launch="token", volume="vol-0a", url="https://203.0.113.7:8443", bucket=BUCKET, region=REGION, budget="25",
            environment={"SHOESTRING_OBJECT_STORE_ENDPOINT_URL": aws.url}, hosting={},
        )  # fmt: skip

    def stock(self, **wheels: bytes) -> str:
        """Make a wheelhouse of wheels whose names and contents these are; returns its name."""
        files = []
        for name, content in wheels.items():
            sha256 = hashlib.sha256(content).hexdigest()
            files.append(WheelFile(name=f"{name}-1-py3-none-any.whl", bytes=len(content), sha256=sha256))
            self.put(file_key(sha256), content)
        wheelhouse = Wheelhouse(python=PYTHON, from_image=True, files=tuple(files))
        self.put(manifest_key(wheelhouse.name), wheelhouse.as_bytes())
        return wheelhouse.name

    def put(self, key: str, content: bytes) -> None:
        self.aws.s3().put_object(Bucket=BUCKET, Key=f"service/{key}", Body=content)

    def boot(self, wheelhouse: str) -> subprocess.CompletedProcess[str]:
        script = self.folder / "script"
        script.write_text(service_boot.render(self.boot_data, "/no/python", wheelhouse))
        script.chmod(0o700)
        path = os.pathsep.join((str(self.folder / "bin"), str(Path(sys.executable).parent), os.defpath))
        environment = {"PATH": path, "SHOESTRING_MACHINE_DIR": str(self.folder)}
        return subprocess.run(
            [script], env=environment | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata}, capture_output=True,
            text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def login(self) -> ServiceLogin:
        return ServiceLogin.model_validate_json(
            self.aws.s3().get_object(Bucket=BUCKET, Key=LOGIN_KEY)["Body"].read()
        )  # fmt: skip

    def is_off(self) -> bool:
        """And on again."""
        off = self.folder / "off"
        was_off = off.exists()
        off.unlink(missing_ok=True)
        return was_off


@pytest.fixture
def machine(tmp_path: Path, metadata: str, aws: FakeAws) -> Machine:
    return Machine(tmp_path, metadata, aws)


def test_it_installs_the_wheelhouse_runs_the_service_with_its_boot_data_and_powers_off(machine: Machine) -> None:
    name = machine.stock(
        shoestring=make_wheel("shoestring", __init__="", __main__=""),
        shoestring_worker=make_wheel("shoestring_worker", **{"providers/ec2/service_machine": SERVICE}),
    )
    done = machine.boot(name)
    assert (done.stderr, machine.is_off()) == ("", True)
    assert "2 wheels, 0.00 MB, for Python" in done.stdout
    assert ServiceBoot.model_validate_json((machine.folder / "service-got").read_text()) == machine.boot_data
    assert (machine.folder / "service-ran").read_text() == f"{machine.folder}/environments/{name}/bin/python"


def test_what_keeps_it_from_installing_is_left_in_the_bucket_and_it_powers_off(machine: Machine) -> None:
    name = machine.stock(shoestring=b"no wheel")
    machine.put(file_key(hashlib.sha256(b"no wheel").hexdigest()), b"no wheal")
    assert "not what was stored" in machine.boot(name).stderr
    login = machine.login()
    assert (login.launch, login.state, machine.is_off()) == ("token", "failed", True)
    assert login.problem.endswith("is not what was stored (SHA-256): run `shoestring aws up`, which makes it again")
    machine.boot("0" * 64)
    assert "service/wheelhouse/manifests/000" in machine.login().problem
    machine.boot("")  # the image's own environment is not there
    assert "/no/python" in machine.login().problem
    assert machine.is_off()


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_its_signatures_are_those_of_boto(method: str) -> None:
    key = "service/wheelhouse/files/a b+c"
    s3 = boto3.client(
        "s3", region_name="eu-west-1", aws_access_key_id=ROLE["AccessKeyId"],
        aws_secret_access_key=ROLE["SecretAccessKey"], aws_session_token=ROLE["Token"],
        config=Config(signature_version="s3v4", s3={"addressing_style": "virtual"}),
    )  # fmt: skip
    arguments = {"Params": {"Bucket": BUCKET, "Key": key}, "ExpiresIn": 900}
    theirs = urlsplit(s3.generate_presigned_url({"GET": "get_object", "PUT": "put_object"}[method], **arguments))
    asked = parse_qs(theirs.query)
    at = time.strptime(asked["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ")
    ours = urlsplit(presign(method, f"https://{theirs.netloc}{theirs.path}", "eu-west-1", ROLE, at))
    assert (ours.netloc, ours.path, parse_qs(ours.query)) == (theirs.netloc, theirs.path, asked)
    assert theirs.netloc == f"{BUCKET}.s3.eu-west-1.amazonaws.com"
