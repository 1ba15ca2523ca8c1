# SPDX-License-Identifier: Apache-2.0
"""The environment of the children of `up`: chosen by name, so that settings of other projects don't reach them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

KEPT_VARIABLES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "CUDA_HOME"),
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    }
)
"""What the computer says about itself. Proxies and certificates are for an object store; calls between our processes
ignore them."""
KEPT_PREFIXES = ("SHOESTRING_", "AWS_")
FIXED_VARIABLES = {
    # text is UTF-8 and times are UTC whatever the terminal uses; imports ignore the working folder
    "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONUTF8": "1", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1",
    # API and worker serve requests and launches in many threads, for each of which glibc would keep freed memory, and
    # more after each large block, up to 32 MB, if its first threshold weren't fixed
    "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072",
}  # fmt: skip
PATH_VARIABLES = (
    *("SHOESTRING_SECRET_FILE", "SHOESTRING_MACHINEHOST_FILE", "SHOESTRING_OBJECT_STORE"),
    *("SHOESTRING_TLS_CERT", "SHOESTRING_TLS_KEY", "SHOESTRING_CA"),
)
SQLITE_URL = "sqlite:///"


def child_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return what children inherit of `inherited`. Relative paths become absolute: children run in other folders."""
    kept = {
        name: value for name, value in inherited.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    for name in PATH_VARIABLES:
        if (value := kept.get(name)) and "://" not in value:
            kept[name] = str(Path(value).absolute())
    for name in ("SHOESTRING_DATA_ROOTS", "SHOESTRING_HOOKS_ROOTS"):
        if roots := kept.get(name):
            kept[name] = os.pathsep.join(map(str, _absolute_folders(roots)))
    if (url := kept.get("SHOESTRING_DATABASE_URL", "")).startswith(SQLITE_URL):
        kept["SHOESTRING_DATABASE_URL"] = SQLITE_URL + str(Path(quote(str(Path.cwd()))) / url.removeprefix(SQLITE_URL))
    # from a checkout that isn't installed our packages are imported through PYTHONPATH
    sources = [
        folder
        for folder in _absolute_folders(inherited.get("PYTHONPATH", ""))
        if any(folder.glob("shoestring*/__init__.py"))
    ]
    return kept | FIXED_VARIABLES | ({"PYTHONPATH": os.pathsep.join(map(str, sources))} if sources else {})


def _absolute_folders(search_path: str) -> list[Path]:
    return [Path(folder).absolute() for folder in search_path.split(os.pathsep) if folder]
