# SPDX-License-Identifier: Apache-2.0
"""What may be rented on EC2 now and at what price, asked for every few minutes: prices, and the account's quotas."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from typing import Any

from shoestring_core import catalog
from shoestring_core.catalog import LivePrices
from shoestring_core.decide.billing import PriceChange
from shoestring_core.decide.offers import Offer

from shoestring_worker.providers.base import OutcomeUnknown
from shoestring_worker.providers.ec2.calls import Calls
from shoestring_worker.providers.ec2.instance_types import TypeFacts, read_instance_types, with_types
from shoestring_worker.providers.ec2.offers import (
    SPOT_SOURCE,
    SpotPrices,
    make_offers,
    merge,
    price_changes,
    read_spot_prices,
    spot_types,
    with_spot_prices,
)
from shoestring_worker.providers.ec2.on_demand_prices import ENDPOINT_REGIONS, SOURCE, read_on_demand_prices
from shoestring_worker.providers.ec2.quotas import read_quotas, with_quotas
from shoestring_worker.providers.ec2.settings import Ec2Settings

log = logging.getLogger(__name__)

PRICE_AGE_S = 300.0
"""How old prices and quotas get before they are asked for again."""
RETRY_S = 30.0
"""When they are asked for again after a region didn't answer."""
SILENT_S = 2 * RETRY_S
"""How much older a region's spot prices may get before it isn't offered any more: launches there would fail too."""
PRICE_HISTORY = timedelta(days=7)
"""How far back spot prices are asked for at first: machines may have ended while no worker ran."""
PAGE_SIZE = 1_000


