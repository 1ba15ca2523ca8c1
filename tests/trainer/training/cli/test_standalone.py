# SPDX-License-Identifier: Apache-2.0
"""The trainer by itself: a recipe, a spec or a stopped run is all it needs, and it says how far it is."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from shoestring_core.errors import InvalidSpec
from shoestring_trainer.data_sync.shard_requests import ShardRequests
from shoestring_trainer.training import rank
from shoestring_trainer.training.cli import commands, standalone
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.results import progress
from shoestring_trainer.training.task import read_task

from tests.servers import PATIENCE_S, until
from tests.trainer.data_sync.bucket_server import BUCKET, put_shards, serving
from tests.trainer.training.gangs import PACKAGE_FOLDERS, Gang

SMALL = ("batch_size=64", "width=4", "precision=fp32")


def trainer(*words: str, home: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(PACKAGE_FOLDERS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "shoestring_trainer", "train", *words]
    return subprocess.Popen(
        command, env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_recipe_by_name_trains_and_lays_its_model_out(tmp_path: Path):
    process = trainer("digits/quickstart", "epochs=1", *SMALL, home=tmp_path)
    spoken, complaint = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, complaint
    run = tmp_path / "runs" / "digits-quickstart-1"
    assert (run / "model" / "model.pt2").exists()
    assert not (run / "model" / "optimizer.safetensors").exists()
    assert "val/acc 0." in spoken
    assert "runs/digits-quickstart-1/model: " in spoken
    assert complaint == ""
    (word,) = Gang([run]).exits()
    assert word["outcome"] == "finished"
    assert [line["step"] for line in Gang([run]).metrics()] == list(range(1, word["step"] + 1))


def test_interrupted_it_saves_and_goes_on_from_there(tmp_path: Path):
    spec = tmp_path / "job.yaml"
    spec.write_text("recipe: digits/quickstart\nparams: {epochs: 8, batch_size: 64, width: 4, precision: fp32}\n")
    run = Gang([tmp_path / "mine"])
    process = trainer("job.yaml", "--output-dir", "mine", home=tmp_path)
    until(lambda: process.poll() is not None or len(run.metrics()) >= 5)
    process.send_signal(signal.SIGINT)
    spoken, complaint = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, complaint
    assert "resume with: python -m shoestring_trainer train mine" in spoken
    (word,) = run.exits()
    assert word["outcome"] == "drained"
    with (run.first / "metrics.jsonl").open("a") as points:
        points.write(json.dumps({"step": word["step"] + 1, "v": {}}) + '\n{"torn')
    process = trainer("mine", home=tmp_path)
    _, complaint = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, complaint
    steps = [line["step"] for line in run.metrics()]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] == run.events("started")[-1]["steps_total"] > word["step"]
    assert [event["step"] for event in run.events("started")] == [0, word["step"]]


def test_data_in_a_bucket_are_brought_to_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["imagefolder/resnet9", f"data.train=s3://{BUCKET}/set", "--output-dir", str(tmp_path / "run")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving() as bucket:
        bucket.put("set/cat/1.jpg", b"an image")
        bucket.access_key = "AKIATEST"
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="may not read s3://images/set"):
            standalone.prepare_task(words)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        task = read_task(standalone.prepare_task(words))
        assert task.data_path
        assert task.data_path.is_relative_to(tmp_path / "cache" / "shoestring")
        assert (task.data_path / "cat" / "1.jpg").read_bytes() == b"an image"
        bucket.put("set/cat/2.jpg", b"another")
        assert read_task(standalone.prepare_task([str(tmp_path / "run")])).data_path == task.data_path
        assert (task.data_path / "cat" / "2.jpg").read_bytes() == b"another"
        assert bucket.requested_keys == ["set/cat/1.jpg", "set/cat/2.jpg"]


def test_shards_in_a_bucket_are_streamed_by_a_process_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["imagefolder/resnet9", f"data.train=s3://{BUCKET}/set", "data.stream=true"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(PACKAGE_FOLDERS))
    with serving() as bucket:
        files = put_shards(bucket, "set/", 4)
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        before = set(psutil.Process().children())
        data = read_task(standalone.prepare_task([*words, "--output-dir", str(tmp_path / "run")])).data
        (streaming,) = set(psutil.Process().children()) - before
        assert data
        assert data.requests
        with closing(ShardRequests(Path(data.requests), Path(data.train), list(files), "s3", print)) as requests:
            requests.announce([2])
            requests.wait_for([2])
        assert Path(data.train, "train-000002.tar").read_bytes() == files["train-000002.tar"]
        streaming.kill()
        streaming.wait()


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["digits/quickstat"], "Did you mean digits/quickstart"),
        (["digits/quickstart", "epoch=3"], "Did you mean epochs"),
        (["job.yaml", "epochs=3"], "write them into job.yaml"),
        (["list.yaml"], "recipe: digits/quickstart"),
        (["empty"], "give the folder of a run"),
        (["task.json", "epochs=3"], "leave the other arguments out"),
    ],
)
def test_what_cannot_be_started_is_said_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], remedy: str
):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text("recipe: digits/quickstart\n")
    Path("list.yaml").write_text("- recipe\n")
    Path("task.json").write_text('{"format": 1}')
    Path("empty").mkdir()
    with pytest.raises((UserError, InvalidSpec), match=remedy):
        standalone.prepare_task(words)
    assert not Path("runs").exists()


def test_ranks_of_torchrun_meet_in_a_folder_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="--output-dir DIR"):
        standalone.prepare_task(["digits/quickstart"])
    assert standalone.prepare_task(["digits/quickstart", "--output-dir", "two"]) == standalone.prepare_task(
        ["digits/quickstart", "--output-dir", "two"]
    )


@pytest.mark.parametrize("left", ["metrics.jsonl", "ckpt/step-000000003.data", "model/model.pt2"])
def test_a_folder_that_holds_a_run_is_refused_with_the_two_ways_on(tmp_path: Path, left: str):
    words = ["digits/quickstart", "--output-dir", str(tmp_path / "mine")]
    standalone.prepare_task(words)
    (tmp_path / "mine" / left).parent.mkdir(exist_ok=True)
    (tmp_path / "mine" / left).write_text("")
    task = (tmp_path / "mine" / "task.json").read_text()
    with pytest.raises(UserError, match=rf"go on with it: .* train {tmp_path}/mine\. For a new run, name another"):
        standalone.prepare_task([*words, "epochs=9"])
    assert (tmp_path / "mine" / "task.json").read_text() == task


def torchrun_starts_ranks(monkeypatch: pytest.MonkeyPatch, *, restart: int) -> None:
    """As torchrun does, which this process's parent stands for."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))


