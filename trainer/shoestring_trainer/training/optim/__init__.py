# SPDX-License-Identifier: Apache-2.0
"""Optimizers, schedules, weight averages and the gradient noise scale."""
