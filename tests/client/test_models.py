# SPDX-License-Identifier: Apache-2.0
"""A job's model on this computer: fetched once, whole, and again if what was kept is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from shoestring.cli import models
from shoestring_core.exit_codes import ExitCode
from shoestring_core.store.db import open_store

from tests.api.deployment import Deployment


def test_a_jobs_model_is_fetched_once_and_again_if_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'shoestring.db'}"
    store = open_store(url)
    store.migrate()
    store.close()
    with Deployment(url, tmp_path) as deployment:
        monkeypatch.setenv("SHOESTRING_KEY", deployment.keys[1])
        job, (agent,) = deployment.running()
        with pytest.raises(typer.Exit) as early:
            models.find_model(str(job), deployment.url)
        assert early.value.exit_code == ExitCode.NOT_FOUND
        assert "The job has no model yet (running). Follow it: shoestring watch" in capfd.readouterr().err
        stopped = deployment.submit()
        assert deployment.member.post(f"/v1/jobs/{stopped}:stop").status_code == 202
        with pytest.raises(typer.Exit):
            models.find_model(str(stopped), deployment.url)
        assert "The job left no model (stopped). Submit it again: shoestring retry" in capfd.readouterr().err
        agent.points(range(1, 4))
        content = bytes(range(256)) * 40
        assert agent.checkpoint(3, {"model.pt2": content}, reason="final", result={}).status_code == 200
        for fetched, damage in ((True, False), (False, True), (True, False)):
            file = models.find_model(str(job)[:13], deployment.url)
            assert file.read_bytes() == content
            assert file.suffix == ".pt2"
            assert ("Downloading" in capfd.readouterr().err) is fetched
            if damage:
                file.write_bytes(content[:100])
