# SPDX-License-Identifier: Apache-2.0
"""Providers of machines, behind one interface."""
