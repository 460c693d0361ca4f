"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from fastgraph.export import files


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        files.write(tmp_path / "a", b"other")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "text"


def test_a_file_has_the_usual_permissions(tmp_path: Path) -> None:
    files.write(tmp_path / "ours", b"")
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="path: needs a file to write, got the folder"):
        files.check_target(tmp_path, overwrite=True)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="^path: cannot write to the folder '.*missing': No such file or directory$"
    ):
        files.check_target(tmp_path / "missing" / "a.onnx", overwrite=False)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="path: cannot write to the folder '.*file'"):
        files.check_target(tmp_path / "file" / "a.onnx", overwrite=False)
