# SPDX-License-Identifier: Apache-2.0
"""What lies where a file is expected is neither waited for nor read without a bound."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from shoestring_core.regular_files import MAX_TEXT_BYTES, make_folder, open_regular, read_regular, require_regular


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
def test_what_is_no_file_is_said(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "given"
    with socket.socket(socket.AF_UNIX) as listener:
        match kind:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "socket":
                listener.bind(str(path))
            case _:
                path.symlink_to("/dev/zero")
        for read in (open_regular, read_regular):
            with pytest.raises(OSError, match=rf"it is a {kind}, where a file is needed.*given"):
                read(path)


def test_a_sparse_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 256 << 30)
    with pytest.raises(OSError, match=f"it has 274,877,906,944 bytes, where at most {MAX_TEXT_BYTES:,} are read"):
        read_regular(path)


def test_a_file_that_has_no_size_is_bounded_too() -> None:
    assert read_regular(Path("/proc/self/status")).startswith(b"Name:")
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular(Path("/proc/self/status"), 4)


def test_a_pipe_that_the_shell_passes_is_read() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"recipe: x")
        os.close(writing)
        assert read_regular(Path(f"/dev/fd/{reading}")) == b"recipe: x"
    finally:
        os.close(reading)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    require_regular(tmp_path / "absent")
    (tmp_path / "file").touch()
    require_regular(tmp_path / "file")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match="where a file is needed"):
            require_regular(path)


def test_what_lies_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name, kind in {"file": "file", "link": "broken link", "pipe": "pipe"}.items():
        with pytest.raises(OSError, match=f"it is a {kind}, where a folder is needed"):
            make_folder(tmp_path / name)
    with pytest.raises(OSError, match="a file lies where a folder above it is needed"):
        make_folder(tmp_path / "file" / "below")
