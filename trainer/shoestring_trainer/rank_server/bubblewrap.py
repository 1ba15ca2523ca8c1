# SPDX-License-Identifier: Apache-2.0
"""The arguments of bubblewrap (`bwrap`) for a rank server: what it and its ranks can see. Pure functions.

They see an empty root with an allow-list of folders in it, each at its own path, and have user, pid and ipc namespaces
of their own and no capability; the network is shared. The deepest rule for a path counts: a data root below the home
is visible, the home isn't, and a secret below a data root isn't either.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

NAMESPACES = (
    "--unshare-user", "--unshare-pid", "--unshare-ipc", "--cap-drop", "ALL", "--die-with-parent", "--as-pid-1",
)  # fmt: skip
TEMPORARY = Path("/tmp")  # noqa: S108 - one of its own, in memory
PROC = Path("/proc")
HIDE_FOLDER, HIDE_FILE = "hide folder", "hide file"
INVISIBLE = (None, HIDE_FOLDER, "--tmpfs")
MOUNT = {
    "--proc": ["--proc"], "--dev": ["--dev"], "--tmpfs": ["--tmpfs"], HIDE_FOLDER: ["--tmpfs"],
    HIDE_FILE: ["--ro-bind", "/dev/null"],
}  # fmt: skip
"""The options that take no source, or another source than what they hide."""
HOME_VARIABLES = ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")


@dataclass(frozen=True)
class View:
    """What ranks see. Paths are absolute and without links.

    readable        what they run from: the system, Python, the product
    roots           what the operator named, even if it is one of `hidden_folders`
    writable        this machine's own folders
    hidden_folders  never seen, even below what is readable
    hidden_files
    devices
    links           from paths by which the others are also known to what they resolve to
    """

    readable: Collection[Path] = ()
    roots: Collection[Path] = ()
    writable: Collection[Path] = ()
    hidden_folders: Collection[Path] = ()
    hidden_files: Collection[Path] = ()
    devices: Collection[Path] = ()
    links: Mapping[Path, Path] = field(default_factory=dict)


def bubblewrap_arguments(view: View) -> list[str]:
    """The arguments up to the command: namespaces, then what is mounted, folders before what they contain."""
    rules: dict[Path, str] = {}
    for option, paths in (
        ("--ro-bind-try", view.readable), (HIDE_FOLDER, view.hidden_folders), (HIDE_FILE, view.hidden_files),
        ("--tmpfs", [TEMPORARY]), ("--ro-bind-try", view.roots), ("--dev-bind-try", view.devices),
        ("--bind", view.writable), ("--proc", [PROC]), ("--dev", [Path("/dev")]),
        ("--ro-bind", [PROC / "sys"]),  # root could set core_pattern: a program that the kernel runs, outside
    ):  # fmt: skip
        rules |= dict.fromkeys(paths, option)
    arguments, mounted = list(NAMESPACES), dict[Path, str]()
    for path in sorted(rules, key=lambda path: path.parts):
        option, above = rules[path], _rule_above(path, mounted)
        if option == above or (option in (HIDE_FOLDER, HIDE_FILE) and above in INVISIBLE):
            continue  # as what contains it
        mounted[path] = option
        arguments += [*MOUNT.get(option, [option, str(path)]), str(path)]
    links: dict[Path, str] = {}
    for link in sorted(view.links, key=lambda link: link.parts):
        if _rule_above(link, mounted) in INVISIBLE and not _rule_above(link, links):
            links[link] = "--symlink"
            arguments += ["--symlink", str(view.links[link]), str(link)]
    for path in (*(path for path, option in mounted.items() if option == HIDE_FOLDER), Path("/")):
        arguments += ["--remount-ro", str(path)]  # last: places for what is below had to be made there
    return arguments


def isolated_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the folders of its user: what programs keep there goes to the temporary folder."""
    kept = {name: value for name, value in environment.items() if name not in HOME_VARIABLES}
    return kept | {"HOME": str(TEMPORARY)}


def _rule_above(path: Path, rules: Mapping[Path, str]) -> str | None:
    """The rule of the nearest folder that contains `path`."""
    return next((rules[parent] for parent in path.parents if parent in rules), None)
