"""Scripts run by two processes at once, as under `torchrun`."""

import os
import subprocess
import sys
from pathlib import Path

# The arithmetic of this process, which conftest.py has set before torch read it; and a network that is there.
_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))),
}


def run_two(script: str, folder: Path, **environment: str) -> None:
    """Run a script with a folder and a rank, 0 and 1, as its arguments; both must succeed."""
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(folder), str(rank)],
            env=os.environ | _ENVIRONMENT | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            assert process.wait(timeout=200) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
