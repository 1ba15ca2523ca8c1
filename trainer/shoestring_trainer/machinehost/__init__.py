# SPDX-License-Identifier: Apache-2.0
"""The local cloud: a machine is a process tree on this computer, and its first process writes its journal."""
