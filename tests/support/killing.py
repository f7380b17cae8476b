"""Writes a folder and is ended by a signal in the middle: at each change of the disk, one after the other.

Called with a signal's name, a scenario and an empty folder; prints how many moments there were. Every moment
has a process of its own, a fork of this one, in which an audit hook counts what changes the disk.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

from qdqpatch.errors import CheckpointError
from qdqpatch.output.folder import OutputFolder
from qdqpatch.output.signals import ended_by_signals

CHANGES = ["open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"]
NAMES = ("a", "config.json", "sub/b")


def write(out: Path, text: str) -> None:
    with ended_by_signals(), OutputFolder.open(out, force=True).staged() as folder:
        (folder / "sub").mkdir()
        for name in NAMES:
            (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    """Return the texts below a folder, but of manifests."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "qdqpatch.json"]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def killed_at(moment: int, number: int, out: Path) -> bool:
    """Write in a fork that gets a signal at a moment; return whether there was such a moment."""
    child = os.fork()
    if child == 0:
        seen = -1

        def hook(event: str, arguments: object) -> None:
            nonlocal seen
            if event not in CHANGES:
                return
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), number)

        sys.addaudithook(hook)
        with contextlib.suppress(BaseException):
            write(out, "new")
        os._exit(0 if seen >= moment else 3)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status != 3


def main(name: str, scenario: str, base: Path) -> int:
    """Go through the moments, and check after each that nothing is lost and nothing is left."""
    number, moment = getattr(signal, name), 0
    while True:
        place = base / str(moment)
        out = place / "out"
        place.mkdir()
        (place / "thesis.tex").write_text("5 years")
        if scenario != "new":
            out.mkdir()
        old = {}
        if scenario in ("ours", "current"):
            write(out, "old")
            old = dict.fromkeys(NAMES, "old")
        os.chdir(out if scenario == "current" else place)
        there = killed_at(moment, number, out)
        if number == signal.SIGKILL:
            with contextlib.suppress(CheckpointError):
                OutputFolder.open(out)  # the next run, which is refused if there is a whole output
        left = sorted(path.name for path in place.rglob(".*"))
        assert not left, (moment, left)
        found = content(place)
        assert found.pop("thesis.tex") == "5 years"
        found = {path.removeprefix("out/"): text for path, text in found.items()}
        assert found in (old, dict.fromkeys(NAMES, "new")), (moment, found)
        os.chdir(base)
        write(out, "again")
        assert set(content(out).values()) == {"again"}
        if not there:
            return moment
        moment += 1


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
