# SPDX-License-Identifier: Apache-2.0
"""`shoestring artifacts get`: where files go, and that nothing is overwritten unasked."""

from __future__ import annotations

import errno
import hashlib
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from shoestring import Client, cli
from shoestring.cli import artifacts
from shoestring_core.exit_codes import ExitCode
from typer.testing import CliRunner

from tests.client.test_client import JOB
from tests.soak.transfers import get_artifacts

FILES = {"model.json": b"{}", "results.txt": b"accuracy 1.0"}
FOLDER = Path(f"cats-dogs-{JOB['id'][-8:]}")


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that were downloaded; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    downloaded: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/artifacts"):
            listed = [
                {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "step": 1,
                 "url": f"/files/{name}"}
                for name, content in FILES.items()
            ]  # fmt: skip
            return httpx.Response(200, json={"artifacts": listed})
        if request.url.path.startswith("/files/"):
            name = request.url.path.removeprefix("/files/")
            downloaded.append(name)
            return httpx.Response(200, content=FILES[name])
        return httpx.Response(200, json=JOB | {"name": "cats/dogs"})

    monkeypatch.setattr(
        artifacts, "open_client", lambda _url: Client("http://service", "k", transport=httpx.MockTransport(answer))
    )
    return downloaded


def get(*options: str) -> Result:
    return CliRunner().invoke(cli.app, ["artifacts", "get", JOB["id"], *options])


def test_files_go_to_a_folder_named_after_the_job(downloads: list[str]) -> None:
    Path("model.json").write_text("mine")
    assert get().exit_code == ExitCode.OK
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == FILES
    assert Path("model.json").read_text() == "mine"


@pytest.mark.parametrize("command", ["get", "ls"])
def test_a_job_without_artifacts_says_what_to_do(
    downloads: list[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "FILES", {})
    for state, words in (
        ({}, f"no artifacts yet ({JOB['status']}). Follow it: shoestring watch {JOB['id'][-8:]}"),
        (
            {"state": "ended", "status": "stopped", "end_reason": "user_stop"},
            f"left no artifacts (stopped). Submit it again: shoestring retry {JOB['id'][-8:]}",
        ),
    ):
        monkeypatch.setattr(sys.modules[__name__], "JOB", JOB | state)
        assert words in CliRunner().invoke(cli.app, ["artifacts", command, JOB["id"]]).output


def test_another_file_is_overwritten_only_with_force(downloads: list[str]) -> None:
    Path("model.json").write_text("mine")
    refused = get("--to", ".")
    assert (refused.exit_code, downloads) == (ExitCode.USAGE, [])
    assert "model.json: exists and is another file. Overwrite with --force" in refused.output
    assert Path("model.json").read_text() == "mine"
    assert not Path("results.txt").exists()
    assert get("--to", ".", "--force").exit_code == ExitCode.OK
    assert Path("model.json").read_bytes() == FILES["model.json"]


def test_a_folder_in_place_of_a_file_is_named_and_stays(downloads: list[str]) -> None:
    Path("model.json").mkdir()
    refused = get("--to", ".", "--force")
    assert (refused.exit_code, downloads) == (ExitCode.USAGE, [])
    assert "model.json: a folder, which no file replaces" in refused.output


@pytest.mark.parametrize("kind", ["file", "broken link", "below a file", "name"])
def test_what_is_no_folder_is_said_with_what_to_do(downloads: list[str], kind: str) -> None:
    Path("mine").write_text("mine")
    Path("link").symlink_to("nowhere")
    target, words = {
        "file": ("mine", "it is a file, where a folder is needed"),
        "broken link": ("link", "it is a broken link, where a folder is needed"),
        "below a file": ("mine/model", "a file lies where a folder above it is needed"),
        "name": ("x" * 300, "File name too long"),
    }[kind]
    result = get("--to", target, "--force")
    assert result.exit_code == ExitCode.USAGE
    assert f"Files can't be written to {target}: {words}. Correct that, or choose another folder: --to FOLDER" in (
        result.output
    )
    assert (Path("mine").read_text(), downloads) == ("mine", [])


def test_a_full_disk_is_said_with_what_to_do(downloads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Client, "download", refuse)
    result = get("--to", "there")
    assert (result.exit_code, "written to there: No space left on device. Correct" in result.output) == (2, True)


def test_getting_again_downloads_what_is_missing(downloads: list[str]) -> None:
    first = get()
    assert (first.exit_code, "SHA-256 verified" in first.output) == (ExitCode.OK, True)
    (FOLDER / "results.txt").unlink()
    assert get().exit_code == ExitCode.OK
    assert downloads == ["model.json", "results.txt", "results.txt"]


def test_odd_names_and_broken_answers_write_nothing_outside_the_folder(seed: int) -> None:
    found = get_artifacts(seed, 40)
    assert found.faults == []
    assert min(found.outcomes["downloaded"], found.outcomes["refused"]) > 3
