# SPDX-License-Identifier: Apache-2.0
"""What the children of `up` get of the terminal's environment, and how `up` names itself and its files."""

from __future__ import annotations

import errno
import io
import os
import pwd
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from shoestring import config, up
from shoestring.child_environment import child_environment, private_files
from shoestring.cli import service
from shoestring_core.isolation import IsolationStatus
from shoestring_trainer.machinehost.host import INHERITED_VARIABLES

from tests.e2e.service import ROOT


def test_children_get_chosen_variables_and_none_of_other_projects() -> None:
    foreign = (
        "CELERY_BROKER_URL", "CELERY_CONFIG_MODULE", "REDIS_URL", "WORLD_SIZE", "RANK", "MASTER_ADDR", "TORCHELASTIC_X",
        "PYTHONHOME", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONINSPECT", "LD_PRELOAD", "SSLKEYLOGFILE", "DATABASE_URL",
        "OMP_NUM_THREADS", "NCCL_DEBUG", "DJANGO_SETTINGS_MODULE", "MPLBACKEND", "LANG", "LC_CTYPE", "COLUMNS",
    )  # fmt: skip
    ours = {"PATH": "/bin", "HOME": "/h", "SHOESTRING_PROVIDERS": "local", "AWS_REGION": "us-east-1"}
    given = child_environment(dict.fromkeys(foreign, "x") | ours)
    assert not set(foreign) & set(given)
    assert ours.items() <= given.items()
    assert (given["PYTHONSAFEPATH"], given["PYTHONUTF8"], given["TZ"]) == ("1", "1", "UTC")


def test_api_and_worker_share_two_arenas_of_freed_memory_and_ranks_keep_their_own_settings() -> None:
    composed = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for setting, value in {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}.items():
        assert child_environment({setting: "64"})[setting] == value
        limited = {name for name, service in composed.items() if service.get("environment", {}).get(setting) == value}
        assert limited >= {"api", "worker"}
        assert "machines" not in limited
    assert not {name for name in INHERITED_VARIABLES if name.startswith(("MALLOC_", "GLIBC_"))}


def test_children_import_our_packages_from_where_up_does_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "redis.py").touch()
    path = os.pathsep.join(["", str(tmp_path), str(ROOT / "core"), str(ROOT / "worker")])
    assert child_environment({"PYTHONPATH": path})["PYTHONPATH"] == f"{ROOT}/core{os.pathsep}{ROOT}/worker"
    assert "PYTHONPATH" not in child_environment({"PYTHONPATH": str(tmp_path)})


def test_relative_paths_of_settings_stay_relative_to_the_folder_of_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b%20?"
    folder.mkdir()
    monkeypatch.chdir(folder)
    given = child_environment(
        {
            "SHOESTRING_OBJECT_STORE": "objects", "SHOESTRING_DATA_ROOTS": "images:/srv",
            "SHOESTRING_HOOKS_ROOTS": "hooks",
            "SHOESTRING_DATABASE_URL": "sqlite:///store.db",
        }
    )  # fmt: skip
    assert given["SHOESTRING_OBJECT_STORE"] == f"{folder}/objects"
    assert given["SHOESTRING_HOOKS_ROOTS"] == f"{folder}/hooks"
    assert given["SHOESTRING_DATA_ROOTS"] == f"{folder}/images:/srv"
    assert given["SHOESTRING_DATABASE_URL"] == f"sqlite:///{tmp_path}/a%20b%2520%3F/store.db"
    for absolute in ("s3://bucket/prefix", "/srv/objects"):
        assert child_environment({"SHOESTRING_OBJECT_STORE": absolute})["SHOESTRING_OBJECT_STORE"] == absolute


