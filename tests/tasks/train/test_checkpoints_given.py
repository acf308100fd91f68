"""What commands say of a checkpoint that is not what they take, and what they take all the same."""

import pytest
import timm
import torch
from command import one_line
from safetensors.torch import load_file
from timm.utils.model import reparameterize_model
from train_runs import equal, tiny, weights

NAME = "test_lambdaresnet"
KINDS = ("predict", "validate", "train", "convert")


@pytest.fixture
def give(command, coloured, tmp_path):
    """Give a checkpoint to a command; returns its outcome."""

    def run(kind, path):
        one = sorted((coloured / "val" / "red").iterdir())[0]
        options = {
            "predict": ("--model", NAME, "--checkpoint", path, one),
            "validate": (
                "--model", NAME, "--checkpoint", path, "--data", coloured, "--img-size", 32, "--device", "cpu",
                "--workers", 0, "--no-progress",
            ),
            "train": (
                *tiny(coloured), "--initial-checkpoint", path, "--output", tmp_path / "run", "--recipe", "", "--epochs",
                1,
            ),
            "convert": (path, tmp_path / "converted"),
        }  # fmt: skip
        return command(kind, *options[kind])

    return run


@pytest.fixture
def network():
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=3).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_folded_weights_are_told(give, network, tmp_path, kind):
    torch.save(reparameterize_model(network).state_dict(), tmp_path / "folded.pth")
    outcome = give(kind, tmp_path / "folded.pth")
    one_line(outcome, "folded.pth: the weights were folded for inference", "before reparameterize_model")
    assert "--model" not in outcome[2][0]
