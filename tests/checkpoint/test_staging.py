"""A folder is written whole or not at all, and what stood in its place is never lost."""

from pathlib import Path

import pytest

from qdqpatch.checkpoint.staging import staged
from qdqpatch.errors import CheckpointError


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old", encoding="utf-8")
    return tmp_path / "out"


def test_the_new_folder_takes_the_place_of_the_old(out: Path) -> None:
    with staged(out) as folder:
        (folder / "new").write_text("new", encoding="utf-8")
        assert tree(out) == {"file": "old"}
    assert tree(out.parent) == {"out/new": "new"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError("other")])
def test_a_block_that_fails_leaves_the_old(out: Path, error: BaseException) -> None:
    expected = CheckpointError if isinstance(error, OSError) else type(error)

    def write_half() -> None:
        with staged(out) as folder:
            (folder / "new").write_text("new", encoding="utf-8")
            raise error

    with pytest.raises(expected):
        write_half()
    assert tree(out.parent) == {"out/file": "old"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError("refused"), KeyboardInterrupt()])
def test_a_rename_that_fails_puts_the_old_back(
    out: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail_on_staging(self: Path, target: Path) -> Path:
        if target == out and self.name != out.name:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_staging)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), staged(out):
        pass
    assert tree(out.parent) == {"out/file": "old"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_old_folder_that_cannot_be_put_back_is_kept_aside(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail_after_the_first(self: Path, target: Path) -> Path:
        if target == out:
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_after_the_first)
    with pytest.raises(CheckpointError), staged(out):
        pass
    assert list(tree(out.parent).values()) == ["old"]


def test_missing_parents_are_made_only_on_success(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other"), staged(tmp_path / "a" / "b"):
        raise ValueError("other")
    assert not list(tmp_path.iterdir())
    with staged(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("new", encoding="utf-8")
    assert tree(tmp_path) == {"a/b/file": "new"}
