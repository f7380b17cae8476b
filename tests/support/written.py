"""Output folders with two files in them."""

from pathlib import Path

from qdqpatch.output.folder import OutputFolder
from qdqpatch.output.manifest import MANIFEST


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
