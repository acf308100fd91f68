"""Peak memory is measured in a process of its own, and the results say what the README says."""

import pytest

from lambdaresnet_zoo.tasks.detect import memory
from lambdaresnet_zoo.weights.files import read_rows


@pytest.mark.slow
def test_every_backbone_and_mode_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "BACKBONES", ("test_lambdaresnet",))
    assert memory.main(["--size", "128", "--results", str(tmp_path / "m.csv")]) == 0
    rows = read_rows(tmp_path / "m.csv")
    assert [row["mode"] for row in rows] == ["forward", "training step"]
    assert all(0 < int(row["before_mb"]) <= int(row["peak_mb"]) for row in rows)


def test_a_forward_at_1024_pixels_fits_in_8_gb():
    rows = {(row["backbone"], row["mode"]): row for row in read_rows(memory.RESULTS)}
    assert set(rows) == {(backbone, mode) for backbone in memory.BACKBONES for mode in memory.MODES}
    assert all((row["size"], row["batch_size"], row["dtype"]) == ("1024", "1", "float32") for row in rows.values())
    assert int(rows["lambdaresnet101", "forward"]["peak_mb"]) < 8 * 1024
