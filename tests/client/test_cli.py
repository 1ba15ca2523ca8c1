# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, error messages, and where it finds its login."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest
import typer
from shoestring import cli, config, exit_codes, trainer
from shoestring.cli.service import _print_summary
from shoestring_core import recipes, rest, spec
from shoestring_core.exit_codes import ExitCode
from shoestring_core.states import EndReason
from typer.testing import CliRunner

from tests import servers
from tests.client.conftest import RunCommand
from tests.client.test_client import JOB
from tests.e2e.service import PACKAGE_FOLDERS, ROOT
from tests.servers import PATIENCE_S

TYPED = re.compile(r"(?:^|`)shoestring ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?([^`\n]*)", re.MULTILINE)
"""A command as pages write it."""


def shoestring(
    *arguments: str, home: Path, stdout: int | IO[str] = subprocess.PIPE, **variables: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOESTRING_")}
    path = os.pathsep.join(str(ROOT / package) for package in PACKAGE_FOLDERS)
    environment = (
        kept | {"PYTHONPATH": path, "SHOESTRING_CONFIG": str(home / "login.json"), "NO_COLOR": "1"} | variables
    )
    return subprocess.run(
        [sys.executable, "-m", "shoestring", *arguments],
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    )


def test_without_a_login_the_error_names_the_command_to_type_whatever_the_current_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the current folder')")
    done = shoestring("ls", home=tmp_path)
    assert done.returncode == ExitCode.AUTH
    assert "shoestring up" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_that_is_down_has_its_own_exit_code(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}"
    done = shoestring("ls", home=tmp_path, SHOESTRING_URL=url, SHOESTRING_KEY="sst_pat_x")
    assert done.returncode == ExitCode.NETWORK
    assert url in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_is_a_usage_error(run_command: RunCommand) -> None:
    done = run_command("trian")
    assert done.returncode == ExitCode.USAGE


@pytest.mark.parametrize("command", ["submit", "quote"])
def test_a_parameter_given_as_an_option_is_answered_with_how_to_give_it(run_command: RunCommand, command: str) -> None:
    done = run_command(command, "digits/quickstart", "--epochs", "5")
    assert done.returncode == ExitCode.USAGE
    assert "epochs=VALUE" in done.stderr
    assert "VALUE" not in run_command(command, "digits/quickstart", "--jsno").stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit",),
        ("submit", "digits/quickstart", "-f", "x.yaml"),
        ("quote",),
        ("quote", "-f", "x.yaml", "epochs=3"),
        ("quote", "x.yaml", "epochs=3"),
        ("quote", "digits/quickstart", "--machines", "1,two"),
        ("up", "--budget", "much"),
        ("budget", "set", "-1e9"),
        ("budget", "weight", "0"),
        ("budget", "lines", "101"),
        ("budget", "period", "week"),
        ("budget", "period", "term", "--until", "tomorrow"),
        ("budget", "period", "month", "--carry-over", "-1"),
        ("budget", "lines", "50", "half"),
        ("budget", "grant", "-5"),
        ("budget", "concurrency"),
        ("budget", "concurrency", "--jobs", "-1"),
        ("budget", "concurrency", "--gpus", "1e3"),
        ("budget", "concurrency", "--gpus", "10000000"),
        ("budget", "transfer", "nan", "--from", "ada", "--to", "ben"),
    ],
)
def test_contradictory_arguments_are_usage_errors(run_command: RunCommand, arguments: tuple[str, ...]) -> None:
    done = run_command(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert "Traceback" not in done.stderr


def test_help_opens_with_examples(run_command: RunCommand) -> None:
    done = run_command("--help")
    assert (done.returncode, "  shoestring up --budget 10 " in done.stdout) == (ExitCode.OK, True)
    for name, command in (commands() | groups()).items():
        assert re.search(rf"^(\w+=\w+ )?shoestring {name}\b", command.help, re.M), name


def test_lists_of_commands_show_whole_sentences_on_80_columns() -> None:
    root: Any = typer.main.get_command(cli.app)
    for group in (root, *groups().values()):
        room = 78 - 6 - max(map(len, group.commands))  # two columns stay free, and four and two are around the names
        short = {name: command.get_short_help_str(room) for name, command in group.commands.items()}
        assert short
        assert not [name for name, text in short.items() if text.endswith("...")]


def test_arguments_are_written_in_capitals() -> None:
    for name, command in commands().items():
        usage = command.get_usage(typer.Context(command)).partition("[OPTIONS]")[2]
        assert usage == usage.upper(), name


def commands() -> dict[str, Any]:
    """All commands by name, those of groups with the group's."""

    def leaves(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
        for name, below in getattr(command, "commands", {}).items():
            yield from leaves(below, *path, name)
        if not hasattr(command, "commands"):
            yield " ".join(path), command

    return dict(leaves(typer.main.get_command(cli.app)))


def groups() -> dict[str, Any]:
    below = vars(typer.main.get_command(cli.app))["commands"]
    return {name: command for name, command in below.items() if hasattr(command, "commands")}


def test_the_pages_name_commands_and_options_that_exist() -> None:
    known = {
        name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        for name, command in commands().items()
    }
    groups = {name.split()[0] for name in known if " " in name}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = [typed for page in pages for typed in TYPED.findall(page.read_text(encoding="utf-8"))]
    assert len(found) > 50
    for first, second, more in found:
        name = f"{first} {second}" if f"{first} {second}" in known else first
        assert name in known or name in groups, (first, second)
        options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", more.partition("#")[0]))
        assert options <= known.get(name, options) | {"--help"}, (name, more)


def test_the_jobs_that_the_pages_submit_have_valid_specs() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    typed = [found for page in pages for found in TYPED.findall(page.read_text(encoding="utf-8"))]
    trees = []
    for command, family, rest_of_line in typed:
        if command in ("submit", "quote") and rest_of_line.startswith("/") and "JOB" not in rest_of_line:
            recipe, *words = shlex.split(family + rest_of_line, comments=True)
            trees.append(spec.from_arguments(recipe, [word for word in words if "=" in word]))
    assert len(trees) > 8
    for tree in trees:
        spec.parse(tree)


def test_every_command_can_print_json() -> None:
    found = commands()
    assert {"up", "export", "recipes ls"} < set(found)
    assert not [name for name, command in found.items() if "--json" not in str([one.opts for one in command.params])]


def test_recipes_need_no_service_and_no_login(run_command: RunCommand) -> None:
    for command in (("recipes", "--json"), ("recipes", "ls", "--json")):
        listed = run_command(*command)
        assert listed.returncode == ExitCode.OK, listed.stderr
        assert [recipe["name"] for recipe in json.loads(listed.stdout)] == [recipe.name for recipe in recipes.all()]
    shown = run_command("recipes", "show", "digits/quickstart")
    assert (shown.returncode, "epochs" in shown.stdout) == (ExitCode.OK, True)
    unknown = run_command("recipes", "show", "digits/slowstart")
    assert (unknown.returncode, "shoestring recipes ls" in unknown.stderr) == (ExitCode.NOT_FOUND, True)


def test_json_goes_after_the_subcommand_of_recipes(run_command: RunCommand) -> None:
    misplaced = run_command("recipes", "--json", "show", "a/recipe")
    assert (misplaced.returncode, "--json goes after" in misplaced.stderr) == (ExitCode.USAGE, True)


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
    assert config.find_login("http://environment").source == "the environment", "as commands pass it on"
    assert config.find_login("http://flag", "flag-key").key == "flag-key"
    monkeypatch.delenv("SHOESTRING_URL")
    assert (config.find_login().url, config.find_login().key) == ("http://saved", "environment-key")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "damaged"])
