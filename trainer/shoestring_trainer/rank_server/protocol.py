# SPDX-License-Identifier: Apache-2.0
"""Messages between a rank server and the process that started it: JSON, one object per line.

Requests arrive on the server's stdin, replies leave on its stdout, and the end of stdin ends the server and its ranks.

    request   {"id": 1, "arguments": [...], "environment": {...}, "folder": "...", "log": "..."}
    replies   {"id": 0, "pid": 4711}                          the server has imported the training loop
              {"id": 1, "pid": 4712}                          the rank was started
              {"id": 1, "exit_code": 0}                       the rank has ended; -9 if signal 9 ended it
              {"id": 1, "exit_code": 1, "error": "..."}       the rank was not started

A pid is one of the server's PID namespace.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

READY_ID = 0
"""Of the reply that no request asks for."""
ISOLATED = "isolated"
"""Given as the parent of a server in a PID namespace of its own: it doesn't see its parent, and ends with it anyway."""


@dataclass(frozen=True)
class StartRank:
    """Request to run `python -m shoestring_trainer train ARGUMENTS…` in a process of its own.

    id           chosen by the client, from 1
    environment  the rank's whole environment. What the C libraries read as the server starts (GLIBC_TUNABLES,
                 GOMP_SPINCOUNT, LD_LIBRARY_PATH) and what Python does (PYTHONPATH) stays as the server's
    folder       the working directory
    log          a file to append stdout and stderr to
    """

    id: int
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    log: str

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        return cls(**json.loads(line))


@dataclass(frozen=True)
class RankServerReply:
    """What happened to the rank of request `id`: it was started as `pid`, or it ended with `exit_code`."""

    id: int
    pid: int | None = None
    exit_code: int | None = None
    error: str = ""

    def line(self) -> bytes:
        return (
            json.dumps({name: value for name, value in asdict(self).items() if value not in (None, "")}).encode()
            + b"\n"
        )

    @classmethod
    def parse(cls, line: bytes) -> Self:
        return cls(**json.loads(line))
