"""A folder is written whole or not at all, and nothing of a user's is ever lost."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qdqpatch.errors import CheckpointError, OccupiedError
from qdqpatch.output.folder import OutputFolder
from qdqpatch.output.inputs import Inputs
from qdqpatch.output.manifest import MANIFEST
from qdqpatch.output.work import Work


def tree(folder: Path) -> dict[str, str]:
    """Return what the files are below a folder, hidden ones too, without manifests."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


def write(out: str | Path, text: str = "new", name: str = "config.json", **options: object) -> None:
    with OutputFolder.open(out, **options).staged() as folder:
        (folder / name).write_text(text, encoding="utf-8")
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model").write_text(text, encoding="utf-8")


NEW = {"config.json": "new", "onnx/model": "new"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_new_folder_and_those_above_it(here: Path) -> None:
    write("a/b/out/")
    assert tree(here / "a/b/out") == NEW
    assert os.listdir("a/b") == ["out"]
    listed = json.loads(Path("a/b/out", MANIFEST).read_text())["files"]
    assert list(listed) == ["config.json", "onnx/model"]


def test_other_sections_of_the_manifest_stay(here: Path) -> None:
    with OutputFolder.open("out").staged() as folder:
        (folder / MANIFEST).write_text('{"recipe": 1}')
    assert json.loads(Path("out", MANIFEST).read_text()) == {"recipe": 1, "files": {}}


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("other")]
)
@pytest.mark.parametrize("there", ["nothing", "empty", "ours"])
def test_a_block_that_fails_leaves_everything_as_it_was(here: Path, error: BaseException, there: str) -> None:
    if there == "empty":
        Path("out").mkdir()
    if there == "ours":
        write("out", "old")
    before = tree(here), sorted(os.listdir())
    output = OutputFolder.open("out" if there != "nothing" else "a/out", force=True)
    expected = CheckpointError if isinstance(error, OSError) else type(error)

    def write_half() -> None:
        with output.staged() as folder:
            (folder / "new").write_text("new", encoding="utf-8")
            raise error

    with pytest.raises(expected) as caught:
        write_half()
    assert (tree(here), sorted(os.listdir())) == before
    if isinstance(error, OSError):
        assert str(caught.value) == f"Cannot write {output.given}: No space left on device."


def test_what_is_ours_is_replaced_by_force_alone(here: Path) -> None:
    write("out", "old", "other.json")
    with pytest.raises(OccupiedError, match=r"^out is not empty\. Choose another folder\.$"):
        OutputFolder.open("out")
    assert tree(here / "out") == {"other.json": "old", "onnx/model": "old"}
    Path("out").chmod(0o700)
    write("out", force=True)
    assert tree(here / "out") == NEW
    assert os.listdir() == ["out"]
    assert stat.S_IMODE(Path("out").stat().st_mode) == 0o700


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("thesis.tex", "thesis.tex"),
        (".hidden", ".hidden"),
        ("photos/me.jpg", "photos/"),
        ("photos/", "photos/"),
        ("onnx/thesis.tex", "onnx/thesis.tex"),
        ("onnx/deep/thesis.tex", "onnx/deep/"),
        ("config.json", r"config.json \(changed since\)"),
        (".qdqpatch-1234/thesis.tex", ".qdqpatch-1234/"),
    ],
)
def test_a_users_file_anywhere_is_named_and_kept(here: Path, place: str, named: str, force: bool) -> None:
    write("out", "old")
    file = here / "out" / place
    if place.endswith("/"):
        file.mkdir()
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("5 years")
    before = tree(here)
    message = rf"^out is not empty, and qdqpatch did not write all that is in it: {named}\. Choose another"
    with pytest.raises(CheckpointError, match=message) as caught:
        OutputFolder.open("out", force=force)
    assert not isinstance(caught.value, OccupiedError)
    assert tree(here) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("manifest", [None, "[]", "{", '{"files": 1}', '{"files": {}}', '{"recipe": {}}'])
def test_a_folder_that_we_did_not_write_is_kept(here: Path, manifest: str | None, force: bool) -> None:
    (here / "out" / "photos").mkdir(parents=True)
    for number in range(9):
        (here / "out" / f"{number}.tex").write_text("5 years")
    if manifest is not None:
        Path("out", MANIFEST).write_text(manifest)
    with pytest.raises(CheckpointError, match=r"0\.tex, 1\.tex, 2\.tex, 3\.tex, 4\.tex and \d+ more"):
        OutputFolder.open("out", force=force)
    assert len(tree(here)) == 9


def test_a_link_in_the_place_of_a_file_of_ours_is_a_users(here: Path) -> None:
    write("out", "old")
    Path("out/config.json").rename("elsewhere.json")
    Path("out/config.json").symlink_to(here / "elsewhere.json")
    Path("out/onnx").rename("onnx")
    Path("out/onnx").symlink_to(here / "onnx")
    with pytest.raises(CheckpointError, match=r"config\.json \(changed since\), onnx/\."):
        OutputFolder.open("out", force=True)


