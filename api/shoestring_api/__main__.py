# SPDX-License-Identifier: Apache-2.0
"""Serve the API: `python -m shoestring_api`. Settings are SHOESTRING_… variables."""

from __future__ import annotations

import errno
import gc
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from pydantic import ValidationError
from shoestring_core.errors import ShoestringError, explain_setting

from shoestring_api.settings import ApiSettings

if TYPE_CHECKING:
    from shoestring_api.app_state import AppState

BAD_SETTINGS, PORT_IN_USE, NO_DATABASE = 2, 3, 4
"""Exit codes."""
SHUTDOWN_TIMEOUT_S = 5
"""How long requests in progress may take once the process is asked to exit."""


class StreamClosingServer(uvicorn.Server):
    """Ends streams and long polls at a signal to exit, instead of waiting for their clients to disconnect."""

    def __init__(self, config: uvicorn.Config, state: AppState) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._state.notifier.close()
        super().handle_exit(sig, frame)


def main() -> int:
    try:
        settings = ApiSettings()
    except ValidationError as error:
        return _fail(BAD_SETTINGS, "; ".join(explain_setting(one["loc"], one["msg"]) for one in error.errors()))
    try:
        listener = _listen(settings)
    except OSError as error:
        return _fail(PORT_IN_USE, _describe_bind_error(settings, error))
    # The application takes seconds to import: mistakes are said before that, and who connects meanwhile waits.
    # Nothing that is imported is garbage; looking for some would take a fifth of the time.
    gc.disable()
    from shoestring_api.app import create_app
    from shoestring_api.app_state import AppState

    try:
        state = AppState.open(settings)
    except ShoestringError as error:
        return _fail(NO_DATABASE, " ".join(filter(None, (error.message, error.hint))))
    except (ValueError, OSError) as error:
        return _fail(BAD_SETTINGS, str(error))
    config = uvicorn.Config(
        create_app(state),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        server_header=False,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    server = StreamClosingServer(config, state)
    gc.freeze()  # modules and routes live to the end: looking at them, a full collection would stop everybody for 0.1 s
    gc.enable()
    server.run(sockets=[listener])
    return 0


def _listen(settings: ApiSettings) -> socket.socket:
    """Bind the port before anything else is opened, so that a second service on the same port changes nothing."""
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


def _describe_bind_error(settings: ApiSettings, error: OSError) -> str:
    address = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"Port {settings.port} is in use. Stop what listens at {address}, or set another SHOESTRING_PORT."
    return f"Can't bind {address}: {error.strerror}. Check SHOESTRING_HOST and SHOESTRING_PORT."


def _fail(code: int, message: str) -> int:
    print(f"shoestring api: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
