# SPDX-License-Identifier: Apache-2.0
"""How a machine starts its training processes: the command and the environment. Pure, and free of torch."""

from __future__ import annotations

import sys
from pathlib import Path

_NEVER_GIVE_BACK_BYTES = 16 * 1024**3


def torchrun_command(
    spec: Path,
    *,
    nodes: int,
    node_rank: int,
    procs_per_node: int,
    master_addr: str,
    master_port: int,
    python: str = sys.executable,
) -> list[str]:
    """The argument vector that trains `spec` on this node of a static gang.

    Membership is the control plane's: torchrun never restarts ranks by itself, a restart is a new generation.
    """
    return [
        python, "-m", "torch.distributed.run",
        "--nnodes", str(nodes), "--node-rank", str(node_rank), "--nproc-per-node", str(procs_per_node),
        "--master-addr", master_addr, "--master-port", str(master_port), "--max-restarts", "0",
        "-m", "shoestring_trainer", "train", str(spec),
    ]  # fmt: skip


def distributed_environment(
    *, nodes: int, node_rank: int, local_rank: int, procs_per_node: int, master_addr: str, master_port: int
) -> dict[str, str]:
    """The variables that torchrun sets for a rank and torch.distributed reads: its place among all ranks."""
    variables = {
        "RANK": node_rank * procs_per_node + local_rank, "WORLD_SIZE": nodes * procs_per_node,
        "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": procs_per_node, "GROUP_RANK": node_rank,
        "MASTER_ADDR": master_addr, "MASTER_PORT": master_port,
    }  # fmt: skip
    return {name: str(value) for name, value in variables.items()}


def rank_environment(procs_per_node: int, cores: int, *, interface: str | None = None) -> dict[str, str]:
    """Variables to add to each rank's environment; all but the threads and the interface must be set before exec.

    procs_per_node  ranks that share this machine
    cores           CPU cores this machine may use, shared evenly by its ranks
    interface       the network card on which the ranks meet; left out, gloo and NCCL look for one, gloo by the host's
                    name, which on Debian leads to a loopback address that no other machine reaches

    Of NCCL's other settings none is made: links inside a machine, EFA and the sockets per card of EC2 it finds itself.
    """
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // procs_per_node)),
        # NumPy's OpenBLAS would start threads as it is imported, and a process with threads can't be forked
        "OPENBLAS_NUM_THREADS": "1",
        # glibc hands big blocks back to the kernel after each use, and zeroing the fresh pages costs up to
        # a third of a step; keep them, in huge pages (measured: 1.2 to 1.7 times the images per second).
        "GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={_NEVER_GIVE_BACK_BYTES}"
        f":glibc.malloc.trim_threshold={_NEVER_GIVE_BACK_BYTES}",
        "THP_MEM_ALLOC_ENABLE": "1",
        # OpenMP threads wait by spinning; beside any other busy process that takes the core from the thread they
        # wait for (measured on 2 busy cores: 2.6 steps/s, against 35 with a short spin).
        "GOMP_SPINCOUNT": "2000",
        # without a fixed workspace cuBLAS may sum in another order after a resume
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    if interface:
        environment["GLOO_SOCKET_IFNAME"] = interface
        environment["NCCL_SOCKET_IFNAME"] = f"={interface}"  # exactly this one, not all whose names begin so
    return environment
