# SPDX-License-Identifier: Apache-2.0
"""How a running rank is told to stop: a file named `order`, or a signal."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

POLL_S = 0.1
TOLD_BY = (signal.SIGTERM,)


class Orders:
    """Watches for the order to checkpoint and stop.

    Until `training_began` is called nothing has been learned that could be lost, and the main thread may sit in a
    library call that waits for the other machines; so an order in that phase calls `leave` from the watching
    thread. From then on the loop reads `stop_requested` once per step.
    """

    def __init__(
        self, order_file: Path, leave: Callable[[], None], signals: Sequence[signal.Signals] = TOLD_BY
    ) -> None:
        self.stop_requested = False
        self._order_file, self._signals = order_file, signals
        self._leave = leave
        self._lock = threading.Lock()
        self._began = False
        # The Python handler runs only between bytecodes; the wake-up pipe is written by C even while a call blocks.
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(wake_w, False)
        for number in signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="orders", daemon=True).start()

    def training_began(self) -> None:
        """From here on an order is carried out by the training loop."""
        with self._lock:
            self._began = True

    def _watch(self) -> None:
        while not self._told():
            pass
        with self._lock:
            self.stop_requested = True
            if not self._began:
                self._leave()

    def _told(self) -> bool:
        readable, _, _ = select.select([self._wake_r], [], [], POLL_S)
        came = os.read(self._wake_r, 64) if readable else b""
        return any(number in came for number in self._signals) or self._order_file.exists()
