"""The comparison with timm's train.py: which steps count, and that both are measured by the same hook."""

from pathlib import Path

import pytest
from validation_sets import NAMES, pictures, write_folder

from lambdaresnet_zoo.tasks import compare_train
from lambdaresnet_zoo.tasks.compare import ratios, told, turns
from lambdaresnet_zoo.tasks.compare_train import PAUSE, WARM_UP, main, step_lengths
from lambdaresnet_zoo.weights.files import read_rows

# In place of timm's script, which is not in its packages: as many steps of the same batches, of another length.
SCRIPT = """
import argparse, time, torch
parser = argparse.ArgumentParser()
parser.add_argument("--output", required=True)
parser.add_argument("--epochs", type=int)
parser.add_argument("--pause", type=float, default=0)
options, _ = parser.parse_known_args()
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([weight], lr=0.1)
for step in range(8 * options.epochs):
    weight.grad = torch.ones(3)
    time.sleep(options.pause)
    optimizer.step()
"""


def test_steps_between_epochs_and_the_first_ones_do_not_count():
    stamps, now = [], 0.0
    for _ in range(3):
        for step in range(20):
            now += 0.1 + (step < WARM_UP) * 0.05
            stamps.append(now)
        now += 0.1 * PAUSE + 0.1  # an evaluation
    assert step_lengths(stamps) == pytest.approx([0.1] * len(step_lengths(stamps)))
    assert 3 * (20 - WARM_UP - 2) <= len(step_lengths(stamps)) <= 3 * (20 - WARM_UP)
    assert step_lengths([1.0]) == step_lengths([]) == []


def test_pairs_are_run_in_turns():
    order = []
    found = turns(3, lambda: order.append("own") or "o", lambda: order.append("timm") or "t", str)
    assert order == ["timm", "own", "own", "timm", "timm", "own"] and found == [("o", "t")] * 3
    assert ratios("ratio", [2.0, 1.0, 9.0], [1.0, 2.0, 3.0]) == {
        "ratio": "2.000", "ratio_min": "0.500", "ratio_max": "3.000",
    }  # fmt: skip
    assert told(["--data-dir", str(Path(__file__).parent), "--lr", "0.1"]) == "--data-dir tasks --lr 0.1"


@pytest.mark.slow
def test_both_are_measured(tmp_path, capsys, monkeypatch):
    data = write_folder(tmp_path / "data", pictures(64))
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    options = ["--model", "test_lambdaresnet", "--num-classes", len(NAMES), "--data-dir", data, "--img-size", 32]
    options += ["--epochs", 2, "--warmup-epochs", 0, "--batch-size", 8]
    own = "--device cpu --workers 0 --val-fraction 0 --no-progress"
    arguments = [script, "--pairs", 1, "--own-options", own, "--timm-options", "--pause 0.3", "--data-name", "pictures"]
    arguments += ["--output", tmp_path / "rows.csv", "--allowed", 1000, "--", *options]
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    (row,) = read_rows(tmp_path / "rows.csv")
    assert float(row["timm_milliseconds"]) >= 300
    assert float(row["ratio"]) == pytest.approx(float(row["milliseconds"]) / float(row["timm_milliseconds"]), rel=0.02)
    assert float(row["peak_mib"]) > 100 and row["peak_of"] == "resident in the process"
    assert row["timm_steps"] == "11" and 1 <= int(row["steps"]) <= 11 and row["data"] == "pictures"
    assert str(tmp_path) not in (tmp_path / "rows.csv").read_text()


@pytest.mark.parametrize(
    ("ratio", "memory", "status"), [("1.050", "0.900", 0), ("1.051", "0.900", 1), ("0.900", "1.051", 1)]
)
def test_what_costs_more_is_told_by_the_status(monkeypatch, tmp_path, ratio, memory, status):
    monkeypatch.setattr(compare_train, "compare", lambda *arguments: {"ratio": ratio, "memory_ratio": memory})
    arguments = ["train.py", "--output", str(tmp_path / "rows.csv"), "--", "--model", "test_lambdaresnet"]
    assert [main(arguments), main(arguments)] == [status] * 2
    assert read_rows(tmp_path / "rows.csv") == [{"ratio": ratio, "memory_ratio": memory}] * 2


@pytest.mark.slow
def test_what_fails_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none.py"), "--", "--model", "test_lambdaresnet"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.py'}: no such file; give timm's train.py, from its " \
        "repository\n"  # fmt: skip
    script = tmp_path / "train.py"
    script.write_text("raise ValueError('it cannot be')")
    assert main([str(script), "--", "--model", "test_lambdaresnet"]) == 2
    assert "failed with 1: ValueError: it cannot be" in capsys.readouterr().err
