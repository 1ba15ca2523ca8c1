# SPDX-License-Identifier: Apache-2.0
"""The training process: recipes run on any number of ranks. It speaks files, never HTTP."""
