# SPDX-License-Identifier: Apache-2.0
"""Spot or on-demand, for a job with a deadline: policies, what they learn of a zone, and their simulation.

Arrays have one entry per run, so that a simulation decides for thousands of runs at once; a live job is one run. This
is the only part of core that needs numpy (the extra `spot`). docs/spot-policy.md describes the model and its figures.
"""
