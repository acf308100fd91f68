import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hub_server import Hub

# huggingface_hub reads its settings once, as it is imported: nothing in this process, nor in those it
# starts, asks any other hub than this one.
assert "huggingface_hub" not in sys.modules
HUB = Hub()
HUB_SETTINGS = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_OFFLINE")
HOME = tempfile.mkdtemp(prefix="hub-")
for name in [name for name in os.environ if name.startswith(HUB_SETTINGS)]:
    del os.environ[name]
os.environ.update(
    HF_ENDPOINT=HUB.url,
    HF_HOME=HOME,
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_UPDATE_CHECK="1",
    **{name: f"{os.environ.get(name, '')},127.0.0.1".lstrip(",") for name in ("NO_PROXY", "no_proxy")},
)

import huggingface_hub  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import lambdaresnet_zoo  # noqa: E402, F401  registers the models
from lambdaresnet_zoo.cli import main  # noqa: E402

# Under pytest-xdist the workers are the parallelism; and sums of one thread, as torchrun's processes are given, are the
# same to the last bit.
torch.set_num_threads(1)

CLASSES = 7


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    """At the end of this process, which may be a worker of pytest-xdist."""
    HUB.close()
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub of this process, empty, with a cache of this test's own and without waiting before retries.

    See hub_server.Hub for what it can be told. ``hub.cache`` is the cache, ``hub.environment`` what a
    process must be given to use both.
    """
    HUB.reset()
    HUB.cache = tmp_path / "hub-cache"
    HUB.environment = {"HF_ENDPOINT": HUB.url, "HF_HUB_CACHE": str(HUB.cache)}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(HUB.cache))
    at_once = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(huggingface_hub.utils._http, "time", at_once)
    monkeypatch.setattr(huggingface_hub.file_download, "time", at_once)
    yield HUB
    HUB.mend()


@pytest.fixture
def command(capsys):
    """Run `lambdaresnet-zoo` in this process; returns exit status, lines of stdout, lines of stderr."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            status = error.code
        output = capsys.readouterr()
        return status, output.out.splitlines(), output.err.splitlines()

    return run


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
