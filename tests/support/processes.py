"""Scripts run by two processes at once, as under `torchrun`; they are forks of one, which imports for both.

Called with a script and a folder, it runs the script twice.
"""

import os
import runpy
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
    process = subprocess.Popen(
        [sys.executable, __file__, script, str(folder)],
        env=os.environ | _ENVIRONMENT | environment,
        start_new_session=True,
    )
    try:
        assert process.wait(timeout=200) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


def _fork(script: str, folder: str, rank: int) -> int:
    """Run the script in a fork of this process, and return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        sys.argv = [script, folder, str(rank)]
        runpy.run_path(script, run_name="__main__")
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import models  # noqa: F401
    import transformers.trainer  # noqa: F401

    children = [_fork(*sys.argv[1:], rank) for rank in (0, 1)]
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(any(ends))
