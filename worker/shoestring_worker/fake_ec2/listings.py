# SPDX-License-Identifier: Apache-2.0
"""Listings that lag: a new instance is missing in the first ones.

source  docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from xml.etree import ElementTree

from shoestring_worker.fake_ec2.wire import Answer


class ListingLag:
    def __init__(self) -> None:
        self._lag = 0
        self._missing: dict[str, int] = {}
        self._lock = threading.Lock()

    def set(self, lag: int) -> None:
        """An instance launched from now on is missing in the first `lag` listings. 0: all are listed, at once."""
        with self._lock:
            self._lag = lag
            if lag == 0:
                self._missing.clear()

    def note_launched(self, instances: Iterable[str]) -> None:
        with self._lock:
            for instance in instances:
                if self._lag:
                    self._missing.setdefault(instance, self._lag)

    def hide(self, answer: Answer) -> Answer:
        """The answer to DescribeInstances without those that are missing yet."""
        with self._lock:
            hidden = set(self._missing)
            self._missing = {instance: left - 1 for instance, left in self._missing.items() if left > 1}
        if not hidden or not answer.is_success:
            return answer
        body = _without(answer.body, hidden)
        headers = [(name, value) for name, value in answer.headers if name.lower() != "content-length"]
        return replace(answer, body=body, headers=(*headers, ("Content-Length", str(len(body)))))


def _without(document: bytes, instances: set[str]) -> bytes:
    root = ElementTree.fromstring(document)  # noqa: S314 - our own server's
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    ElementTree.register_namespace("", space.strip("{}"))
    for reservations in root.iter(f"{space}reservationSet"):
        for reservation in list(reservations):
            if {found.text for found in reservation.iter(f"{space}instanceId")} & instances:
                reservations.remove(reservation)
    return ElementTree.tostring(root)
