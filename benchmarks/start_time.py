"""Print the CPU time that each `--help` and `import qdqpatch` take, each in a process of its own.

Run it as `python benchmarks/start_time.py`.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from qdqpatch.cli import COMMANDS

RUNS = 3

THEIRS = "import torch, transformers.models.bert.modeling_bert"


def cpu_seconds(*arguments: str) -> float:
    """Return the least CPU time, of the system too, that Python takes with these arguments."""
    times = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    """Print a line for each."""
    helps = [("--version",), ("--help",), *((command, "--help") for command in COMMANDS)]
    lines = {f"qdqpatch {' '.join(words)}": ("-m", "qdqpatch", *words) for words in helps}
    lines["import qdqpatch"] = ("-c", "import qdqpatch")
    lines["from qdqpatch import quantize"] = ("-c", "from qdqpatch import quantize")
    lines[THEIRS] = ("-c", THEIRS)
    width = max(map(len, lines))
    for name, arguments in lines.items():
        print(f"{name:<{width}}  {cpu_seconds(*arguments):6.2f} s")


if __name__ == "__main__":
    main()
