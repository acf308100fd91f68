import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import lambdaresnet_zoo  # noqa: F401  registers the models

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers are the parallelism

CLASSES = 7


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Weights of test_lambdaresnet with 7 classes, whose predictions differ from image to image."""
    torch.manual_seed(0)
    model = timm.create_model("test_lambdaresnet", num_classes=CLASSES)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 3, 96, 96))
        model.head.fc.weight.normal_(std=0.5)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def expected(checkpoint):
    """Probabilities computed apart from the package's own code: PIL, timm's transform, softmax."""
    model = timm.create_model("test_lambdaresnet", num_classes=CLASSES, checkpoint_path=str(checkpoint)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def compute(image):
        image = Image.open(image) if isinstance(image, Path) else image
        with torch.no_grad():
            return model(transform(image.convert("RGB"))[None])[0].softmax(0)

    return compute


@pytest.fixture
def pixels():
    """A picture with structure, [80, 120, 3] uint8, different for each seed."""

    def draw(seed=0):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((120, 80), Image.Resampling.BICUBIC))

    return draw


@pytest.fixture
def draw(tmp_path, pixels):
    """Write a picture as a file of the given name."""

    def write(name, seed=0):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(path)
        return path

    return write
