# SPDX-License-Identifier: Apache-2.0
"""What the fake EC2 assumes of AWS, tried on AWS itself: two of the smallest spot machines, for a few cents at most.

Their user data is that of a job's machine, which finds no service and powers the machine off within a minute: so they
end by themselves if nobody is left to end them. Whatever happens, everything with the verification's tag is ended.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from shoestring_core.decide.billing import hourly

from shoestring_worker.providers.base import LaunchRefused, OutcomeUnknown
from shoestring_worker.providers.ec2.account import panic
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.clock import Clock
from shoestring_worker.providers.ec2.account.verify_rules import RULES, Rule
from shoestring_worker.providers.ec2.account.verify_trial import DEPLOYMENT, TYPE, Differs, NotReached, Trial
from shoestring_worker.providers.ec2.extras import gp3_disk, public_ipv4
from shoestring_worker.providers.ec2.settings import Ec2Settings

CAP_USD = Decimal("0.10")
HIGHEST_PRICE = "0.1084"
"""Of the type, dollars per hour: $0.0084 on demand in the dearest region, and $0.05 for each of its two vCPUs while
they are busier than is included. aws.amazon.com/ec2/pricing/on-demand and …/ec2/instance-types/t3, 2026-01"""
MACHINES, RUN_S, CLEAN_UP_S = 2, 900.0, 2 * panic.PATIENCE_S
"""How many machines are launched, how long the rules may take in all, and what ending them may take then."""


@dataclass(frozen=True)
class Verdict:
    """Of one rule. `found`: what was seen, or what AWS answered; `seconds`: how long it took."""

    rule: str
    fake: str
    verdict: Literal["holds", "differs", "not tried"]
    found: str
    at: str
    seconds: float


@dataclass
class Verification:
    """`endpoint`: the server that stood in for AWS; "": it was AWS. `left`: what could not be ended."""

    endpoint: str
    account: str
    region: str
    image: str
    verdicts: list[Verdict]
    left: list[str]

    @property
    def holds(self) -> bool:
        return not self.left and all(one.verdict == "holds" for one in self.verdicts)


def highest_cost(root_gib: int) -> Decimal:
    """Dollars for all machines, if each ran until the very end. Raises AwsError if that is above the cap."""
    each = Decimal(hourly([gp3_disk(root_gib, 3_000, 125), public_ipv4()], HIGHEST_PRICE))
    cost = each * MACHINES * Decimal(RUN_S + CLEAN_UP_S) / 3_600
    if cost > CAP_USD:
        raise AwsError(f"The machines could cost ${cost:.2f}, more than ${CAP_USD}: use an image with a smaller disk.")
    return cost


def verify(
    aws: Aws, settings: Ec2Settings, bucket: str, report: Callable[[str], None], clock: Clock | None = None
) -> Verification:
    """Try each rule, and end what was started: also on Ctrl-C, after which the rules that are left are not tried."""
    clock = clock or Clock()
    trial = Trial.prepare(aws, settings, bucket, clock, clock.monotonic() + RUN_S)
    highest_cost(trial.root_gib)
    result = Verification(settings.endpoint_url or "", aws.account(), trial.region, trial.image, [], [])
    trial.delete_object()  # and the machines, of a run that was killed
    end_all(aws, trial.region, report, clock)
    try:
        for rule in RULES:
            result.verdicts.append(_try(trial, rule, clock))
            report(f"{result.verdicts[-1].verdict:10}{rule.title}: {result.verdicts[-1].found}")
    except KeyboardInterrupt:
        report("Interrupted: everything that was started is ended, which takes a minute or two.")
        tried = len(result.verdicts)
        result.verdicts += [_verdict(rule, "not tried", "interrupted", 0.0) for rule in RULES[tried:]]
    finally:
        with _uninterruptible():
            trial.delete_object()
            result.left = end_all(aws, trial.region, report, clock)
    return result


def end_all(aws: Aws, region: str, report: Callable[[str], None], clock: Clock) -> list[str]:
    """End everything with the verification's tag; returns what is left."""
    found = panic.find_everything(aws, [region], DEPLOYMENT)
    ended = panic.end_everything(
        aws, found, DEPLOYMENT, lambda line: report(f"Ending in {line}"), monotonic=clock.monotonic, sleep=clock.sleep
    )
    return [f"{one.kind} {one.id}" for each in ended for one in each.left] + [
        f"{each.region}: {problem}" for each in ended for problem in each.problems
    ]


def render(verification: Verification) -> str:
    """The report, as Markdown."""
    stood_in = f"**Not AWS answered, but {verification.endpoint}, which stands in for it: this says nothing of AWS.**"
    lines = [
        "# What was verified on AWS",
        "",
        *([stood_in, ""] if verification.endpoint else []),
        f"Account {verification.account}, {verification.region}, two {TYPE} spot machines of {verification.image}.",
        "",
        "| rule | stands in for it | verdict | found | at | s |",
        "|---|---|---|---|---|---|",
    ]
    for one in verification.verdicts:
        found = one.found.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {one.rule} | {one.fake} | {one.verdict} | {found} | {one.at} | {one.seconds:.1f} |")
    left = "Nothing is left." if not verification.left else f"**Left: {'; '.join(verification.left)}**"
    return "\n".join([*lines, "", left, ""])


def as_json(verification: Verification) -> dict[str, Any]:
    return {**asdict(verification), "holds": verification.holds}


def _try(trial: Trial, rule: Rule, clock: Clock) -> Verdict:
    began = clock.monotonic()
    try:
        if began > trial.deadline:
            raise NotReached("the time is up")
        verdict, found = "holds", rule.check(trial)
    except Differs as differs:
        verdict, found = "differs", str(differs)
    except NotReached as missing:
        verdict, found = "not tried", str(missing)
    except LaunchRefused as refused:
        verdict, found = "not tried", f"{refused.kind}: {refused}"
    except (AwsError, OutcomeUnknown) as error:
        verdict, found = "not tried", str(error)
    return _verdict(rule, verdict, found, clock.monotonic() - began)


def _verdict(rule: Rule, verdict: Any, found: str, seconds: float) -> Verdict:
    return Verdict(rule.title, rule.fake, verdict, found, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z", round(seconds, 1))


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, whatever this process inherited."""
    with _handled(signal.default_int_handler):
        yield


@contextmanager
def _uninterruptible() -> Iterator[None]:
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    before = {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handle in before.items():
            signal.signal(each, handle)
