# SPDX-License-Identifier: Apache-2.0
"""Requests to checkpoint and stop: a file named `order`, or a signal."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

POLL_S = 0.1
STOP_SIGNALS = (signal.SIGTERM,)


class StopOrdered(Exception):
    """All ranks alike leave what takes long before its end, as one of them was asked to stop."""


class StopListener:
    """Watches for a request to checkpoint and stop.

    Until `training_started` is called there is nothing to save, and the main thread may block in a library call that
    waits for other machines; so a request in that phase calls `exit_early` from the watching thread. From then on the
    loop reads `stop_requested` in each step, in each batch of an evaluation, and where it waits for images.
    """

    def __init__(
        self, order_file: Path, exit_early: Callable[[], None], signals: Sequence[signal.Signals] = STOP_SIGNALS
    ) -> None:
        self.stop_requested = False
        self._order_file, self._signals = order_file, signals
        self._exit_early = exit_early
        self._lock = threading.Lock()
        self._training = False
        # The Python handler runs only between bytecodes; the wake-up pipe is written by C even while a call blocks.
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(wake_w, False)
        for number in signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="stop-listener", daemon=True).start()

    def training_started(self) -> None:
        """From here on the training loop acts on a request."""
        with self._lock:
            self._training = True

    def _watch(self) -> None:
        while not self._poll():
            pass
        with self._lock:
            self.stop_requested = True
            if not self._training:
                self._exit_early()

    def _poll(self) -> bool:
        readable, _, _ = select.select([self._wake_r], [], [], POLL_S)
        received = os.read(self._wake_r, 64) if readable else b""
        return any(number in received for number in self._signals) or self._order_file.exists()
