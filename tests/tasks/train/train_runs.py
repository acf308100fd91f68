"""Small data to train on, and runs of `train` in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
COLOURS = {"blue": (40, 60, 190), "green": (50, 170, 60), "red": (190, 50, 60)}


def write_images(root, count, classes=tuple(COLOURS), seed=0, size=40):
    """Noisy pictures of a colour, a folder for each class."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(COLOURS[name]) + generator.integers(-40, 40, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{number:02d}.png")
    return root


def tiny(data):
    """Options of a run of four steps an epoch."""
    return (
        "--model", "test_lambdaresnet", "--data", data, "--img-size", 32, "--batch-size", 9, "--warmup-epochs", 0.5,
        "--epochs", 3, "--workers", 0, "--device", "cpu", "--lr", 0.05, "--log-interval", 1, "--no-progress",
    )  # fmt: skip


def weights(folder):
    """What was exported of a run."""
    return load_file(folder / "model" / "model.safetensors")


def equal(one, two):
    """Whether two runs ended with the same weights, to the bit."""
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(*arguments, processes=1):
    """The command in processes of its own, under torchrun where there are several."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return subprocess.Popen(
        [sys.executable, "-m", *(launcher if processes > 1 else []), "lambdaresnet_zoo", "train", *map(str, arguments)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, timeout=300):
    """Status, stdout and stderr of such processes."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err
