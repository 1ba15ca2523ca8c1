# SPDX-License-Identifier: Apache-2.0
"""The REST routes, one module for each resource."""
