# SPDX-License-Identifier: Apache-2.0
"""Checks of an AWS account and of the settings, before a job costs anything.

Nothing is launched. The bucket gets one object, which is deleted again.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from botocore.exceptions import ClientError
from shoestring_core.catalog import LivePrices
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.store.objects.s3_errors import needs_key
from shoestring_core.wire import BootData
from shoestring_core.wording.units import counted

from shoestring_worker.providers.ec2.account.data_role import DATA_ROLE, HOW_TO_MAKE_IT, role_in, what_is_missing
from shoestring_worker.providers.ec2.account.ownership import SPOT_ROLE, SPOT_ROLE_PATH
from shoestring_worker.providers.ec2.errors import (
    ADVICE,
    CLOCK_OFF_S,
    FAILURES,
    NO_ANSWER,
    clock_advice,
    clock_ahead_s,
    clock_difference,
    data_role_advice,
    meaning_of,
    read_error,
)
from shoestring_worker.providers.ec2.offers import make_offers
from shoestring_worker.providers.ec2.on_demand_prices import ENDPOINT_REGIONS, SOURCE, read_on_demand_prices
from shoestring_worker.providers.ec2.quotas import quota_of, read_quotas
from shoestring_worker.providers.ec2.run_instances import RootDisk, run_instances
from shoestring_worker.providers.ec2.settings import Ec2Region, Ec2Settings

TEXT_LENGTH = 300
"""Of an error: a proxy may answer with a whole page."""

ASKED_ELSEWHERE = (
    "Other regions know these credentials. If this goes on, enable the region in the AWS console, or name another in "
    "AWS_DEFAULT_REGION."
)

OpenClient = Callable[[str, str], Any]
"""Open a client of a service in a region."""


@dataclass(frozen=True)
class Finding:
    """What one check found. `advice`: what to do about it."""

    level: Literal["ok", "warning", "error"]
    subject: str
    text: str
    advice: str = ""


def find_home(
    open_client: OpenClient, regions: Sequence[str], clock: Callable[[], datetime]
) -> tuple[str | None, list[Finding]]:
    """The first of these regions that knows the credentials, and what was found on the way; None: none does.

    One that doesn't answer, or isn't enabled in the account, says nothing of the others.
    """
    failed: dict[str, Finding] = {}
    for region in dict.fromkeys(regions):
        found = check_account(open_client, region, clock())
        if found[0].level == "ok":
            passed = [
                replace(one, level="warning", subject=where, advice=ASKED_ELSEWHERE) for where, one in failed.items()
            ]
            return region, [*passed, *found]
        failed[region] = found[0]
        if "clock" in found[0].advice:
            break  # it is the same for all
    return None, [*failed.values()][:1]


def check_account(open_client: OpenClient, region: str, now: datetime) -> list[Finding]:
    """Credentials and the computer's clock."""
    try:
        answer = open_client("sts", region).get_caller_identity()
    except ClientError as error:
        code, message, _ = read_error(error.response)
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        advice = clock_advice(code, message, headers, now.timestamp()) or "Renew them, or set AWS_PROFILE."
        return [Finding("error", "credentials", f"AWS refuses them: {code}: {message}", advice)]
    except NO_ANSWER as error:
        advice = "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; and check the network."
        return [Finding("error", "credentials", f"AWS can't be asked: {error}", advice)]
    found = [Finding("ok", "credentials", f"{answer['Arn']} of account {answer['Account']}")]
    ahead_s = clock_ahead_s(answer["ResponseMetadata"]["HTTPHeaders"], now.timestamp())
    return found if ahead_s is None else [*found, _clock(ahead_s)]


def check_spot_role(open_client: OpenClient, region: str) -> Finding:
    """The service-linked role without which EC2 launches no spot machine.

    source  docs.aws.amazon.com/AWSEC2/latest/UserGuide/service-linked-roles-spot-instance-requests.html
    """
    try:
        roles = open_client("iam", region).list_roles(PathPrefix=SPOT_ROLE_PATH)["Roles"]
    except FAILURES as error:
        return Finding("warning", "spot role", f"IAM can't be asked: {_text(error)}", "Allow iam:ListRoles.")
    if not roles:
        text = f"The account has no role {SPOT_ROLE}: EC2 would refuse spot machines."
        return Finding("error", "spot role", text, "Make it: shoestring aws bootstrap")
    return Finding("ok", "spot role", f"{SPOT_ROLE} is there")


