# SPDX-License-Identifier: Apache-2.0
"""Build REST resources from database rows."""
