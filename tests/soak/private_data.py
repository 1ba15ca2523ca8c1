# SPDX-License-Identifier: Apache-2.0
"""Jobs on a fake EC2 whose data are in private buckets: who reads them, with which role, and who gets none.

    python -m tests.soak.private_data --seed N

The whole service with one role for data, which reads one bucket: a job copies images from it, one streams shards, one
names a bucket that the role doesn't read, and one needs no data. `make test` has the parts: the request in
`tests/worker/providers/ec2/test_data_role.py`, the machine in `tests/worker/fake_ec2/test_machines.py`, what ranks
reach in `test_metadata_filter.py` beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
from PIL import Image
from shoestring import Client
from shoestring.fake_ec2 import FakeEc2
from shoestring.up import LocalService, ServiceOptions
from shoestring_core import rest
from shoestring_core.machine_network import COMPUTER

from tests import servers
from tests.e2e.service import machine_processes, until
from tests.trainer.machinehost.own_networks import STATUS
from tests.worker.providers.fake_aws import REGION, make_data_role

SEEDS = 1
ROLE, BUCKET, OTHER_BUCKET = "training-data", "private-images", "other-images"
SIDE, BRIGHTNESS, PER_CLASS = 16, {"dark": 60, "light": 190}, {"train": 48, "val": 16}
PARAMS = {"epochs": 2, "batch_size": 16, "width": 8, "image_size": SIDE, "crop_padding": 2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    seed = parser.parse_args().seed
    folder = Path(tempfile.mkdtemp(prefix="shoestring-private-data-"))
    print(f"seed {seed}, in {folder}", flush=True)
    os.environ |= {"SHOESTRING_EC2_DATA_ROLE": ROLE, "SHOESTRING_CONFIG": str(folder / "login.json")}
    began = time.monotonic()
    draw_images(folder / "images", np.random.default_rng(seed))
    command = [sys.executable, "-m", "shoestring", "data", "prepare", str(folder / "images"), str(folder / "shards")]
    subprocess.run([*command, "--side", str(SIDE)], check=True, stdout=subprocess.DEVNULL)
    data = folder / "service"
    with serving(data) as client:
        fake = FakeEc2.of(data)
        upload(fake, folder)
        make_data_role(fake.url, fake.access_key_id, ROLE, BUCKET)
        require_each_job_reads_what_it_may(client, fake)
        until(lambda: not any(fake.left().values()), "EC2 to have nothing left", every_s=0.5)
    assert not machine_processes(data), "processes of machines are left"
    shutil.rmtree(folder)  # a broken run's is left to look at
    print(json.dumps({"seconds": round(time.monotonic() - began, 1), "load": os.getloadavg()[0]}))
    return 0


def require_each_job_reads_what_it_may(client: Client, fake: FakeEc2) -> None:
    copied = ended(client, data={"train": f"s3://{BUCKET}/images/train"})
    assert copied.end_reason == "succeeded", copied
    if not STATUS.problem:  # else its instances share this computer's network
        told = [str(event.data) for event in client.events(copied.id).events if event.kind == "agent"]
        assert any("training processes can't reach the metadata service" in one for one in told), told
    streamed = ended(client, data={"train": f"s3://{BUCKET}/shards", "stream": True})
    assert streamed.end_reason == "succeeded", streamed
    denied = ended(client, data={"train": f"s3://{OTHER_BUCKET}/images/train"})
    assert denied.end_reason == "data", denied
    assert f"nor with its role {ROLE}" in denied.status_text, denied
    without = ended(client, recipe="digits/quickstart", params={"epochs": 1, "width": 8})
    assert without.end_reason == "succeeded", without
    profiles = [profiles_of(fake, job) for job in (copied, streamed, denied, without)]
    assert profiles == [{ROLE}, {ROLE}, {ROLE}, {""}], profiles


def ended(client: Client, **fields: Any) -> rest.Job:
    spec = {
        "recipe": "imagefolder/resnet9", "params": PARAMS, "limits": {"cost": "0.50"},
        "resources": {"provider": "ec2", "nodes": 1, "gpu": "any"},
    }  # fmt: skip
    job = client.submit(spec | fields).id

    def look() -> rest.Job | None:
        found = client.job(job)
        return found if found.settled_at is not None else None

    return until(look, f"job {job}", 4 * servers.PATIENCE_S, every_s=0.5)


def profiles_of(fake: FakeEc2, job: rest.Job) -> set[str]:
    """The instance profiles that were asked for its machines; "": none."""
    headers = {"Authorization": f"Bearer {fake.access_key_id}"}
    calls = httpx.get(f"{fake.url}/_fake/calls", headers=headers, trust_env=False).raise_for_status().json()
    asked = [call["parameters"] for call in calls if call["action"] == "RunInstances"]
    return {one.get("IamInstanceProfile.Name", "") for one in asked if str(job.id) in one.values()}


def upload(fake: FakeEc2, folder: Path) -> None:
    s3 = client_of(fake, "s3")
    for bucket in (BUCKET, OTHER_BUCKET):
        s3.create_bucket(Bucket=bucket)
        for file in (*folder.glob("images/*/*/*"), *folder.glob("shards/*")):
            s3.put_object(Bucket=bucket, Key=str(file.relative_to(folder)), Body=file.read_bytes())


def client_of(fake: FakeEc2, service: str) -> Any:
    credentials = {"aws_access_key_id": fake.access_key_id, "aws_secret_access_key": "none"}
    return boto3.client(service, region_name=REGION, endpoint_url=fake.url, **credentials)


def draw_images(folder: Path, draw: np.random.Generator) -> None:
    for split, name in itertools.product(PER_CLASS, BRIGHTNESS):
        (folder / split / name).mkdir(parents=True)
        for number in range(PER_CLASS[split]):
            pixels = np.clip(draw.normal(BRIGHTNESS[name], 30, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{number:02d}.png")


@contextmanager
def serving(data: Path) -> Iterator[Client]:
    running = LocalService(ServiceOptions(data, COMPUTER, servers.free_port(), budget="100", fake_ec2=True), print)
    try:
        connection = running.start()
        with Client(connection.url, connection.key) as client:
            yield client
    finally:
        running.stop()


if __name__ == "__main__":
    sys.exit(main())