def check_data_role(open_client: OpenClient, region: str, profile: str) -> Iterator[Finding]:
    """The role in the instance profile of machines whose data are in S3. `profile`: "" if none is set.

    Whether the worker may pass it, a launch that is tried shows: `check_region`.
    """
    if not profile:
        return
    try:
        pages = open_client("iam", region).get_paginator("list_instance_profiles").paginate()
        profiles = [each for page in pages for each in page["InstanceProfiles"]]
    except FAILURES as error:
        advice = "Allow iam:ListInstanceProfiles. A launch with it is tried all the same."
        yield Finding("warning", "data role", f"IAM can't be asked: {_text(error)}", advice)
        return
    if role := role_in(profiles, profile):
        yield Finding("ok", "data role", f"{role}, for machines whose job's data are in S3: jobs read what it reads")
    else:
        advice = f"Correct {DATA_ROLE}; {HOW_TO_MAKE_IT}."
        yield Finding("error", "data role", what_is_missing(profiles, profile), advice)


def find_addresses(host: str) -> list[str]:
    """By this computer's resolver, within its time limits. Raises OSError."""
    return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})


def check_agent_url(url: str, *, simulated: bool, resolve: Callable[[str], list[str]] = find_addresses) -> Finding:
    """Whether machines can use the service's URL, as far as it can be told from here. `url`: "" if none is set."""
    parts = urlsplit(url)
    advice = "Set SHOESTRING_AGENT_URL to an https:// URL that machines on AWS can reach."
    if not url:
        text = "SHOESTRING_AGENT_URL is not set. With `shoestring aws up` that is right: its machine sets it."
        return Finding("warning", "service URL", text, f"For a service elsewhere: {advice[0].lower()}{advice[1:]}")
    host = parts.hostname or ""
    if parts.scheme != "https" and not simulated:
        return Finding("error", "service URL", f"Machines would reach {url} without encryption.", advice)
    if not simulated and (host in ("localhost", "::1") or host.startswith("127.")):
        return Finding("error", "service URL", f"Machines can't reach {url}: that is this computer.", advice)
    if not simulated:
        try:
            addresses = resolve(host)
        except OSError as error:
            text = f"{host} has no address: {error.strerror or error}."
            return Finding("error", "service URL", text, f"Look at its DNS records, or: {advice}")
        if private := [one for one in addresses if not ipaddress.ip_address(one.partition("%")[0]).is_global]:
            text = f"Machines can't reach {url}: {host} is {', '.join(private)}, an address of a private network."
            return Finding("error", "service URL", text, advice)
    return Finding("ok", "service URL", f"{url}; whether machines reach it shows with the first one")


def check_bucket(open_client: OpenClient, region: str, store: str, regions: Iterable[str]) -> Iterator[Finding]:
    """The bucket of SHOESTRING_OBJECT_STORE: where it is, and whether one object can be written, read and deleted.

    region   where it is looked for
    regions  where machines run
    """
    if not store.startswith("s3://"):
        yield Finding("ok", "bucket", "none: checkpoints go through the service")
        return
    name, _, prefix = store.removeprefix("s3://").partition("/")
    key = f"{prefix.strip('/')}/doctor".lstrip("/")
    try:
        found = open_client("s3", region).get_bucket_location(Bucket=name)["LocationConstraint"] or "us-east-1"
        s3 = open_client("s3", found)
        s3.put_object(Bucket=name, Key=key, Body=b"shoestring aws doctor")
        s3.get_object(Bucket=name, Key=key)["Body"].read()
    except FAILURES as error:
        advice = "Name one in SHOESTRING_OBJECT_STORE that exists and that these credentials may write and read."
        if isinstance(error, ClientError) and needs_key(*read_error(error.response)[:2]):
            advice = "Allow kms:GenerateDataKey and kms:Decrypt on the bucket's key, or set its encryption to SSE-S3."
        yield Finding("error", "bucket", f"{name} can't be used: {_text(error)}", advice)
        return
    try:
        s3.delete_object(Bucket=name, Key=key)
    except FAILURES as error:
        text = f"{key} can't be deleted, and stays: {_text(error)}"
        yield Finding("warning", "bucket", text, "Allow s3:DeleteObject, or checkpoints are never deleted.")
    if elsewhere := sorted(set(regions) - {found}):
        text = f"{name} is in {found}, machines run in {', '.join(elsewhere)} too: what they exchange crosses regions."
        yield Finding("warning", "bucket", text, "AWS charges for that. Use a bucket in the machines' region.")
    else:
        yield Finding("ok", "bucket", f"{name} in {found} can be written and read")


