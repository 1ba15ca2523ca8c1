# SPDX-License-Identifier: Apache-2.0
"""Serve the API: `python -m shoestring_api`. Settings are SHOESTRING_… variables."""

from __future__ import annotations

import errno
import socket
import sys
from types import FrameType

import uvicorn
from pydantic import ValidationError
from shoestring_core.errors import ShoestringError

from shoestring_api.app import create_app
from shoestring_api.service import Service
from shoestring_api.settings import Settings

BAD_SETTINGS, PORT_IN_USE, NO_DATABASE = 2, 3, 4
GOODBYE_S = 5
"""How long requests under way may take once the process is told to end."""


class Server(uvicorn.Server):
    """Lets streams and held requests go as soon as it is told to end, instead of waiting for their clients."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.wake.close()
        super().handle_exit(sig, frame)


def main() -> int:
    try:
        settings = Settings()
    except ValidationError as error:
        names = [f"SHOESTRING_{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']}" for fault in error.errors()]
        return _fail(BAD_SETTINGS, "; ".join(names))
    try:
        listener = _listen(settings)
    except OSError as error:
        return _fail(PORT_IN_USE, _why_not(settings, error))
    try:
        service = Service.open(settings)
    except ShoestringError as error:
        return _fail(NO_DATABASE, " ".join(filter(None, (error.message, error.hint))))
    except (ValueError, OSError) as error:
        return _fail(BAD_SETTINGS, str(error))
    config = uvicorn.Config(
        create_app(service),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GOODBYE_S,
        server_header=False,
    )
    server = Server(config, service)
    server.run(sockets=[listener])
    return 0


def _listen(settings: Settings) -> socket.socket:
    """Bound before anything else is opened, so that a second service on the same port touches nothing."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(False)
    return listener


def _why_not(settings: Settings, error: OSError) -> str:
    place = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"Port {settings.port} is in use. Stop what runs at {place}, or choose another with SHOESTRING_PORT."
    return f"Can't listen at {place}: {error.strerror}. Check SHOESTRING_HOST and SHOESTRING_PORT."


def _fail(code: int, message: str) -> int:
    print(f"shoestring api: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
