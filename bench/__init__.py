# SPDX-License-Identifier: Apache-2.0
"""Measurements and long proofs. Each module is one command; figures go to RESULTS.md as measured."""
