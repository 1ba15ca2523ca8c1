# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws`: its options reach the worker's command, which runs as a child process."""

from __future__ import annotations

import importlib.util

import pytest
from shoestring import aws, cli
from shoestring.supervisor import StartupError
from typer.testing import CliRunner


def test_options_of_panic_are_passed_on_and_its_exit_code_is_returned(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, ...]] = []

    def run(*arguments: str) -> int:
        asked.append(arguments)
        return 1

    monkeypatch.setattr(aws, "run", run)
    options = ["--region", "us-east-1", "--region", "eu-west-1", "--deployment", "us", "--yes", "--dry-run", "--json"]
    assert CliRunner().invoke(cli.app, ["aws", "panic"]).exit_code == 1
    assert CliRunner().invoke(cli.app, ["aws", "panic", *options]).exit_code == 1
    assert asked == [
        ("panic",),
        ("panic", "--deployment", "us", "--region", "us-east-1", "--region", "eu-west-1", "--dry-run", "--yes",
         "--json"),
    ]  # fmt: skip


def test_without_the_worker_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aws, "find_spec", lambda _: None)
    with pytest.raises(StartupError, match=r"pip install 'shoestring\[server\]'"):
        aws.run("panic")


def test_the_command_that_it_runs_is_there():
    assert importlib.util.find_spec(f"{aws.MODULE}.__main__") is not None
