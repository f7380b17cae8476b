"""A file is written whole or not at all, and only over one that we wrote."""

import stat
from pathlib import Path

import pytest

from qdqpatch.config.config import QDQConfig
from qdqpatch.errors import OccupiedError, ReportError
from qdqpatch.output.file import HTML_MARK, PNG_MARK, SVG_MARK, check_file, has_mark, replace_file
from qdqpatch.sensitivity.config_file import check_config_file, write_config_file

PAGE = HTML_MARK.decode()


@pytest.mark.parametrize("mark", [HTML_MARK, PNG_MARK, SVG_MARK])
def test_what_we_wrote_is_replaced(tmp_path: Path, mark: bytes) -> None:
    file = tmp_path / "deep" / "file"
    replace_file(file, lambda staging: staging.write_bytes(mark + b"old"))
    replace_file(file, lambda staging: staging.write_bytes(mark + b"new"))
    assert file.read_bytes() == mark + b"new"
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", file]


@pytest.mark.parametrize("name", ["page.html", "model.safetensors"])
def test_a_users_file_is_kept(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("<html> about qdqpatch, 5 years")
    for write in (check_file, lambda file: replace_file(file, lambda staging: staging.write_text(PAGE))):
        with pytest.raises(ReportError, match=rf"{name} is there, and is not one that qdqpatch wrote"):
            write(file)
    assert file.read_text() == "<html> about qdqpatch, 5 years"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "page.html"

    def write(staging: Path) -> None:
        staging.write_text(PAGE)
        file.write_text("mine")

    with pytest.raises(ReportError, match="is not one that qdqpatch wrote"):
        replace_file(file, write)
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    for text in ("old", "new"):
        replace_file(tmp_path / "page.html", lambda staging, text=text: staging.write_text(PAGE + text))
    assert (tmp_path / "page.html").read_text() == PAGE + "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_and_permissions_are_usual(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("page.html")
    (tmp_path / "any").touch()

    def write(staging: Path) -> None:
        staging.touch(0o600)
        staging.write_text(PAGE)

    replace_file(tmp_path / "link", write)
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == (tmp_path / "any").stat().st_mode & 0o777
    assert has_mark(tmp_path / "page.html")


def test_a_configuration_is_replaced_by_force_and_if_it_is_as_we_write_it(tmp_path: Path) -> None:
    file, config = tmp_path / "mixed.json", QDQConfig.preset("linear-only")
    write_config_file(file, config, force=False)
    for write in (check_config_file, lambda file, force: write_config_file(file, QDQConfig(), force)):
        with pytest.raises(OccupiedError, match=r"mixed\.json is there\. Choose another name\."):
            write(file, False)
    assert QDQConfig.from_json_file(file) == config
    write_config_file(file, QDQConfig(), force=True)
    assert QDQConfig.from_json_file(file) == QDQConfig()
    for text in ('{"linears": true}', '{"model_type": "bert"}', "\x00", "mine"):
        file.write_text(text)
        with pytest.raises(ReportError, match="is not one that qdqpatch wrote"):
            write_config_file(file, config, force=True)
        assert file.read_text() == text
