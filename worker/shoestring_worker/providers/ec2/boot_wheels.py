# SPDX-License-Identifier: Apache-2.0
"""The environment of a wheelhouse, installed by a machine that boots: part of the user data of machines on EC2.

It needs nothing but Python 3.9 and, to install, the Python that the wheels are for.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

RETRY_S = 1.0
PHASE_S, DOWNLOAD_S, INSTALL_S = 120.0, 240.0, 240.0
TRIES, AT_ONCE, BLOCK_BYTES = 3, 8, 1 << 20
"""Of the download of a wheel."""


class PhaseFailed(Exception):
    """The machine is of no use. `fault`: what is to blame: image | network | hardware | boot."""

    def __init__(self, message: str, fault: str = "boot") -> None:
        super().__init__(message)
        self.fault = fault


class Environment:
    """A Python environment on this machine.

    name     of its wheelhouse
    module   what it is for
    command  makes the wheelhouse
    larger   how the disk is made larger
    """

    def __init__(self, folder: Path, name: str, module: str, command: str, larger: str) -> None:
        self.folder, self.name, self.module, self.command, self.larger = folder, name, module, command, larger
        self.made_again = f"run `{command}`, which makes it again"
        self.wheels, self.complete = folder / "wheels", folder / "complete"
        self.python = folder / "bin" / "python"
        self.manifest: dict[str, Any] = {}

    @property
    def is_installed(self) -> bool:
        return self.complete.exists()

    def read(self, manifest: bytes) -> str:
        """Take the wheelhouse's manifest. Raises PhaseFailed."""
        if hashlib.sha256(manifest).hexdigest() != self.name:
            raise PhaseFailed(
                f"the manifest of wheelhouse {self.name} is not what was stored: {self.made_again}", "image"
            )
        self.manifest = json.loads(manifest)
        files = self.manifest["files"]
        cuda = f" and CUDA {self.manifest['cuda']}" if self.manifest["cuda"] else ""
        what = f"{wheels_of(files)}, {size(sum(file['bytes'] for file in files))}, for Python {self.manifest['python']}"
        return what + cuda + (": the image has them installed" if self.is_installed else "")

    def download(self, urls: list[str]) -> str:
        """Fetch the wheels, several at once. `urls`: in the manifest's order. Raises PhaseFailed."""
        began = time.monotonic()
        shutil.rmtree(self.folder, ignore_errors=True)  # of a boot that was cut off
        self.wheels.mkdir(mode=0o700, parents=True)
        files = self.manifest["files"]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            fetches = [
                pool.submit(self.fetch, files[at], urls[at], began + DOWNLOAD_S)
                for at in sorted(range(len(files)), key=lambda at: -files[at]["bytes"])  # the last one to end is short
            ]
            try:
                for fetch in concurrent.futures.as_completed(fetches):
                    fetch.result()
            finally:
                for fetch in fetches:
                    fetch.cancel()
        total = sum(file["bytes"] for file in files)
        return f"{size(total)} in {wheels_of(files)}, {size(total / max(time.monotonic() - began, 0.001))} a second"

    def fetch(self, file: dict[str, Any], url: str, deadline: float) -> None:
        """Raises PhaseFailed."""
        for left in reversed(range(TRIES)):
            try:
                return self.fetch_once(file, url, deadline)
            except (OSError, http.client.HTTPException) as error:  # URLError and HTTPError are the former
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise PhaseFailed(f"the disk is full: {self.larger}", "image") from error
                if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                    raise PhaseFailed(
                        f"{file['name']} is not in the object store: {self.made_again}", "image"
                    ) from error
                host = url.split("/")[2]
                if not left or time.monotonic() > deadline:
                    # nothing came at all: there is no way from here; a download that broke off goes well elsewhere
                    fault = "boot" if any(self.wheels.iterdir()) else "network"
                    raise PhaseFailed(f"{file['name']} could not be fetched from {host}: {error}", fault) from error
            time.sleep(RETRY_S)

    def fetch_once(self, file: dict[str, Any], url: str, deadline: float) -> None:
        """Raises OSError, HTTPException, and PhaseFailed for content that isn't the manifest's."""
        target, found = self.wheels / file["name"], hashlib.sha256()
        with open_url(url, 30.0) as answer, open(target, "wb") as written:
            while block := answer.read(BLOCK_BYTES):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the wheels took longer than {DOWNLOAD_S:.0f} s")
                found.update(block)
                written.write(block)
        if target.stat().st_size < file["bytes"]:
            raise OSError(f"it broke off: {size(target.stat().st_size)} of {size(file['bytes'])} came")
        if found.hexdigest() != file["sha256"]:
            raise PhaseFailed(f"{file['name']} is not what was stored (SHA-256): {self.made_again}", "image")

    def install(self) -> str:
        """Make the environment, of the wheels alone. Raises PhaseFailed, OSError, SubprocessError."""
        base = self.find_python()
        run(base, "-m", "venv", "--without-pip", str(self.folder))
        if self.manifest["from_image"]:
            listed = run(base, "-c", "import site; print(*site.getsitepackages(), sep='\\n')")
            (packages,) = self.folder.glob("lib/python3.*/site-packages")
            (packages / "image.pth").write_text(listed)
        wheels = [str(wheel) for wheel in sorted(self.wheels.iterdir())]
        pip = [wheel for wheel in wheels if Path(wheel).name.startswith("pip-")]  # it runs from its wheel
        options = ("--no-index", "--no-deps", "--ignore-installed", "--no-compile", "--disable-pip-version-check")
        alone = {"PYTHONPATH": os.pathsep.join(pip), "PIP_CONFIG_FILE": os.devnull}
        run(str(self.python), "-m", "pip", "install", "--quiet", *options, *wheels, **alone)
        shutil.rmtree(self.wheels)
        check_environment(str(self.python), self.module)
        self.complete.touch()
        return f"{wheels_of(wheels)} in {self.folder}"

    def find_python(self) -> str:
        """Raises PhaseFailed."""
        here, version = "{}.{}".format(*sys.version_info), self.manifest["python"]
        if here == version:
            return sys.executable
        if (found := shutil.which(f"python{version}")) is None:
            advice = f"use another image, or run `{self.command} --python {here}`"
            raise PhaseFailed(f"the image has Python {here}, and the wheels are for {version}: {advice}", "image")
        return found