def test_what_is_no_saved_login_is_named_neither_waited_for_nor_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "login.json"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path = Path("/dev/null")
        case _:
            path.write_text("{")
    monkeypatch.setenv("SHOESTRING_CONFIG", str(path))
    monkeypatch.delenv("SHOESTRING_URL", raising=False)
    monkeypatch.delenv("SHOESTRING_KEY", raising=False)
    what = "is damaged." if kind == "damaged" else f"can't be read: it is a {kind}, where a file is needed."
    with pytest.raises(config.NotLoggedIn, match=f"^The saved login {path} {what} No service is configured. Run: "):
        config.find_login()
    with pytest.raises(config.NotLoggedIn, match=f"^The saved login {path} {what} No key for http://other"):
        config.find_login("http://other")
    if kind != "damaged":
        with pytest.raises(OSError, match=f"it is a {kind}, where a file is needed"):
            config.save_login("http://saved", "key")


@pytest.mark.parametrize("kind", ["pipe", "folder", "sparse file"])
def test_a_spec_that_is_no_file_of_bounded_size_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "job.yaml"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.touch()
            os.truncate(path, 256 << 30)
    result = CliRunner().invoke(cli.app, ["submit", str(path)])
    why = "it has 274,877,906,944 bytes" if kind == "sparse file" else f"it is a {kind}, where a file is needed"
    assert result.exit_code == ExitCode.USAGE
    assert f"can't read {path}: {why}" in " ".join(result.output.replace("│", " ").split())


