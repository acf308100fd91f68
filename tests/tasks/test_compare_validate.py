"""The README's words on the time beside timm's validate.py, against the rows they are from."""

import re
from pathlib import Path

import lambdaresnet_zoo
from lambdaresnet_zoo.weights.files import read_rows


def test_the_readme_tells_the_last_comparison():
    row = read_rows(Path(lambdaresnet_zoo.__file__).parent / "weights" / "results" / "validate_speed.csv")[-1]
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    told = re.search(r"(\d+) pairs of runs over CIFAR-10's test split took ([\d.]+) times as long \(([^)]*)\)", text)
    least, largest = (f"{float(row[key]):.2f}" for key in ("ratio_min", "ratio_max"))
    assert told and told.groups() == (row["pairs"], f"{float(row['ratio']):.2f}", f"{least} to {largest}")
    assert row["same_digits"] == "yes"
