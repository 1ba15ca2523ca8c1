# SPDX-License-Identifier: Apache-2.0
"""Run by the service's own machine on EC2 when it boots: `shoestring up`, on a volume that outlives the machine.

The volume has the database, the secret and the TLS key. Certificate and one-time logins go to the private bucket, from
where `shoestring aws up` fetches them. It ends when `up` ends; the user data then powers the machine off.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
from botocore.config import Config
from shoestring_core.tls import trust

from shoestring_worker.providers.ec2.errors import FAILURES
from shoestring_worker.providers.ec2.service_boot import LOGIN_KEY, ServiceBoot, ServiceLogin

FOLDER = "/var/lib"
VOLUME_S, RETRY_S = 300.0, 1.0
"""How long `aws up` may take to attach the volume."""
COMMAND_S = 120.0
LOGIN_EVERY_S, LOGIN_RETRY_S = 300.0, 10.0
"""A login is good for ten minutes."""
CERTIFICATE_DAYS, RENEWED_BEFORE_DAYS = 825, 30
S3_CONFIG = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 5, "mode": "standard"})


class BootFailed(Exception):
    """The service can't run on this machine."""


def main() -> int:
    boot = ServiceBoot.model_validate_json(sys.stdin.read())
    folder = Path(os.environ.get("SHOESTRING_MACHINE_DIR", FOLDER)) / "shoestring-service"
    bucket = _Bucket(boot)
    try:
        mount_volume(boot.volume, folder)
        certificate, key = ensure_certificate(folder, urlsplit(boot.url).hostname or "")
        return run_service(boot, folder / "data", certificate, key, bucket.leave)
    except (BootFailed, OSError, subprocess.SubprocessError) as error:
        print(f"shoestring: {error}", file=sys.stderr, flush=True)
        bucket.leave(ServiceLogin(launch=boot.launch, state="failed", problem=str(error)))
        return 1


def mount_volume(
    volume: str,
    folder: Path,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for the volume, format it if it is blank, and mount it. Raises BootFailed."""
    serial, deadline = volume.replace("-", ""), monotonic() + VOLUME_S
    while (device := _find_device(serial)) is None:
        if monotonic() > deadline:
            raise BootFailed(f"{volume} was not attached within {VOLUME_S:.0f} s. Run again: shoestring aws up")
        sleep(RETRY_S)
    found = _run("blkid", "-p", device)
    if found.returncode == 2:  # nothing was recognized on it; any other failure must not format it
        _require("mkfs", "-t", "ext4", device)
    elif found.returncode != 0:
        raise BootFailed(f"{volume} can't be examined: blkid: {found.stderr.strip()} (exit status {found.returncode})")
    folder.mkdir(parents=True, exist_ok=True)
    _require("mount", device, str(folder))


def ensure_certificate(folder: Path, address: str) -> tuple[Path, Path]:
    """A certificate for the address that signs itself, and its key; made when there is none, or it expires soon."""
    certificate, key = folder / f"{address}.crt", folder / f"{address}.key"
    soon = str(RENEWED_BEFORE_DAYS * 86_400)
    if (
        not certificate.exists()
        or _run("openssl", "x509", "-checkend", soon, "-noout", "-in", str(certificate)).returncode
    ):
        os.umask(0o077)
        made = (str(certificate.with_suffix(".crt.new")), str(key.with_suffix(".key.new")))
        _require(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", "/CN=shoestring", "-addext", f"subjectAltName=IP:{address}", "-days", str(CERTIFICATE_DAYS),
            "-out", made[0], "-keyout", made[1],
        )  # fmt: skip
        Path(made[1]).replace(key)
        Path(made[0]).replace(certificate)  # last: with it the pair is complete
    return certificate, key


def run_service(
    boot: ServiceBoot, data: Path, certificate: Path, key: Path, leave: Callable[[ServiceLogin], bool]
) -> int:
    """Run `up` to its end and leave a login every few minutes. Raises BootFailed if it doesn't start."""
    port = urlsplit(boot.url).port or 443
    command = [sys.executable, "-P", "-m", "shoestring", "up", "--json", "--data", str(data)]
    command += ["--host", "0.0.0.0", "--port", str(port), "--tls-cert", str(certificate), "--tls-key", str(key)]
    command += ["--budget", boot.budget] if boot.budget else []
    named = {"SHOESTRING_PUBLIC_URL": boot.url, "SHOESTRING_AGENT_URL": boot.url}
    named |= {"SHOESTRING_CONFIG": str(data.with_name("login.json"))}
    cost = json.dumps({**boot.hosting, "since": round(time.time())})
    environment = {**os.environ, **boot.environment, **named, "SHOESTRING_HOSTING": cost}
    with (data.with_name("up.log")).open("w+") as log:
        up = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)

        def stop(_number: int, _frame: FrameType | None) -> None:
            up.terminate()

        signal.signal(signal.SIGTERM, stop)
        assert up.stdout is not None
        ready = up.stdout.readline()
        if not ready:
            up.wait()
            raise BootFailed("`shoestring up` did not start: " + " ".join(Path(log.name).read_text().split())[-1_000:])
    login = _Login(boot, port, Path(json.loads(ready)["key_file"]), certificate.read_text())
    while True:
        pause = LOGIN_EVERY_S if leave(login.renew()) else LOGIN_RETRY_S
        try:
            return up.wait(pause)
        except subprocess.TimeoutExpired:
            continue


