# SPDX-License-Identifier: Apache-2.0
"""The agent on a rented machine: runs the ordered generations, tells everything once, leaves in time. No torch here."""
