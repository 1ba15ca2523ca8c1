# SPDX-License-Identifier: Apache-2.0
"""A server with the operations of S3 that data sets need, which can simulate faults.

Follows the API reference of Amazon S3: ListObjectsV2, GetObject with Range and If-Match, PutObject and UploadPart with
a SHA-256, Create- and CompleteMultipartUpload, DeleteObjects, error documents.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from shoestring_trainer.training.data.shard_list import Shard, ShardIndex

BUCKET = "images"


@dataclass
class Object:
    content: bytes
    last_modified: int = field(default_factory=lambda: int(time.time()) - 1000)

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content, usedforsecurity=False).hexdigest()}"'


@dataclass
class Bucket:
    """The objects, who may read them, and the faults to simulate.

    access_key     that every request must be signed with; None: public
    page_size      keys in one page of a listing
    unavailable    number of next requests that get a 503
    refuses_after  number of writes from which on no more is allowed; None: all are
    fails_every    each so many-th request of an object gets a 503; 0: none
    delay_s        before the reply to a request of an object
    truncated      number of next replies with an object that break off
    unblocked      while it is not set, only the first `unblocked_requests` requests of objects get a reply
    """

    url: str = ""
    objects: dict[str, Object] = field(default_factory=dict)
    access_key: str | None = None
    page_size: int = 1000
    unavailable: int = 0
    refuses_after: int | None = None
    fails_every: int = 0
    delay_s: float = 0.0
    truncated: int = 0
    unblocked: threading.Event = field(default_factory=threading.Event)
    unblocked_requests: int = 0
    request_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    head_requests: int = 0
    requested_keys: list[str] = field(default_factory=list)
    written_keys: list[str] = field(default_factory=list)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    authorizations: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """There is no metadata service at the second address."""
        return {"AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}

    def put(self, key: str, content: bytes) -> None:
        self.objects[key] = Object(content)

    def put_folder(self, folder: Path, prefix: str = "") -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}{path.relative_to(folder)}", path.read_bytes())


@contextmanager
def serving() -> Iterator[Bucket]:
    """A bucket and its server."""
    bucket = Bucket()
    bucket.unblocked.set()

    class Handler(_Handler):
        served = bucket

    server = _Server(("127.0.0.1", 0), Handler)
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield bucket
    finally:
        bucket.unblocked.set()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # connections wait here until their threads run

    def handle_error(self, *_: object) -> None:
        """Some tests disconnect; that is not an error."""


class _Handler(BaseHTTPRequestHandler):
    served: Bucket
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Reply as S3 does for a bucket of another region, without authentication."""
        self.served.head_requests += 1
        if self.served.unavailable:
            self.served.unavailable -= 1
            return self._reply(503, b"", {})
        if self.path != f"/{BUCKET}":
            return self._reply(404, b"", {})
        self._reply(301, b"", {"x-amz-bucket-region": "eu-north-1"})

    def do_GET(self) -> None:
        where = urlsplit(self.path)
        bucket, _, key = unquote(where.path).lstrip("/").partition("/")
        signed = self.headers.get("Authorization", "")
        self.served.authorizations.append(signed)
        if bucket != BUCKET:
            self._reply_error(404, "NoSuchBucket")
        elif self.served.access_key and f"Credential={self.served.access_key}/" not in signed:
            self._reply_error(403, "AccessDenied")
        elif key:
            self._object(key)
        else:
            self._listing({name: values[0] for name, values in parse_qs(where.query).items()})

    def do_PUT(self) -> None:
        if (where := self._begin_write()) is None:
            return
        key, query, content = where
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        if self.headers.get("x-amz-checksum-sha256") != digest:
            return self._reply_error(400, "BadDigest")
        if "partNumber" in query:
            self.served.parts[query["uploadId"]][int(query["partNumber"])] = content
        else:
            self.served.put(key, content)
            self.served.written_keys.append(key)
        self._reply(200, b"", {"ETag": Object(content).etag, "x-amz-checksum-sha256": digest})

    def do_POST(self) -> None:
        if (where := self._begin_write()) is None:
            return
        key, query, content = where
        if "delete" in query:
            keys = re.findall("<Key>(.*?)</Key>", content.decode())
            for each in keys:
                self.served.objects.pop(unescape(each), None)
            deleted = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys)
            return self._reply(200, f"<DeleteResult>{deleted}</DeleteResult>".encode(), {})
        if "uploads" in query:
            upload = f"upload-{next(self.served.request_numbers)}"
            self.served.parts[upload] = {}
            begun = f"<Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
            answer = f"<InitiateMultipartUploadResult>{begun}</InitiateMultipartUploadResult>"
            return self._reply(200, answer.encode(), {})
        parts = self.served.parts.pop(query["uploadId"])
        self.served.put(key, b"".join(parts[number] for number in sorted(parts)))
        self.served.written_keys.append(key)
        done = f"<Key>{escape(key)}</Key><ETag>{escape(self.served.objects[key].etag)}</ETag>"
        answer = f"<CompleteMultipartUploadResult>{done}</CompleteMultipartUploadResult>"
        self._reply(200, answer.encode(), {})

    def _begin_write(self) -> tuple[str, dict[str, str], bytes] | None:
        """Read a request that changes something, and return its key, query and body; None: it has been refused."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        where = urlsplit(self.path)
        bucket, _, key = unquote(where.path).lstrip("/").partition("/")
        signed, number = self.headers.get("Authorization", ""), next(self.served.request_numbers)
        assert bucket == BUCKET
        if self.served.access_key is None or f"Credential={self.served.access_key}/" not in signed:
            return self._reply_error(403, "AccessDenied")
        if self.served.refuses_after is not None and len(self.served.written_keys) >= self.served.refuses_after:
            return self._reply_error(403, "AccessDenied")
        if self.served.fails_every and number % self.served.fails_every == 0:
            return self._reply_error(503, "SlowDown")
        query = parse_qs(where.query, keep_blank_values=True)
        return key, {name: values[0] for name, values in query.items()}, body

    def _listing(self, query: dict[str, str]) -> None:
        assert query["list-type"] == "2"
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        keys = sorted(key for key in self.served.objects if key.startswith(prefix) and key > after)
        shown, more = keys[: self.served.page_size], len(keys) > self.served.page_size
        rows = "".join(self._row(key, self.served.objects[key]) for key in shown)
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><KeyCount>{len(shown)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{rows}</ListBucketResult>"
        )
        self._reply(200, body.encode(), {"Content-Type": "application/xml"})

    def _row(self, key: str, found: Object) -> str:
        at = datetime.fromtimestamp(found.last_modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return (
            f"<Contents><Key>{escape(key)}</Key><LastModified>{at}</LastModified><ETag>{escape(found.etag)}</ETag>"
            f"<Size>{len(found.content)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )

    def _object(self, key: str) -> None:
        self.served.requested_keys.append(key)
        number = next(self.served.request_numbers)
        if number > self.served.unblocked_requests:
            self.served.unblocked.wait()
        time.sleep(self.served.delay_s)
        if self.served.fails_every and number % self.served.fails_every == 0:
            return self._reply_error(503, "SlowDown")
        found = self.served.objects.get(key)
        if self.served.unavailable:
            self.served.unavailable -= 1
            return self._reply_error(503, "SlowDown")
        if not found:
            return self._reply_error(404, "NoSuchKey")
        if self.headers.get("If-Match") not in (None, found.etag):
            return self._reply_error(412, "PreconditionFailed")
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1, len(found.content))
        headers = {
            "Content-Range": f"bytes {start}-{end - 1}/{len(found.content)}",
            "ETag": found.etag,
            "Last-Modified": formatdate(found.last_modified, usegmt=True),
        }
        self._reply(206, found.content[start:end], headers)

    def _reply_error(self, status: int, code: str) -> None:
        self._reply(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode(), {})

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if status == 206 and self.served.truncated:
            self.served.truncated -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Don't log requests."""


def put_shards(bucket: Bucket, prefix: str, count: int) -> dict[str, bytes]:
    """Put an index and shards, the last of them for validation, whose content only their hashes belong to."""
    files = {f"{'train' if n < count - 1 else 'val'}-{n:06d}.tar": bytes([n]) * (1000 + n) for n in range(count)}
    shards = []
    for name, content in files.items():
        split = "val" if name.startswith("val") else "train"
        sha256 = hashlib.sha256(content).hexdigest()
        shards.append(Shard(name=name, split=split, first=0, images=1, bytes=len(content), sha256=sha256))
    index = ShardIndex(
        plan="p", side=64, quality=90, classes=["a"], class_images={"train": [count - 1], "val": [1]}, shards=shards,
        skipped=[], samples_sha256="",
    )  # fmt: skip
    for name, content in {**files, "shards.json": index.model_dump_json().encode(), "shards.npy": b"rows"}.items():
        bucket.put(f"{prefix}{name}", content)
    return files
