"""A run that goes on takes from its folder what it was begun with."""

import os
import shutil
import signal

import pytest
import torch
import yaml
from coco_sets import TINY_RUN
from command import one_line
from safetensors.torch import load_file

from lambdaresnet_zoo.tasks.detect import train as training

ARGUMENTS = ("detect", "train", *TINY_RUN, "--batch-size", 2, "--warmup-steps", 2, "--log-steps", 1, "--steps", 4)
OPTIONS = ("--seed", 3, "--freeze", "stem", "c2", "--model-kwargs", "act_layer=silu", "--image-ids", 5, 15, 25)


@pytest.fixture
def cut(command, coco, tmp_path, monkeypatch):
    """The folder of a run that was stopped after two of four steps."""
    real, calls = training.Training._step, []

    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(training.Training, "_step", stopped)
        assert command(*ARGUMENTS, *coco, *OPTIONS, "--output", tmp_path / "cut")[0] == 0
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["step"] == 2
    return tmp_path / "cut"


def test_the_folder_of_a_run_is_enough_to_continue_it(command, coco, cut, tmp_path):
    status, out, err = command("detect", "train", "--resume", "--output", cut)
    assert (status, err) == (0, []) and "trained 4 steps" in out[2]
    assert command(*ARGUMENTS, *coco, *OPTIONS, "--output", tmp_path / "whole")[0] == 0
    whole, found = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", cut))
    assert all(torch.equal(value, found[key]) for key, value in whole.items())
    args = yaml.safe_load((cut / "args.yaml").read_text())
    assert (args["seed"], args["freeze"], args["image_ids"]) == (3, ["stem", "c2"], [5, 15, 25])


def test_what_is_given_beside_it_counts(command, coco, cut, tmp_path):
    again = ("detect", "train", "--resume", "--output", cut)
    one_line(command(*again, "--seed", 42), "last.pt is of another run: seed 3 there, 42 here; give another --output")
    moved = shutil.copytree(coco[3], tmp_path / "moved")
    one_line(command(*again, "--images", tmp_path), "0.png")
    assert command(*again, "--images", moved)[0] == 0
    assert yaml.safe_load((cut / "args.yaml").read_text())["images"] == str(moved)


def test_a_keyword_of_the_backbone_comes_back_as_it_was(command, coco, tmp_path):
    """A tuple would be a list in a file."""
    options = ("--model-kwargs", "img_size=(96,96)", "--steps", 1, "--output", tmp_path)
    begun = command(*ARGUMENTS, *coco, *options)
    assert begun[0] == 0, begun
    assert command("detect", "train", "--resume", "--output", tmp_path)[0] == 0


def test_a_run_without_its_options_is_told(command, cut, coco):
    (cut / "args.yaml").unlink()  # of a version that wrote none
    told = "holds no args.yaml of a run to continue; check the name, or give --annotations and --images too"
    one_line(command("detect", "train", "--resume", "--output", cut), f"--output {cut} {told}")
    assert command(*ARGUMENTS, *coco, *OPTIONS, "--output", cut, "--resume")[0] == 0
    one_line(command("detect", "train", "--output", cut), "give --annotations and --images, or --resume to continue")
