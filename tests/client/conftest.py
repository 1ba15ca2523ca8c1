# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shoestring import cli

from tests.e2e.service import PACKAGE_FOLDERS, ROOT

RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RunCommand:
    """Runs `shoestring …` as `test_cli.shoestring` does, but in this process: a new one takes a second to start.

    An exception that the command line doesn't expect fails the test.
    """
    for name in [name for name in os.environ if name.startswith("SHOESTRING_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "login.json"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / package) for package in PACKAGE_FOLDERS))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["shoestring", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return subprocess.CompletedProcess(sys.argv, code, *capfd.readouterr())

    return run
