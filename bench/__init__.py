# SPDX-License-Identifier: Apache-2.0
"""Benchmarks and the runner of the soak tests. Each module is one command; results are appended to RESULTS.md."""
