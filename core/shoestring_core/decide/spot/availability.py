# SPDX-License-Identifier: Apache-2.0
"""What has been seen of the zones: how long spot machines last there, and how long none can be had."""

from __future__ import annotations

import numpy as np

from shoestring_core.decide.spot.deadline_job import Bools, Floats, Ints

PRIOR_UPTIME_H, PRIOR_OUTAGE_H = 3.0, 1.5
"""Expected before anything has been seen: between the zones in which machines last for one hour and for ten."""
PRIOR_WEIGHT = 3.0
"""The prior counts as much as so many observed losses or outages."""
PRIOR_FALLBACK = 0.5
"""Expected share of losses at which another zone has machines."""


class AvailabilityHistory:
    """Estimates for each run, from all intervals observed so far. Arrays of shape [runs] or [runs, zones].

    Uptimes and outages are taken to be exponential: an estimate is the time in a state, divided by how often it ended,
    with the prior as if it had been observed before.
    """

    def __init__(self, runs: int, zones: int, interval: float) -> None:
        self.available: Bools = np.zeros((runs, zones), bool)
        """In the current interval."""
        self._interval = interval
        self._observed = False
        self._up_hours = np.zeros((runs, zones))
        self._losses = np.zeros((runs, zones))
        self._any_up_hours = np.zeros(runs)
        self._several_up_hours = np.zeros(runs)
        self._outage_hours = np.zeros(runs)
        self._recoveries = np.zeros(runs)

    def observe(self, available: Bools) -> None:
        """Take in the availability of each zone in the interval that begins; shape [runs, zones]."""
        if self._observed:
            before, zones_before = self.available.any(axis=1), self.available.sum(axis=1)
            self._up_hours += self._interval * self.available
            self._any_up_hours += self._interval * before
            self._several_up_hours += self._interval * (zones_before > 1)
            self._outage_hours += self._interval * ~before
            self._losses += self.available & ~available
            self._recoveries += ~before & available.any(axis=1)
        self.available, self._observed = available, True

    def restore(
        self,
        *,
        available: Bools,
        up_hours: Floats,
        losses: Floats,
        totals: tuple[float, float, float, float],
        observed: bool,
    ) -> None:
        """Go on from what `totals` gave, of one run. `observed`: `available` was, else it is to be."""
        self.available, self._observed = available, observed
        self._up_hours, self._losses = up_hours, losses
        self._any_up_hours, self._several_up_hours, self._outage_hours, self._recoveries = (
            np.array([float(total)]) for total in totals
        )

    def totals(self) -> tuple[tuple[Floats, Floats, Floats, Floats], Floats, Floats]:
        """Hours with any zone, several and none available, and recoveries; by zone, hours and losses."""
        whole = (self._any_up_hours, self._several_up_hours, self._outage_hours, self._recoveries)
        return whole, self._up_hours, self._losses

    def uptimes(self) -> Floats:
        """Mean hours that a spot machine lasts, by zone."""
        return (PRIOR_UPTIME_H * PRIOR_WEIGHT + self._up_hours) / (PRIOR_WEIGHT + self._losses)

    def outages(self) -> Floats:
        """Mean hours for which no zone has machines."""
        return (PRIOR_OUTAGE_H * PRIOR_WEIGHT + self._outage_hours) / (PRIOR_WEIGHT + self._recoveries)

    def fallbacks(self) -> Floats:
        """Probability that another zone has machines when one is lost; 0 if there is one zone."""
        if self.available.shape[1] == 1:
            return np.zeros(len(self.available))
        prior_hours = PRIOR_UPTIME_H * PRIOR_WEIGHT
        return (PRIOR_FALLBACK * prior_hours + self._several_up_hours) / (prior_hours + self._any_up_hours)

    def longest_lived_zones(self) -> Ints:
        """The available zone in which machines last longest; any zone where none is available."""
        zones: Ints = np.where(self.available, self.uptimes(), -1.0).argmax(axis=1)
        return zones