def test_a_saved_key_is_sent_to_no_other_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "login.json"))
    monkeypatch.delenv("SHOESTRING_URL", raising=False)
    monkeypatch.delenv("SHOESTRING_KEY", raising=False)
    config.save_login("http://saved", "saved-key")
    assert config.find_login("http://saved/").key == "saved-key"
    with pytest.raises(config.NotLoggedIn, match="shoestring login http://other"):
        config.find_login("http://other")


@pytest.fixture
def service() -> Iterator[str]:
    """The URL of a service that accepts every key and has one job, a thousand times."""
    job = rest.Job.model_validate(JOB | {"name": "Ä" * 80})
    answers = {
        "/v1/jobs": rest.JobPage(jobs=[job] * 1_000),
        "/v1/me": rest.Me(user="ada", team="vision", role="admin", version="0", cursor="c0"),
    }

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers[self.path.partition("?")[0]].model_dump_json().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_login_without_a_key_goes_back_to_the_service_of_before(service: str, tmp_path: Path) -> None:
    def login(*arguments: str) -> subprocess.CompletedProcess[str]:
        return shoestring("login", *arguments, home=tmp_path)

    assert "No API key was given" in login(service).stderr
    assert login(service, "--key", "theirs").returncode == ExitCode.OK
    local = json.dumps({"url": "http://127.0.0.1:1", "key": "local"})
    earlier = tmp_path / "login.earlier.json"
    earlier.write_text((tmp_path / "login.json").read_text())
    (tmp_path / "login.json").write_text(local)
    assert login(f"{service}/").returncode == ExitCode.OK
    assert json.loads((tmp_path / "login.json").read_text()) == {"url": service, "key": "theirs"}
    assert json.loads(earlier.read_text()) == json.loads(local), "and forth"
    assert earlier.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("json", [[], ["--json"]])
@pytest.mark.parametrize(
    ("out", "code", "message"),
    [("/dev/full", ExitCode.USAGE, "No space left on device"), ("a closed pipe", ExitCode.OK, "")],
)
def test_output_that_cannot_be_written_ends_without_a_traceback(
    service: str, tmp_path: Path, out: str, code: int, message: str, json: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer if out == "a closed pipe" else out, "w") as stdout:
        done = shoestring("ls", *json, home=tmp_path, stdout=stdout, SHOESTRING_URL=service, SHOESTRING_KEY="x")
    assert (done.returncode, done.stderr.strip()) == (code, message)


def test_characters_that_a_terminal_lacks_are_shown_by_number(service: str, tmp_path: Path) -> None:
    done = shoestring("ls", home=tmp_path, SHOESTRING_URL=service, SHOESTRING_KEY="x", PYTHONIOENCODING="ascii")
    assert done.returncode == ExitCode.OK
    assert "\\xc4" in done.stdout


def test_a_folder_that_cannot_be_written_is_named(
    service: str, tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "file" / "login.json"))
    done = run_command("login", service, "--key", "x")
    assert done.returncode == ExitCode.USAGE
    assert "Traceback" not in done.stderr


