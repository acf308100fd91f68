"""Files are written whole, whoever else writes them."""

import os
import stat
from pathlib import Path

import pytest

from lambdaresnet_zoo.weights.files import read_rows, try_write, write_rows, write_whole


def test_two_processes_of_one_number_do_not_share_a_file(tmp_path):
    """As on two machines with one disk; here the second one writes while the first one does."""
    path = tmp_path / "a.txt"

    def write(temporary):
        temporary.write_text("the first")
        write_whole(path, lambda other: other.write_text("the second"))
        assert path.read_text() == "the second" and temporary.read_text() == "the first"

    write_whole(path, write)
    assert path.read_text() == "the first"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_any_file(tmp_path):
    write_rows(tmp_path / "a.csv", [{"a": 1}])
    (tmp_path / "b").touch()
    assert stat.S_IMODE(os.stat(tmp_path / "a.csv").st_mode) == stat.S_IMODE(os.stat(tmp_path / "b").st_mode)
    assert read_rows(tmp_path / "a.csv") == [{"a": "1"}]


def test_trying_to_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    for path in (tmp_path / "a.csv", tmp_path / "there.csv", tmp_path / "new" / "folder" / "a.csv"):
        try_write(path)
    assert os.listdir(tmp_path) == ["there.csv"] and (tmp_path / "there.csv").read_text() == "mine"


def test_what_cannot_be_written_fails_as_it_is_tried(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    paths = ("", "file/a.csv", "file/new/a.csv", "gone/a.csv", "x" * 240, "new/" + "x" * 240, "x" * 300 + "/a.csv")
    for path in paths:
        with pytest.raises(OSError):
            try_write(tmp_path / path)
        with pytest.raises(OSError):
            write_whole(tmp_path / path, lambda temporary: temporary.write_text("new"))
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "new").rmdir()  # by write_whole
    assert sorted(os.listdir(tmp_path)) == ["file", "gone"]
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_a_folder_that_another_run_is_about_to_use_is_left_alone(tmp_path, monkeypatch):
    made = []
    mkdir = os.mkdir
    monkeypatch.setattr(
        os, "mkdir", lambda path, *given, **more: (made.append(Path(path)), mkdir(path, *given, **more))
    )
    try_write(tmp_path / "new" / "a.csv")
    assert made and tmp_path / "new" not in made
