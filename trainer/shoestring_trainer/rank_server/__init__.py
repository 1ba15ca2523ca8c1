# SPDX-License-Identifier: Apache-2.0
"""Starts a machine's training processes by forking one that has imported PyTorch already.

`client` is the agent's side and imports no torch; `server` runs as `python -m shoestring_trainer.rank_server`.
"""
