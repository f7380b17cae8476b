"""A run that is ended by a signal, at whatever moment, loses nothing and leaves nothing that stays."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "killing.py"


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["new", "empty", "ours", "current"])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_signal_at_every_moment(name: str, scenario: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), name, scenario, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25  # so many changes of the disk there are at least
