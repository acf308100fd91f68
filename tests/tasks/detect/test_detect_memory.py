"""Peak memory is measured in a process of its own; the results that are kept say what the README says."""

from pathlib import Path

import pytest
from PIL import Image

from lambdaresnet_zoo.tasks.detect import memory, overfit
from lambdaresnet_zoo.tasks.detect.recipe import RECIPES
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


def test_the_readme_has_the_figures_of_the_results():
    text = (Path(__file__).parents[3] / "README.md").read_text()
    peaks = {(row["backbone"], row["mode"]): int(row["peak_mb"]) / 1000 for row in read_rows(memory.RESULTS)}
    lambdas, convolutions = ([f"{peaks[name, mode]:.1f}" for mode in memory.MODES] for name in memory.BACKBONES)
    flat = " ".join(text.split())
    assert f"takes {lambdas[0]} GB in a forward pass and {lambdas[1]} GB in a training step" in flat
    assert f"with SE, {convolutions[0]} and {convolutions[1]} GB" in flat
    overfit = read_rows(memory.RESULTS.with_name("detection_overfit.csv"))[0]
    assert float(overfit["box_ap50"]) >= 0.90 and float(overfit["mask_ap50"]) >= 0.85
    assert (
        f"box AP50 {100 * float(overfit['box_ap50']):.1f} %, mask AP50 {100 * float(overfit['mask_ap50']):.1f} %"
        in flat
    )
    recipe = RECIPES["overfit"]
    assert (overfit["steps"], overfit["batch_size"]) == (str(recipe.steps), str(recipe.batch_size))
    assert f"after {recipe.steps} steps of two" in flat


def test_pictures_side_by_side():
    pictures = [Image.new("RGB", size, color) for size, color in (((1280, 480), "red"), ((20, 20), "blue"))]
    whole = overfit.montage([*pictures, pictures[1]])
    assert whole.size == (2 * 656, 2 * 496)
    assert whole.getpixel((328, 248)) == (255, 0, 0) and whole.getpixel((328, 100)) == (255, 255, 255)
    assert whole.getpixel((656 + 328, 248)) == (0, 0, 255) and whole.getpixel((656 + 328, 496 + 248)) == (255,) * 3
    assert whole.getpixel((328, 496 + 248)) == (0, 0, 255)
