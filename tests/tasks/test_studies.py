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
from lambdaresnet_zoo.tasks import ship, study, study_finetune, study_lambda
from lambdaresnet_zoo.tasks.study import interval
from lambdaresnet_zoo.weights import shipped
from lambdaresnet_zoo.weights.cards import CIFAR10, STUDY, cifar10_recipe
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
    assert [(row["model"], row["recipe"], row["seed"]) for row in rows] == [
        (model, "cifar10", "0") for model in study_lambda.MODELS
    ]
    assert [row["params"] for row in rows] == ["458850", "725122"]
    assert {row["steps"] for row in rows} == {"5"} and {row["set"] for row in rows} == {
        "epochs=1 batch_size=32 warmup_epochs=0"
    }
    assert all(0 <= float(row["top1"]) <= 100 and float(row["train_seconds"]) > 0 for row in rows)
    table = read_rows(results.with_name("runs_summary.csv"))
    assert [row["top1_mean"] for row in table[:2]] == [row["top1"] for row in rows]
    assert float(table[2]["top1_mean"]) == pytest.approx(float(rows[0]["top1"]) - float(rows[1]["top1"]), abs=0.006)
    assert {row["difference"] for row in table} == {""}  # one epoch is not what ships


@pytest.fixture
def shipped_row():
    (row,) = read_rows(CIFAR10)
    return row


def row_of(model, seed, top1, recipe="cifar10", changes=""):
    run = {"model": model, "recipe": recipe, "seed": str(seed), "set": changes, "top1": f"{top1:.2f}"}
    return {**run, "epochs": "14", "params": "1", "train_seconds": "2"}


def test_the_summary_holds_every_run_of_the_recipe_against_the_shipped_figure(shipped_row):
    own, twin = study_lambda.MODELS
    recipe, known = shipped_row["recipe"], float(shipped_row["top1"])
    rows = [row_of(own, seed, known + more, recipe) for seed, more in enumerate((0, -0.4, 0.3))]
    rows += [row_of(twin, 0, 85, recipe, "epochs=7"), row_of(own, 0, 50, recipe, "epochs=7"), row_of(own, 0, 60)]
    table = {(row["recipe"], row["model"], row["seeds"]): row for row in study_lambda.summary(rows)}
    held = table[recipe, own, 3]
    assert (held["difference"], held["shipped_top1"]) == ("-0.40", shipped_row["top1"])
    assert held["top1_mean"] == f"{known - 0.1 / 3:.2f}"
    other = [row for key, row in table.items() if key != (recipe, own, 3)]
    assert len(other) == 4 and {row["difference"] for row in other} == {""}
    assert table[recipe, twin, 1]["top1_low"] == "-inf"
    assert table[recipe, "difference", 1]["top1_mean"] == "-35.00"  # of like runs: 50 against 85


def test_the_summary_of_lambda_is_paired():
    figures = {"lambdaresnet32px": (82, 81, 84), "lambdaresnet32px_conv": (83, 83.5, 84.5)}
    rows = [row_of(model, seed, top1) for model, all_of in figures.items() for seed, top1 in enumerate(all_of)]
    last = study_lambda.summary([*rows, row_of("lambdaresnet32px", 7, 90)])[-1]
    assert last.pop("recipe") == "cifar10"
    mean, low, high = interval([-1.0, -2.5, -0.5])
    assert {key: value for key, value in last.items() if value != ""} == {
        "model": "difference", "seeds": 3, "top1_mean": f"{mean:.2f}", "top1_low": f"{low:.2f}",
        "top1_high": f"{high:.2f}",
    }  # fmt: skip


@pytest.mark.parametrize(("apart", "missed"), [(-0.61, True), (0.49, False)])
def test_a_figure_of_weights_that_ship_is_to_be_met(tmp_path, capsys, shipped_row, apart, missed):
    results, recipe = tmp_path / "runs.csv", shipped_row["recipe"]
    own, twin = study_lambda.MODELS
    known = float(shipped_row["top1"])
    write_rows(results, [row_of(own, 0, known, recipe), row_of(own, 1, known + apart, recipe), row_of(twin, 0, 9)])
    arguments = ["--data", "unused", "--output", str(tmp_path), "--results", str(results), "--recipe", recipe]
    assert study_lambda.main([*arguments, "--models", own, "--seeds", "0", "1"]) == missed
    told = f"missed: a run of {own} by {recipe} differs by {apart:+.2f} points from the weights that ship"
    assert capsys.readouterr().err.splitlines() == [told] * missed


