# SPDX-License-Identifier: Apache-2.0
"""Idempotency tokens of RunInstances, which moto ignores.

source  docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html
        docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html (IdempotentInstanceTerminated)
"""

from __future__ import annotations

import re
from collections.abc import Callable

from shoestring_worker.fake_ec2.wire import Answer, Call, error_answer

TOKEN = re.compile(r"[\x21-\x7e]{1,64}")
_INSTANCE = re.compile(rb"<instanceId>(i-[0-9a-f]+)</instanceId>")


def instance_ids(answer: Answer) -> list[str]:
    return [found.decode() for found in _INSTANCE.findall(answer.body)]


class LaunchTokens:
    """What each token has launched, by region. Only launches that succeeded bind their token."""

    def __init__(self) -> None:
        self._launched: dict[tuple[str, str], tuple[dict[str, str], Answer]] = {}

    def clear(self) -> None:
        self._launched.clear()

    def launch(self, call: Call, run: Callable[[], Answer], has_ended: Callable[[str], bool | None]) -> Answer:
        """`run` the call unless its token has launched already."""
        token = call.parameters.get("ClientToken", "")
        if not token:
            return run()
        if not TOKEN.fullmatch(token):
            return error_answer(400, "InvalidClientToken", "A token has at most 64 ASCII characters")
        known = self._launched.get((call.region, token))
        if known is None:
            answer = run()
            if answer.is_success:
                self._launched[call.region, token] = (call.parameters, answer)
            return answer
        parameters, answer = known
        if parameters != call.parameters:
            text = "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
            return error_answer(400, "IdempotentParameterMismatch", text)
        if all(has_ended(instance) for instance in instance_ids(answer)):
            text = "The instance that this client token launched has been terminated."
            return error_answer(400, "IdempotentInstanceTerminated", text)
        return answer
