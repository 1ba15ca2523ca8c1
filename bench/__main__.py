# SPDX-License-Identifier: Apache-2.0
"""`python -m bench [NAME …]`: run the named benchmarks, or all, one after another, and append their results.

A benchmark is a module `bench/NAME.py` with `main() -> list[str]`, which returns its lines for RESULTS.md. Options
after the name of a single one are passed to its `main`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench
from bench import results

NOT_BENCHMARKS = {
    "__main__", "cpu_loops", "gpu_runs", "load_clients", "load_service", "peers", "results", "scale_loaders",
    "scale_starts", "soak", "source_cpu",
}  # fmt: skip


def main(arguments: list[str]) -> int:
    names = arguments[: next((at for at, one in enumerate(arguments) if one.startswith("-")), len(arguments))]
    options = arguments[len(names) :]
    if options and len(names) != 1:
        print("Options belong to one benchmark: python -m bench NAME --option …", file=sys.stderr)
        return 2
    known = sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in NOT_BENCHMARKS)
    if unknown := sorted(set(names) - set(known)):
        print(f"No benchmark named {', '.join(unknown)}. There are: {', '.join(known) or 'none yet'}.", file=sys.stderr)
        return 2
    for name in names or known:
        run = importlib.import_module(f"bench.{name}").main
        lines = run(options) if options else run()
        print("\n".join(lines))
        results.append(f"bench {name}", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