@pytest.fixture
def studied(cifar, tmp_path):
    """A run on these images, and the csv of its study."""
    arguments = ["--data", str(cifar), "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "runs.csv")]
    arguments += ["--device", "cpu", "--workers", "0", "--seeds", "3", "--set", "epochs=1"]
    arguments += ["--set", "warmup_epochs=0"]
    arguments += ["--models", "lambdaresnet32px", "--recipe", "cifar10-28ep"]
    assert study_lambda.main(arguments) == 0
    return [str(tmp_path / "runs.csv"), str(tmp_path / "runs"), "--data", str(cifar), "--lossless", str(cifar)]


@pytest.mark.slow
def test_what_a_study_left_is_shipped_in_one_command(studied, tmp_path, capsys, monkeypatch):
    place = tmp_path / "package"
    monkeypatch.setattr(shipped, "FOLDER", place)
    monkeypatch.setattr(shipped, "DIGESTS", place / "SHA256SUMS")
    monkeypatch.setattr(ship, "CIFAR10", place / "cifar10.csv")
    written = []
    monkeypatch.setattr(ship, "write_documents", lambda: written.append(read_rows(ship.CIFAR10)) or 0)
    assert ship.main(studied) == 2  # the seed is 3
    told = capsys.readouterr().err
    run = "lambdaresnet32px by the recipe cifar10-28ep, seed 0"
    assert told == f"error: {studied[0]} has no finished run of {run}; nothing was taken\n"
    assert ship.main([*studied, "--seed", "3"]) == 0, capsys.readouterr().err
    weights = tmp_path / "runs" / "lambdaresnet32px-cifar10-28ep-seed3" / "model" / "model.safetensors"
    assert shipped.digest(Path(shipped.shipped_file("lambdaresnet32px.cifar10"))) == shipped.digest(weights)
    shipped.verify_shipped(shipped.shipped_file("lambdaresnet32px.cifar10"))
    rows, runs = read_rows(ship.CIFAR10), read_rows(Path(studied[0]))
    assert [{key: row[key] for key in runs[0]} for row in rows] == runs and written == [rows]
    assert [row["top1_lossless"] for row in rows] == [row["top1"] for row in runs]  # the same images
    assert cifar10_recipe(rows[0]).endswith("--recipe cifar10-28ep`) with epochs=1 warmup_epochs=0, 1 epochs")

    before = {path.name: path.read_bytes() for path in place.iterdir()}
    top1 = float(runs[0]["top1"])
    write_rows(Path(studied[0]), [{**runs[0], "top1": f"{top1 + 0.2:.2f}"}])
    capsys.readouterr()
    assert ship.main([*studied, "--seed", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{top1:.2f} %, and {top1 + 0.2:.2f} % in" in line and line.endswith("another run; nothing was taken")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert ship.main([*studied, "--seed", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged" in line and line.endswith("nothing was taken")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


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
    assert tuned.val_interval == tuned.epochs == 3 and tuned.hflip == 0 and tuned.img_size == 32
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


def test_what_is_recorded_of_lambda_is_what_its_runs_say():
    """The README's part is generated from it."""
    runs, table = (read_rows(STUDY.with_name(f"{STUDY.stem}{which}.csv")) for which in ("", "_summary"))
    (shipped,) = read_rows(CIFAR10)
    every = {(row["recipe"], row["model"], row["seed"]) for row in runs}
    assert len(every) == len(runs) and every == {
        *(("cifar10", model, str(seed)) for model in study_lambda.MODELS for seed in range(3)),
        *(("cifar10-28ep", study_lambda.MODELS[0], str(seed)) for seed in range(2)),
    }
    assert [{key: str(value) for key, value in row.items()} for row in study_lambda.summary(runs)] == table
    (held,) = (row for row in table if row["difference"])
    assert (held["model"], held["recipe"]) == (shipped["model"], shipped["recipe"]) and held["seeds"] == "2"
    assert abs(float(held["difference"])) <= study_lambda.ALLOWED
    assert {row["set"] for row in runs} == {""}


def test_the_readme_says_what_the_study_found():
    results = Path(study.__file__).parents[1] / "weights" / "results"
    runs, table = (read_rows(results / f"study_finetune{which}.csv") for which in ("", "_summary"))
    assert len(runs) == 50 and len({(row["task"], row["start"], row["seed"]) for row in runs}) == 50
    sizes = {"hymenoptera": study_finetune.SIZE, "digits-10-of-each": study_finetune.SIZE_OF_DIGITS}
    assert {(row["task"], row["img_size"]) for row in runs} == {(task, str(size)) for task, size in sizes.items()}
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
