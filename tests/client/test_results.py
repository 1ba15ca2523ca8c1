# SPDX-License-Identifier: Apache-2.0
"""`shoestring results`: a folder, an entry and a job are read into the same figures, and a run becomes an entry."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from shoestring import Client, runs
from shoestring_core.exit_codes import ExitCode
from shoestring_core.store.db import open_store
from shoestring_core.task import RecipeTask, TaskGoal

from tests.api.deployment import Deployment
from tests.client.conftest import RunCommand


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run as the trainer writes it alone: two epochs of five steps, a second each."""
    run = tmp_path / "digits-quickstart-1"
    run.mkdir()
    task = RecipeTask(
        format=1, job="job", generation=1, recipe="digits/quickstart@1", goal=TaskGoal(metric="val/acc", reach=0.9)
    )
    (run / "task.json").write_text(task.model_dump_json())
    lines = []
    for step in range(1, 11):
        values = {"train/loss": 1.0} | ({"val/acc": 0.75 + 0.02 * step, "val/acc_top5": 0.95} if step % 5 == 0 else {})
        lines.append({"t": 1000.0 + step, "step": step, "epoch": step / 5, "v": values})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = [
        {"t": 999.5, "event": "started", "step": 0},
        {
            "t": 1011,
            "event": "checkpoint",
            "final": True,
            "result": {"images_per_s": 320.5, "framework": "PyTorch 2.13.0"},
        },
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def test_a_folder_is_shown_and_becomes_an_entry_that_reads_the_same(
    run_command: RunCommand, folder: Path, tmp_path: Path
) -> None:
    options = ("--dawnbench", str(tmp_path / "entry"), "--author", "Us", "--email", "us@example.org", "--json")
    done = run_command("results", str(folder), *options)
    assert done.returncode == ExitCode.OK, done.stderr
    output = json.loads(done.stdout)
    assert output["target"] == 0.9
    (one,) = output["runs"]
    assert (one["to_target"]["epoch"], one["to_target"]["train_s"], one["to_target"]["wait_s"]) == (2.0, 10.0, 10.5)
    assert one["images_per_s"] == 320.5
    written = tmp_path / "entry" / "us_digits-quickstart_this-computer_pytorch-2.13.0.json"
    both = run_command("results", str(written), str(folder), "--target", "0.9")
    assert both.returncode == ExitCode.OK, both.stderr
    assert both.stdout.count("10.0 s") == 2
    assert "2 of 2 reach the target" in both.stdout


def test_a_time_that_is_not_known_is_not_shown_as_zero(run_command: RunCommand, folder: Path, tmp_path: Path) -> None:
    lines = folder / "metrics.jsonl"
    lines.write_text(lines.read_text().splitlines()[-1])
    done = run_command("results", str(folder))
    assert done.returncode == ExitCode.OK, done.stderr
    assert (done.stdout.count("unknown"), "0.0 s" in done.stdout) == (2, False)
    options = ("--dawnbench", str(tmp_path / "entry"), "--author", "Us", "--email", "us@example.org")
    refused = run_command("results", str(folder), *options)
    assert "can't be an entry: its training time isn't known" in refused.stderr


def test_a_target_that_was_not_reached_or_not_given_leaves_no_cell_empty(run_command: RunCommand, folder: Path) -> None:
    missed = run_command("results", str(folder), "--target", "0.99")
    assert missed.returncode == ExitCode.OK, missed.stderr
    run, row = "digits-quickstart-1", next(line for line in missed.stdout.splitlines() if "this computer" in line)
    assert row.split() == [run, "digits/quickstart,", "this", "computer", "95.00%", "not", "reached", "-", "-", "-"]
    assert "Times and costs are those to the target." in missed.stderr
    without = run_command("results", str(folder), "--metric", "val/acc_top5")
    assert "no target" in without.stdout
    assert "give one, such as --target 0.94" in without.stderr
    reached = run_command("results", str(folder))
    assert (reached.stdout.count("no price"), reached.stderr) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("absent.json",), "can't read absent.json"),
        (("notes.txt",), "notes.txt is neither a run's folder nor"),
        (("empty",), "give one that the trainer wrote"),
        (("FOLDER", "--dawnbench", "entry"), "--author and --email"),
        (("FOLDER", "FOLDER", "--dawnbench", "entry"), "exports a single run"),
    ],
)
def test_what_cannot_be_read_or_written_is_named(
    run_command: RunCommand,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    done = run_command("results", *(str(folder) if one == "FOLDER" else one for one in arguments))
    assert done.returncode == ExitCode.USAGE
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("metrics.jsonl", "[" * 100_000), ("metrics.jsonl", "5"), ("metrics.jsonl", "null"), ("metrics.jsonl", "[1]"),
        ("metrics.jsonl", "{}"), ("metrics.jsonl", '{"step": 1, "t": 1, "epoch": 1, "v": []}'),
        ("events.jsonl", '{"t": 1}'), ("events.jsonl", '{"event": "x", "t": 1, "final": true}'),
        ("events.jsonl", '{"event": "started", "t": 1}'), ("events.jsonl", "[" * 100_000),
    ],
)  # fmt: skip
def test_a_run_with_a_damaged_line_is_refused_by_its_name(folder: Path, file: str, line: str) -> None:
    with (folder / file).open("a") as lines:
        lines.write(f"{line}\n")
    with pytest.raises(runs.RunError, match=re.escape(str(folder))):
        runs.from_folder(folder, None)


def test_of_a_run_that_was_killed_the_line_that_was_cut_off_is_left_out(folder: Path) -> None:
    whole = runs.from_folder(folder, None)
    for file in ("metrics.jsonl", "events.jsonl"):
        with (folder / file).open("a") as lines:
            lines.write('{"t": 1795920414.2, "st')
    assert runs.from_folder(folder, None) == whole


def test_a_jobs_figures_come_from_the_service(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shoestring.db'}"
    store = open_store(url)
    store.migrate()
    store.close()
    with Deployment(url, tmp_path) as deployment:
        job, (agent,) = deployment.running(goal={"metric": "val/acc", "reach": 0.9})
        submitted = deployment.job(job).created_at.timestamp()
        times = [submitted + 100 + step for step in range(1, 11)]
        epochs = [step / 5 for step in range(1, 11)]
        series = [
            {"name": "train/loss", "steps": list(range(1, 11)), "times": times, "values": [1.0] * 10},
            {"name": "epoch", "steps": list(range(1, 11)), "times": times, "values": epochs},
            {"name": "val/acc", "steps": [5, 10], "times": [times[4], times[9]], "values": [0.8, 0.95]},
        ]  # fmt: skip
        agent.report(batch=agent.batch(points=series))
        result = {"val/acc": 0.95, "images_per_s": 100.0}
        assert agent.checkpoint(10, {"model.json": b"{}"}, reason="final", result=result).status_code == 200
        with Client(deployment.url, deployment.keys[1]) as client:
            found = runs.from_job(client, client.job(job), None)
    assert found.target == 0.9
    assert found.figures == {"images_per_s": 100.0}
    assert (found.run.model, found.run.hardware) == ("digits/quickstart", "1 x local.cpu (local)")
    assert found.run.usd_per_hour == 0.526
    row = found.run.first_reaching(0.9)
    assert row is not None
    assert (row.epoch, row.top1) == (2.0, 0.95)
    assert row.train_s == pytest.approx(10.0)
    assert row.wait_s == pytest.approx(110.0)
    assert len(found.run.machines) == 1
