# SPDX-License-Identifier: Apache-2.0
"""From an empty account to a trained job and back: bootstrap, `aws up`, a job, `aws down`, `aws up`, teardown.

    python -m tests.soak.account --seed N

Against the fake, whose instances execute their user data: the service is installed on one of them from the wheels of
this checkout, runs with its data on a volume, and is reached by https. Each verb is killed in the middle first, at a
line of what it tells that is drawn, and run twice. Afterwards the fake's tables are as they were. `make test` has each
part: the verbs, killed after each of their calls, in `tests/worker/providers/ec2/test_service.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shoestring_worker.fake_ec2.quotas import SPOT
from shoestring_worker.providers.ec2.account.verify_rules import RULES

from tests import servers
from tests.e2e.service import environment, machine_processes
from tests.worker.providers.ec2.test_account import changes, tables
from tests.worker.providers.ec2.test_user_data import PYTHON
from tests.worker.providers.fake_aws import IMAGE, REGION, FakeAws

SEEDS = 2
MAX_LINES = 12
FROM_IMAGE = ("--image-packages", "--python", PYTHON)
"""Of `aws up`: the fake's image has this computer's packages, so that nothing is downloaded."""
JOB = ("digits/quickstart", "epochs=2", "width=8", "resources.provider=ec2", "limits.cost=0.50")


class Terminal:
    """A shell in which bootstrap's settings are loaded. `folder` is the home of everything."""

    def __init__(self, folder: Path, aws: FakeAws, seed: int = 0) -> None:
        self._draw = random.Random(seed)
        self.environment = environment(folder / "user", {}) | {
            "AWS_CONFIG_FILE": os.devnull,
            "SHOESTRING_EC2_ENDPOINT_URL": aws.url,
            "SHOESTRING_EC2_SIMULATED": "true",
            "SHOESTRING_EC2_PYTHON": sys.executable,
            "SHOESTRING_OBJECT_STORE_ENDPOINT_URL": aws.url,
        }

    def run(self, *arguments: str) -> str:
        began = time.monotonic()
        command = [sys.executable, "-m", "shoestring", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        print(f"shoestring {' '.join(arguments)}: {time.monotonic() - began:.1f} s", flush=True)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def kill_in_the_middle(self, *arguments: str) -> None:
        """Start a command and kill it when it has told a drawn number of lines, if it tells so many."""
        command = [sys.executable, "-P", "-m", "shoestring_worker.providers.ec2.account", *arguments[1:]]
        lines = self._draw.randint(1, MAX_LINES)
        with subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as started:  # fmt: skip
            assert started.stderr is not None
            told = list(itertools.islice(started.stderr, lines))
            started.kill()
        print(f"shoestring {' '.join(arguments)}: killed after {told[-1:]}", flush=True)

    def load(self, exports: str) -> None:
        for line in exports.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.environment[name] = shlex.split(value)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    seed = parser.parse_args().seed
    folder = Path(tempfile.mkdtemp(prefix="shoestring-account-"))
    print(f"seed {seed}, in {folder}", flush=True)
    cloud = folder / "cloud"
    host = [sys.executable, "-m", "shoestring_trainer.machinehost", "--dir", str(cloud), "--slots", "4"]
    host.append("--stop-machines-on-exit")
    machines = subprocess.Popen(host, env=environment(folder / "user", {}))
    aws = None
    try:
        servers.until((cloud / "machinehost.json").exists)
        aws = FakeAws.start("--machinehost", str(cloud / "machinehost.json"), settings=folder / "fake.json")
        summary = use(folder, aws, seed)
    finally:
        machines.terminate()
        machines.wait(2 * servers.PATIENCE_S)
        if aws is not None:
            aws.stop()
    assert not machine_processes(folder), "processes of machines are left"
    shutil.rmtree(folder)  # a broken run's is left to look at
    print(json.dumps(summary))
    return 0


def use(folder: Path, aws: FakeAws, seed: int) -> dict[str, Any]:
    """What somebody with an account does; returns figures. The fake's tables are as before."""
    os.environ |= {"AWS_ACCESS_KEY_ID": aws.access_key, "AWS_SECRET_ACCESS_KEY": "none"}
    before, terminal, port = tables(aws), Terminal(folder, aws, seed), str(servers.free_port())
    up = ("aws", "up", *FROM_IMAGE, "--port", port)
    bootstrap = ("aws", "bootstrap", "--image", IMAGE)
    terminal.kill_in_the_middle(*bootstrap)
    terminal.load(made := terminal.run(*bootstrap))
    assert terminal.run(*bootstrap) == made
    terminal.kill_in_the_middle(*up, "--budget", "5")
    began = time.monotonic()
    url = json.loads(terminal.run(*up, "--budget", "5", "--json"))["url"]
    up_s = time.monotonic() - began
    assert re.fullmatch(rf"https://127\.\d+\.\d+\.\d+:{port}", url), url
    job = submit(terminal, seed)
    calls = changes(aws)
    assert json.loads(terminal.run(*up, "--json"))["url"] == url
    assert changes(aws) == calls, "again it changes nothing"
    terminal.kill_in_the_middle("aws", "down")
    terminal.run("aws", "down")
    servers.until(lambda: not aws.instances())  # the service ran on one, and the job's has ended
    terminal.run("aws", "down")
    assert json.loads(terminal.run(*up, "--json"))["url"] == url
    assert end_of(terminal, job) == "succeeded", "its data were on the volume"
    report = folder / "verified.md"
    aws.control("quotas", **{REGION: {SPOT["t"]: 8.0}})
    terminal.run("aws", "verify", "--yes", "--report", str(report))
    assert report.read_text().count("| holds |") == len(RULES) + 1  # the job as well
    terminal.kill_in_the_middle("aws", "teardown", "--yes")
    for _ in range(2):
        terminal.run("aws", "teardown", "--yes")
    assert tables(aws) == before
    return {"up_s": round(up_s, 1)}


def submit(terminal: Terminal, seed: int) -> str:
    """A job, watched to its end; returns its id."""
    submitted = json.loads(terminal.run("submit", *JOB, f"seed={seed}", "--json"))
    job = str(submitted["id"])
    terminal.run("watch", job)
    assert end_of(terminal, job) == "succeeded"
    return job


def end_of(terminal: Terminal, job: str) -> str:
    return str(json.loads(terminal.run("show", job, "--json"))["job"]["end_reason"])


if __name__ == "__main__":
    sys.exit(main())
