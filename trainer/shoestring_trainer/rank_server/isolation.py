# SPDX-License-Identifier: Apache-2.0
"""Whether bubblewrap can isolate ranks on this computer, and what the ranks of a machine need to see.

The machine host finds out once, and hands the answer down to its machines (ISOLATION_VARIABLE). Without isolation jobs
run as the service's user, and hooks are refused.
"""

from __future__ import annotations

import compileall
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from shoestring_core.isolation import IsolationStatus

from shoestring_trainer.rank_server.bubblewrap import View, bubblewrap_arguments

ISOLATION_VARIABLE = "SHOESTRING_RANK_ISOLATION"
PRIVATE_VARIABLE = "SHOESTRING_PRIVATE_FOLDERS"
"""Folders that ranks never see, separated as in PATH: the service's data and saved logins."""
DATA_ROOTS_VARIABLE, HOOKS_ROOTS_VARIABLE = "SHOESTRING_DATA_ROOTS", "SHOESTRING_HOOKS_ROOTS"
PROBE_TIMEOUT_S = 20.0
PROBE = "import shoestring_core, shoestring_trainer"
OPTIONAL_FLAGS = ("--disable-userns",)  # from bubblewrap 0.8 on: no namespaces within these

SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store",
    "/etc/alternatives", "/etc/group", "/etc/host.conf", "/etc/hosts", "/etc/ld.so.cache", "/etc/localtime",
    "/etc/nsswitch.conf", "/etc/passwd", "/etc/resolv.conf", "/etc/ssl/certs",
    "/sys/bus", "/sys/class", "/sys/devices",  # cores and devices
)  # fmt: skip
PACKAGES = ("shoestring_core", "shoestring_trainer")
DEVICES = ("nvidia*", "dri", "kfd")
READABLE_OF_MACHINE, WRITABLE_OF_MACHINE = ("cache", "scratch"), ("gen", "scratch/ranks")
"""Subfolders of a machine's folder. Ranks can't write where its agent does."""

SWITCHES = {
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
    "/proc/sys/user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=10000"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
}  # fmt: skip
"""Settings of Linux with the values that forbid user namespaces, and what allows them."""


@dataclass(frozen=True)
class Isolation(IsolationStatus):
    """How ranks are isolated: `command` is bubblewrap's, without the view; empty if they aren't."""

    command: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.command)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """What a machine host has handed down; no isolation without it."""
        if not text:
            return cls(problem="this machine was started without isolation")
        fields = json.loads(text)
        return cls(**{**fields, "command": tuple(fields["command"])})

    def wrap(self, machine: Path, environment: Mapping[str, str]) -> list[str]:
        """What to put before the command of the rank server of the machine in this folder; nothing if not isolated."""
        return [*self.command, *bubblewrap_arguments(find_view(machine, environment)), "--"] if self.command else []


def find_isolation(folder: Path, environment: Mapping[str, str]) -> Isolation:
    """Try to start a process as rank servers are started, with a machine folder below `folder`."""
    bubblewrap = shutil.which("bwrap", path=environment.get("PATH"))
    if bubblewrap is None:
        return Isolation(problem="bubblewrap isn't installed", remedy=_as_root("apt install bubblewrap"))
    machine = folder / "isolation-probe"
    for name in (*READABLE_OF_MACHINE, *WRITABLE_OF_MACHINE):
        (machine / name).mkdir(parents=True, exist_ok=True)
    try:
        known = _run([bubblewrap, "--help"]).stdout
        isolation = Isolation(command=(bubblewrap, *(flag for flag in OPTIONAL_FLAGS if flag in known)))
        tried = _run([*isolation.wrap(machine, environment), sys.executable, "-c", PROBE])
    except (OSError, subprocess.SubprocessError) as error:
        return Isolation(problem=f"{bubblewrap} can't be run ({error})")
    finally:
        shutil.rmtree(machine, ignore_errors=True)
    if tried.returncode == 0:
        _compile_product()
        return isolation
    settings = {path: _read(path) for path in SWITCHES}
    return Isolation(problem=f"bubblewrap fails here ({_last_line(tried.stderr)})", remedy=find_remedy(settings))


def find_remedy(settings: Mapping[str, str]) -> str:
    """The line to type where Linux is set to forbid user namespaces; "" if it isn't."""
    forbidding = (remedy for path, (value, remedy) in SWITCHES.items() if settings.get(path) == value)
    return next((_as_root(remedy) for remedy in forbidding), "")


def find_view(machine: Path, environment: Mapping[str, str]) -> View:
    """What the ranks of the machine in this folder see."""
    links: dict[Path, Path] = {}

    def resolve(paths: Iterable[str | Path]) -> list[Path]:
        found = []
        for path in map(Path, paths):
            if _is(Path.exists, path):
                found.append(real := _resolve(path))
                if path != real and path.is_absolute() and ".." not in path.parts:
                    links[path] = real
        return found

    hidden = [_resolve(place) for place in (machine, *_private_places(environment))]
    return View(
        readable=resolve((*SYSTEM, *_python(environment), *(machine / name for name in READABLE_OF_MACHINE))),
        roots=resolve((*_paths(environment, DATA_ROOTS_VARIABLE), *_paths(environment, HOOKS_ROOTS_VARIABLE))),
        writable=resolve(machine / name for name in WRITABLE_OF_MACHINE),
        hidden_folders=[path for path in hidden if _is(Path.is_dir, path)],
        hidden_files=[path for path in hidden if _is(Path.is_file, path)],
        devices=resolve(path for pattern in DEVICES for path in Path("/dev").glob(pattern)),
        links=links,
    )


def _python(environment: Mapping[str, str]) -> Iterator[str | Path]:
    """Python, what it imports from, and the product. Python puts its working folder, the machine's, first."""
    yield from (sys.prefix, sys.base_prefix, sys.exec_prefix)
    yield from _links_of(Path(sys.executable))
    yield from (folder for folder in sys.path if folder)
    yield from _packages()
    yield from _paths(environment, "PYTHONPATH")
    yield from _paths(environment, "LD_LIBRARY_PATH")


def _compile_product() -> None:
    """Write the bytecode that isolated servers can't keep; without it each would compile the trainer anew."""
    if not sys.dont_write_bytecode:
        for folder in _packages():
            compileall.compile_dir(folder, quiet=2)


def _packages() -> Iterator[str]:
    for package in PACKAGES:
        if (spec := find_spec(package)) and spec.submodule_search_locations:
            yield from spec.submodule_search_locations


def _links_of(executable: Path) -> Iterator[Path]:
    """The links through which a virtual environment's Python leads to the real one, and that."""
    while executable.is_symlink():
        yield executable
        executable = executable.parent / executable.readlink()
    yield executable


def _private_places(environment: Mapping[str, str]) -> Iterator[Path]:
    """The service's folders, the home, and, in case it is a data root, what begins with a dot there."""
    yield from map(Path, _paths(environment, PRIVATE_VARIABLE))
    with suppress(KeyError, OSError):  # a user without an entry in passwd, a home that can't be read
        home = Path(environment.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)
        yield home
        yield from home.glob(".*")


def _paths(environment: Mapping[str, str], variable: str) -> list[str]:
    return [path for path in environment.get(variable, "").split(os.pathsep) if path.startswith("/")]


def _is(test: Callable[[Path], bool], path: Path) -> bool:
    try:
        return test(path)
    except OSError:  # such as without permission
        return False


def _resolve(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL,
        timeout=PROBE_TIMEOUT_S,
    )  # fmt: skip


def _as_root(command: str) -> str:
    return command if os.geteuid() == 0 else f"sudo {command}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
