# SPDX-License-Identifier: Apache-2.0
"""The packages keep their import rules, and every forbidden import and import cycle is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import PATIENCE_S

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "core": "shoestring_core",
    "api": "shoestring_api",
    "worker": "shoestring_worker",
    "trainer": "shoestring_trainer",
    "client": "shoestring",
}
FORBIDDEN = [
    ("core/shoestring_core/planted.py", "import httpx"),
    ("core/shoestring_core/planted.py", "import sqlalchemy.orm"),
    ("core/shoestring_core/planted.py", "from shoestring_core import store"),
    ("core/shoestring_core/decide/planted.py", "import time"),
    ("core/shoestring_core/decide/planted.py", "import os"),
    ("core/shoestring_core/decide/planted.py", "import numpy"),
    ("core/shoestring_core/store/planted.py", "import boto3"),
    ("core/shoestring_core/store/planted.py", "import celery"),
    ("api/shoestring_api/planted.py", "import celery"),
    ("api/shoestring_api/planted.py", "import shoestring_worker.providers"),
    ("api/shoestring_api/planted.py", "import torch"),
    ("api/shoestring_api/planted.py", "import boto3"),
    ("worker/shoestring_worker/planted.py", "import boto3"),
    ("worker/shoestring_worker/providers/planted.py", "import boto3"),
    ("worker/shoestring_worker/planted.py", "import moto"),
    ("worker/shoestring_worker/planted.py", "import fastapi"),
    ("worker/shoestring_worker/planted.py", "import shoestring_trainer"),
    ("trainer/shoestring_trainer/planted.py", "import shoestring_core.store"),
    ("trainer/shoestring_trainer/planted.py", "import sqlalchemy"),
    ("trainer/shoestring_trainer/planted.py", "import torchvision"),
    ("trainer/shoestring_trainer/agent/planted.py", "import shoestring_trainer.rank_server.server"),
    ("client/shoestring/planted.py", "import shoestring_api"),
    ("client/shoestring/planted.py", "def inner() -> None:\n    import shoestring_core.store"),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy of the packages' sources with the rules of this checkout."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder, package in PACKAGES.items():
        ignored = shutil.ignore_patterns("__pycache__", "static")
        shutil.copytree(ROOT / folder / package, tmp_path / package, ignore=ignored)
    return tmp_path


def test_the_packages_keep_their_import_rules(workspace: Path) -> None:
    verdict = lint_imports(workspace)
    assert verdict.returncode == 0, verdict.stdout


def test_each_forbidden_import_fails_the_check(workspace: Path) -> None:
    """All are planted at once, each in a module of its own, and each must be named."""
    planted = {}
    for number, (path, line) in enumerate(FORBIDDEN):
        module = workspace / Path(path).relative_to(Path(path).parts[0]).with_stem(f"planted_{number}")
        module.write_text(f"# SPDX-License-Identifier: Apache-2.0\n{line}\n")
        planted[f"planted_{number} -> "] = (path, line)
    verdict = lint_imports(workspace)
    assert verdict.returncode == 1
    assert not (missed := {name: what for name, what in planted.items() if name not in verdict.stdout}), missed


def test_no_modules_import_each_other_in_a_cycle(workspace: Path) -> None:
    result = check_import_cycles(workspace)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("line", ["from {} import planted_b", "def inner() -> None:\n    from {} import planted_b"])
def test_an_import_cycle_fails_the_check(tmp_path: Path, line: str) -> None:
    package = tmp_path / "shoestring_core"
    for name in PACKAGES.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (package / "planted_a.py").write_text(line.format("shoestring_core") + "\n")
    (package / "planted_b.py").write_text("import shoestring_core.planted_a\n")
    result = check_import_cycles(tmp_path)
    assert result.returncode == 1
    assert "shoestring_core.planted_a -> shoestring_core.planted_b -> shoestring_core.planted_a" in result.stdout


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/shoestring_core/planted.py", 'DEFAULT = "local"'),
        ("core/shoestring_core/store/planted.py", "SIMULATED = ('aws', 'sim')"),
        ("api/shoestring_api/planted.py", 'def is_ec2(provider: str) -> bool:\n    return provider == "ec2"'),
        ("web/src/features/planted.tsx", 'const label = provider === "local" ? "this computer" : provider'),
        ("web/src/planted.ts", "const names = ['sim']"),
    ],
)
def test_a_provider_s_name_outside_the_worker_fails_the_check(tmp_path: Path, path: str, line: str) -> None:
    planted = plant(tmp_path, path, line)
    result = check_provider_names(tmp_path)
    assert result.returncode == 1
    assert str(planted.relative_to(tmp_path)) in result.stdout


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/shoestring_core/planted.py", '"""A local file."""\nLOCAL = "a local file"  # "local"\nlocal = sim = 1'),
        ("api/shoestring_api/planted.py", 'HOST = "localhost"\nREGION = "local-1"'),
        ("web/src/planted.ts", "const local = window.localStorage // simulated"),
        ("worker/shoestring_worker/providers/planted.py", 'NAME = "local"'),
    ],
)
def test_other_uses_of_a_provider_s_name_pass_the_check(tmp_path: Path, path: str, line: str) -> None:
    plant(tmp_path, path, line)
    result = check_provider_names(tmp_path)
    assert result.returncode == 0, result.stdout


def plant(folder: Path, path: str, line: str) -> Path:
    """Write a module into a folder that has nothing else but the registry of providers."""
    registry = Path("worker/shoestring_worker/providers/registry.py")
    for place in (registry, Path(path)):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / registry, folder / registry)
    (folder / path).write_text(f"{line}\n")
    return folder / path


def test_core_api_and_dashboard_name_no_provider() -> None:
    result = check_provider_names(ROOT)
    assert result.returncode == 0, result.stdout


def check_provider_names(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", ROOT / "scripts" / "check_provider_names"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_decisions_and_the_store_contain_no_sentences() -> None:
    result = run_script("check_sentences", ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("folder", ["decide", "store/fleet"])
@pytest.mark.parametrize(
    ("line", "fails"),
    [
        ('text = "The budget is too small."', True),
        ('return Wait(job, "slots", f"{count} machines are in use now")', True),
        ('REASONS = {"slots": "waiting for a free machine"}', True),
        ('hint = f"Stop the job {name} first" if name else ""', True),
        ('kinds = ["too_few_slots", "no offer", "machine lost"]', False),
        ('"""A docstring may be a sentence."""', False),
        ('log.warning("the machine %s does not answer", machine)', False),
        ('raise InvalidRequest(f"{given!r} is not a valid filter.")', False),
        ('sql.execute(text("SELECT id FROM jobs WHERE state"))', False),
    ],
)
def test_a_sentence_outside_of_wording_fails_the_check(tmp_path: Path, folder: str, line: str, fails: bool) -> None:
    module = tmp_path / "core" / "shoestring_core" / folder / "planted.py"
    module.parent.mkdir(parents=True)
    module.write_text(f"def work():\n    {line}\n")
    result = run_script("check_sentences", tmp_path)
    assert result.returncode == (1 if fails else 0), result.stdout
    assert (f"{folder}/planted.py:2" in result.stdout) == fails


def check_import_cycles(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_script("check_import_cycles", folder)


def run_script(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", ROOT / "scripts" / name]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.path.insert(0, ''); from importlinter.cli import lint_imports_command as run; run()"
    command = [sys.executable, "-P", "-c", code, "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
