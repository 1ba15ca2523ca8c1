# SPDX-License-Identifier: Apache-2.0
"""Models by name, their layers, summary and compilation."""
