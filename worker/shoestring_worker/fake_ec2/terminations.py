# SPDX-License-Identifier: Apache-2.0
"""Terminations: repeated ones, at which moto fails, succeed and change nothing; an instance that runs ends by its host.

source  docs.aws.amazon.com/AWSEC2/latest/APIReference/API_TerminateInstances.html
"""

from __future__ import annotations

from collections.abc import Callable

from shoestring_worker.fake_ec2.wire import Answer, Call, xml_answer

TERMINATED, SHUTTING_DOWN = (48, "terminated"), (32, "shutting-down")


def terminate(
    call: Call, run: Callable[[], Answer], has_ended: Callable[[str], bool | None], stop: Callable[[str], None] | None
) -> Answer:
    """
    run        moto's own termination, at once, and its error for an instance that never existed
    has_ended  None: never existed
    stop       begins to end an instance that really runs; None: none does
    """
    instances = [value for name, value in call.parameters.items() if name.startswith("InstanceId.")]
    alive = [instance for instance in instances if not has_ended(instance)]
    if not instances or (alive and stop is None) or None in map(has_ended, instances):
        return run()
    items = []
    for instance in instances:
        code, name = TERMINATED
        if instance in alive and stop is not None:
            stop(instance)
            code, name = SHUTTING_DOWN
        state = f"<code>{code}</code><name>{name}</name>"
        items.append(
            f"<item><instanceId>{instance}</instanceId><currentState>{state}</currentState>"
            f"<previousState>{state}</previousState></item>"
        )
    body = f"<instancesSet>{''.join(items)}</instancesSet>"
    return xml_answer("200 OK", f"<TerminateInstancesResponse>{body}</TerminateInstancesResponse>")
