# SPDX-License-Identifier: Apache-2.0
"""Hooks that try to leave their isolation. What they reach goes to reached.json, as a list of attempts that succeeded.

Beside this file lies targets.json: what is secret and how it can be recognized, and what a hook must not change.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, MS_BIND, MS_REMOUNT, MNT_DETACH, CLONE_NEWNS, CLONE_NEWUSER = 16, 4096, 32, 2, 0x20000, 0x10000000
TIOCSTI = 0x5412
MOST_BYTES = 64 << 20
"""Of a file: without isolation those of all processes are read, and one of theirs may be of any size."""
KEYCTL_SEARCH, KEYCTL_READ, SESSION_KEYRING = 10, 11, ctypes.c_int(-3)


def on_train_begin(context):
    if context.rank == 0:
        Path("reached.json").write_text(
            json.dumps(attack(json.loads(Path(__file__).with_name("targets.json").read_text())))
        )


def attack(targets: dict) -> list[str]:
    secrets, marker = targets["secrets"], targets["marker"]
    reached = [*reads("", secrets, marker), *writes(targets["unwritable"]), *processes(targets["process"], marker)]
    reached += [f"connect {path}" for path in targets["sockets"] if succeeds(lambda path=path: connect(path))]
    reached += [f"variable {name}" for name in os.environ if targets["variable"] in os.environ[name]]
    reached += [f"link {path}" for path in targets["linkable"] if succeeds(lambda path=path: link(path))]
    reached += ["keyring"] if read_key(targets["key"]) else []
    if str(Path("/proc/self/ns/user").readlink()) == targets["namespace"]:
        return reached  # the rest would damage the computer itself
    reached += writes(targets["system"])
    reached += devices()
    reached += [f"terminal {file}" for file in (0, 1, 2, "/dev/tty") if succeeds(lambda file=file: type_ahead(file))]
    reached += unmounted("as it is", secrets, marker)
    reached += in_a_child(lambda: nested(secrets, marker))
    return reached


def reads(how: str, secrets: list[str], marker: str) -> Iterator[str]:
    """By its path, from the working folder upwards, and through the folders and files of all processes in sight."""
    up = "../" * 20
    roots = ["", up, "/proc/self/root", "/proc/1/root", "/proc/1/cwd/" + up, "/proc/self/fd/../../" + up]
    for path in secrets:
        yield from (f"read {how} {root}{path}" for root in roots if holds(root + path, marker))
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            mode = entry.stat().st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode):
            yield from (f"read {how} {entry}/{up}{path}" for path in secrets if holds(f"{entry}/{up}{path}", marker))
        elif stat.S_ISREG(mode) and holds(str(entry), marker):
            yield f"read {how} {entry}"


def holds(path: str, marker: str) -> bool:
    try:
        with open(path, "rb") as file:
            return marker.encode() in file.read(MOST_BYTES)
    except OSError:
        return False


def writes(paths: list[str]) -> Iterator[str]:
    for path in paths:
        flags = os.O_WRONLY if Path(path).is_file() else os.O_WRONLY | os.O_CREAT
        target = path if Path(path).exists() and not Path(path).is_dir() else f"{path}/planted"
        if succeeds(lambda target=target, flags=flags: os.close(os.open(target, flags, 0o600))):
            yield f"write {target}"
            if target != path:
                Path(target).unlink()
        if Path(path).exists():
            if succeeds(lambda path=path: Path(path).chmod(Path(path).stat().st_mode)):
                yield f"chmod {path}"
            if succeeds(lambda path=path: os.utime(path)):
                yield f"utime {path}"


def processes(pid: int, marker: str) -> Iterator[str]:
    if succeeds(lambda: os.kill(pid, 0)):
        yield "signal"
    if succeeds(lambda: os.close(os.pidfd_open(pid))):
        yield "pidfd"
    if not libc.ptrace(PTRACE_ATTACH, pid, 0, 0):
        yield "ptrace"
    for name in ("environ", "cmdline"):
        yield from (f"read {path}" for path in Path("/proc").glob(f"[0-9]*/{name}") if holds(str(path), marker))
    if any(entry.name not in (".", "..") for entry in Path("/dev/shm").glob("shoestring-test-*")):
        yield "shared memory"


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def link(path: str) -> None:
    os.link(path, "linked")
    Path("linked").unlink()


def read_key(name: str) -> bool:
    """Whether a key of the session that started this can be read."""
    key = keyctl(KEYCTL_SEARCH, SESSION_KEYRING, b"user", name.encode(), 0)
    return key > 0 and keyctl(KEYCTL_READ, key, ctypes.create_string_buffer(64), 64) > 0


def keyctl(*arguments) -> int:
    return libc.syscall({"x86_64": 250, "aarch64": 219}[os.uname().machine], *arguments)


def devices() -> Iterator[str]:
    for path in ("/dev/mem", "/dev/kmsg", "/dev/fuse", "/proc/kcore"):
        if succeeds(lambda path=path: os.close(os.open(path, os.O_RDONLY))):
            yield f"open {path}"
    for top in ("/proc/sys", *(entry for entry in Path("/proc").iterdir() if not entry.name.isdigit()), "/sys"):
        if str(top) in ("/proc/self", "/proc/thread-self", "/proc/pressure"):  # the last sets what its reader waits for
            continue
        files = (
            [str(top)] if Path(top).is_file() else [f"{at}/{name}" for at, _, names in os.walk(top) for name in names]
        )
        for path in files:  # settings of the kernel: core_pattern names a program that it runs as root
            if succeeds(lambda path=path: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))):
                yield f"set {path}"
    if succeeds(lambda: os.mknod("device", stat.S_IFBLK | 0o600, os.makedev(8, 0))):
        yield "mknod"
    yield from (f"device {path}" for path in Path("/dev").iterdir() if stat.S_ISBLK(path.lstat().st_mode))
    if succeeds(lambda: os.chroot("/")):
        yield "chroot"


def type_ahead(file: int | str) -> None:
    opened = os.open(file, os.O_RDWR) if isinstance(file, str) else file
    fcntl.ioctl(opened, TIOCSTI, b"\n")


def unmounted(how: str, secrets: list[str], marker: str) -> Iterator[str]:
    """Take every mount away, make every one writable, mount anew, and look again."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in map(str.encode, reversed(points)):
        if point == b"/":
            continue
        writable = os.access(point, os.W_OK)
        if not libc.mount(None, point, None, MS_REMOUNT | MS_BIND, None) and os.access(point, os.W_OK) > writable:
            yield f"remount {how} {point.decode()}"
        if not libc.umount2(point, MNT_DETACH):
            yield f"unmount {how} {point.decode()}"
    if succeeds(lambda: setns("/proc/1/ns/mnt")):
        yield f"enter mounts of process 1 {how}"
    yield from reads(how, secrets, marker)


def nested(secrets: list[str], marker: str) -> list[str]:
    """Namespaces of our own, in which we would be root again."""
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        return []
    # to make mounts here is no harm; what counts is what is seen afterwards
    return [one for one in unmounted("nested", secrets, marker) if one.startswith("read")]


def in_a_child(attempt) -> list[str]:
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(writer, json.dumps(attempt()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return json.loads(text or "[]")


def setns(path: str) -> None:
    with open(path) as namespace:
        if libc.setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")


def succeeds(attempt) -> bool:
    try:
        attempt()
    except (OSError, ValueError):
        return False
    return True


if __name__ == "__main__":
    signal.alarm(60)
    os.chdir(os.environ["ATTACK_FOLDER"])
    on_train_begin(type("Context", (), {"rank": 0}))
