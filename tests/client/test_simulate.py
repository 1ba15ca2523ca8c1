# SPDX-License-Identifier: Apache-2.0
"""`shoestring simulate spot`: lines and table, and what is said of input that can't be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from shoestring.cli import simulate

from tests.client.conftest import RunCommand

ARGUMENTS = ("simulate", "spot", "--work", "2h", "--deadline", "3h", "--changeover", "0.1h", "--policy", "greedy")


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    for name, data in {"zone-a_v100_1": [1] * 40, "zone-b_v100_1": [0] * 40}.items():
        (folder / f"{name}.json").write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": data}))
    return folder


def test_a_line_for_each_run(run_command: RunCommand, traces: Path) -> None:
    done = run_command(*ARGUMENTS, "--traces", str(traces), "--starts", "2", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[:2] == [
        {"trace": "zone-a_v100_1", "start": start, "cost": pytest.approx(2.1 / 2 / 3.14, abs=1e-6), "missed": False,
         "changeovers": 1} for start in (0, 22)
    ]  # fmt: skip
    assert [line["cost"] for line in lines[2:]] == [pytest.approx(1.05)] * 2


def test_zones_are_one_series_and_all_starts_are_taken_after_the_warm_up(run_command: RunCommand, traces: Path) -> None:
    done = run_command(
        *ARGUMENTS, "--traces", str(traces), "--starts", "all", "--zones", "zone-b,zone-a", "--warm-up", "1h", "--json"
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["start"] for line in lines] == list(range(6, 23))
    assert {(line["trace"], line["changeovers"]) for line in lines} == {("zone-b_v100_1+zone-a_v100_1", 1)}


def test_a_series_with_fewer_starts_than_wanted_is_run_once_from_each(run_command: RunCommand, traces: Path) -> None:
    exact = (*ARGUMENTS, "--traces", str(traces), "--zones", "zone-a", "--json", "--deadline")
    starts = {
        deadline: [json.loads(line)["start"] for line in run_command(*exact, deadline).stdout.splitlines()]
        for deadline in ("6h30m", "6h40m")
    }
    assert starts == {"6h30m": [0, 1], "6h40m": [0]}


def test_a_table_has_the_mean_of_each_trace_and_of_all(run_command: RunCommand, traces: Path) -> None:
    table = run_command(*ARGUMENTS, "--traces", str(traces), "--starts", "4").stdout
    assert re.search(r"zone-a_v100_1 +4 +0\.3344 +0 +1\.0", table)
    assert re.search(r"all +8 +0\.6922 +0 +1\.0", table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--work", "2 days"], "--work: '2 days' is not a duration"),
        (["--work", "0h"], "--work must be above 0"),
        (["--deadline", "2h"], "--deadline is too early: the work and a changeover take 2.1h on-demand"),
        (["--price-ratio", "-1"], "--price-ratio is -1.0"),
        (["--price-ratio", "nan"], "--price-ratio is nan"),
        (["--price-ratio", "1e300"], "--price-ratio is 1e+300, where a number above 0 and up to 1000 is needed"),
        (["--starts", "0"], "'0' is neither a number of starts nor `all`"),
        (["--zones", "zone-c"], "Zone zone-c is not among the traces. There are: zone-a_v100_1, zone-b_v100_1."),
        (["--zones", "zone-a,zone-a"], "--zones names a zone twice."),
        (["--policy", "best"], "there is no policy 'best'. There are: adaptive, uniform-progress"),
        (["--warm-up", "10d"], "zone-a_v100_1 has 6.66667h of data, where 243h are needed."),
        (["--traces", "/nowhere"], "There is no folder /nowhere."),
    ],
)
def test_input_that_cannot_be_used_is_named(
    run_command: RunCommand, traces: Path, options: list[str], message: str
) -> None:
    done = run_command(*ARGUMENTS, "--traces", str(traces), *options)
    assert done.returncode == 2
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", done.stdout + done.stderr).split())


@pytest.mark.parametrize("command", ["spot", "schedule"])
def test_what_a_simulation_needs_is_said_with_an_example(command: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"such as: shoestring simulate {command}.*docs/"):
        simulate.app([command], standalone_mode=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not a trace"),
        ('{"data": [1]}', "is not a trace"),
        ('{"metadata": {"gap_seconds": 0}, "data": [1]}', "gap_seconds is 0"),
        ('{"metadata": {"gap_seconds": NaN}, "data": [1]}', "gap_seconds is nan"),
        ('{"metadata": {"gap_seconds": 600}, "data": [0, 2]}', "data is not a list of 0 and 1"),
        ('{"metadata": {"gap_seconds": 600}, "data": []}', "data is not a list of 0 and 1"),
    ],
)
def test_a_damaged_trace_is_named(run_command: RunCommand, traces: Path, text: str, message: str) -> None:
    (traces / "bad.json").write_text(text)
    done = run_command(*ARGUMENTS, "--traces", str(traces))
    assert done.returncode == 2
    assert "bad.json" in done.stderr
    assert message in " ".join(done.stderr.split())


SCENARIO = """
machines: [{price: 1.00, slots: 4}]
teams: {vision: {}, speech: {guaranteed_rate: 2.00}}
jobs:
  - {name: long, team: vision, work: 6h, nodes: 2}
  - {name: other, team: vision, work: 3h, nodes: 2}
  - {name: urgent, team: speech, at: 1h, work: 1h, nodes: 2}
"""


def test_a_schedule_is_a_line_for_each_start_eviction_and_end(run_command: RunCommand, tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(SCENARIO)
    done = run_command("simulate", "schedule", str(file), "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["at_s"], line["event"], line["job"]) for line in lines] == [
        (0, "start", "long"),
        (0, "start", "other"),
        (3600, "evict", "other"),
        (3615, "start", "urgent"),
        (7275, "end", "urgent"),
        (7275, "start", "other"),
        (14595, "end", "other"),
        (21660, "end", "long"),
    ]
    table = run_command("simulate", "schedule", str(file)).stdout
    assert re.search(r"speech +1 +1 +15s +0 +\$2\.03", table)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("work: 6h", "work: 6x"), "jobs.0.work"),
        (("1.00", "-1"), "machines.0.price"),
        (("team: speech", "team: nobody"), "there is no team nobody"),
        (("nodes: 2", "nodes: 0"), "jobs.0.nodes"),
        (("slots: 4", "slot: 4"), "machines.0.slot"),
        (("machines:", "machines: ["), "scenario.yaml"),
    ],
)
def test_what_a_scenario_should_be_is_said(
    run_command: RunCommand, tmp_path: Path, changed: tuple[str, str], named: str
) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(SCENARIO.replace(*changed))
    done = run_command("simulate", "schedule", str(file))
    assert done.returncode == 2
    assert named in " ".join(re.sub("[│╭╮╰╯─]", " ", done.stderr).split())
    assert "Traceback" not in done.stderr
