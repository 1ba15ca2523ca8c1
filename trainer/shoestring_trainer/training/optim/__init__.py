# SPDX-License-Identifier: Apache-2.0
"""Optimizers, schedules, weight averaging and the gradient noise scale."""
