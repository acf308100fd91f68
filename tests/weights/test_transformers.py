"""Folders in transformers: equal logits, names of classes, and no import of this package needed before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

import lambdaresnet_zoo
from lambdaresnet_zoo.conversion.convert import Options, convert

LABELS = list("abcdefg")


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / "model"
    convert(str(checkpoint), path, Options(label_names=LABELS))
    return path


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A place of its own for the code that transformers copies."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_logits_are_timms(folder):
    """After importing this package, transformers' own classes do."""
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    ours = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(theirs(x).logits, ours(x))
    assert theirs.config.id2label == dict(enumerate(LABELS))


def test_classes_of_imagenet_are_named(tmp_path):
    """Which config.json leaves to both readers."""
    save_file(timm.create_model("test_lambdaresnet").state_dict(), tmp_path / "a.safetensors")
    convert(str(tmp_path / "a.safetensors"), tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.num_labels == 1000 and config.id2label[281] == "tabby, tabby cat"


SCRIPT = """
import sys
from transformers import AutoModel, AutoModelForImageClassification, pipeline
folder, image, saved = sys.argv[1:]
assert "lambdaresnet_zoo" not in sys.modules and "timm" not in sys.modules
classify = pipeline("image-classification", folder, trust_remote_code=True)
assert "lambdaresnet_zoo" in sys.modules
for row in classify(image, top_k=3):
    print(row["label"], row["score"])
assert AutoModel.from_pretrained(folder, trust_remote_code=True).timm_model.num_classes == 0
AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).save_pretrained(saved)
"""


def test_without_importing_this_package(folder, tmp_path, pixels):
    """The card's snippet, in a process of its own; and what transformers saves, timm loads."""
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "a.png"), str(tmp_path / "saved")],
        env={
            **os.environ,
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(lambdaresnet_zoo.__file__).parents[1]),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    ours = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(ours))
    with torch.inference_mode():
        probabilities = ours(transform(Image.fromarray(pixels()))[None])[0].softmax(0)
    values, indices = probabilities.topk(3)
    shown = [line.split() for line in process.stdout.splitlines()]
    assert [label for label, _ in shown] == [LABELS[index] for index in indices]
    assert [float(score) for _, score in shown] == pytest.approx(values.tolist(), abs=1e-5)
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in ours.state_dict().items())
