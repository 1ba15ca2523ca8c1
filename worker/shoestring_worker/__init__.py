# SPDX-License-Identifier: Apache-2.0
"""Carries out what core.decide decides: rents machines, reconciles, bills."""
