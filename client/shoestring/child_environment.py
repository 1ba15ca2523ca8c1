# SPDX-License-Identifier: Apache-2.0
"""The environment of the children of `up`: chosen by name, so that settings of other projects don't reach them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

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
DATA_ROOTS, HOOKS_ROOTS, PRIVATE_FOLDERS = (
    "SHOESTRING_DATA_ROOTS", "SHOESTRING_HOOKS_ROOTS", "SHOESTRING_PRIVATE_FOLDERS",
)  # fmt: skip
PRIVATE_VARIABLES = (
    *("SHOESTRING_SECRET_FILE", "SHOESTRING_OBJECT_STORE", "SHOESTRING_TLS_KEY"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
)
"""Files and folders that jobs never see, if they lie on this computer."""


def child_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return what children inherit of `inherited`. Relative paths become absolute: children run in other folders."""
    kept = {
        name: value for name, value in inherited.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    for name in PATH_VARIABLES:
        if (value := kept.get(name)) and "://" not in value:
            kept[name] = str(Path(value).absolute())
    for name in (DATA_ROOTS, HOOKS_ROOTS):
        if roots := kept.get(name):
            kept[name] = os.pathsep.join(map(str, folders_of(roots)))
    if (url := kept.get("SHOESTRING_DATABASE_URL", "")).startswith(SQLITE_URL):
        kept["SHOESTRING_DATABASE_URL"] = SQLITE_URL + str(Path(quote(str(Path.cwd()))) / url.removeprefix(SQLITE_URL))
    # from a checkout that isn't installed our packages are imported through PYTHONPATH
    sources = [
        folder for folder in folders_of(inherited.get("PYTHONPATH", "")) if any(folder.glob("shoestring*/__init__.py"))
    ]
    return kept | FIXED_VARIABLES | ({"PYTHONPATH": os.pathsep.join(map(str, sources))} if sources else {})


def private_files(environment: Mapping[str, str]) -> list[Path]:
    """What the service keeps where the settings of its children say: database, object store, keys, credentials."""
    named = (environment.get(name, "") for name in PRIVATE_VARIABLES)
    places = [Path(value).absolute() for value in named if value and "://" not in value]
    if (url := environment.get("SHOESTRING_DATABASE_URL", "")).startswith(SQLITE_URL):
        database = unquote(url.removeprefix(SQLITE_URL).partition("?")[0])
        places += [Path(database + suffix) for suffix in ("", "-wal", "-shm")]
    return places


def folders_of(search_path: str) -> list[Path]:
    """The folders of a list as PATH is one, absolute."""
    return [Path(folder).absolute() for folder in search_path.split(os.pathsep) if folder]