def test_a_run_that_torchrun_restarts_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["digits/quickstart", "--output-dir", str(tmp_path / "mine"), "epochs=2"]
    torchrun_starts_ranks(monkeypatch, restart=0)
    file = standalone.prepare_task(words)
    assert standalone.prepare_task(words) == file, "another of its ranks"
    (tmp_path / "mine" / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n')
    (tmp_path / "mine" / "ckpt").mkdir()
    (tmp_path / "mine" / "ckpt" / "step-000000003.json").write_text('{"step": 3}')
    torchrun_starts_ranks(monkeypatch, restart=1)
    for _ in range(2):
        resume = read_task(standalone.prepare_task(words)).resume
        assert resume is not None
        assert resume.manifest == tmp_path / "mine" / "ckpt" / "step-000000003.json"
    assert (tmp_path / "mine" / "metrics.jsonl").read_text() == '{"step": 3}\n'


def test_a_restart_never_goes_on_with_the_run_that_another_torchrun_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["digits/quickstart", "--output-dir", str(tmp_path / "mine")]
    standalone.prepare_task(words)
    (tmp_path / "mine" / "metrics.jsonl").write_text('{"step": 3}\n')
    (tmp_path / "mine" / standalone.STARTED_BY_FILE).write_text("1 2 another boot\n")
    for restart in (0, 1):
        torchrun_starts_ranks(monkeypatch, restart=restart)
        with pytest.raises(UserError, match="holds a run already"):
            standalone.prepare_task(words)


def test_files_of_the_folder_that_are_named_like_modules_are_not_imported(tmp_path: Path):
    for name in ("random", "torch", "numpy", "json", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the folder')\n")
    process = trainer("digits/quickstat", home=tmp_path)
    _, complaint = process.communicate(timeout=PATIENCE_S)
    assert "Did you mean digits/quickstart" in complaint


def test_the_bar_fits_a_narrow_terminal_without_colour():
    values = {"train/loss": 12.3456, "train/lr": 0.1}
    for step in (0, 1, 500, 9_999, 10_000):
        line = progress.bar_line(step, 10_000, 9.99, 1234.5, values)
        assert len(line) < 80
        assert line.isprintable()
    assert "100 %" in line


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("task.json", "start a new run"), ("ckpt/step-000000009.json", "from the previous checkpoint")],
)
@pytest.mark.parametrize(
    "content", [b'{"format": 1, "st', b"[" * 100_000, b"\xff", b'{"step": NaN}', b'{"step": null}']
)
def test_a_damaged_run_is_named_with_what_to_do(tmp_path: Path, name: str, remedy: str, content: bytes):
    for file in ("task.json", "ckpt/step-000000003.json", "ckpt/step-000000009.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text('{"step": 3}')
    task = {"format": 1, "job": "job", "generation": 1, "recipe": "digits/quickstart"}
    (tmp_path / "task.json").write_text(json.dumps(task))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=remedy) as refused:
        standalone.prepare_task([str(tmp_path)])
    assert str(tmp_path / name) in str(refused.value)