def check_region(open_client: OpenClient, settings: Ec2Settings, region: str) -> Iterator[Finding]:
    """The image, the subnets, a launch without launching, and the quotas, of one configured region."""
    chosen = settings.regions[region]
    try:
        ec2 = open_client("ec2", region)
        root_device = yield from _check_image(ec2, region, chosen, settings.disk_gib)
        yield from _check_subnets(ec2, region, chosen)
    except FAILURES as error:
        code = read_error(error.response)[0] if isinstance(error, ClientError) else ""
        advice = ADVICE.get(code, "Look at the network and the permissions in docs/aws.md.")
        yield Finding("error", region, f"EC2 can't be asked: {_text(error)}", advice)
        return
    live = yield from _read_prices(open_client, region)
    offers = [offer for offer in make_offers("ec2", settings, live) if offer.region == region]
    if not offers:
        yield Finding(
            "warning", region, f"No type costs at most ${settings.max_price}/h there, or its prices aren't known.",
            "Raise SHOESTRING_EC2_MAX_PRICE, or use us-east-1.",
        )  # fmt: skip
        return
    cheapest = {offer.market: offer for offer in sorted(offers, key=lambda one: -float(one.on_demand_price))}
    if root_device:
        for offer in cheapest.values():
            yield _dry_run(ec2, settings, offer, root_device)
        if settings.data_role:
            yield _dry_run(ec2, settings, cheapest[min(cheapest)], root_device, settings.data_role)
    yield from _check_quotas(open_client("service-quotas", region), region, offers)


def _read_prices(open_client: OpenClient, region: str) -> Generator[Finding, None, LivePrices | None]:
    """The on-demand prices of the region; None: those of the built-in list hold."""
    failed: list[Exception] = []
    for endpoint in ENDPOINT_REGIONS:
        try:
            prices = read_on_demand_prices(open_client("pricing", endpoint), region)
        except FAILURES as error:
            failed.append(error)
            continue
        return LivePrices({region: prices}, SOURCE) if prices else None
    text = f"The price list can't be read: {_text(failed[0])}"
    advice = "Allow pricing:GetProducts. Until then only us-east-1 is offered, at built-in prices."
    yield Finding("warning", region, text, advice)
    return None


def _clock(ahead_s: float) -> Finding:
    if abs(ahead_s) < CLOCK_OFF_S:
        return Finding("ok", "clock", f"within {max(1, math.ceil(abs(ahead_s)))} s of AWS's")
    text = f"This computer's clock is {clock_difference(ahead_s)}, which refuses such requests."
    return Finding("error", "clock", text, "Set it, for example by: timedatectl set-ntp true")


def _check_image(ec2: Any, region: str, chosen: Ec2Region, disk_gib: int) -> Generator[Finding, None, str]:
    """Returns the name of its root device; "" if it can't be used."""
    advice = f"Copy it to {region}, share it with this account, or name another in SHOESTRING_EC2_REGIONS."
    try:
        images = ec2.describe_images(ImageIds=[chosen.image])["Images"]
    except ClientError as error:
        if meaning_of(*_code_and_status(error)).refusal is not RefusalKind.IMAGE:
            raise
        images = []
    if not images:
        yield Finding("error", region, f"{chosen.image} is not there, or this account may not use it.", advice)
        return ""
    image = images[0]
    if image.get("State") != "available" or image.get("Architecture", "x86_64") != "x86_64":
        state = f"{image.get('State')}, for {image.get('Architecture')}"
        text = f"{chosen.image} is {state}; it has to be available, for x86_64."
        yield Finding("error", region, text, advice)
        return ""
    root = RootDisk.of(image)
    if root.gib > disk_gib:
        text = f"{chosen.image} alone needs a disk of {root.gib} GiB; SHOESTRING_EC2_DISK_GIB is {disk_gib}."
        yield Finding("error", region, text, f"Set it to more than {root.gib}.")
        return ""
    yield Finding("ok", region, f"image {chosen.image}: {image.get('Name', 'without a name')}")
    return root.device


