# SPDX-License-Identifier: Apache-2.0
"""Calls to EC2, each made once and in its turn: what was not answered is asked again by the next tick."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.store.objects.s3_errors import MISSING_CREDENTIALS, UNUSABLE_CREDENTIALS

from shoestring_worker.providers.base import CALL_TIMEOUT_S, LaunchRefused, OutcomeUnknown
from shoestring_worker.providers.ec2.errors import (
    ADVICE,
    NO_ANSWER,
    NO_CREDENTIALS,
    THROTTLED,
    UNUSABLE_ADVICE,
    clock_advice,
    data_role_advice,
    described,
    meaning_of,
    read_error,
)
from shoestring_worker.providers.ec2.rate_limits import RateLimits

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 2.0, 5.0
PATIENCE_S = CALL_TIMEOUT_S - CONNECT_TIMEOUT_S - READ_TIMEOUT_S
"""How long a call may wait for its turn."""

R = TypeVar("R")


class Calls:
    """Of one provider. Thread-safe."""

    def __init__(
        self,
        endpoint_url: str | None,
        read_timeout_s: float,
        limits: RateLimits,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint_url, self._limits, self._now = endpoint_url, limits, now
        self._config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_timeout_s,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=16,
        )
        self._clients: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def read(self, region: str, action: str, call: Callable[[Any], R], service: str = "ec2") -> R:
        """A call that changes nothing. Raises OutcomeUnknown."""
        try:
            self.take_turn(region, action, PATIENCE_S)
            return self.send(region, action, call, service)
        except ClientError as error:
            raise self._unknown(region, error) from error

    def for_launch(self, region: str, action: str, call: Callable[[Any], R], data_role: str | None = None) -> R:
        """A call on the way to a launch. Raises LaunchRefused, OutcomeUnknown.

        data_role  that the machine is to get
        """
        try:
            return self.call(region, action, call)
        except ClientError as error:
            code, message, status = read_error(error.response)
            if data_role and (advice := data_role_advice(code, message, data_role)):
                kind = RefusalKind.ACCOUNT if code == "UnauthorizedOperation" else RefusalKind.ROLE
                raise LaunchRefused(kind, f"{code}: {message.rstrip('.')}. {advice}") from error
            refusal = meaning_of(code, status).refusal
            if refusal is None or self._clock_advice(error):
                raise self._unknown(region, error) from error
            raise LaunchRefused(refusal, described(code, message, refusal)) from error

    def call(self, region: str, action: str, call: Callable[[Any], R]) -> R:
        """One call, in its turn. Raises ClientError for an answer that is an error, OutcomeUnknown if there is none."""
        self.take_turn(region, action, PATIENCE_S)
        return self.send(region, action, call)

    def take_turn(self, region: str, action: str, patience_s: float) -> None:
        """Raises OutcomeUnknown if it isn't its turn within `patience_s`."""
        if not self._limits.bucket(region, action).take(patience_s):
            raise OutcomeUnknown(f"not sent: {action} calls in {region} are at EC2's limit")

    def send(self, region: str, action: str, call: Callable[[Any], R], service: str = "ec2") -> R:
        """One call at once, for which a turn was taken. Raises as `call`."""
        try:
            return call(self._client(region, service))
        except ClientError as error:
            if read_error(error.response)[0] in THROTTLED:
                self._limits.bucket(region, action).empty()
            raise
        except MISSING_CREDENTIALS as error:
            raise OutcomeUnknown(f"{action} was not sent to EC2: {NO_CREDENTIALS}", lasts=True) from error
        except UNUSABLE_CREDENTIALS as error:
            said = str(error).rstrip(".")
            raise OutcomeUnknown(f"{action} was not sent to EC2: {said}. {UNUSABLE_ADVICE}", lasts=True) from error
        except NO_ANSWER as error:
            raise OutcomeUnknown(f"EC2 in {region} did not answer {action}: {error}") from error

    def _unknown(self, region: str, error: ClientError) -> OutcomeUnknown:
        code, message, _ = read_error(error.response)
        if advice := self._clock_advice(error):
            return OutcomeUnknown(f"EC2 in {region} answered {code}: {message.rstrip('.')}. {advice}", lasts=True)
        return OutcomeUnknown(f"EC2 in {region} answered {described(code, message)}", lasts=code in ADVICE)

    def _clock_advice(self, error: ClientError) -> str:
        code, message, _ = read_error(error.response)
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return clock_advice(code, message, headers, self._now())

    def _client(self, region: str, service: str) -> Any:
        with self._lock:  # clients may be shared by threads; making them may not
            if (region, service) not in self._clients:
                self._clients[region, service] = boto3.client(
                    service, region_name=region, endpoint_url=self._endpoint_url, config=self._config
                )
            return self._clients[region, service]