@pytest.mark.parametrize("there", ["nothing", "empty", "ours"])
def test_what_appears_meanwhile_is_kept(here: Path, there: str) -> None:
    if there == "empty":
        Path("out").mkdir()
    if there == "ours":
        write("out", "old")
    output = OutputFolder.open("out", force=True)

    def write_late() -> None:
        with output.staged():
            Path("out").mkdir(exist_ok=True)
            Path("out/notes.txt").write_text("mine")

    with pytest.raises(CheckpointError, match=r"did not write all that is in it: notes\.txt\."):
        write_late()
    old = {"out/config.json": "old", "out/onnx/model": "old"} if there == "ours" else {}
    assert tree(here) == {"out/notes.txt": "mine", **old}


@pytest.mark.parametrize("there", [True, False])
def test_of_two_at_once_the_second_fails(here: Path, there: bool) -> None:
    if there:
        Path("out").mkdir()

    def write_late() -> None:
        with OutputFolder.open("out").staged() as folder:
            (folder / "config.json").write_text("late")
            write("out")

    with pytest.raises(OccupiedError):
        write_late()
    assert tree(here / "out") == NEW
    assert os.listdir() == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_of_many_at_once_one_wins(here: Path, there: bool) -> None:
    if there:
        Path("out").mkdir()
    start, won = threading.Barrier(8), []

    def run(number: int) -> None:
        output = OutputFolder.open("out")
        start.wait()
        try:
            with output.staged() as folder:
                for name in ("a", "b", "config.json"):
                    (folder / name).write_text(str(number))
        except CheckpointError:
            return
        won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert set(tree(here / "out").values()) == {str(won[0])}
    assert os.listdir() == ["out"]


def test_inputs_are_kept_wherever_they_lie(here: Path) -> None:
    write("out", "old")
    Path("link").symlink_to("out/onnx/model")
    Path("linked").symlink_to("out")
    for place, message in (
        ("out", "out is the data that is read"),
        ("linked", "out is the data that is read"),
        ("out/config.json", "out holds the data that is read"),
        ("out/onnx/model", "out holds the data that is read"),
        ("link", "out holds the data that is read"),
        (here / "out" / ".." / "out" / "config.json", "out holds the data that is read"),
    ):
        with pytest.raises(CheckpointError, match=rf"^{message}; write to another folder\.$"):
            OutputFolder.open("out", {"the data": place}, force=True)
    with pytest.raises(CheckpointError, match=r"^\. holds the data that is read"):
        OutputFolder.open(".", {"the data": "out"}, force=True)
    write("out", force=True, inputs={"the data": "user/name-on-the-hub", "the teacher": None})


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


def test_what_a_living_run_writes_is_not_cleaned_up(here: Path) -> None:
    with OutputFolder.open("out").staged() as folder:
        OutputFolder.open("out")
        (folder / "file").write_text("new")
    assert tree(here) == {"out/file": "new"}


def test_a_users_folder_of_such_a_name_is_not_cleaned_up(here: Path) -> None:
    Path(".out.qdqpatch-photos").mkdir()
    Path(".out.qdqpatch-photos/me.jpg").write_text("mine")
    write("out")
    assert tree(here)[".out.qdqpatch-photos/me.jpg"] == "mine"


def test_what_cannot_be_put_back_is_kept_and_named(here: Path) -> None:
    write("out", "old")
    work = Work(here, "out")
    (work.new / "file").write_text("new")
    os.rename("out", work.old / "out")
    with pytest.raises(CheckpointError, match=r"old holds what was to be replaced and could not be put back"):
        work.close()
    with pytest.raises(CheckpointError, match=r"old holds what was to be replaced and could not be put back"):
        OutputFolder.open("out")
    assert "old" in tree(here).values()


def test_removing(here: Path) -> None:
    write("out")
    output = OutputFolder.open("out", force=True)
    Path("out/notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        output.remove()
    assert tree(here / "out") == {**NEW, "notes.txt": "mine"}
    Path("out/notes.txt").unlink()
    output.remove()
    output.remove()
    assert os.listdir() == []


@pytest.mark.parametrize("there", ["mounted", "empty"])
def test_removing_what_cannot_be_moved_empties_it(
    here: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out/lost+found").mkdir(parents=True)
    if there == "mounted":
        monkeypatch.setattr("qdqpatch.output.places._mounts", lambda: [here / "out"])
        write("out")
        Path("out/notes.txt").write_text("mine")
        with pytest.raises(CheckpointError, match=r"notes\.txt"):
            OutputFolder(Path("out"), here / "out", Inputs(), True).remove()
        assert tree(here / "out") == {**NEW, "notes.txt": "mine"}
        Path("out/notes.txt").unlink()
    OutputFolder.open("out", force=True).remove()
    assert [str(path) for path in here.rglob("*")] == [str(here / "out"), str(here / "out/lost+found")]
