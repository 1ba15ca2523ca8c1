# SPDX-License-Identifier: Apache-2.0
"""docs/operations/settings.md has the settings, timeouts, exit codes and metrics of the code, with their defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from pydantic_core import PydanticUndefined
from shoestring_api import app as _app  # registers the metrics of the API  # noqa: F401
from shoestring_api.settings import ApiSettings
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.durations import parse_duration
from shoestring_core.exit_codes import ExitCode
from shoestring_worker.providers.ec2.provider import TIMEOUTS as EC2
from shoestring_worker.providers.ec2.settings import Ec2Settings
from shoestring_worker.settings import WorkerSettings

PAGES = Path(__file__).parents[1] / "docs"
PAGE = (PAGES / "operations/settings.md").read_text(encoding="utf-8")
WORDED = {
    "agent_url": "http://127.0.0.1:PORT",  # of the API, which knows its port
    "local_slots": "the number of cores, at least 2",
    "recent_half_life": "7d",
}
"""Defaults that the page states in words."""


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its two first lines."""
    lines = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]


def shown(name: str, default: Any) -> str:
    """A default as the page has it."""
    match default:
        case _ if default is PydanticUndefined:
            return "required"
        case None | "" | ():
            return WORDED.get(name, "none")
        case tuple():
            return ",".join(default)
        case str():
            return default
        case _:
            return WORDED.get(name, str(default))


def test_each_setting_of_the_service_is_on_the_page_with_its_default() -> None:
    written = {
        (variable.strip("`"), reader): default
        for variable, readers, default, _ in table("API and worker")
        for reader in (("API", "worker") if readers == "both" else (readers,))
    }
    timeouts = {written.pop(("SHOESTRING_TIMEOUTS__NAME", reader)) for reader in ("API", "worker")}
    assert timeouts == {"[below](#timeouts)"}
    classes = {"API": ApiSettings, "worker": WorkerSettings}
    expected = {
        (f"SHOESTRING_{name.upper()}", reader): shown(name, field.default)
        for reader, settings in classes.items()
        for name, field in settings.model_fields.items()
        if name != "timeouts"
    }
    for reader in classes:  # one of the secret's two variables is required
        expected["SHOESTRING_SECRET", reader] = "required"
    assert written == expected


def test_each_timeout_is_on_the_page_with_its_values() -> None:
    def microseconds(cell: str) -> int | None:
        return None if cell in ("none", "") else round(parse_duration(cell) * S)

    written = {
        name.strip("`").lower(): (microseconds(default), microseconds(ec2))
        for name, default, ec2, _ in table("Timeouts")
    }
    assert written == {name: (field.default, EC2.get(name)) for name, field in Timeouts.model_fields.items()}


def test_each_setting_of_ec2_is_in_its_guide() -> None:
    guide = (PAGES / "aws.md").read_text(encoding="utf-8")
    named = {name.rpartition("_EC2_")[2] for name in re.findall(r"`(SHOESTRING_EC2_[A-Z_]+)[`=]", guide)}
    named |= set(re.findall(r"`…_([A-Z_]+)`", guide))
    assert {name.upper() for name in Ec2Settings.model_fields} <= named


def test_each_exit_code_is_on_the_page() -> None:
    section = PAGE.partition("Exit codes, for scripts")[2].partition("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.M)} == set(ExitCode)


def test_each_metric_is_on_the_page() -> None:
    ours = {metric.name for metric in REGISTRY.collect() if metric.name.startswith("shoestring_")}
    assert len(ours) > 2
    section = PAGE.partition("\n## Monitoring\n")[2]
    named = {name.removesuffix("_total") for name in re.findall(r"`(shoestring_\w+)`", section)}
    assert ours <= named