def test_without_a_terminal_the_key_is_read_from_standard_input_and_nothing_is_warned_of(
    service: str, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("sst_pat_x\n"))
    done = run_command("login", service)
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert config.find_login(service).key == "sst_pat_x"
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    done = run_command("login", service)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.strip() == (
        f"No API key was given. Give it by --key KEY, or from a file: shoestring login {service} < KEYFILE"
    )


@pytest.mark.parametrize(
    "content",
    [
        '["not", "a", "login"]', '{"url": 5, "key": "k"}', '{"url": ["u"]}', '{"url": "http://a", "key": 7}',
        '{"url": "http://a", "key": "k", "ca": 1}', "[" * 100_000, "",
    ],
)  # fmt: skip
def test_a_corrupt_login_file_counts_as_no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "login.json"))
    monkeypatch.delenv("SHOESTRING_URL", raising=False)
    (tmp_path / "login.json").write_text(content)
    with pytest.raises(config.NotLoggedIn):
        config.find_login()


def test_how_a_job_ended_is_the_exit_code_of_watch() -> None:
    def code(end_reason: EndReason | None, wait_reason: str | None = None) -> ExitCode:
        return exit_codes.of_job(rest.Job.model_construct(end_reason=end_reason, wait_reason=wait_reason))

    assert {reason: code(reason) for reason in EndReason if code(reason) is not ExitCode.JOB_FAILED} == {
        EndReason.SUCCEEDED: ExitCode.OK,
        EndReason.GOAL_REACHED: ExitCode.OK,
        EndReason.BUDGET: ExitCode.BUDGET,
        EndReason.NO_CAPACITY: ExitCode.NO_CAPACITY,
        EndReason.QUOTA: ExitCode.NO_CAPACITY,
    }
    assert code(None, "budget") is ExitCode.BUDGET
    assert code(None, "resume") is ExitCode.DETACHED


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("predict", "nowhere/model.pt2", "cat.jpg"), ExitCode.NOT_FOUND, "File nowhere/model.pt2 does not exist"),
        (("export", "model.pt2"), ExitCode.NOT_FOUND, "File model.pt2 does not exist"),
        (("predict", "0193", "cat.jpg"), ExitCode.AUTH, "shoestring up"),
        (("predict", "model.pt2", "cat.jpg", "--on-corrupt", "hide"), ExitCode.USAGE, "error or skip"),
    ],
)
def test_a_model_that_is_not_there_is_named(
    run_command: RunCommand, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run_command(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_trainer_is_not_imported_from_the_folder_that_a_command_is_typed_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shoestring_trainer.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    assert trainer.run("--help") == 0


def test_without_the_trainer_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "find_spec", lambda _name: None)
    with pytest.raises(trainer.TrainerNotInstalled, match=r"pip install 'shoestring-trainer\[train\]'"):
        trainer.require()


def test_schedules_and_model_summaries_need_no_service(run_command: RunCommand) -> None:
    drawn = run_command("recipes", "show", "cifar10/page-resnet9", "--plot")
    assert drawn.returncode == ExitCode.OK, drawn.stderr
    assert "learning rate" in drawn.stdout
    assert all(len(line) <= 80 for line in drawn.stdout.splitlines())
    printed = run_command("model", "digits/quickstart", "width=4", "--json")
    assert printed.returncode == ExitCode.OK, printed.stderr
    assert json.loads(printed.stdout)["input"] == [1, 8, 8]
    unknown = run_command("recipes", "show", "cifar10/page-resnet8", "--plot")
    assert unknown.returncode == ExitCode.USAGE
    assert "cifar10/page-resnet9" in unknown.stderr


def test_the_demos_figures_have_units_and_no_more_digits_than_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    _print_summary(
        {
            "status": "succeeded", "accuracy": 0.9972144846796658, "zones": [], "preempt_step": None,
            "spent_usd": "0.037959", "resume_s": 6.2345, "left": {"spot_requests": 0}, "steps": 719,
        }
    )  # fmt: skip
    shown = {line[:24].strip(): line[25:] for line in capsys.readouterr().out.splitlines()}
    assert shown == {
        "status": "succeeded", "accuracy": "0.9972", "spent": "$0.037959", "resume": "6.2 s",
        "left": "spot requests 0", "steps": "719",
    }  # fmt: skip
