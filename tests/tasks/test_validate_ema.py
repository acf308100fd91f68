"""`validate` and the moving average that a checkpoint may hold."""

import pytest
import torch
from command import one_line
from safetensors.torch import load_file
from validation_sets import MODEL, pictures, row_of, write_folder


@pytest.fixture
def averaged(checkpoint, tmp_path):
    """Writes a checkpoint as timm's training does; its moving average is of the weights that tests know."""

    def write(*entries):
        average = load_file(checkpoint)
        weights = {key: value.clone() for key, value in average.items()}
        weights["head.fc.weight"].neg_()
        path = tmp_path / "last.pth.tar"
        torch.save({"state_dict": weights, **dict.fromkeys(entries, average)}, path)
        return path

    return write


@pytest.fixture
def figures(validate, tmp_path):
    """The loss, and what stderr says."""
    data = write_folder(tmp_path / "data", pictures())

    def measure(weights, *arguments):
        results = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        status, _, err = validate("--data", data, "--results", results, *arguments, weights=weights)
        assert status == 0, err
        return row_of(results)["loss"], err

    return measure


@pytest.mark.parametrize("entry", ["state_dict_ema", "ema"])
def test_a_moving_average_that_is_not_used_is_told(figures, averaged, checkpoint, entry):
    path = averaged(entry)
    plain, err = figures(path)
    (line,) = err
    assert line.startswith(f"warning: {path} holds a moving average") and entry in line and "--use-ema" in line
    average, err = figures(path, "--use-ema")
    assert err == [] and average != plain and average == figures(checkpoint)[0]


def test_a_checkpoint_without_one_is_measured_in_silence(figures, averaged):
    assert figures(averaged())[1] == []


def test_an_average_that_is_not_there_is_one_line(command, validate, averaged, checkpoint, tmp_path):
    data = write_folder(tmp_path / "data", pictures())
    for path in (averaged(), checkpoint):
        one_line(validate("--data", data, "--use-ema", weights=path), "--use-ema", path, "holds no moving average")
    one_line(command("validate", "--model", MODEL, "--data", data, "--use-ema"), "--use-ema", "--checkpoint")


def test_predict_takes_the_average_in_silence(command, averaged, checkpoint, draw):
    """As `convert` does, which says in its report where the weights are from."""
    image, own = draw("a.png"), ("--model", MODEL, "--checkpoint")
    averages, weights = averaged("ema"), checkpoint
    assert command("predict", image, *own, averages) == command("predict", image, *own, weights)
