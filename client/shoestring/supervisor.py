# SPDX-License-Identifier: Apache-2.0
"""Child processes of `shoestring up`: started, restarted when they die, and never left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

RESTART_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
HEALTHY_AFTER_S = 30.0
"""A child that has run this long starts again with the shortest backoff."""


class StartupError(Exception):
    """The service can't start; the message says why and what to do."""


@dataclass
class Child:
    """A process that is restarted when it dies. `folder` is its working folder."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    restart_at: float = 0.0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*kill_with_parent(), *self.command], env=dict(self.environment), cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.started = time.monotonic()

    def restart_if_dead(self, report: Callable[[str], None]) -> None:
        """Start it again if it died, after an increasing backoff."""
        if self.process is None or self.process.poll() is None:
            if self.failures and time.monotonic() - self.started > HEALTHY_AFTER_S:
                self.failures = 0
            return
        now = time.monotonic()
        if not self.restart_at:
            backoff = RESTART_BACKOFF_S[min(self.failures, len(RESTART_BACKOFF_S) - 1)]
            report(f"{self.name} exited with code {self.process.returncode}; restarting it (log: {self.log})")
            self.failures, self.restart_at = self.failures + 1, now + backoff
        if now >= self.restart_at:
            self.restart_at = 0.0
            self.start()

    def require_alive(self) -> None:
        """Raises StartupError with the last line of its log if it exited."""
        if self.process is not None and self.process.poll() is not None:
            raise StartupError(f"{self.name} exited while starting: {_last_line(self.log)}")

    def stop(self, *, grace_s: float) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run_once(command: list[str], environment: Mapping[str, str], folder: Path, timeout_s: float) -> str:
    """Run a short command and return its stdout. On failure the last line of stderr is the message for the user."""
    try:
        done = subprocess.run(
            command, env=dict(environment), cwd=folder, capture_output=True, timeout=timeout_s,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise StartupError(f"{' '.join(command[1:4])} did not finish in {timeout_s:.0f} s") from late
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise StartupError(lines[-1] if lines else f"{' '.join(command[1:4])} failed with code {done.returncode}")
    return done.stdout


def wait_until_ready(child: Child, is_ready: Callable[[], bool], timeout_s: float) -> None:
    """Raises StartupError if the child exits, or isn't ready in time."""
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        child.require_alive()
        if time.monotonic() > deadline:
            raise StartupError(f"{child.name} was not ready in {timeout_s:.0f} s (log: {child.log})")
        time.sleep(0.02)


def kill_with_parent() -> list[str]:
    """Return a command prefix with which the kernel kills the command when this process dies, even by SIGKILL.

    Needs setpriv of util-linux; without it the prefix is empty. This process may die before the kernel is asked, so the
    command starts only if this process is still its parent.
    """
    setpriv = shutil.which("setpriv")
    if_still_parent = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", if_still_parent, "sh"] if setpriv else []


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"no output (log: {log})"
