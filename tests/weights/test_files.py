"""Files are written whole, whoever else writes them."""

import os
import stat

from lambdaresnet_zoo.weights.files import read_rows, write_rows, write_whole


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
