# SPDX-License-Identifier: Apache-2.0
"""What a run leaves: metrics, events, evaluation, exported models and error analysis."""
