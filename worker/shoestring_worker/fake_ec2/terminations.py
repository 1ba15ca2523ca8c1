# SPDX-License-Identifier: Apache-2.0
"""Repeated terminations, at which moto fails: they succeed and change nothing.

source  docs.aws.amazon.com/AWSEC2/latest/APIReference/API_TerminateInstances.html
"""

from __future__ import annotations

from collections.abc import Callable

from shoestring_worker.fake_ec2.wire import Answer, Call, xml_answer

_ITEM = (
    "<item><instanceId>{0}</instanceId><currentState><code>48</code><name>terminated</name></currentState>"
    "<previousState><code>48</code><name>terminated</name></previousState></item>"
)


def terminate(call: Call, run: Callable[[], Answer], has_ended: Callable[[str], bool]) -> Answer:
    """`run` the call unless all of its instances have ended."""
    instances = [value for name, value in call.parameters.items() if name.startswith("InstanceId.")]
    if not instances or not all(has_ended(instance) for instance in instances):
        return run()
    items = "".join(_ITEM.format(instance) for instance in instances)
    return xml_answer(
        "200 OK", f"<TerminateInstancesResponse><instancesSet>{items}</instancesSet></TerminateInstancesResponse>"
    )
