# SPDX-License-Identifier: Apache-2.0
"""The clients of `bench.load`, all in this one process: `python -m bench.load_clients URL KEY_FILE…`.

Reads commands from stdin, one JSON object a line with the method's name as `do`, and writes each result as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

SPEC = {"recipe": "digits/quickstart", "resources": {"nodes": 1}}
TIMEOUT_S = 60.0
SEEN_WITHIN_S = 30.0
JOB_MESSAGE = re.compile(rb'event: job\r?\ndata: \{"id": ?"([0-9a-f-]{36})"')
CARRY_BYTES = 100
"""What the start of a message that a chunk may end with can be long."""


class Viewer:
    """One open live stream of the team's jobs."""

    def __init__(self, open_stream: Callable[[Viewer], Awaitable[None]]) -> None:
        self.jobs: set[bytes] = set()
        self.received = 0
        self.connected = asyncio.Event()
        self.task = asyncio.ensure_future(open_stream(self))

    async def read(self, answer: httpx.Response) -> None:
        carry = b""
        async for chunk in answer.aiter_raw():
            self.connected.set()
            self.received += len(chunk)
            text = carry + chunk
            self.jobs.update(JOB_MESSAGE.findall(text))
            carry = text[-CARRY_BYTES:]

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Clients:
    """The first key submits and lists; viewers are spread over all keys, since a person may have only so many."""

    def __init__(self, url: str, keys: Sequence[str]) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        options: dict[str, Any] = {"base_url": url, "timeout": TIMEOUT_S, "trust_env": False, "verify": False}
        self._people = [
            httpx.AsyncClient(**options, limits=limits, headers={"Authorization": f"Bearer {key}"}) for key in keys
        ]
        self._viewers: list[Viewer] = []
        self._submitted: list[bytes] = []

    async def submit(self, count: int, clients: int, within_s: float = float("inf")) -> dict[str, Any]:
        """Submit `count` jobs, or as many as there is time for, each client its next when the last is answered."""
        left = iter(range(count))
        times_s: list[float] = []

        async def submit_some() -> None:
            for _ in left:
                one_began = time.perf_counter()
                if one_began > began + within_s:
                    return
                await self._submit_one()
                times_s.append(time.perf_counter() - one_began)

        began = time.perf_counter()
        await asyncio.gather(*(submit_some() for _ in range(clients)))
        return {"seconds": time.perf_counter() - began, "submitted": len(times_s), **_percentiles_ms(times_s)}

    async def list_jobs(self, count: int) -> dict[str, Any]:
        """Read the newest 50 jobs, `count` times."""
        times_s = []
        for _ in range(count):
            began = time.perf_counter()
            (await self._people[0].get("/v1/jobs", params={"limit": 50})).raise_for_status()
            times_s.append(time.perf_counter() - began)
        return _percentiles_ms(times_s)

    async def watch(self, viewers: int) -> dict[str, Any]:
        """Open so many live streams."""
        self._submitted.clear()
        self._viewers += [self._open_viewer(number) for number in range(viewers)]
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(viewer.connected.wait() for viewer in self._viewers))
        return {"viewers": len(self._viewers)}

    async def seen(self) -> dict[str, Any]:
        """Wait until each viewer was told of each job submitted since `watch`; how long, and how much was sent."""
        began, submitted = time.perf_counter(), set(self._submitted)
        waiting = deque(self._viewers)
        while waiting and time.perf_counter() < began + SEEN_WITHIN_S:
            if submitted <= waiting[0].jobs:
                waiting.popleft()
            else:
                await asyncio.sleep(0.01)
        received = sum(viewer.received for viewer in self._viewers)
        return {"seconds": time.perf_counter() - began, "missed": len(waiting), "received": received}

    async def sleep(self, seconds: float) -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"seconds": seconds}

    async def unwatch(self) -> dict[str, Any]:
        """Close all streams."""
        closing, self._viewers = self._viewers, []
        await asyncio.gather(*(viewer.close() for viewer in closing))
        return {"viewers": len(closing)}

    async def ended(self) -> dict[str, Any]:
        """Wait until the service has ended all streams."""
        began = time.perf_counter()
        await asyncio.gather(*(viewer.task for viewer in self._viewers), return_exceptions=True)
        self._viewers = []
        return {"seconds": time.perf_counter() - began}

    async def work(self, seconds: float, viewers: int) -> dict[str, Any]:
        """Each second four jobs submitted and stopped, a page of jobs, and one of `viewers` replaced by another."""
        end, rounds = time.monotonic() + seconds, 0
        await self.watch(viewers)
        while time.monotonic() < end:
            next_round = time.monotonic() + 1.0
            for _ in range(4):
                job = await self._submit_one()
                (await self._people[0].post(f"/v1/jobs/{job}:stop")).raise_for_status()
            await self.list_jobs(1)
            self._viewers.append(self._open_viewer(rounds))
            await self._viewers.pop(0).close()
            for viewer in self._viewers:
                viewer.jobs.clear()
            self._submitted.clear()
            rounds += 1
            await asyncio.sleep(max(0.0, next_round - time.monotonic()))
        await self.unwatch()
        return {"rounds": rounds}

    async def stop_running(self) -> dict[str, Any]:
        """Stop one job that has machines; the seconds until another job has got them."""
        before = await self._launching()
        began = time.perf_counter()
        (await self._people[0].post(f"/v1/jobs/{min(before)}:stop")).raise_for_status()
        async with asyncio.timeout(TIMEOUT_S):
            while not await self._launching() - before:
                await asyncio.sleep(0.02)
        return {"seconds": time.perf_counter() - began}

    async def launching(self, count: int) -> dict[str, Any]:
        """Wait until so many jobs have machines."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(await self._launching()) < count:
                await asyncio.sleep(0.2)
        return {}

    async def _launching(self) -> set[str]:
        answer = await self._people[0].get("/v1/jobs", params={"filter": "state=launching"})
        return {job["id"] for job in answer.raise_for_status().json()["jobs"]}

    async def _submit_one(self) -> str:
        answer = await self._people[0].post("/v1/jobs", json={"spec": SPEC}, headers={"Idempotency-Key": str(uuid4())})
        job: str = answer.raise_for_status().json()["id"]
        self._submitted.append(job.encode())
        return job

    def _open_viewer(self, number: int) -> Viewer:
        person = self._people[number % len(self._people)]

        async def open_stream(viewer: Viewer) -> None:
            async with person.stream("GET", "/v1/stream", params={"topics": "jobs,budget"}, timeout=None) as answer:
                answer.raise_for_status()
                with suppress(httpx.TransportError):  # the service has ended
                    await viewer.read(answer)

        return Viewer(open_stream)


def _percentiles_ms(times_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times_s)
    return {name: 1000 * ordered[int(len(ordered) * share)] for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95))}


async def main(url: str, key_files: Sequence[str]) -> None:
    clients = Clients(url, [Path(file).read_text(encoding="utf-8").strip() for file in key_files])
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        result = await getattr(clients, command.pop("do"))(**command)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
