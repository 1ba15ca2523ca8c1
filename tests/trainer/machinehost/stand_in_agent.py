# SPDX-License-Identifier: Apache-2.0
"""Runs on a local machine instead of the agent. Its user data says what it does; its pids are in pids.json.

exit          exit immediately with this code
ignore_term   ignore SIGTERM
children      "group" = a child in its own process group; "daemon" = a double-forked child in its own session that
              ignores SIGTERM; "unmarked" = such a daemon with an empty environment
leave         exit with code 0 as soon as the metadata contain a preemption notice
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ENDPOINT = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
LINGER = (
    "import os, signal, sys, time\nsignal.signal(15, signal.SIG_IGN)\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
)
DETACH = f"import os\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n{LINGER}"


def main() -> None:
    user_data = json.loads(metadata("user-data") or "{}")
    if user_data.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pids = {"agent": os.getpid()} | {kind: start(kind) for kind in user_data.get("children", [])}
    Path("pids.json.new").write_text(json.dumps(pids))
    Path("pids.json.new").rename("pids.json")
    if "exit" in user_data:
        sys.exit(user_data["exit"])
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if user_data.get("leave") and metadata("meta-data/spot/instance-action"):
            sys.exit(0)
        time.sleep(0.02)


def start(kind: str) -> int:
    child = subprocess.Popen(
        [sys.executable, "-c", LINGER if kind == "group" else DETACH],
        stdout=subprocess.PIPE,
        env={} if kind == "unmarked" else None,
        process_group=0 if kind == "group" else None,
    )
    return int(child.stdout.readline())


def metadata(path: str) -> str | None:
    token = request("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    try:
        return request("GET", path, {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def request(method: str, path: str, headers: dict[str, str]) -> str:
    message = urllib.request.Request(f"{ENDPOINT}/latest/{path}", method=method, headers=headers)
    with urllib.request.urlopen(message, timeout=5) as reply:
        return reply.read().decode()


if __name__ == "__main__":
    main()
