# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_worker.fake_ec2`: serve on loopback; the first line of output is the URL."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HOST = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m shoestring_worker.fake_ec2")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0: any free one")
    port = parser.parse_args().port
    # read when moto is imported: one image in place of its 1,300
    os.environ["MOTO_AMIS_PATH"] = str(Path(__file__).with_name("images.json"))

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    from shoestring_worker.fake_ec2.control import with_control
    from shoestring_worker.fake_ec2.server import FakeEc2

    class QuietHandler(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: object) -> None:
            """Requests are listed at /_fake/calls."""

    app = with_control(FakeEc2(DomainDispatcherApplication(create_backend_app)))
    server = make_server(HOST, port, app, threaded=True, request_handler=QuietHandler)
    print(f"http://{HOST}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
