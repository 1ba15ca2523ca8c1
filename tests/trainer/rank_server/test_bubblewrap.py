# SPDX-License-Identifier: Apache-2.0
"""What a rank server is shown, by the arguments of bubblewrap alone."""

from __future__ import annotations

from pathlib import Path

from shoestring_trainer.rank_server.bubblewrap import View, bubblewrap_arguments, isolated_environment

HOME, DATA, MACHINE = Path("/home/ada"), Path("/home/ada/my images"), Path("/srv/service/cloud/machines/lm-1")

SETTINGS = "ro-bind /proc/sys /proc/sys"


def mounts(view: View) -> list[str]:
    """What is mounted, each with its option."""
    arguments = bubblewrap_arguments(view)
    steps = " ".join(arguments[arguments.index("--as-pid-1") + 1 :]).split(" --")
    return [step.removeprefix("--") for step in steps]


def test_nothing_is_shown_but_what_is_listed():
    view = View(readable=[Path("/usr")], writable=[MACHINE / "gen"])
    assert mounts(view) == [
        "dev /dev", "proc /proc", SETTINGS, f"bind {MACHINE}/gen {MACHINE}/gen", "tmpfs /tmp", "ro-bind-try /usr /usr",
        "remount-ro /",
    ]  # fmt: skip


def test_ranks_have_namespaces_of_their_own_no_capability_and_end_with_their_agent():
    arguments = bubblewrap_arguments(View())
    for option in ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--die-with-parent"):
        assert option in arguments
    assert arguments[arguments.index("--cap-drop") + 1] == "ALL"


def test_a_data_root_below_the_home_is_shown_and_the_home_is_not():
    shown = mounts(View(roots=[DATA], hidden_folders=[HOME]))
    assert f"ro-bind-try {DATA} {DATA}" in shown
    assert not any(step.endswith(f" {HOME}") for step in shown)


def test_a_home_below_a_data_root_is_masked_and_the_data_below_that_home_is_shown():
    shown = mounts(View(roots=[Path("/home"), DATA], hidden_folders=[HOME]))
    assert shown[1:4] == ["ro-bind-try /home /home", f"tmpfs {HOME}", f"ro-bind-try {DATA} {DATA}"]
    assert shown[-2:] == [f"remount-ro {HOME}", "remount-ro /"]


def test_a_home_that_is_a_data_root_is_shown_without_what_is_hidden_in_it():
    saved, login = HOME / ".config", HOME / ".netrc"
    shown = mounts(View(roots=[HOME], hidden_folders=[HOME, saved], hidden_files=[login]))
    assert f"ro-bind-try {HOME} {HOME}" in shown
    assert f"tmpfs {saved}" in shown
    assert f"ro-bind /dev/null {login}" in shown


def test_python_below_a_home_is_shown_even_if_it_lies_in_a_hidden_folder():
    python = HOME / ".pyenv" / "versions" / "3.11"
    view = View(readable=[python], roots=[HOME], hidden_folders=[HOME, HOME / ".pyenv"])
    shown = mounts(view)
    assert shown.index(f"tmpfs {HOME}/.pyenv") < shown.index(f"ro-bind-try {python} {python}")


def test_a_home_in_the_path_of_python_stays_hidden():
    assert not any(str(HOME) in step for step in mounts(View(readable=[HOME], hidden_folders=[HOME])))


def test_the_folders_of_a_machine_can_be_written_below_a_data_root():
    service = MACHINE.parents[2]
    cache, gen = MACHINE / "cache", MACHINE / "gen"
    view = View(roots=[Path("/srv")], hidden_folders=[service], readable=[cache], writable=[gen])
    assert mounts(view)[3:7] == [
        "ro-bind-try /srv /srv", f"tmpfs {service}", f"ro-bind-try {cache} {cache}", f"bind {gen} {gen}",
    ]  # fmt: skip


def test_the_root_as_a_data_root_keeps_processes_and_devices_apart():
    shown = mounts(View(roots=[Path("/")], hidden_folders=[HOME]))
    assert shown == [
        "ro-bind-try / /", "dev /dev", f"tmpfs {HOME}", "proc /proc", SETTINGS, "tmpfs /tmp", f"remount-ro {HOME}",
        "remount-ro /",
    ]  # fmt: skip


def test_a_home_that_is_no_folder_of_its_own_changes_nothing():
    for home in ("/proc", "/dev", "/tmp", "/"):
        assert mounts(View(hidden_folders=[Path(home)])) == mounts(View())


def test_links_lead_to_where_their_targets_are_shown():
    links = {Path("/bin"): Path("/usr/bin"), Path("/images"): Path("/mnt/disk 1"), Path("/usr/in"): Path("/usr/bin")}
    shown = mounts(View(readable=[Path("/usr")], roots=[Path("/mnt/disk 1")], links=links))
    assert "symlink /usr/bin /bin" in shown
    assert "symlink /mnt/disk 1 /images" in shown
    assert not any("/usr/in" in step for step in shown)  # it is there already


def test_the_folders_of_the_user_are_not_in_the_environment():
    environment = {"HOME": "/home/ada", "XDG_CONFIG_HOME": "/x", "TMPDIR": "/var/tmp", "RANK": "0"}
    assert isolated_environment(environment) == {"HOME": "/tmp", "RANK": "0"}
