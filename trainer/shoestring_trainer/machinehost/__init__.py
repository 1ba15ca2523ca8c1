# SPDX-License-Identifier: Apache-2.0
"""The local cloud: machines as process trees on this computer, journaled by their own inits."""
