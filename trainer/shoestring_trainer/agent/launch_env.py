# SPDX-License-Identifier: Apache-2.0
"""The command and the environment of training processes. Pure functions, without torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

SHARED_VARIABLE = "SHOESTRING_SHARED_COMPUTER"
"""Set where the machines of a gang share the cores of one computer, though they don't meet on loopback."""
_ALLOCATOR = "GLIBC_TUNABLES"
_MALLOC_THRESHOLD_BYTES = 16 * 1024**3


def torchrun_command(
    task_file: Path,
    *,
    nodes: int,
    node_rank: int,
    procs_per_node: int,
    master_addr: str,
    master_port: int,
    python: str = sys.executable,
) -> list[str]:
    """The arguments that train `task_file` on this node, with a fixed number of nodes.

    The service decides on membership: torchrun never restarts ranks, since a restart is a new generation.
    """
    return [
        python, "-m", "torch.distributed.run",
        "--nnodes", str(nodes), "--node-rank", str(node_rank), "--nproc-per-node", str(procs_per_node),
        "--master-addr", master_addr, "--master-port", str(master_port), "--max-restarts", "0",
        "-m", "shoestring_trainer", "train", str(task_file),
    ]  # fmt: skip


def distributed_environment(
    *, nodes: int, node_rank: int, local_rank: int, procs_per_node: int, master_addr: str, master_port: int
) -> dict[str, str]:
    """The variables that torchrun sets for a rank and torch.distributed reads, such as RANK and WORLD_SIZE."""
    variables = {
        "RANK": node_rank * procs_per_node + local_rank, "WORLD_SIZE": nodes * procs_per_node,
        "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": procs_per_node, "GROUP_RANK": node_rank,
        "MASTER_ADDR": master_addr, "MASTER_PORT": master_port,
    }  # fmt: skip
    return {name: str(value) for name, value in variables.items()}


def rank_environment(procs_per_node: int, cores: int, *, interface: str | None = None) -> dict[str, str]:
    """Variables to add to each rank's environment. All but the threads and the interface must be set before exec.

    procs_per_node  ranks that share this machine
    cores           CPU cores this machine may use, divided evenly among its ranks
    interface       the network interface between ranks. Without it gloo and NCCL choose one, gloo by the host name,
                    which on Debian resolves to a loopback address that other machines can't reach

    Other NCCL settings are left to NCCL, which detects links within a machine, EFA and the sockets per NIC of EC2.
    """
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // procs_per_node)),
        # importing NumPy would start OpenBLAS threads, and a process with threads can't be forked safely
        "OPENBLAS_NUM_THREADS": "1",
        # glibc returns large blocks to the kernel after each use, and zeroing the new pages takes up to a
        # third of a step; keep them, in huge pages (measured: 1.2 to 1.7 times the images per second).
        _ALLOCATOR: f"glibc.malloc.mmap_threshold={_MALLOC_THRESHOLD_BYTES}"
        f":glibc.malloc.trim_threshold={_MALLOC_THRESHOLD_BYTES}",
        "THP_MEM_ALLOC_ENABLE": "1",
        # OpenMP threads spin while waiting; if other processes are busy, that takes the core from the thread that
        # they wait for (measured on 2 busy cores: 2.6 steps/s, against 35 with a short spin).
        "GOMP_SPINCOUNT": "2000",
        # without a fixed workspace cuBLAS may sum in a different order after a resume
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    if interface:
        environment["GLOO_SOCKET_IFNAME"] = interface
        environment["NCCL_SOCKET_IFNAME"] = f"={interface}"  # = means this name, not all names with this prefix
    return environment


def environment_to_start_again_in(environment: Mapping[str, str], cores: int) -> dict[str, str] | None:
    """The environment of a training process that a person or torchrun started, with what an agent gives its ranks.

    What is set already stays as it is. None: the process has it.
    """
    if _ALLOCATOR in environment:
        return None
    return rank_environment(int(environment.get("LOCAL_WORLD_SIZE", "1")), cores) | dict(environment)
