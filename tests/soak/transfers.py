# SPDX-License-Identifier: Apache-2.0
"""Whatever a bucket or a service calls its files, nothing is written outside the folder that they were wanted in.

    python -m tests.soak.transfers --case CASE --seed N

`buckets` copies 250 buckets a seed, with odd keys; `artifacts` downloads the files of 250 jobs a seed, with odd names
and broken answers, by `artifacts get` into folders that were used before. What can't be copied is refused by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from shoestring import Client, cli, client
from shoestring.cli import artifacts
from shoestring_trainer.data_sync.datasets import sync_dataset
from shoestring_trainer.data_sync.errors import DataUnavailable

from tests.fuzzing import Case, Findings, main, refused, summarise, try_each
from tests.trainer.data_sync.bucket_server import BUCKET, Bucket, serving

__all__ = ["CASES", "SEEDS", "summarise"]

SEEDS = 10
NAMES = (
    "..", ".", "", ".lock", ".drafts", "0", "~", "-rf", "a b", "classes.txt", "model.json",
    "*", "%2e%2e", "..%2f", "\\", "C:", "caf\xe9", "\u202e", "\u2028", "a\nb", "\t", "\x1b[2J", "x" * 250, "x" * 300,
    "\xfc" * 200, "a.", "CON",
)  # fmt: skip
OUTSIDE = "untouched"


def copy_buckets(seed: int, count: int) -> Findings:
    """Copy buckets with odd keys."""
    with serving() as bucket, _places("buckets") as place:

        def copy(number: int) -> str:
            return _copy_bucket(bucket, place(), random.Random(f"{seed}/{number}"))

        return try_each(copy, count)


def get_artifacts(seed: int, count: int) -> Findings:
    """Download artifacts with odd names."""
    with _places("artifacts") as place, patch.object(client, "_backoff_s", lambda *_: 0.0):

        def get(number: int) -> str:
            return _get_artifacts(place(), random.Random(f"{seed}/{number}"))

        return try_each(get, count)


def _copy_bucket(bucket: Bucket, place: Path, draw: random.Random) -> str:
    bucket.objects.clear()
    for _ in range(draw.randrange(1, 6)):
        bucket.put(_path(draw), draw.randbytes(draw.choice((0, 1, 100))))
    prefix = draw.choice(("", "", "", "a", "b", "..", "x" * 300))
    url = f"s3://{BUCKET}/{prefix}" if prefix else f"s3://{BUCKET}"
    store = place / "store"
    before = _files(place)
    try:
        copy = asyncio.run(sync_dataset(url, store, bucket.environment, lambda _: None, lambda _: None))
    except DataUnavailable as error:
        outcome = refused(error, url)
    else:
        outcome, root = "copied", f"{prefix}/" if prefix else ""
        below = {key: found for key, found in bucket.objects.items() if key.startswith(root)}
        # the S3 library drops slashes at both ends of a key
        wanted = {key.removeprefix(root).strip("/"): found.content for key, found in below.items()}
        files = _files(copy)
        assert files == {name: wanted[name] for name in files}
        assert {name for name, content in wanted.items() if content} <= files.keys()
    assert {name: content for name, content in _files(place).items() if not name.startswith("store/")} == before
    return outcome


def _get_artifacts(place: Path, draw: random.Random) -> str:
    target = place / "target"
    names = [_path(draw) if draw.random() < 0.2 else f"file-{number}.bin" for number in range(draw.randrange(1, 4))]
    contents = {name: draw.randbytes(draw.choice((0, 10, 5000))) for name in names}
    broken = draw.random() < 0.3
    _use(target, names, draw)
    before = _files(place)
    options = draw.choice(((), ("--force",)))
    service = httpx.MockTransport(_service(contents, draw if broken else None))
    opened = patch.object(artifacts, "open_client", lambda _url: Client("http://service", "k", transport=service))
    with opened, contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        code = _run("artifacts", "get", "00000000-0000-7000-8000-000000000000", "--to", str(target), *options)
    after = _files(place)
    assert {name: content for name, content in after.items() if not name.startswith("target/")} == {
        name: content for name, content in before.items() if not name.startswith("target/")
    }
    assert not [name for name in after.keys() - before.keys() if name.endswith(".part")]
    if code == 0:
        assert all(after[f"target/{name}"] == content for name, content in contents.items())
        return "downloaded"
    assert len(said.getvalue()) > 20
    assert "Traceback" not in said.getvalue()
    return "refused"


def _run(*arguments: str) -> int:
    """Run the command line; its exit code. Whatever else it raises is a fault."""
    with patch.object(sys, "argv", ["shoestring", *arguments]):
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _service(contents: dict[str, bytes], odd: random.Random | None) -> Callable[[httpx.Request], httpx.Response]:
    """A service with these artifacts; with `odd` it lists, sends and fails wrongly at times."""

    def answer(request: httpx.Request) -> httpx.Response:
        listed: list[dict[str, Any]] = [
            {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "step": 1,
             "url": f"/files/{number}"}
            for number, (name, content) in enumerate(contents.items())
        ]  # fmt: skip
        if odd and odd.random() < 0.3:
            odd.choice(listed)[odd.choice(("bytes", "sha256", "url"))] = odd.choice(
                (-1, 10**30, "", "../x", "/", "http://[", "file:///etc/passwd", "0" * 64, None)
            )
        if request.url.path.endswith("/artifacts"):
            return httpx.Response(200, json={"artifacts": listed})
        if odd and odd.random() < 0.5:
            if odd.random() < 0.3:
                raise httpx.ReadError("cut")
            return httpx.Response(odd.choice((200, 200, 302, 404, 503)), content=odd.randbytes(odd.randrange(20)))
        number = request.url.path.rpartition("/")[2]
        return httpx.Response(200, content=list(contents.values())[int(number)] if number.isdecimal() else b"")

    return answer


def _use(target: Path, names: list[str], draw: random.Random) -> None:
    """Leave a folder as others may: absent, empty, a file, or with links, folders and files in the way."""
    if draw.random() < 0.3:
        return
    if draw.random() < 0.05:
        target.write_bytes(b"a file")
        return
    target.mkdir()
    for name in dict.fromkeys(names):
        if draw.random() < 0.6 or "/" in name or len(os.fsencode(name)) > 200 or name in ("", "..", "."):
            continue
        path = target / draw.choice((name, f".{name}.part"))
        match draw.randrange(3):
            case 0:
                path.symlink_to(f"../{OUTSIDE}")
            case 1:
                path.mkdir()
            case 2:
                path.write_bytes(b"mine")


def _path(draw: random.Random) -> str:
    usual = draw.random() < 0.7
    return "/".join(draw.choice("abcd" if usual else NAMES) for _ in range(draw.choice((1, 1, 2, 3)))) or "a"


@contextlib.contextmanager
def _places(name: str) -> Iterator[Callable[[], Path]]:
    """Makes folders with a file in each that must stay as it is; the last one is removed with the next."""
    folder = Path(tempfile.mkdtemp(prefix=f"shoestring-{name}-"))
    place = folder / "place"

    def new() -> Path:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / OUTSIDE).write_bytes(b"as it was")
        return place

    try:
        yield new
    finally:
        shutil.rmtree(folder)


def _files(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


CASES = {"buckets": Case(copy_buckets, 250), "artifacts": Case(get_artifacts, 250)}

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", CASES))
