# SPDX-License-Identifier: Apache-2.0
"""Jobs run hooks from the operator's folders only, and nobody learns from it which files there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.deployment import Deployment

SPEC = {"recipe": "digits/quickstart"}


@pytest.fixture
def root(deployment: Deployment) -> Iterator[Path]:
    """The folder for hooks: one file, links and a file of data."""
    (root,) = deployment.settings.hooks_roots
    (data,) = deployment.settings.data_roots
    for folder in (root, data):
        folder.mkdir(exist_ok=True)
        (folder / "mine.py").write_text("")
    (root.parent / "outside.py").write_text("")
    (root / "linked.py").symlink_to(root.parent / "outside.py")
    (root / "folder.py").mkdir(exist_ok=True)
    yield root
    (root / "linked.py").unlink()


def problems(deployment: Deployment, path: object) -> list[dict[str, Any]]:
    answer = deployment.member.post("/v1/quotes", json={"spec": SPEC | {"params": {"hooks_file": str(path)}}})
    if answer.status_code == 200:
        return []
    assert answer.status_code == 422
    return list(answer.json()["errors"])


def test_hooks_below_the_operators_folders_are_accepted(deployment: Deployment, root: Path) -> None:
    assert problems(deployment, root / "mine.py") == []


def test_hooks_elsewhere_are_refused_alike_whether_they_exist_or_not(deployment: Deployment, root: Path) -> None:
    (data,) = deployment.settings.data_roots
    places = (
        root.parent / "outside.py", root.parent / "missing.py", root / "missing.py", root / "folder.py",
        root / "linked.py", root / "../outside.py", data / "mine.py", "mine.py", "/etc/passwd", root / ("x" * 300),
    )  # fmt: skip
    for place in places:
        (problem,) = problems(deployment, place)
        assert problem["pointer"] == "/params/hooks_file"
        assert problem["code"] == "hooks-not-allowed"
        assert problem["message"].replace(repr(str(place)), "PATH") == (
            f"PATH is not a hooks file that jobs may run. Give the absolute path of a file below {root}."
        )


def test_where_jobs_are_not_isolated_hooks_are_refused_with_what_to_do(
    deployment: Deployment, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machinehost = tmp_path / "machinehost.json"
    monkeypatch.setattr(
        deployment.state, "settings", deployment.settings.model_copy(update={"machinehost_file": machinehost})
    )
    status = {"problem": "bubblewrap isn't installed", "remedy": "apt install bubblewrap"}
    machinehost.write_text(json.dumps({"isolation": status}))
    (problem,) = problems(deployment, root / "mine.py")
    assert problem["code"] == "hooks-not-allowed"
    assert "bubblewrap isn't installed" in problem["message"]
    assert problem["message"].endswith("To change that: apt install bubblewrap")
    machinehost.write_text(json.dumps({"isolation": {"problem": "", "remedy": ""}}))
    assert problems(deployment, root / "mine.py") == []


def test_hooks_are_off_by_default(deployment: Deployment, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = deployment.settings.model_copy(update={"hooks_roots": ()})
    monkeypatch.setattr(deployment.state, "settings", defaults)
    (problem,) = problems(deployment, root / "mine.py")
    assert "shoestring up --hooks-root DIR" in problem["message"]
