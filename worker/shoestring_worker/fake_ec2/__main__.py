# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_worker.fake_ec2`: serve on loopback; the first line of output is the URL."""

from __future__ import annotations

import argparse
import json
import os
import secrets
from pathlib import Path

from shoestring_core.machine_network import COMPUTER

BUCKET = "shoestring"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m shoestring_worker.fake_ec2")
    parser.add_argument("--host", default="127.0.0.1", help="address on loopback")
    parser.add_argument("--port", type=int, default=0, help="port; 0: any free one")
    parser.add_argument("--machinehost", type=Path, help="machinehost.json of the machine host that runs the instances")
    parser.add_argument("--settings", type=Path, help="file to write a service's settings to; there is a bucket then")
    parser.add_argument(
        "--network", choices=("shared", "own", "auto"), default="shared",
        help=f"of each instance: this computer's, or its own, where it reaches this computer at {COMPUTER} alone (give "
        "that to --host too); auto: its own where that can be",
    )  # fmt: skip
    options = parser.parse_args()
    # read when moto is imported: one image in place of its 1,300
    os.environ["MOTO_AMIS_PATH"] = str(Path(__file__).with_name("images.json"))

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    from shoestring_worker.fake_ec2 import estimates, moto_backend
    from shoestring_worker.fake_ec2.control import with_control
    from shoestring_worker.fake_ec2.machines import Machines
    from shoestring_worker.fake_ec2.role_keys import RoleKeys
    from shoestring_worker.fake_ec2.server import FakeEc2
    from shoestring_worker.machinehost_client import MachineHostClient

    class QuietHandler(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: object) -> None:
            """Requests are listed at /_fake/calls."""

    machines, access_key, roles = None, None, None
    if options.machinehost is not None:
        access_key = secrets.token_urlsafe(16)
        roles = RoleKeys(access_key)
        volumes = options.machinehost.absolute().parent / "volumes"
        machines = Machines(MachineHostClient(options.machinehost), volumes, roles, options.network)
        if options.network == "own" and (status := machines.network_status()).problem:
            parser.error(status.refusal())
    fake = FakeEc2(DomainDispatcherApplication(create_backend_app), machines, access_key, roles)
    server = make_server(options.host, options.port, with_control(fake), threaded=True, request_handler=QuietHandler)
    url = f"http://{options.host}:{server.server_port}"
    if machines is not None:
        machines.s3_url = url
    if options.settings is not None:
        fake.spot_market.set(estimates.spot_prices())
        moto_backend.create_bucket(BUCKET)
        settings = {
            "endpoint_url": url, "access_key_id": access_key or "any", "regions": estimates.regions(), "bucket": BUCKET,
        }  # fmt: skip
        write_private(options.settings, json.dumps(settings))
    print(url, flush=True)
    server.serve_forever()


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, readable by its owner alone: the key in it lets its holder execute commands."""
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


if __name__ == "__main__":
    main()
