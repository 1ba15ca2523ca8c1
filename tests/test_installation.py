# SPDX-License-Identifier: Apache-2.0
"""Each package installs with what it needs and nothing else."""

from __future__ import annotations

import email.parser
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from shoestring_worker.providers.ec2.account.wheels import OF_SERVICE

from tests.servers import PATIENCE_S

ROOT = Path(__file__).parents[1]
PACKAGE_FOLDERS = ("core", "api", "worker", "trainer", "client")
SERVER_LIBRARIES = {"sqlalchemy", "alembic", "psycopg", "boto3", "fastapi", "starlette", "uvicorn", "celery", "redis"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each package, built as pip would."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*command, *(ROOT / package for package in PACKAGE_FOLDERS)], check=True, timeout=PATIENCE_S)
    return {wheel.name.split("-")[0].replace("_", "-"): wheel for wheel in folder.glob("*.whl")}


def test_every_wheel_names_its_licence_and_is_typed(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {
        "shoestring",
        *(f"shoestring-{package}" for package in PACKAGE_FOLDERS if package != "client"),
    }
    for wheel in wheels.values():
        assert metadata(wheel)["License-Expression"] == "Apache-2.0"
        assert any(name.endswith("/py.typed") for name in zipfile.ZipFile(wheel).namelist())


def test_core_and_trainer_install_alone_with_no_server_library(wheels: dict[str, Path], tmp_path: Path) -> None:
    """In an empty environment, through pip, from the package index: what a rented machine gets."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=PATIENCE_S)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", ROOT / "requirements.lock"]
    subprocess.run([*install, wheels["shoestring-core"], wheels["shoestring-trainer"]], check=True, timeout=PATIENCE_S)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    installed = {canonicalize_name(line.split("==")[0]) for line in listed.stdout.split()}
    assert {"shoestring-core", "shoestring-trainer", "httpx", "pydantic"} <= installed
    assert not installed & (SERVER_LIBRARIES | {"torch", "shoestring-api", "shoestring-worker", "shoestring"})
    subprocess.run([python, "-c", "import shoestring_core, shoestring_trainer"], check=True, timeout=PATIENCE_S)


def test_the_lock_fits_what_the_packages_ask_for() -> None:
    locked = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            locked[canonicalize_name(name)] = version
    assert "+" not in "".join(locked.values())
    for package in PACKAGE_FOLDERS:
        project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
        asked = chain(project["dependencies"], *project.get("optional-dependencies", {}).values())
        for requirement in map(Requirement, asked):
            name = canonicalize_name(requirement.name)
            if not name.startswith("shoestring"):
                assert requirement.specifier.contains(locked[name]), (
                    f"{package} asks for {requirement}, locked is {locked[name]}"
                )


IMPORTED = """
import importlib, importlib.metadata, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
known = importlib.metadata.packages_distributions()
print(json.dumps(sorted({one for name in list(sys.modules) for one in known.get(name.partition(".")[0], ())})))
"""
SERVICE_MODULES = (
    "shoestring.cli", "shoestring.up", "shoestring_api.app", "shoestring_api.admin", "shoestring_worker.app",
    "shoestring_worker.providers.ec2.service_machine", "shoestring_trainer.machinehost.host", "celery.apps.beat",
    "celery.apps.worker", "celery.concurrency.thread", "kombu.transport.redis", "uvicorn.loops.auto",
)  # fmt: skip
USED_IF_THERE = {"cffi", "cryptography", "greenlet", "setuptools"}


def test_what_the_service_imports_comes_with_what_its_environment_asks_for() -> None:
    """On the machine of `aws up`, which has no PyTorch and nothing that only PyTorch's packages bring along."""
    variables = {
        "SHOESTRING_DATABASE_URL": "sqlite:////nowhere/db", "SHOESTRING_MACHINEHOST_FILE": "/nowhere/host",
        "SHOESTRING_REDIS_URL": "redis://127.0.0.1:9", "SHOESTRING_OBJECT_STORE": "/nowhere/objects",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *SERVICE_MODULES], env=os.environ | variables, capture_output=True, text=True,
        check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    imported = {canonicalize_name(name) for name in json.loads(done.stdout)}
    assert imported >= {"celery", "fastapi", "typer"}
    assert imported - closure(OF_SERVICE.wanted) - USED_IF_THERE == set()


def closure(wanted: Iterable[str]) -> set[str]:
    """The distributions that pip would install: these, and what they ask for."""
    seen, ahead = set[tuple[str, str]](), [Requirement(one) for one in wanted]
    while ahead:
        requirement = ahead.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for asked in map(Requirement, asked_by(name)):
                if asked.marker is None or asked.marker.evaluate({"extra": extra}):
                    ahead.append(asked)
    return {name for name, _ in seen}


def asked_by(name: str) -> Iterable[str]:
    """Of ours by their source, which an installation may be behind."""
    package = {"shoestring": "client"}.get(name, name.removeprefix("shoestring-"))
    if not name.startswith("shoestring"):
        return importlib.metadata.requires(name) or ()
    project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {}).items()
    return [*project["dependencies"], *(f'{one}; extra == "{extra}"' for extra, asked in extras for one in asked)]


def metadata(wheel: Path) -> email.message.Message:
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return email.parser.Parser().parsestr(archive.read(name).decode())
