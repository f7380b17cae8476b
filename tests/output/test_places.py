"""Where an output folder is written: the current folder, links, paths that lead elsewhere or nowhere."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from written import NEW, tree, write

from qdqpatch.errors import CheckpointError
from qdqpatch.output.folder import OutputFolder
from qdqpatch.output.manifest import MANIFEST


def test_an_empty_folder_is_filled_where_it_is(here: Path) -> None:
    Path("out").mkdir()
    before = Path("out").stat().st_ino
    write("out")
    assert Path("out").stat().st_ino == before
    assert tree(here) == {f"out/{name}": text for name, text in NEW.items()}


@pytest.mark.parametrize("out", [".", "./", "../out", "../out/onnx/.."])
def test_the_current_folder_is_filled_and_replaced_where_it_is(
    here: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out/onnx").mkdir(parents=True)
    monkeypatch.chdir("out")
    if out.endswith("onnx/.."):
        with pytest.raises(CheckpointError, match="did not write all that is in it: onnx"):
            write(out)
        return
    Path("onnx").rmdir()
    write(out, "old", "other.json")
    write(out, force=True)
    assert tree(Path(".")) == tree(here / "out") == NEW
    assert os.listdir(here) == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(here: Path, there: bool) -> None:
    if there:
        Path("big").mkdir()
    Path("out").symlink_to("big")
    write("out", "old")
    write("out", force=True)
    assert Path("out").readlink() == Path("big")
    assert tree(here / "big") == NEW
    Path("loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="loop"):
        OutputFolder.open("loop")


def test_a_relative_path_means_what_it_meant(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("elsewhere").mkdir()
    output = OutputFolder.open("out")
    monkeypatch.chdir("elsewhere")
    with output.staged() as folder:
        (folder / "file").write_text("new")
    assert tree(here) == {"out/file": "new"}


def test_a_current_folder_that_is_gone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("gone").mkdir()
    monkeypatch.chdir("gone")
    (here / "gone").rmdir()
    with pytest.raises(CheckpointError, match="Cannot write to out: No such file or directory"):
        OutputFolder.open("out")
    write(here / "out")


def test_places_that_cannot_be_written(here: Path) -> None:
    Path("file").write_text("kept")
    for out, message in (
        ("file", "file is a file; name a folder to write to"),
        ("file/out", "file is not a folder that you may write in"),
        ("x" * 300, "File name too long"),
        ("/", "did not write all that is in it"),
        ("/proc/out", "Cannot write"),
    ):
        with pytest.raises(CheckpointError, match=message):
            write(out)
    assert tree(here) == {"file": "kept"}


def test_a_long_name(here: Path) -> None:
    name = "\u00fc" * 120
    write(name)
    assert os.listdir() == [name]


def test_a_folder_that_cannot_be_moved_is_replaced_where_it_is(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdqpatch.output.places._mounts", lambda: [here / "volume"])
    Path("volume/lost+found").mkdir(parents=True)
    before = Path("volume").stat().st_ino
    write("volume", "old", "other.json")
    write("volume", force=True)
    assert Path("volume").stat().st_ino == before
    assert tree(here / "volume") == NEW
    assert sorted(os.listdir("volume")) == ["config.json", "lost+found", "onnx", MANIFEST]


def test_permissions_are_those_of_any_new_file(here: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from qdqpatch.output.folder import OutputFolder\n"
        "os.umask(0o027)\n"
        "with OutputFolder.open('out').staged() as folder:\n"
        "    (folder / 'sub').mkdir(0o700); (folder / 'sub' / 'file').touch(0o600)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    modes = {
        name: stat.S_IMODE(Path("out", name).stat().st_mode) for name in ("", "sub", "sub/file", MANIFEST)
    }
    assert modes == {"": 0o750, "sub": 0o750, "sub/file": 0o640, MANIFEST: 0o640}
