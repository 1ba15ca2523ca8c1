# SPDX-License-Identifier: Apache-2.0
"""The user data of a machine, executed: what it reports in each phase, and that it powers off in every case."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from shoestring_core.tls import load_server
from shoestring_core.wheelhouse import WheelFile, Wheelhouse
from shoestring_core.wire import BootData, BootReport, WheelhouseReply, WheelhouseRequest
from shoestring_trainer.machinehost.launch_body import MAX_SCRIPT_BYTES
from shoestring_worker.providers.ec2 import user_data
from shoestring_worker.providers.ec2.user_data_script import RANK_USER

from tests.certificates import make_certificate
from tests.servers import PATIENCE_S

PYTHON = "{}.{}".format(*sys.version_info)
AGENT = """#!/bin/sh
[ "$4" = --help ] && exit 0
cat "$SHOESTRING_BOOT_FILE" > agent-got
echo $SHOESTRING_POWEROFF >> agent-got
"""
INSTALLED_AGENT = """
import os, pathlib, sys
if sys.argv[1] == "agent":
    pathlib.Path(os.environ["SHOESTRING_MACHINE_DIR"], "agent-ran").write_text(sys.executable)
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
    wheelhouse: Wheelhouse | None = None
    wheels: dict[str, bytes] = field(default_factory=dict)
    """By their SHA-256."""
    metadata: dict[str, str] = field(
        default_factory=lambda: {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1"}
    )
    """Where it is. Empty: at EC2's address, to which a packet filter is set up."""

    def command(self, name: str, script: str) -> Path:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o700)
        return path

    def stock(self, python: str = PYTHON, min_driver: int = 580, **wheels: bytes) -> None:
        """Make a wheelhouse, of wheels whose names and contents these are."""
        self.wheels = {hashlib.sha256(content).hexdigest(): content for content in wheels.values()}
        files = tuple(
            WheelFile(name=f"{name}-1-py3-none-any.whl", bytes=len(content), sha256=sha256)
            for (name, content), sha256 in zip(wheels.items(), self.wheels, strict=True)
        )
        self.wheelhouse = Wheelhouse(python=python, cuda="13.0", min_driver=min_driver, from_image=True, files=files)

    def boot(
        self, url: str | None = None, python: Path | None = None, ca: str = "", wheelhouse: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        boot = BootData(server_url=url or self.url, machine=UUID(int=1), boot_token="once", ca=ca)
        name = (self.wheelhouse.name if self.wheelhouse else "") if wheelhouse is None else wheelhouse
        script = self.folder / "script"
        script.write_text(user_data.render(boot, str(python or self.folder / "bin" / "python"), name))
        path = os.pathsep.join((str(self.folder / "bin"), str(Path(sys.executable).parent), os.defpath))
        script.chmod(0o700)
        return subprocess.run(
            [script], env={"PATH": path, "SHOESTRING_MACHINE_DIR": str(self.folder), **self.metadata},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
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
            if self.path == "/agent/v1/wheelhouse":
                return self.tell_wheelhouse(WheelhouseRequest.model_validate_json(body))
            if status == 204:
                assert self.path == "/agent/v1/boot"
                machine.reports.append(BootReport.model_validate_json(body))
            return self.answer(status)

        def tell_wheelhouse(self, request: WheelhouseRequest) -> None:
            assert (request.machine, request.boot_token) == (UUID(int=1), "once")
            if machine.wheelhouse is None or request.wheelhouse != machine.wheelhouse.name:
                return self.answer(404, b'{"detail":"Object does not exist."}')
            urls = [f"{machine.url}/{file.sha256}" for file in machine.wheelhouse.files]
            reply = WheelhouseReply(manifest=machine.wheelhouse.as_bytes().decode(), urls=urls)
            return self.answer(200, reply.model_dump_json().encode())

        def do_GET(self) -> None:
            content = machine.wheels.get(self.path.strip("/"))
            self.answer(404) if content is None else self.answer(200, content)

        def answer(self, status: int, content: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

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


def change(monkeypatch: pytest.MonkeyPatch, module: str, old: str, new: str) -> None:
    """Change the source of a module."""
    assert old in user_data.SOURCES[module]
    monkeypatch.setitem(user_data.SOURCES, module, user_data.SOURCES[module].replace(old, new))


def test_each_phase_is_reported_and_the_machine_is_off_when_the_agent_has_ended(machine: Machine) -> None:
    assert machine.boot().stderr == ""
    assert machine.phases == [(phase, None) for phase in ("boot", "driver", "install", "agent")]
    assert machine.reports[1].message == "NVIDIA driver 580.95.05, NVIDIA A10G"
    assert [report.driver for report in machine.reports] == ["", "580.95.05", "", ""]
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
    assert machine.reports[-1].driver == ("535.1.1" if "535" in script else "")
    assert machine.is_off


def test_a_machine_without_the_driver_and_one_without_the_environment_power_off(machine: Machine) -> None:
    machine.boot(python=machine.folder / "nowhere")
    (machine.folder / "bin" / "nvidia-smi").unlink()
    machine.boot()
    assert [told for told in machine.phases if told[1]] == [("install", "image"), ("driver", "image")]


BY_NFT = (
    "nft table inet shoestring { chain output { type filter hook output priority 0; meta skgid 0 accept; "
    "ip daddr 169.254.169.254 reject; ip6 daddr fd00:ec2::254 reject; }; }"
)
FILTERS = {
    "nft": [BY_NFT],
    "iptables": [
        f"{tool} -w -I OUTPUT -d {address} {then}"
        for tool, address in (("iptables", "169.254.169.254"), ("ip6tables", "fd00:ec2::254"))
        for then in ("-j REJECT", "-m owner --gid-owner 0 -j ACCEPT")  # each before those that are there
    ],
}


RANKS_TOLD = """#!/bin/sh
[ "$2" = -c ] && exit
[ "$4" = --help ] || echo group $SHOESTRING_RANK_GROUP user $SHOESTRING_RANK_USER > ranks
"""


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_training_processes_are_a_user_of_their_own_who_must_be_able_to_run_the_environment(
    machine: Machine, mode: int
) -> None:
    machine.command("nft", "#!/bin/sh\n")
    machine.metadata = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(mode)
        python = Path(folder) / "python"
        python.write_text(RANKS_TOLD)
        python.chmod(0o755)
        machine.boot(python=python)
    filtered = machine.reports[3]
    if mode == 0o755 and os.geteuid() == 0:
        assert filtered.message.endswith(f"and are user {RANK_USER}'s")
        assert (machine.folder / "ranks").read_text() == f"group {RANK_USER} user {RANK_USER}\n"
        assert machine.folder.stat().st_mode & 0o777 == 0o711
    else:
        assert (filtered.phase, filtered.failure) == ("filter", "image")
        assert f"can't run {python}" in filtered.message
        assert "chmod -R o+rX" in filtered.message
        assert not (machine.folder / "ranks").exists()
    assert machine.is_off


@pytest.mark.parametrize("image", ["nft", "iptables", "neither"])
@pytest.mark.parametrize("named", ["", "http://169.254.169.254", "http://[fd00:ec2::254]"])
def test_training_processes_are_kept_from_the_metadata_before_the_agent_runs(
    machine: Machine, image: str, named: str
) -> None:
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-limiting-access.html"""
    stand_in, alone = f'#!/bin/sh\necho "${{0##*/}} $*" >> {machine.folder}/filters\n', machine.folder / "bin"
    for tool in {"nft": ["nft"], "iptables": ["iptables", "ip6tables"]}.get(image, []):
        machine.command(tool, stand_in)
    machine.command("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    machine.command("python", RANKS_TOLD)
    for tool in ("sh", "env"):
        (alone / tool).symlink_to(f"/usr/bin/{tool}")
    machine.metadata = {
        "PATH": str(alone),
        "SHOESTRING_SHARED_COMPUTER": "1",
    }  # of this computer's commands none: its packets aren't to be filtered
    if named:
        machine.metadata["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = named
    machine.boot()
    if image == "neither":
        assert machine.phases[-1] == ("filter", "image")
        assert not (machine.folder / "ranks").exists()
    else:
        assert [phase for phase, _ in machine.phases] == ["boot", "driver", "install", "filter", "agent"]
        assert (machine.folder / "filters").read_text().splitlines() == FILTERS[image]
        assert (machine.folder / "ranks").read_text() == f"group {RANK_USER} user\n", "nobody else reaches this folder"
        assert f"root's here: user {RANK_USER} can't run" in machine.reports[3].message
    assert machine.is_off


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
    change(monkeypatch, user_data.MACHINE, "HELLO_S = 60.0", "HELLO_S = 0.1")
    for other in ("", make_certificate(machine.folder, "other").text):
        assert "CERTIFICATE_VERIFY_FAILED" in machine.boot(url, ca=other).stderr
    assert len(machine.phases) == 4


def test_a_machine_that_can_t_reach_the_service_says_so_and_powers_off(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, user_data.MACHINE, "HELLO_S = 60.0", "HELLO_S = 0.1")
    said = machine.boot(url="http://127.0.0.1:9").stderr
    assert "can't be reached from this machine at http://127.0.0.1:9/agent/v1/boot" in said
    assert machine.is_off


def test_user_data_is_small_and_its_only_secret_is_the_boot_token() -> None:
    boot = BootData(server_url=f"https://{'x' * 1000}.example", machine=UUID(int=1), boot_token="f" * 64)
    text = user_data.render(boot, "/opt/shoestring/bin/python")
    assert len(text.encode()) <= MAX_SCRIPT_BYTES
    told = arguments_of(text)
    assert set(told) == {"boot", "python", "min_driver", "wheelhouse"}
    assert set(told["boot"]) == {"server_url", "machine", "boot_token", "ca"}


def arguments_of(text: str) -> dict[str, Any]:
    """Of `main`, in user data."""
    told: dict[str, Any] = json.loads(ast.literal_eval(text.rsplit("json.loads(", 1)[1].removesuffix("))\n")))
    return told


def make_wheel(package: str, version: str = "1", **files: str) -> bytes:
    """packaging.python.org/en/latest/specifications/binary-distribution-format"""
    info, content = f"{package}-{version}.dist-info", io.BytesIO()
    described = {
        "METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{package}/{name}.py", text)
        for name, text in described.items():
            archive.writestr(f"{info}/{name}", text)
    return content.getvalue()


def test_a_wheelhouse_is_installed_once_and_its_environment_runs_the_agent(machine: Machine) -> None:
    machine.stock(shoestring_trainer=make_wheel("shoestring_trainer", __init__="", __main__=INSTALLED_AGENT))
    assert machine.wheelhouse is not None
    assert machine.boot().stderr == ""
    installed = ("boot", "wheelhouse", "driver", "download", "install", "agent")
    assert machine.phases == [(phase, None) for phase in installed]
    told = {report.phase: report.message for report in machine.reports}
    assert told["wheelhouse"] == f"1 wheel, 0.00 MB, for Python {PYTHON} and CUDA 13.0"
    assert "MB in 1 wheel," in told["download"]
    environment = machine.folder / "environments" / machine.wheelhouse.name
    assert (machine.folder / "agent-ran").read_text() == f"{environment}/bin/python"
    assert not (environment / "wheels").exists()
    machine.reports.clear()
    machine.wheels.clear()
    machine.boot()
    assert [phase for phase, _ in machine.phases] == ["boot", "wheelhouse", "driver", "agent"]
    assert machine.reports[1].message.endswith(": the image has them installed")


@pytest.mark.parametrize(
    ("change", "phase", "failure", "message"),
    [
        ("name", "wheelhouse", "image", "run `shoestring aws wheelhouse`"),
        ("driver", "driver", "image", "PyTorch needs 999 or later"),
        ("file", "download", "image", "a-1-py3-none-any.whl is not in the object store"),
        ("content", "download", "image", "is not what was stored (SHA-256)"),
        ("python", "install", "image", "the wheels are for 3.1"),
        ("wheel", "install", "image", "pip install failed"),
    ],
)
def test_a_wheelhouse_that_does_not_fit_is_told_and_the_machine_powers_off(
    machine: Machine, change: str, phase: str, failure: str, message: str
) -> None:
    machine.stock("3.1" if change == "python" else PYTHON, 999 if change == "driver" else 580, a=b"no wheel")
    if change == "file":
        machine.wheels = {}
    if change == "content":
        machine.wheels = dict.fromkeys(machine.wheels, b"no wheal")
    machine.boot(wheelhouse="0" * 64 if change == "name" else None)
    assert machine.phases[-1] == (phase, failure)
    assert message in machine.reports[-1].message
    assert machine.is_off


def test_a_machine_that_gets_nothing_from_the_object_store_blames_the_network_and_a_download_that_breaks_off_does_not(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, user_data.WHEELS, "RETRY_S = 1.0", "RETRY_S = 0.0")
    machine.stock(a=b"1", b=b"22")
    url, whole = machine.url, dict(machine.wheels)
    machine.url = "http://127.0.0.1:9"
    machine.boot(url=url)
    assert machine.phases[-1] == ("download", "network")
    assert "could not be fetched from 127.0.0.1:9" in machine.reports[-1].message
    machine.url = url
    machine.wheels = {sha256: content[:1] for sha256, content in whole.items()}
    machine.boot()
    assert machine.phases[-1] == ("download", "boot")
    assert "it broke off: 0.00 MB of 0.00 MB came" in machine.reports[-1].message