class Market:
    """Of one provider's configured regions. `threads`: at least four for each region answer in the time of one call.

    A region whose spot prices can't be read isn't offered, and hides no other: methods raise OutcomeUnknown if none can
    be read. What can't be read else stays as it was read last.
    """

    def __init__(
        self, name: str, settings: Ec2Settings, calls: Calls, threads: Executor, monotonic: Callable[[], float]
    ) -> None:
        self._name, self._settings, self._monotonic = name, settings, monotonic
        self._calls, self._threads = calls, threads
        self._live: LivePrices | None = None
        """On-demand prices as they were last read; None: never."""
        self._price_list_failures = 0
        self._types: dict[str, dict[str, TypeFacts]] = {}
        """By region and type, once they were read: they stay."""
        self._quotas: dict[str, dict[str, float]] = {}
        """By region and name, as they were last read."""
        self._spot: SpotPrices = {}
        self._latest_spot: dict[str, SpotPrices] = {}
        """By region, as they were last read."""
        self._spot_until = dict.fromkeys(settings.regions, datetime.now(UTC) - PRICE_HISTORY)
        self._spot_read_at: dict[str, float] = {}
        """By region, by the monotonic clock."""
        self._listed = self._offers = make_offers(name, settings)
        self._asked_at = float("-inf")

    def offers(self) -> list[Offer]:
        if (now := self._monotonic()) >= self._asked_at + PRICE_AGE_S:
            silent = self._ask()
            self._asked_at = now - PRICE_AGE_S + RETRY_S if silent else now
        return self._offers

    def refresh_spot_prices(self) -> dict[str, OutcomeUnknown]:
        """The regions in which they can't be read, and why."""
        asked_at, now = datetime.now(UTC), self._monotonic()
        calls = {region: self._threads.submit(self._spot_price_history, region) for region in self._settings.regions}
        silent: dict[str, OutcomeUnknown] = {}
        for region, call in calls.items():
            try:
                latest = read_spot_prices(call.result())
            except OutcomeUnknown as unknown:
                silent[region] = unknown
                continue
            self._latest_spot[region], self._spot = latest, merge(self._spot, latest)
            self._spot_until[region], self._spot_read_at[region] = asked_at, now
        if len(silent) == len(calls):
            raise max(silent.values(), key=lambda unknown: unknown.lasts)
        self._offers = self._priced()
        for region, why in silent.items():
            log.warning("%s: the spot prices of %s can't be read: %s", self._name, region, why)
        return silent

    def price_changes(self, zone: str, type_: str, begin: int, end: int | None) -> tuple[PriceChange, ...]:
        """Of spot machines between two times (µs UTC; None: until now), from the last change before."""
        return price_changes(self._spot, zone, type_, begin, end)

    def rate_caps(self, region: str) -> Mapping[str, str]:
        """What a machine never exceeds (Offer.rate_cap), by type."""
        return {offer.type: offer.rate_cap for offer in self._listed if offer.region == region}

    def _ask(self) -> dict[str, OutcomeUnknown]:
        """As `refresh_spot_prices`."""
        regions = self._settings.regions
        quotas = self._threads.map(self._read_quotas, regions)  # while spot prices are asked for
        on_demand = self._threads.map(self._read_on_demand_prices, regions)
        types = self._threads.map(self._read_types, [region for region in regions if region not in self._types])
        silent = self.refresh_spot_prices()
        self._types |= {region: facts for region, facts in types if facts}
        self._quotas = dict(zip(regions, quotas, strict=True))
        if read := {region: prices for region, prices in zip(regions, on_demand, strict=True) if prices}:
            known = self._live.by_region if self._live else {}
            self._live = LivePrices({**known, **read}, _read_at(SOURCE, datetime.now(UTC)))
            self._listed = make_offers(self._name, self._settings, self._live)
        self._offers = self._priced()
        return silent

    def _priced(self) -> list[Offer]:
        """Of the regions that answer."""
        oldest = self._monotonic() - PRICE_AGE_S - SILENT_S
        priced: list[Offer] = []
        for region, read_at in self._spot_read_at.items():
            if read_at >= oldest:
                there = [offer for offer in self._listed if offer.region == region]
                source = _read_at(SPOT_SOURCE, self._spot_until[region])
                priced += with_spot_prices(there, self._latest_spot[region], source)
        return with_quotas(with_types(priced, self._types), self._quotas)

    def _read_quotas(self, region: str) -> dict[str, float]:
        """Those read before where they can't be read: EC2 refuses what exceeds them in any case."""
        try:
            return self._calls.read(region, "ListServiceQuotas", read_quotas, "service-quotas")
        except OutcomeUnknown as unknown:
            log.warning("%s: the quotas of %s can't be read: %s", self._name, region, unknown)
            return self._quotas.get(region, {})

    def _read_types(self, region: str) -> tuple[str, dict[str, TypeFacts]]:
        """The region, and its types; none where they can't be read: then they are asked for again."""
        types = [machine.type for machine in catalog.price_list_of(self._name).types]
        try:
            read = self._calls.read(region, "DescribeInstanceTypes", lambda ec2: read_instance_types(ec2, types))
        except OutcomeUnknown as unknown:
            log.warning("%s: the types of %s can't be read: %s", self._name, region, unknown)
            return region, {}
        return region, read

    def _read_on_demand_prices(self, region: str) -> dict[str, str]:
        """By type; empty where they can't be read: another endpoint is asked the next time."""
        endpoint = ENDPOINT_REGIONS[self._price_list_failures % len(ENDPOINT_REGIONS)]
        try:
            return self._calls.read(endpoint, "GetProducts", lambda api: read_on_demand_prices(api, region), "pricing")
        except OutcomeUnknown as unknown:
            self._price_list_failures += 1
            log.warning("%s: the on-demand prices of %s can't be read: %s", self._name, region, unknown)
            return {}

    def _spot_price_history(self, region: str) -> list[dict[str, Any]]:
        """The changes since the last time, and the price in force then: AWS returns the last change before it too."""
        types = spot_types(self._name, self._settings, region, self._live)
        wanted = {"InstanceTypes": types, "ProductDescriptions": ["Linux/UNIX"], "StartTime": self._spot_until[region]}
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while types:

            def describe(ec2: Any, more: dict[str, str] = more) -> dict[str, Any]:
                page: dict[str, Any] = ec2.describe_spot_price_history(**wanted, MaxResults=PAGE_SIZE, **more)
                return page

            page = self._calls.read(region, "DescribeSpotPriceHistory", describe)
            found += page["SpotPriceHistory"]
            if not page.get("NextToken"):
                break
            more = {"NextToken": page["NextToken"]}
        return found


def _read_at(source: str, time: datetime) -> str:
    """A price's source, as users see it."""
    return f"{source}, {time:%Y-%m-%d %H:%M} UTC"
