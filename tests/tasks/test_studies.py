"""The studies on a few images: a row for each run, nothing run twice, what the rows say together."""

import io
import math
import re
import statistics
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks import study, study_finetune, study_lambda
from lambdaresnet_zoo.tasks.study import interval
from lambdaresnet_zoo.weights.files import read_rows, write_rows


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Ten classes of noise around a level, as parquet in the layout of Hugging Face datasets."""
    folder = tmp_path_factory.mktemp("cifar")
    generator = np.random.default_rng(0)
    for split, count in (("train", 160), ("test", 40)):
        labels = np.arange(count) % 10
        rows = []
        for label in labels:
            buffer = io.BytesIO()
            pixels = generator.integers(0, 30, (32, 32, 3)) + 22 * label
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        pyarrow.parquet.write_table(pyarrow.table({"image": rows, "label": labels}), folder / f"{split}.parquet")
    return folder


def test_the_interval_is_students():
    mean, low, high = interval([81.0, 82.0, 84.0])
    half = 4.302652729749462 * statistics.stdev([81, 82, 84]) / math.sqrt(3)  # t of 2 degrees of freedom, from a table
    assert (mean, high - mean, mean - low) == pytest.approx((247 / 3, half, half))
    assert interval([3.0]) == (3.0, -math.inf, math.inf)


@pytest.mark.slow
def test_lambda_against_convolution(cifar, tmp_path, capsys, monkeypatch):
    results = tmp_path / "results" / "runs.csv"
    arguments = ["--data", str(cifar), "--output", str(tmp_path / "runs"), "--results", str(results)]
    arguments += ["--device", "cpu", "--workers", "0", "--set", "epochs=1", "--set", "batch_size=32"]
    arguments += ["--set", "warmup_epochs=0", "--seeds"]
    assert study_lambda.main([*arguments, "0"]) == 0, capsys.readouterr().err
    monkeypatch.setattr(study, "train", None)  # what is finished is not run again
    assert study_lambda.main([*arguments, "0"]) == 0
    rows = read_rows(results)
    assert [(row["model"], row["seed"]) for row in rows] == [(model, "0") for model in study_lambda.MODELS]
    assert [row["params"] for row in rows] == ["458850", "725122"]
    assert {row["steps"] for row in rows} == {"5"} and {row["set"] for row in rows} == {
        "epochs=1 batch_size=32 warmup_epochs=0"
    }
    assert all(0 <= float(row["top1"]) <= 100 and float(row["train_seconds"]) > 0 for row in rows)
    table = read_rows(results.with_name("runs_summary.csv"))
    assert [row["top1_mean"] for row in table] == [row["top1"] for row in rows]
    assert {row["difference"] for row in table} == {""}  # one epoch is not what ships


def row_of(model, seed, top1, epochs="14"):
    return {"model": model, "seed": str(seed), "top1": str(top1), "epochs": epochs, "params": "1", "train_seconds": "2"}


def test_the_summary_holds_the_shipped_figure_against_its_own_seed():
    rows = [row_of("lambdaresnet32px", seed, top1) for seed, top1 in ((1, 80), (0, 82.5), (2, 81))]
    table = study_lambda.summary([*rows, row_of("lambdaresnet32px_conv", 0, 85, "7")])
    assert table[0]["difference"] == "+0.19" and table[0]["shipped_top1"] == "82.31"
    assert table[0]["top1_mean"] == "81.17" and table[0]["seeds"] == 3
    assert table[1]["difference"] == "" and table[1]["top1_low"] == "-inf"


def test_a_figure_that_is_not_met_is_told(tmp_path, capsys):
    results = tmp_path / "runs.csv"
    rows = [row_of(model, 0, top1) for model, top1 in zip(study_lambda.MODELS, (81.7, 83.1), strict=True)]
    write_rows(results, rows)
    arguments = ["--data", "unused", "--output", str(tmp_path), "--results", str(results), "--seeds", "0"]
    assert study_lambda.main(arguments) == 1
    assert "missed: lambdaresnet32px of the shipped seed differs by -0.61 points" in capsys.readouterr().err


@pytest.mark.slow
def test_fine_tuning_against_scratch(tmp_path, capsys, monkeypatch):
    results = tmp_path / "runs.csv"
    arguments = ["--output", str(tmp_path / "runs"), "--results", str(results), "--device", "cpu", "--seeds", "0"]
    arguments += [
        "--digits",
        "5",
        "--set",
        "epochs=3",
        "--set",
        "warmup_epochs=0",
        "--set",
        "validation_batch_size=256",
    ]
    ran, train = [], study.train
    monkeypatch.setattr(study, "train", lambda options: ran.append(options) or train(options))
    assert study_finetune.main(arguments) == 0, capsys.readouterr().err
    tuned, scratch = ran
    assert tuned.pretrained and not scratch.pretrained and not scratch.freeze_bn and scratch.layer_decay is None
    assert (scratch.epochs, scratch.opt, scratch.hflip) == (tuned.epochs, tuned.opt, tuned.hflip)
    assert (tuned.lr, scratch.lr) == (2e-3, study_finetune.SCRATCH_RATE_OF_DIGITS)
    assert tuned.val_interval == tuned.epochs == 3 and tuned.hflip == 0
    assert (tuned.aa, tuned.reprob) == (scratch.aa, scratch.reprob) == (None, 0)
    rows = read_rows(results)
    assert [(row["task"], row["start"]) for row in rows] == [
        ("digits-5-of-each", "fine-tuned"), ("digits-5-of-each", "from scratch"),
    ]  # fmt: skip
    table = {row["start"]: row for row in read_rows(tmp_path / "runs_summary.csv")}
    difference = float(rows[0]["top1"]) - float(rows[1]["top1"])
    assert float(table["difference"]["top1_mean"]) == pytest.approx(difference, abs=0.011)
    assert study_finetune.main(arguments) == 0 and len(ran) == 2


def test_the_summary_of_fine_tuning_is_paired():
    rows = [
        {"task": "t", "start": start, "seed": str(seed), "top1": str(top1)}
        for start, figures in (("fine-tuned", (90, 95, 92)), ("from scratch", (80, 84, 83)))
        for seed, top1 in enumerate(figures)
    ]
    table = {row["start"]: row for row in study_finetune.summary([*rows, {**rows[0], "seed": "9"}])}
    mean, low, high = interval([10.0, 11.0, 9.0])
    assert table["difference"] == {
        "task": "t", "start": "difference", "seeds": 3, "top1_mean": f"{mean:.2f}", "top1_low": f"{low:.2f}",
        "top1_high": f"{high:.2f}",
    }  # fmt: skip
    assert table["fine-tuned"]["seeds"] == 4


def test_digits_are_a_folder_of_images(tmp_path):
    from sklearn.datasets import load_digits

    folder = study_finetune.write_digits(tmp_path / "digits", 5)
    counts = {part: [len(list((folder / part / str(n)).iterdir())) for n in range(10)] for part in ("train", "val")}
    assert counts["train"] == [5] * 10 and sum(counts["val"]) == 1797 - 50
    images, labels = load_digits(return_X_y=True)
    path = sorted((folder / "train" / "7").iterdir())[0]
    assert labels[int(path.stem)] == 7
    pixels = np.asarray(Image.open(path)).astype(float) * 16 / 255
    np.testing.assert_allclose(pixels, images[int(path.stem)].reshape(8, 8), atol=0.04)
    with pytest.raises(UserError, match=r"--digits 174: there are 174 of the rarest; give a number from 1 to 173"):
        study_finetune.write_digits(tmp_path / "more", 174)


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    seen = []

    def stopped(options):
        seen.append(options.resume)
        Path(options.output).mkdir(parents=True, exist_ok=True)
        (Path(options.output) / "last.pt").write_bytes(b"")
        return 0

    monkeypatch.setattr(study, "train", stopped)
    arguments = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "rows.csv"), "--seeds", "0"]
    for _ in range(2):
        assert study_finetune.main(arguments) == 0
        assert (
            capsys.readouterr().err
            == "digits-10-of-each fine-tuned seed 0 was stopped; run the same command to go on\n"
        )
    assert seen == [None, ""] and not (tmp_path / "rows.csv").exists()
    monkeypatch.setattr(study, "train", lambda options: 1)
    assert study_finetune.main(arguments) == 1


def test_the_readme_says_what_the_study_found():
    results = Path(study.__file__).parents[1] / "weights" / "results"
    runs, table = (read_rows(results / f"study_finetune{which}.csv") for which in ("", "_summary"))
    assert len(runs) == 20 and len({(row["task"], row["start"], row["seed"]) for row in runs}) == 20
    for row in study_finetune.summary(runs):
        told = next(each for each in table if (each["task"], each["start"]) == (row["task"], row["start"]))
        assert {key: str(value) for key, value in row.items()} == told
    readme = " ".join((results.parents[2] / "README.md").read_text(encoding="utf-8").split())
    for row in table:
        mean, low, high = (Decimal(row[f"top1_{which}"]) for which in ("mean", "low", "high"))
        unit = "%" if row["start"] != "difference" else "points more"
        told = readme.partition(f"{mean:.1f} {unit} ({low:.1f} to {high:.1f})")
        assert told[1], row
        if row["start"] == "difference":
            words = re.split(r"(?<=[.)]) (?=[A-Z])", told[0])[-1]  # of the sentence
            assert ("It does not, yet" in words) == (low <= 0), words
