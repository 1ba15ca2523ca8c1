# SPDX-License-Identifier: Apache-2.0
"""The worker: acts on the decisions of core.decide. It launches machines, reconciles and bills."""
