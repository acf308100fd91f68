"""What commands say of a checkpoint that is not what they take, and what they take all the same."""

import pytest
import timm
import torch
from command import one_line
from safetensors.torch import load_file
from timm.utils.model import reparameterize_model
from train_runs import tiny

NAME = "test_lambdaresnet"
KINDS = ("predict", "validate", "train", "convert")


@pytest.fixture
def give(command, coloured, tmp_path):
    """Give a checkpoint to a command; returns its outcome."""

    def run(kind, path, *more):
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
        return command(kind, *options[kind], *more)

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


@pytest.mark.parametrize("kind", KINDS)
def test_torchscript_is_told(give, network, tmp_path, kind):
    torch.jit.save(torch.jit.trace(network, torch.randn(1, 3, 32, 32)), str(tmp_path / "traced.pt"))
    one_line(give(kind, tmp_path / "traced.pt"), "traced.pt is a TorchScript archive", "save its state_dict()")


@pytest.fixture(scope="module")
def done(coloured, tmp_path_factory):
    """The folder of a run."""
    from lambdaresnet_zoo.cli import main

    folder = tmp_path_factory.mktemp("done") / "run"
    assert main(["train", *map(str, tiny(coloured)), "--epochs", "1", "--output", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_of_a_run_is_told_and_what_is_named_is_taken(give, done, kind):
    model = done / "model"
    told = (
        f"{done} is the folder of a run: give {model}" if kind == "convert" else f"give {model / 'model.safetensors'}"
    )
    one_line(give(kind, done), told)
    assert give(kind, model if kind == "convert" else model / "model.safetensors")[0] == 0


@pytest.mark.parametrize(("kind", "name"), [*((kind, NAME) for kind in KINDS), ("train", "test_resnet")])
def test_a_state_that_was_cast_to_half_precision_is_taken(give, tmp_path, kind, name):
    """Its counters too, which are whole numbers."""
    torch.manual_seed(0)
    state = timm.create_model(name, num_classes=3).state_dict()
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pth")
    more = ("--model", name, "--freeze-bn") if kind == "train" else ()
    status, _, err = give(kind, tmp_path / "half.pth", *more)
    assert (status, err) == (0, [])
    if kind == "convert":
        found = load_file(tmp_path / "converted" / "model.safetensors")
        assert {found.pop(key).dtype for key in counters} == {torch.int64}
        assert {value.dtype for value in found.values()} == {torch.float16}
