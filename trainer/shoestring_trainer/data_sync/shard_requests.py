# SPDX-License-Identifier: Apache-2.0
"""How ranks ask for the shards of a streamed data set: files in a folder that the downloader watches.

Training processes have neither credentials nor, perhaps, a network. Each rank writes in which order it uses shards next
(`TOKEN.order`), and holds a lock as long as it lives (`TOKEN.alive`). A process that can't go on without a shard puts
`NUMBER.awaited` beside it and waits, without a deadline, until the shard is there or the download has failed.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import secrets
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shoestring_trainer.agent.rank_files import FILE, open_folder

FAILED_FILE = "failed.txt"
"""In the folder of the shards: why no more of them come."""
MAX_ORDER_BYTES, MAX_FILES = 4 << 20, 100_000
WAIT_POLL_S, FIRST_NOTE_S, NOTE_INTERVAL_S = 0.02, 5.0, 60.0
_ORDER, _ALIVE, _AWAITED = ".order", ".alive", ".awaited"


class ShardsUnavailable(Exception):
    """No more shards come; the message says why and what to do."""


class ShardRequests:
    """The requests of one rank and of the processes that decode for it.

    folder    of the requests
    shards    where the shards appear
    names     file names of all shards; their places are their numbers
    source    where they come from, for messages
    log       is told what is waited for
    """

    def __init__(
        self, folder: Path, shards: Path, names: Sequence[str], source: str, log: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._folder, self._shards, self._names, self._source, self._log = folder, shards, names, source, log
        folder.mkdir(parents=True, exist_ok=True)
        self._token = f"{os.getpid()}-{secrets.token_hex(4)}"
        draft = folder / f"{self._token}.tmp"
        self._alive = draft.open("w")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        draft.rename(folder / f"{self._token}{_ALIVE}")  # only now: one that isn't locked is of a rank that is dead
        self._closed = mmap.mmap(-1, 1)  # a byte that forked processes share

    def announce(self, order: Sequence[int]) -> None:
        """Say which shards this rank uses next, in the order of their first use."""
        draft = self._folder / f"{self._token}.tmp"
        draft.write_text(json.dumps(list(order)))
        draft.replace(self._folder / f"{self._token}{_ORDER}")

    def wait_for(self, numbers: Sequence[int], give_up: Callable[[], bool] = lambda: False) -> float:
        """Return when all these shards are on this machine, and the seconds that it took. Raises ShardsUnavailable.

        give_up  whether to return although some are missing
        """
        began, next_note_s = time.monotonic(), FIRST_NOTE_S
        missing = [number for number in numbers if not self._is_there(number)]
        if not missing:
            return 0.0
        own = [number for number in missing if self._ask(number)]  # of several processes that wait, one says so
        while missing := [number for number in missing if not self._is_there(number)]:
            failed = self._shards / FAILED_FILE
            if failed.exists():
                raise ShardsUnavailable(failed.read_text())
            if self._closed[0]:
                raise ShardsUnavailable("this run has ended")
            if give_up():
                break
            for number in missing:  # it was deleted again before this process saw it
                self._ask(number)
            waited_s = time.monotonic() - began
            if waited_s > next_note_s and missing[0] in own:
                next_note_s += NOTE_INTERVAL_S
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                self._log(f"waiting for {self._names[missing[0]]}{more} from {self._source}, for {waited_s:.0f} s")
            time.sleep(WAIT_POLL_S)
        return time.monotonic() - began

    def received(self, number: int) -> None:
        """Say that a shard that was waited for has been opened."""
        (self._folder / f"{number}{_AWAITED}").unlink(missing_ok=True)

    def close(self) -> None:
        """Take back what this rank has asked for; its processes wait no longer."""
        self._closed[0] = 1
        self._alive.close()
        for suffix in (_ORDER, _ALIVE):
            (self._folder / f"{self._token}{suffix}").unlink(missing_ok=True)

    def _is_there(self, number: int) -> bool:
        return (self._shards / self._names[number]).exists()

    def _ask(self, number: int) -> bool:
        """Ask for a shard; return whether no other process has."""
        try:
            os.close(os.open(self._folder / f"{number}{_AWAITED}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class Requests:
    """What the ranks of a machine ask for: by rank, the shards in the order of their next use; and those awaited."""

    orders: list[list[int]]
    awaited: Set[int]


def read_requests(folder: Path, shards: int) -> Requests:
    """Return the requests of ranks that live, for a data set of so many shards, and remove those of others.

    What ranks write is never trusted: links aren't followed, and what isn't a request is ignored.
    """
    orders: list[list[int]] = []
    awaited: set[int] = set()
    try:
        opened = open_folder(folder)
    except OSError:
        return Requests([], set())
    try:
        names = set(os.listdir(opened)[:MAX_FILES])
        for name in sorted(names):
            stem, suffix = Path(name).stem, Path(name).suffix
            if suffix == _AWAITED and stem.isdecimal() and len(stem) < 10 and int(stem) < shards:
                awaited.add(int(stem))
            elif suffix == _ALIVE and _is_dead(name, opened):
                for old in (name, f"{stem}{_ORDER}"):
                    with suppress(OSError):
                        os.unlink(old, dir_fd=opened)
            elif suffix == _ALIVE and f"{stem}{_ORDER}" in names:
                orders.append(_read_order(f"{stem}{_ORDER}", opened, shards))
        if not any(name.endswith(_ALIVE) for name in names):  # of ranks that were killed
            for number in awaited:
                with suppress(OSError):
                    os.unlink(f"{number}{_AWAITED}", dir_fd=opened)
            awaited = set()
    except OSError:
        return Requests([], set())
    finally:
        os.close(opened)
    return Requests(orders, awaited)


def _is_dead(name: str, folder: int) -> bool:
    """Return whether nobody holds this lock."""
    try:
        lock = os.open(name, os.O_RDONLY | FILE, dir_fd=folder)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)


def _read_order(name: str, folder: int, shards: int) -> list[int]:
    try:
        with os.fdopen(os.open(name, os.O_RDONLY | FILE, dir_fd=folder), "rb") as file:
            order = json.loads(file.read(MAX_ORDER_BYTES))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(order, list):
        return []
    return [number for number in order if type(number) is int and 0 <= number < shards]