def _check_subnets(ec2: Any, region: str, chosen: Ec2Region) -> Iterator[Finding]:
    known = {one["SubnetId"]: one["AvailabilityZone"] for one in ec2.describe_subnets()["Subnets"]}
    for zone, subnet in chosen.subnets.items():
        if known.get(subnet) == zone:
            continue
        where = f"is in {known[subnet]}" if subnet in known else "does not exist"
        yield Finding("error", region, f"{subnet}, set for {zone}, {where}.", "Mend SHOESTRING_EC2_REGIONS.")
    right = [zone for zone, subnet in chosen.subnets.items() if known.get(subnet) == zone]
    if right:
        yield Finding("ok", region, f"subnets in {', '.join(right)}")


def _dry_run(
    ec2: Any, settings: Ec2Settings, offer: Offer, root_device: str, data_role: str | None = None
) -> Finding:  # fmt: skip
    """EC2 checks the request and the permissions, and launches nothing."""
    request = LaunchRequest(
        token="shoestring-doctor", region=offer.region, zone=offer.zone, type=offer.type, market=offer.market,
        price=offer.price, tags={DEPLOYMENT_TAG: "doctor", PROVIDER_TAG: offer.provider},
        user_data=BootData(server_url="https://127.0.0.1", machine=UUID(int=0)), data_role=data_role,
    )  # fmt: skip
    market = offer.market.replace("_", " ") + (f", role {data_role}" if data_role else "")
    try:
        ec2.run_instances(**run_instances(request, settings, root_device), DryRun=True)
        text = f"EC2 did not take a launch of {offer.type} ({market}) for a trial run."
        return Finding("error", offer.region, text, "Run `shoestring aws panic --deployment doctor`.")
    except ClientError as error:
        code, message, _ = read_error(error.response)
        if code == "DryRunOperation":
            return Finding("ok", offer.region, f"a launch of {offer.type} ({market}) is allowed")
        text = f"A launch of {offer.type} ({market}) would be refused: {code}: {message}"
        advice = "docs/aws.md lists the permissions, and what each error means."
        of_role = data_role and data_role_advice(code, message, data_role)
        return Finding("error", offer.region, text, of_role or advice)
    except NO_ANSWER as error:
        return Finding("error", offer.region, f"EC2 did not answer a trial launch: {error}", "Try again.")


def _check_quotas(service_quotas: Any, region: str, offers: list[Offer]) -> Iterator[Finding]:
    try:
        quotas = read_quotas(service_quotas)
    except FAILURES as error:
        advice = "Allow servicequotas:ListServiceQuotas, or look at the Service Quotas console."
        yield Finding("warning", region, f"The quotas can't be read: {_text(error)}", advice)
        return
    by_quota: dict[tuple[str, float], dict[str, int]] = {}
    for offer in offers:
        if offer.hardware and (quota := quota_of(quotas, offer.type, offer.market)):
            by_quota.setdefault(quota, {})[offer.type] = offer.hardware.vcpus
    for (name, vcpus), types in sorted(by_quota.items()):
        yield _quota(region, name, vcpus, types)


def _quota(region: str, name: str, vcpus: float, types: Mapping[str, int]) -> Finding:
    smallest = min(types, key=lambda type_: types[type_])
    machines = int(vcpus // types[smallest])
    text = f"{name}: {counted(int(vcpus), 'vCPU')}, {machines or 'no'} {smallest} ({counted(types[smallest], 'vCPU')})"
    if machines:
        return Finding("ok", region, text)
    advice = f'Ask for more in the Service Quotas console, Amazon EC2, "{name}": it can take days; jobs wait.'
    return Finding("error", region, text, advice)


def _text(error: Exception) -> str:
    if isinstance(error, ClientError):
        code, message, _ = read_error(error.response)
        return f"{code}: {message}"[:TEXT_LENGTH]
    return str(error)[:TEXT_LENGTH]


def _code_and_status(error: ClientError) -> tuple[str, int]:
    code, _, status = read_error(error.response)
    return code, status