def test_what_the_service_keeps_elsewhere_is_hidden_from_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = child_environment(
        {
            "SHOESTRING_OBJECT_STORE": "objects", "SHOESTRING_TLS_KEY": "/srv/train.key",
            "SHOESTRING_DATABASE_URL": "sqlite:////srv/a%20b/store.db", "AWS_SHARED_CREDENTIALS_FILE": "/srv/aws",
        }
    )  # fmt: skip
    places = {str(path) for path in private_files(given)}
    assert places >= {f"{tmp_path}/objects", "/srv/train.key", "/srv/a b/store.db", "/srv/a b/store.db-wal", "/srv/aws"}
    elsewhere = {"SHOESTRING_OBJECT_STORE": "s3://bucket", "SHOESTRING_DATABASE_URL": "postgresql://host/name"}
    assert private_files(elsewhere) == []


def test_the_login_of_up_is_hidden_from_jobs_wherever_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = up.ServiceOptions(tmp_path / "data")
    monkeypatch.delenv("SHOESTRING_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert up.LocalService(options, print).private_places({}) == [tmp_path / "data", tmp_path / "shoestring"]
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "login.json"))
    assert up.LocalService(options, print).private_places({}) == [tmp_path / "data", tmp_path / "login.json"]


def test_a_path_that_would_be_two_in_a_list_is_refused() -> None:
    assert up.list_of_folders([Path("/a"), Path("/b c")]) == "/a:/b c"
    with pytest.raises(up.StartupError, match=r"/a:b can't be used: it contains a ':'"):
        up.list_of_folders([Path("/a:b")])


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_address_of_a_service_is_a_url_whatever_it_listens_on(host: str, url: str) -> None:
    assert up.service_url(host, 8000) == url


def test_a_host_that_can_be_none_is_refused_with_what_to_type() -> None:
    for host in ("a" * 70, "ü..", "192.0.2.1"):
        with pytest.raises(up.StartupError, match=r"can't be used .* shoestring up --host 127.0.0.1"):
            up.require_free_port(host, 8000)


@pytest.fixture
def interrupts() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_every_signal_that_a_terminal_sends_to_end_the_service_drains_it(number: signal.Signals) -> None:
    count = service.count_interrupts()
    signal.raise_signal(number)
    assert count() == 1


@pytest.mark.usefixtures("interrupts")
def test_a_closed_terminal_stops_the_service_as_sigterm_does_but_not_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    count = service.count_interrupts()
    signal.raise_signal(signal.SIGHUP)
    assert count() == 1
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    count = service.count_interrupts()
    signal.raise_signal(signal.SIGHUP)
    assert count() == 0


def test_what_a_closed_terminal_cannot_show_does_not_end_the_draining(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO), text)

    monkeypatch.setattr(sys, "stderr", Closed())
    with pytest.raises(OSError, match="Input/output error"):
        service.err.print("Stopping …")
    service.report("Stopping …")


def connection_info(url: str, key_file: Path) -> up.ConnectionInfo:
    return up.ConnectionInfo(url, "k", key_file, login_url="link", isolation=IsolationStatus())


def test_a_login_that_cannot_be_saved_is_said_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SHOESTRING_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null/config")
    service.remember_login(connection_info("http://127.0.0.1:8000", Path("/my data/admin.key")))
    said = capsys.readouterr().err
    assert "can't be saved (a file lies where a folder above it is needed)" in said
    assert "export SHOESTRING_URL=http://127.0.0.1:8000" in said
    assert "'/my data/admin.key'" in said


def test_a_second_service_says_whose_login_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "login.json"))
    connection = connection_info("http://127.0.0.1:8001", tmp_path / "admin.key")
    config.save_login("http://team", "key")
    service.remember_login(connection)
    assert "no longer to http://team (to go back: shoestring login http://team)" in capsys.readouterr().err
    service.remember_login(connection)
    assert capsys.readouterr().err == ""


def test_without_a_home_folder_nothing_is_written_below_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SHOESTRING_CONFIG", "SHOESTRING_DATA", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="Set HOME, or SHOESTRING_DATA"):
        config.default_data_folder()
    with pytest.raises(config.NotLoggedIn):
        config.find_login()
    assert not list(tmp_path.iterdir())
