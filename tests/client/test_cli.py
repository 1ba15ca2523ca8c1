# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, what it says when something is wrong, and where it finds its login."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shoestring import config, exits, models

from tests import servers
from tests.e2e.service import ROOMS, ROOT


def shoestring(*arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOESTRING_")}
    path = os.pathsep.join(str(ROOT / room) for room in ROOMS)
    environment = (
        kept | {"PYTHONPATH": path, "SHOESTRING_CONFIG": str(home / "login.json"), "NO_COLOR": "1"} | variables
    )
    return subprocess.run(
        [sys.executable, "-m", "shoestring", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def test_without_a_login_it_says_what_to_type(tmp_path: Path) -> None:
    done = shoestring("ls", home=tmp_path)
    assert done.returncode == exits.AUTH
    assert "shoestring up" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_that_is_down_has_its_own_exit_code(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}"
    done = shoestring("ls", home=tmp_path, SHOESTRING_URL=url, SHOESTRING_KEY="sst_pat_x")
    assert done.returncode == exits.NETWORK
    assert url in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    done = shoestring("trian", home=tmp_path)
    assert done.returncode == exits.USAGE


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit",),
        ("submit", "digits/quickstart", "-f", "x.yaml"),
        ("up", "--budget", "much"),
        ("budget", "set", "-1e9"),
    ],
)
def test_contradictory_arguments_are_usage_errors(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = shoestring(*arguments, home=tmp_path)
    assert done.returncode == exits.USAGE
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("submit",),
        ("up",),
        ("demo",),
        ("logs",),
        ("budget", "set"),
        ("artifacts", "get"),
        ("predict",),
        ("export",),
        ("results",),
        ("model",),
        ("recipes", "show"),
    ],
)
def test_help_opens_with_examples(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = shoestring(*command, "--help", home=tmp_path)
    assert done.returncode == exits.OK
    assert "shoestring " + (" ".join(command) if command else "up") in done.stdout.replace("python -m ", "", 1)[20:]


def test_flags_beat_the_environment_beats_the_saved_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "login.json"))
    monkeypatch.delenv("SHOESTRING_URL", raising=False)
    monkeypatch.delenv("SHOESTRING_KEY", raising=False)
    config.save_login("http://saved/", "saved-key")
    assert (tmp_path / "login.json").stat().st_mode & 0o777 == 0o600
    assert config.find_login() == config.Login("http://saved", "saved-key", str(tmp_path / "login.json"))
    monkeypatch.setenv("SHOESTRING_URL", "http://environment")
    monkeypatch.setenv("SHOESTRING_KEY", "environment-key")
    assert config.find_login().url == "http://environment"
    assert config.find_login("http://flag", "flag-key").key == "flag-key"


def test_a_damaged_login_file_is_no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "login.json"))
    monkeypatch.delenv("SHOESTRING_URL", raising=False)
    (tmp_path / "login.json").write_text(json.dumps(["not", "a", "login"]))
    with pytest.raises(config.NotLoggedIn):
        config.find_login()


def test_a_jobs_end_is_its_watchers_exit_code() -> None:
    assert exits.of_job("ended", "succeeded") == exits.OK
    assert exits.of_job("ended", "user_code") == exits.JOB_FAILED
    assert exits.of_job("ended", "budget") == exits.BUDGET
    assert exits.of_job("ended", "no_capacity") == exits.NO_CAPACITY
    assert exits.of_job("paused", None, "grant") == exits.BUDGET
    assert exits.of_job("paused", None, "resume") == exits.DETACHED


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("predict", "nowhere/model.pt2", "cat.jpg"), exits.NOT_FOUND, "There is no file nowhere/model.pt2"),
        (("export", "model.pt2"), exits.NOT_FOUND, "There is no file model.pt2"),
        (("predict", "0193", "cat.jpg"), exits.AUTH, "shoestring up"),
        (("predict", "model.pt2", "cat.jpg", "--on-corrupt", "hide"), exits.USAGE, "error or skip"),
    ],
)
def test_a_model_that_is_not_there_is_named(tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = shoestring(*arguments, home=tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_trainer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _name: None)
    with pytest.raises(models.NoTrainer, match=r"pip install 'shoestring-trainer\[train\]'"):
        models.require_trainer()


def test_a_schedule_and_a_network_need_no_service(tmp_path: Path) -> None:
    drawn = shoestring("recipes", "show", "cifar10/page-resnet9", "--plot", home=tmp_path)
    assert drawn.returncode == exits.OK, drawn.stderr
    assert "learning rate" in drawn.stdout
    assert all(len(line) <= 80 for line in drawn.stdout.splitlines())
    printed = shoestring("model", "digits/quickstart", "width=4", "--json", home=tmp_path)
    assert printed.returncode == exits.OK, printed.stderr
    assert json.loads(printed.stdout)["input"] == [1, 8, 8]
    unknown = shoestring("recipes", "show", "cifar10/page-resnet8", "--plot", home=tmp_path)
    assert unknown.returncode == exits.USAGE
    assert "cifar10/page-resnet9" in unknown.stderr
