# SPDX-License-Identifier: Apache-2.0
"""What can go wrong at a failpoint of the worker, and the saboteur that makes it happen once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

from shoestring_core.errors import ShoestringError, Unavailable
from shoestring_worker.providers.base import OutcomeUnknown

FaultKind = Literal["killed_before", "killed_after", "duplicate", "delay", "lost_reply"]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
VERBS = frozenset(
    {"launch", "offers", "list", "terminate", "enabled_regions", "list_region", "list_leftovers", "delete"}
)

DELAY_S = 6
"""On either side of a call: together longer than `Timeouts.launch_call`."""


class Killed(BaseException):
    """kill -9: nothing after it happens, nothing is caught."""


@dataclass(frozen=True)
class Fault:
    """What happens when a failpoint is reached for the nth time.

    killed_before, killed_after  the process ends
    duplicate                    the call arrives twice; of a commit, two workers make it
    delay                        it arrives late, and so does its answer
    lost_reply                   it takes effect, and the worker isn't told
    """

    name: str
    kind: FaultKind
    nth: int = 1


@dataclass
class Saboteur:
    """What is planted at the failpoints for one fault. `reached`: how often each was."""

    fault: Fault | None
    pass_time: Callable[[], None] = lambda: None
    reached: Counter[str] = field(default_factory=Counter)
    dead: bool = False
    struck: bool = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.struck = self.fault is None

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        with self._lock:
            if self.dead:  # the other threads of a process end with it
                raise Killed
            self.reached[name] += 1
            fault = self.fault
            if fault is None or (name, self.reached[name]) != (fault.name, fault.nth):
                fault = None
            else:
                self.struck = True
        match fault.kind if fault else None:
            case None:
                return call()
            case "killed_before":
                self.die()
            case "killed_after":
                with suppress(Exception):
                    call()
                self.die()
            case "delay":
                self.pass_time()
                result = call()
                self.pass_time()
                return result
            case "duplicate":
                return self._twice(name, call)
        with suppress(Exception):
            call()
        raise OutcomeUnknown("the reply was lost") if name in VERBS else Unavailable("the connection was lost")

    def die(self) -> NoReturn:
        """End the process."""
        self.dead = True
        raise Killed

    @staticmethod
    def _twice(name: str, call: Callable[[], Any]) -> Any:
        result = call()
        if name in VERBS:
            return call()
        with suppress(ShoestringError):  # the other worker was too late, and learns it
            call()
        return result
