# SPDX-License-Identifier: Apache-2.0
"""The user data of a machine, executed: what it reports in each phase, and that it powers off in every case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from shoestring_core.tls import load_server
from shoestring_core.wire import BootData, BootReport
from shoestring_trainer.machinehost.launch_body import MAX_SCRIPT_BYTES
from shoestring_worker.providers.ec2 import user_data

from tests.certificates import make_certificate

AGENT = """#!/bin/sh
[ "$4" = --help ] && exit 0
cat "$SHOESTRING_BOOT_FILE" > agent-got
echo $SHOESTRING_POWEROFF >> agent-got
"""


@dataclass
class Machine:
    """A folder with the commands that the script calls, and the service that it reports to."""

    folder: Path
    url: str
    server: ThreadingHTTPServer
    answers: list[int] = field(default_factory=list)
    """Of the service, before it answers 204."""
    reports: list[BootReport] = field(default_factory=list)

    def command(self, name: str, script: str) -> Path:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o700)
        return path

    def boot(
        self, url: str | None = None, python: Path | None = None, ca: str = ""
    ) -> subprocess.CompletedProcess[str]:
        boot = BootData(server_url=url or self.url, machine=UUID(int=1), boot_token="once", ca=ca)
        script = self.folder / "script"
        script.write_text(user_data.render(boot, str(python or self.folder / "bin" / "python")))
        path = os.pathsep.join((str(self.folder / "bin"), str(Path(sys.executable).parent), os.defpath))
        script.chmod(0o700)
        return subprocess.run(
            [script], env={"PATH": path, "SHOESTRING_MACHINE_DIR": str(self.folder)}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    @property
    def is_off(self) -> bool:
        return (self.folder / "off").exists()

    @property
    def phases(self) -> list[tuple[str, str | None]]:
        return [(report.phase, report.failure) for report in self.reports]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = machine.answers.pop(0) if machine.answers else 204
            if status == 204:
                assert self.path == "/agent/v1/boot"
                machine.reports.append(BootReport.model_validate_json(body))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    machine = Machine(tmp_path, f"http://127.0.0.1:{server.server_port}", server)
    machine.command("poweroff", f"#!/bin/sh\n: > {tmp_path}/off\n")
    machine.command("nvidia-smi", "#!/bin/sh\necho '580.95.05, NVIDIA A10G'\n")
    machine.command("python", AGENT)
    yield machine
    server.shutdown()
    server.server_close()


def test_each_phase_is_reported_and_the_machine_is_off_when_the_agent_has_ended(machine: Machine) -> None:
    assert machine.boot().stderr == ""
    assert machine.phases == [(phase, None) for phase in ("boot", "driver", "install", "agent")]
    assert machine.reports[1].message == "NVIDIA driver 580.95.05, NVIDIA A10G"
    boot, poweroff = (machine.folder / "agent-got").read_text().rsplit("}", 1)
    assert BootData.model_validate_json(boot + "}").boot_token == "once"
    assert poweroff.strip() == "poweroff"
    assert (machine.folder / "boot-data.json").stat().st_mode & 0o077 == 0
    assert machine.is_off


@pytest.mark.parametrize(
    ("command", "script", "phase", "failure", "message"),
    [
        pytest.param(
            "nvidia-smi",
            "#!/bin/sh\necho '535.1.1, NVIDIA T4'\n",
            "driver",
            "image",
            "PyTorch needs 580",
            id="old driver",
        ),
        ("nvidia-smi", "#!/bin/sh\nexit 9\n", "driver", "hardware", "exit status 9"),
        ("nvidia-smi", "#!/bin/sh\necho no devices were found\n", "driver", "hardware", "no devices"),
        ("python", "#!/bin/sh\necho no module >&2; exit 1\n", "install", "image", "no module"),
        ("python", '#!/bin/sh\n[ "$4" = --help ] || exit 74\n', "agent", "boot", "code 74"),
    ],
)
def test_a_phase_that_fails_is_reported_and_the_machine_powers_off(
    machine: Machine, command: str, script: str, phase: str, failure: str, message: str
) -> None:
    machine.command(command, script)
    machine.boot()
    assert machine.phases[-1] == (phase, failure)
    assert message in machine.reports[-1].message
    assert machine.is_off


def test_a_machine_without_the_driver_and_one_without_the_environment_power_off(machine: Machine) -> None:
    machine.boot(python=machine.folder / "nowhere")
    (machine.folder / "bin" / "nvidia-smi").unlink()
    machine.boot()
    assert [told for told in machine.phases if told[1]] == [("install", "image"), ("driver", "image")]


def test_a_machine_that_the_service_refuses_powers_off_and_trains_nothing(machine: Machine) -> None:
    machine.answers = [403]
    assert "refuses this machine" in machine.boot().stderr
    assert (machine.reports, machine.is_off) == ([], True)


def test_a_service_that_is_restarting_is_asked_again(machine: Machine) -> None:
    machine.answers = [503]
    machine.boot()
    assert [phase for phase, _ in machine.phases] == ["boot", "driver", "install", "agent"]


def test_a_machine_trusts_the_given_authority_and_no_other(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_certificate(machine.folder)
    context = load_server(made.file, made.key_file)
    machine.server.socket = context.wrap_socket(machine.server.socket, server_side=True)
    url = machine.url.replace("http", "https")
    assert machine.boot(url, ca=made.text).stderr == ""
    assert len(machine.phases) == 4
    monkeypatch.setattr(user_data, "_SCRIPT", user_data._SCRIPT.replace("HELLO_S = 60.0", "HELLO_S = 0.1"))
    for other in ("", make_certificate(machine.folder, "other").text):
        assert "CERTIFICATE_VERIFY_FAILED" in machine.boot(url, ca=other).stderr
    assert len(machine.phases) == 4


def test_a_machine_that_can_t_reach_the_service_says_so_and_powers_off(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_data, "_SCRIPT", user_data._SCRIPT.replace("HELLO_S = 60.0", "HELLO_S = 0.1"))
    said = machine.boot(url="http://127.0.0.1:9").stderr
    assert "can't be reached from this machine at http://127.0.0.1:9/agent/v1/boot" in said
    assert machine.is_off


def test_user_data_is_small_and_its_only_secret_is_the_boot_token() -> None:
    boot = BootData(server_url=f"https://{'x' * 1000}.example", machine=UUID(int=1), boot_token="f" * 64)
    text = user_data.render(boot, "/opt/shoestring/bin/python")
    assert len(text.encode()) <= MAX_SCRIPT_BYTES
    told: dict[str, Any] = json.loads(text.rsplit("json.loads('", 1)[1].removesuffix("'))\n"))
    assert set(told) == {"boot", "python", "min_driver"}
    assert set(told["boot"]) == {"server_url", "machine", "boot_token", "ca"}
