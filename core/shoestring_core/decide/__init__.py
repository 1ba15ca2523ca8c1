# SPDX-License-Identifier: Apache-2.0
"""Pure decisions: functions of rows, offers, prices and now."""
