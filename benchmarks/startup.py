"""How long `deployctl --help` takes beside an empty typer app: medians of interleaved runs, so that both see the same machine.

python benchmarks/startup.py [RUNS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

EMPTY = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"
COMMANDS = {
    "empty typer app": [sys.executable, "-c", EMPTY],
    "deployctl --help": [sys.executable, "-m", "deployctl", "--help"],
}


def measure(runs: int) -> dict[str, float]:
    """Median seconds of each command."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(runs + 1):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if run:  # the first one warms the disk cache
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


if __name__ == "__main__":
    medians = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    for name, seconds in medians.items():
        print(f"{name:<18} {seconds * 1000:6.0f} ms")
    empty, ours = medians.values()
    print(f"{'ratio':<18} {ours / empty:6.2f}   (limit 1.2)")
