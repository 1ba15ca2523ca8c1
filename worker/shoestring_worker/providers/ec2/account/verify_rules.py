# SPDX-License-Identifier: Apache-2.0
"""The rules of AWS that the fake EC2 stands in for, each as a trial by the provider's own calls.

They are tried in this order, and later ones use the machines of earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind

from shoestring_worker.providers.base import OutcomeUnknown
from shoestring_worker.providers.ec2.account.aws import AwsError
from shoestring_worker.providers.ec2.account.verify_trial import DEPLOYMENT, TYPE, Differs, NotReached, Trial
from shoestring_worker.providers.ec2.errors import meaning_of
from shoestring_worker.providers.ec2.quotas import NAMES
from shoestring_worker.providers.ec2.run_instances import run_instances

NO_IMAGE = "ami-00000000000000bad"
LISTED_S, RUNNING_S, OFF_S, ENDED_S, GONE_S = 300.0, 300.0, 600.0, 300.0, 180.0


@dataclass(frozen=True)
class Rule:
    """`fake`: module of the fake that stands in for it; `check` returns what was found.

    Raises Differs, NotReached, LaunchRefused, OutcomeUnknown, AwsError.
    """

    title: str
    fake: str
    check: Callable[[Trial], str]


def _require(machine: ProviderMachine | None) -> ProviderMachine:
    if machine is None:
        raise NotReached("no machine was launched")
    return machine


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Differs(otherwise)


def _dry_run(trial: Trial) -> str:
    arguments = run_instances(trial.request(str(uuid4())), trial.settings, trial.root_device)
    try:
        trial.aws.write("ec2", trial.region, "run_instances", **arguments, DryRun=True)
    except AwsError as error:
        if error.code == "DryRunOperation":
            return "DryRunOperation"
        raise
    raise Differs("a dry run was answered without DryRunOperation")


def _wrong_image(trial: Trial) -> str:
    """As the provider asks for it before its first launch."""
    try:
        trial.aws.read("ec2", trial.region, "describe_images", ImageIds=[NO_IMAGE])
    except AwsError as error:
        meaning = meaning_of(error.code, 400).refusal
        _expect(meaning is RefusalKind.IMAGE, f"it counts as {meaning}: {error.code}")
        return error.code
    raise Differs(f"{NO_IMAGE} was not refused")


def _quotas(trial: Trial) -> str:
    quotas = trial.aws.read_all("service-quotas", trial.region, "list_service_quotas", "Quotas", ServiceCode="ec2")
    names = [each["QuotaName"] for each in quotas]
    found = [name for name in names if any(pattern.match(name) for pattern in NAMES.values())]
    _expect(bool(found), f"none of {len(names)} quotas is of machines")
    return f"{len(found)} of machines, such as: {found[0]}"


def _spot_prices(trial: Trial) -> str:
    history = trial.aws.read(
        "ec2", trial.region, "describe_spot_price_history", InstanceTypes=[TYPE], AvailabilityZone=trial.zone,
        ProductDescriptions=["Linux/UNIX"],
    )["SpotPriceHistory"]  # fmt: skip
    _expect(bool(history), f"there is no spot price of {TYPE} in {trial.zone}")
    return f"${history[0]['SpotPrice']} per hour in {trial.zone}"


def _launch(trial: Trial) -> str:
    request = trial.request(str(uuid4()))
    trial.first = trial.provider.launch(request)
    again = trial.provider.launch(request)
    _expect(again.id == trial.first.id, f"{trial.first.id} and {again.id} were launched")
    return f"{again.id} twice"


def _other_request(trial: Trial) -> str:
    first = _require(trial.first)
    request = trial.request(first.token)
    try:
        other = trial.provider.launch(replace(request, tags=request.tags | {"job": "another"}))
    except OutcomeUnknown as unknown:
        _expect("IdempotentParameterMismatch" in str(unknown), str(unknown))
        return "IdempotentParameterMismatch"
    raise Differs(f"{other.id} was answered")


def _listed(trial: Trial) -> str:
    first = _require(trial.first)
    found = trial.until(LISTED_S, lambda: trial.listed(first) is not None, "it is not listed by its tag")
    listed = trial.listed(first)
    _expect(listed is not None and listed.token == first.token, "it is listed without its token")
    return found


def _tags(trial: Trial) -> str:
    first = _require(trial.first)
    instance = trial.describe(first)
    volumes = [each["Ebs"]["VolumeId"] for each in instance["BlockDeviceMappings"] if "Ebs" in each]
    interfaces = [each["NetworkInterfaceId"] for each in instance["NetworkInterfaces"]]

    def read(method: str, key: str, **ids: list[str]) -> list[Any]:
        return list(trial.aws.read("ec2", trial.region, method, **ids)[key])

    described = {
        "machine": [instance],
        "volume": read("describe_volumes", "Volumes", VolumeIds=volumes),
        "interface": read("describe_network_interfaces", "NetworkInterfaces", NetworkInterfaceIds=interfaces),
        "spot request": [
            each
            for each in read("describe_spot_instance_requests", "SpotInstanceRequests")
            if each["SpotInstanceRequestId"] == instance["SpotInstanceRequestId"]
        ],
    }
    wanted = trial.request(first.token).tags
    for kind, things in described.items():
        _expect(bool(things), f"it has no {kind}")
        for thing in things:
            tags = {tag["Key"]: tag["Value"] for tag in thing.get("Tags") or thing.get("TagSet") or []}
            missing = [f"{key}={value}" for key, value in wanted.items() if tags.get(key) != value]
            _expect(not missing, f"its {kind} lacks {', '.join(missing)}")
    return f"on {', '.join(described)}"


def _settings_hold(trial: Trial) -> str:
    instance = trial.describe(_require(trial.first))
    options = instance["MetadataOptions"]
    _expect(
        (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 1), f"metadata options: {options}"
    )
    (root,) = [each["Ebs"]["VolumeId"] for each in instance["BlockDeviceMappings"]]
    (volume,) = trial.aws.read("ec2", trial.region, "describe_volumes", VolumeIds=[root])["Volumes"]
    _expect((volume["Encrypted"], volume["VolumeType"]) == (True, "gp3"), f"its root disk: {volume}")
    return "IMDSv2 with a hop limit of 1, encrypted gp3"


def _running(trial: Trial) -> str:
    first = _require(trial.first)
    return trial.until(RUNNING_S, lambda: trial.describe(first)["State"]["Name"] != "pending", "it is pending")


def _powers_off(trial: Trial) -> str:
    first = _require(trial.first)

    def has_ended() -> bool:
        listed = trial.listed(first)
        return listed is not None and listed.state == "ended"

    took = trial.until(OFF_S, has_ended, "it has not powered itself off")
    listed = trial.listed(first)
    _expect(listed is not None and listed.end_cause == "exited", f"its end counts as {listed and listed.end_cause}")
    _expect(listed is not None and listed.ended_at is not None, "its end has no time")
    return f"{took}: Client.InstanceInitiatedShutdown"


def _ended_token(trial: Trial) -> str:
    first = _require(trial.first)
    try:
        again = trial.provider.launch(trial.request(first.token))
    except OutcomeUnknown as unknown:
        _expect("IdempotentInstanceTerminated" in str(unknown), str(unknown))
        return "IdempotentInstanceTerminated"
    _expect(again.id == first.id, f"{again.id} was launched")
    return f"{again.id} again"


def _terminated(trial: Trial) -> str:
    second = trial.second = trial.provider.launch(trial.request(str(uuid4())))
    trial.until(LISTED_S, lambda: trial.listed(second) is not None, "it is not listed by its tag")
    trial.provider.terminate(second.ref)

    def has_ended() -> bool:
        listed = trial.listed(second)
        return listed is not None and listed.state == "ended"

    took = trial.until(ENDED_S, has_ended, "it has not ended")
    listed = trial.listed(second)
    _expect(listed is not None and listed.end_cause == "requested", f"its end counts as {listed and listed.end_cause}")
    return f"{took}: Client.UserInitiatedShutdown"


def _nothing_left(trial: Trial) -> str:
    _require(trial.second)
    return trial.until(
        GONE_S, lambda: not trial.provider.list_leftovers(DEPLOYMENT, trial.region), "volumes or spot requests are left"
    )


def _written_once(trial: Trial) -> str:
    wanted = {"Bucket": trial.bucket, "Key": trial.key, "Body": b"verify", "ChecksumAlgorithm": "CRC64NVME"}
    trial.aws.write("s3", trial.region, "put_object", **wanted, IfNoneMatch="*")
    try:
        trial.aws.write("s3", trial.region, "put_object", **wanted, IfNoneMatch="*")
    except AwsError as error:
        _expect(error.code == "PreconditionFailed", str(error))
    else:
        raise Differs("it was overwritten")
    head = trial.aws.read("s3", trial.region, "head_object", Bucket=trial.bucket, Key=trial.key, ChecksumMode="ENABLED")
    _expect("ChecksumCRC64NVME" in head, "it has no CRC64NVME")
    return f"PreconditionFailed; CRC64NVME {head['ChecksumCRC64NVME']}"


RULES = (
    Rule("A dry run of a launch is allowed", "server", _dry_run),
    Rule("A wrong image is told apart", "faults", _wrong_image),
    Rule("Quotas are read by their names", "quotas", _quotas),
    Rule("Spot prices are told by zone", "spot_prices", _spot_prices),
    Rule("An object is written once, with a checksum", "s3", _written_once),
    Rule("A repeated launch starts one machine", "tokens", _launch),
    Rule("Its token with another request is refused", "tokens", _other_request),
    Rule("A machine is listed by its tag, with its token", "listings", _listed),
    Rule("Everything has its tags from birth on", "moto", _tags),
    Rule("Metadata and disk are as they were asked for", "moto", _settings_hold),
    Rule("A machine comes to run", "machines", _running),
    Rule("A machine that finds no service powers itself off, and is terminated", "machines", _powers_off),
    Rule("The token of a machine that has ended launches no other", "tokens", _ended_token),
    Rule("A machine is terminated, and why is told", "terminations", _terminated),
    Rule("Disks and spot requests go with their machines", "spot_requests", _nothing_left),
)
