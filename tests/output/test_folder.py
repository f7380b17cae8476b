"""A folder is written whole or not at all, and nothing of a user's is ever lost."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from written import NEW, tree, write

from qdqpatch.errors import CheckpointError, OccupiedError
from qdqpatch.output.folder import OutputFolder
from qdqpatch.output.inputs import Inputs
from qdqpatch.output.manifest import MANIFEST
from qdqpatch.output.work import Work


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
    with pytest.raises(
        OccupiedError, match=r"^out is not empty\. .* To replace what is there: force=True\.$"
    ):
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
