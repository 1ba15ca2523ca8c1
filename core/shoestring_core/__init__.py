# SPDX-License-Identifier: Apache-2.0
"""What every room shares: job spec, recipes, states, money, wire messages and errors."""
