# SPDX-License-Identifier: Apache-2.0
"""Shared by all packages: job spec, recipes, states, money, REST and agent protocol, errors."""