def test_a_line_of_metrics_that_cannot_be_read_is_left_out(tmp_path: Path):
    task = {"format": 1, "job": "job", "generation": 1, "recipe": "digits/quickstart"}
    (tmp_path / "task.json").write_text(json.dumps(task))
    kept = [b'{"step": 0, "name": "a\xe2\x80\xa8b"}\n', b'{"step": 0}\r\n']
    wrong = [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"null\n", b'{"step": "0"}\n', b'{"step": 1}\n', b'{"step": 0}']
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([*kept, *wrong]))
    standalone.prepare_task([str(tmp_path)])
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(kept)


def test_a_folder_that_is_gone_or_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        rank.main(["digits/quickstart", "--output-dir", str(tmp_path / "file/run")])
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert (ended.value.code, commands.main(["prepare", "photos", "shards"])) == (rank.USAGE, commands.USAGE)
    said = capsys.readouterr().err.splitlines()
    in_the_way = "a file lies where a folder above it is needed"
    assert said == [f"{tmp_path / 'file/run'}: {in_the_way}", "No such file or directory"]


def test_a_pipe_in_the_place_of_what_is_trained_or_predicted_with_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("job.yaml", "model.pt2", "run/task.json", "out.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "x.png").touch()
    for what in ("job.yaml", "run"):
        with pytest.raises(SystemExit) as ended:
            rank.main([str(tmp_path / what)])
        assert ended.value.code == rank.USAGE
    assert commands.main(["predict", str(tmp_path / "model.pt2"), str(tmp_path / "x.png")]) == commands.USAGE
    assert commands.main(["export", str(tmp_path / "model.pt2"), str(tmp_path / "out.onnx")]) == commands.USAGE
    job, task, model, target = capsys.readouterr().err.splitlines()
    assert job == f"{tmp_path}/job.yaml: it is a pipe, where a file is needed"
    assert task.startswith(f"{tmp_path}/run holds no task.json")
    assert model.startswith(f"cannot read {tmp_path}/model.pt2: it is a pipe, where a file is needed; ")
    assert target == f"cannot write {tmp_path}/out.onnx: it is a pipe, where a file is needed; choose another path"


def test_what_a_terminal_lacks_or_would_obey_is_shown_as_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a\x1b[2Jb").mkdir()
    with pytest.raises(SystemExit):
        rank.main([str(tmp_path / "a\x1b[2Jb")])
    refused = capsys.readouterr().err
    assert refused == f"{tmp_path}/ab holds no task.json; give the folder of a run\n"
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert commands.main(["schedule", "digits/quickstart"]) == commands.OK
    assert written.getvalue().isascii()
