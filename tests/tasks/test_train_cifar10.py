"""The training script on a few synthetic images: it learns, resumes to the bit, and refuses bad input."""

import csv
import io

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks import train_cifar10
from lambdaresnet_zoo.tasks.cifar10 import augment, normalize, read_split


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes, light and dark, as parquet in the layout of Hugging Face datasets."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 20)):
        labels = np.arange(count) % 2
        rows = []
        for label in labels:
            buffer = io.BytesIO()
            pixels = generator.integers(0, 100, (32, 32, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        pyarrow.parquet.write_table(pyarrow.table({"image": rows, "label": labels}), folder / f"{split}.parquet")
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(train_cifar10, "BATCH_SIZE", 16)


def run(data, output, epochs=3, model="lambdaresnet32px", seed=0):
    splits = read_split(data, "train"), {"top1": read_split(data, "test")}
    return train_cifar10.train(model, *splits, output, epochs, seed, torch.device("cpu"))


def test_reads_what_was_written(data):
    split = read_split(data, "train")
    assert split.images.shape == (64, 3, 32, 32)
    assert split.images.dtype == torch.uint8
    assert split.images[1::2].float().mean() > split.images[::2].float().mean() + 100
    assert split.labels.tolist() == [0, 1] * 32


@pytest.mark.parametrize("model", ["lambdaresnet32px", "lambdaresnet32px_conv"])
def test_learns_and_writes_a_loadable_file(data, tmp_path, model):
    row = run(data, tmp_path, epochs=4, model=model)
    assert float(row["top1"]) == 100
    with open(tmp_path / "log.csv", newline="") as stream:
        losses = [float(line["loss"]) for line in csv.DictReader(stream)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    overlay = {"file": str(tmp_path / "model.safetensors")}
    network = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay)
    for key, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(network.state_dict()[key], value)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(data, tmp_path, monkeypatch):
    run(data, tmp_path / "whole")
    epoch = train_cifar10._epoch
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return epoch(*args)

    monkeypatch.setattr(train_cifar10, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut")
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    run(data, tmp_path / "cut")
    assert len(calls) == 4  # two epochs, the one cut short, and that one again
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert not list(tmp_path.rglob("*.tmp"))


def test_another_run_in_the_folder_is_not_continued(data, tmp_path):
    run(data, tmp_path, epochs=1)
    with pytest.raises(UserError, match="is of another run: epochs 1 there, 2 here; give another"):
        run(data, tmp_path, epochs=2)
    with pytest.raises(UserError, match="is of another run"):
        run(data, tmp_path, epochs=1, seed=1)


@pytest.mark.parametrize(
    ("problem", "status"), [(KeyboardInterrupt(), 130), (FloatingPointError("the loss is NaN"), 1)]
)
def test_interruption_and_divergence_are_one_line(data, tmp_path, monkeypatch, capsys, problem, status):
    def fail(*_):
        raise problem

    monkeypatch.setattr(train_cifar10, "_epoch", fail)
    assert train_cifar10.main(["--data", str(data), "--output", str(tmp_path), "--device", "cpu"]) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_model_is_one_line(data, tmp_path, capsys):
    arguments = ["--data", str(data), "--output", str(tmp_path), "--model", "nothing", "--device", "cpu"]
    assert train_cifar10.main(arguments) == 2
    assert capsys.readouterr().err == "error: Unknown model (nothing)\n"


def test_too_little_to_train_on_is_refused(data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="0 epochs of 64 images"):
        run(data, tmp_path, epochs=0)
    monkeypatch.setattr(train_cifar10, "BATCH_SIZE", 65)
    with pytest.raises(ValueError, match="at least 1 epoch of 65 are needed"):
        run(data, tmp_path)


def test_missing_data_is_one_line(tmp_path, capsys):
    status = train_cifar10.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")])
    assert status == 2
    assert capsys.readouterr().err == (
        f"error: no train*.parquet under {tmp_path}: give the folder that holds CIFAR-10 as parquet\n"
    )


def test_augmentation_crops_and_flips_each_image_apart():
    torch.manual_seed(0)
    image = torch.arange(1, 32 * 32 + 1).remainder(251).add(1).to(torch.uint8).reshape(1, 1, 32, 32)
    padded = torch.nn.functional.pad(image, [4] * 4)[0, 0]
    windows = {
        padded[top : top + 32, left : left + 32].flip(1).numpy().tobytes() if flip
        else padded[top : top + 32, left : left + 32].contiguous().numpy().tobytes()
        for top in range(9) for left in range(9) for flip in (False, True)
    }  # fmt: skip
    out = augment(image.expand(500, 3, -1, -1))
    seen = {crop[channel].contiguous().numpy().tobytes() for crop in out for channel in (0, 2)}
    assert seen <= windows
    assert len(seen) > 140  # of 162


def test_normalisation_is_timms():
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    expected = (image / 255 - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    torch.testing.assert_close(normalize(image, mean, std), expected, rtol=1e-5, atol=1e-5)
