"""The comparison with timm's train.py: which steps count, and that both are measured by the same hook."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from validation_sets import NAMES, pictures, write_folder

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
    arguments = ["--pairs", 1, "--own-options", own, "--output", tmp_path / "rows.csv", "--data-name", "pictures"]
    for pause, status in ((3.0, 0), (0.0, 1)):
        given = [script, *arguments, "--timm-options", f"--pause {pause / 5}", "--allowed", 1e3 if pause else 0.01]
        assert main([*map(str, given), "--", *map(str, options)]) == status, capsys.readouterr().err
    slow, fast = read_rows(tmp_path / "rows.csv")
    assert float(slow["timm_milliseconds"]) >= 600 > float(fast["timm_milliseconds"])
    assert float(slow["ratio"]) == pytest.approx(
        float(slow["milliseconds"]) / float(slow["timm_milliseconds"]), rel=0.02
    )
    assert float(slow["peak_mib"]) > 100 and slow["peak_of"] == "resident in the process"
    assert slow["steps"] == slow["timm_steps"] == "11" and slow["data"] == "pictures"
    assert str(tmp_path) not in (tmp_path / "rows.csv").read_text()


def test_what_fails_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none.py"), "--", "--model", "test_lambdaresnet"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.py'}: no such file; give timm's train.py, from its " \
        "repository\n"  # fmt: skip
    script = tmp_path / "train.py"
    script.write_text("raise ValueError('it cannot be')")
    assert main([str(script), "--", "--model", "test_lambdaresnet"]) == 2
    assert "failed with 1: ValueError: it cannot be" in capsys.readouterr().err


def test_the_script_is_a_wrapper():
    script = Path(__file__).parents[2] / "scripts" / "compare_train.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "timm's train.py" in done.stdout
