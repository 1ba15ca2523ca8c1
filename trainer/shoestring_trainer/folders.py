# SPDX-License-Identifier: Apache-2.0
"""Deletes folders that ranks wrote to, whatever a hook left in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def delete_folder(path: Path) -> None:
    """Delete a folder and all below it; of a link only the link. Does nothing where nothing is. Raises OSError.

    Unlike `shutil.rmtree` of Python 3.11 it doesn't call itself for each level, so any depth is deleted, and so is a
    folder that its owner closed. No other process may write there meanwhile.
    """
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            return path.unlink()
        path.chmod(stat.S_IRWXU)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _empty(folder)
    finally:
        os.close(folder)
    path.rmdir()


def _empty(folder: int) -> None:
    """Move what a subfolder contains up into `folder`, level by level: no path gets longer than Linux takes."""
    moved = 0
    while names := os.listdir(folder):
        for name in names:
            if not _is_folder(name, folder):
                os.unlink(name, dir_fd=folder)
                continue
            os.chmod(name, stat.S_IRWXU, dir_fd=folder)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                for below in os.listdir(inner):
                    if not _is_folder(below, inner):
                        os.unlink(below, dir_fd=inner)
                        continue
                    os.chmod(below, stat.S_IRWXU, dir_fd=inner)  # its `..` changes
                    while _exists(target := f"moved-{moved}", folder):
                        moved += 1
                    os.rename(below, target, src_dir_fd=inner, dst_dir_fd=folder)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)


def _is_folder(name: str, folder: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