def check_environment(python: str, module: str) -> str:
    """Raises PhaseFailed if the environment of this Python can't run the module."""
    command = [python, "-P", "-m", module, "--help"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=PHASE_S, check=False)
    except OSError as error:
        raise PhaseFailed(f"the image has no Python environment for us: {error}", "image") from error
    if tried.returncode != 0:
        raise PhaseFailed(f"{' '.join(command)} failed: {tried.stderr.strip()[-500:]}", "image")
    return f"the image's own environment, {python}"


def run(*command: str, **environment: str) -> str:
    """The output of a command. Raises PhaseFailed, OSError, SubprocessError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False, env={**os.environ, **environment}
        )
    except subprocess.TimeoutExpired as error:
        raise PhaseFailed(f"{' '.join(command[:4])} took longer than {INSTALL_S:.0f} s") from error
    if done.returncode != 0:
        raise PhaseFailed(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-500:]}", "image")
    return done.stdout


def open_url(request: Any, timeout_s: float, ca: str = "") -> Any:
    """Raises OSError."""
    certificates = urllib.request.HTTPSHandler(context=ssl.create_default_context(cadata=ca or None))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), certificates)
    return opener.open(request, timeout=timeout_s)


def wheels_of(some: list[Any]) -> str:
    return "1 wheel" if len(some) == 1 else f"{len(some)} wheels"


def size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def power_off() -> None:
    """Ends the machine: EC2 terminates what shuts itself down."""
    subprocess.run(["poweroff"], check=False)