class _Login:
    """One-time logins of the service that runs here."""

    def __init__(self, boot: ServiceBoot, port: int, key_file: Path, ca: str) -> None:
        self._boot, self._ca = boot, ca
        headers = {"Authorization": f"Bearer {key_file.read_text().strip()}"}
        url = f"https://127.0.0.1:{port}"
        self._http = httpx.Client(base_url=url, headers=headers, timeout=10, trust_env=False, verify=trust(ca))

    def renew(self) -> ServiceLogin:
        """Without a code, if the service does not answer: it is asked again soon."""
        sni = {"sni_hostname": urlsplit(self._boot.url).hostname}
        known = {"launch": self._boot.launch, "url": self._boot.url, "ca": self._ca}
        try:
            answer = self._http.post("/v1/login-codes", extensions=sni).raise_for_status()
        except httpx.HTTPError as error:
            print(f"shoestring: no login: {error}", file=sys.stderr, flush=True)
            return ServiceLogin(**known, state="running")
        return ServiceLogin(**known, state="running", code=answer.json()["code"])


class _Bucket:
    """The account's bucket, by the machine's role."""

    def __init__(self, boot: ServiceBoot) -> None:
        endpoint = boot.environment.get("SHOESTRING_OBJECT_STORE_ENDPOINT_URL")
        self._name = boot.bucket
        self._s3: Any = boto3.client("s3", region_name=boot.region, endpoint_url=endpoint, config=S3_CONFIG)

    def leave(self, login: ServiceLogin) -> bool:
        """Whether a login is there now that can be used."""
        try:
            self._s3.put_object(Bucket=self._name, Key=LOGIN_KEY, Body=login.model_dump_json().encode())
        except FAILURES as error:
            print(f"shoestring: the login can't be left in {self._name}: {error}", file=sys.stderr, flush=True)
            return False
        return bool(login.code)


def _find_device(serial: str) -> str | None:
    """The device of a volume: EC2 gives its id as the serial number of an NVMe device.

    source  docs.aws.amazon.com/ebs/latest/userguide/identify-nvme-ebs-device.html
    """
    for line in _run("lsblk", "--nodeps", "--noheadings", "--paths", "--output", "NAME,SERIAL").stdout.splitlines():
        name, _, found = line.strip().partition(" ")
        if found.strip() == serial:
            return name
    return None


def _require(*command: str) -> None:
    """Raises BootFailed."""
    done = _run(*command)
    if done.returncode != 0:
        raise BootFailed(f"{' '.join(command)}: {done.stderr.strip()[-500:]} (exit status {done.returncode})")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)


if __name__ == "__main__":
    sys.exit(main())
