"""A LambdaResNet from a ResNet-RS: what the two share comes over to the bit, the rest is counted."""

import re

import pytest
import timm
import torch
from command import one_line
from safetensors.torch import load_file, save, save_file

from lambdaresnet_zoo.conversion.warm_start import PAIRS, warm_start
from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.layers import LambdaLayer

REPO = "timm/resnetrs50.tf_in1k"


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    model = timm.create_model("resnetrs50")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.running_mean)
            module.num_batches_tracked.fill_(7)
    return model.state_dict()


def test_what_is_shared_comes_over(source):
    model, rows = warm_start("lambdaresnet50", source)
    own = model.state_dict()
    assert {row.key for row in rows if row.status in ("mapped", "initialised")} == own.keys()
    assert {row.source for row in rows if row.status in ("mapped", "left")} == source.keys()
    for row in rows:
        if row.status == "mapped":
            assert torch.equal(own[row.key], source[row.source])
    # All but the lambda layers and the statistics of the norm after them.
    initialised = {row.key for row in rows if row.status == "initialised"}
    lambdas = r"\.self_attn\.|\.post_attn\.(running_mean|running_var|num_batches_tracked)$"
    assert initialised == {key for key in own if re.search(lambdas, key)}
    # All but the convolutions that lambda layers replace, their statistics, and SE beyond c3.
    left = {row.source for row in rows if row.status == "left"}
    lambda_blocks = [(3, 2), (4, 0), (4, 1), (4, 2)]
    replaced = r"conv2\.weight|bn2\.(running_mean|running_var|num_batches_tracked)"
    blocks = "|".join(rf"layer{stage}\.{block}\.({replaced})" for stage, block in lambda_blocks)
    assert left == {key for key in source if re.fullmatch(rf"{blocks}|layer[34]\.\d\.se\..*", key)}
    layers = [module for module in model.modules() if isinstance(module, LambdaLayer)]
    assert len(layers) == 4 and all(layer.position.table.std() > 0.9 for layer in layers)


def test_stem_and_stages_compute_the_same(source):
    """Up to c3 the two networks are one; from equal names alone that would not follow."""
    theirs = timm.create_model("resnetrs50").eval()
    theirs.load_state_dict(source)
    model, _ = warm_start("lambdaresnet50", source)
    x = torch.randn(2, 3, 97, 128, generator=torch.manual_seed(0))
    with torch.inference_mode():
        (expected,) = theirs.forward_intermediates(x, indices=[2], intermediates_only=True)
        (found,) = model.eval().forward_intermediates(x, indices=[2], intermediates_only=True)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", PAIRS)
def test_every_depth(name):
    """On the meta device: every tensor has its place."""
    with torch.device("meta"):
        state = timm.create_model(PAIRS[name]).state_dict()
        model, rows = warm_start(name, state)
    initialised = {row.key for row in rows if row.status == "initialised"}
    assert all(".self_attn." in key or ".post_attn." in key for key in initialised)
    layers = sum(isinstance(module, LambdaLayer) for module in model.modules())
    assert len({key for key in initialised if key.endswith("position.table")}) == layers > 0
    mapped = [row.key for row in rows if row.status == "mapped"]
    assert len(mapped) == len(set(mapped)) == len(model.state_dict()) - len(initialised)


def test_the_same_source_gives_the_same_start(source):
    first, _ = warm_start("lambdaresnet50", source)
    torch.manual_seed(99)
    second, _ = warm_start("lambdaresnet50", source)
    state = second.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in first.state_dict().items())


def test_from_the_hub(source, hub, command, tmp_path, monkeypatch):
    """As the README has it: the folder's name is the model's."""
    monkeypatch.chdir(tmp_path)
    timm.models.save_for_hf(timm.create_model("resnetrs50"), tmp_path / "rs", safe_serialization=True)
    config = (tmp_path / "rs" / "config.json").read_bytes()
    hub.add(REPO, {"model.safetensors": save(source), "config.json": config})
    status, out, err = command("convert", "--warm-start", REPO, "lambdaresnet50")
    assert (status, err) == (0, [])
    assert out[0] == f"{REPO}: warm start from resnetrs50" and out[1] == "model: lambdaresnet50"
    assert out[2] == "tensors: 350 mapped, 60 initialised, 52 left"
    folder = tmp_path / "lambdaresnet50"
    card = (folder / "README.md").read_text()
    for text in ("This is no trained LambdaResNet", f"base_model: {REPO}", "350 tensors came over, 60 are initialised"):
        assert text in card
    assert "license: apache-2.0" in card  # of the source
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5)
    written = load_file(folder / "model.safetensors")
    assert torch.equal(model.stem.conv1.conv.weight, source["conv1.0.weight"])
    assert torch.equal(model.stages[2][2].self_attn.qkv.weight, written["stages.2.2.self_attn.qkv.weight"])
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()


def test_what_is_no_start(source, command, tmp_path):
    path = tmp_path / "rs50.safetensors"
    save_file(source, path)
    start = ("convert", "--warm-start", path)
    one_line(command(*start, tmp_path / "lambdaresnet101"), "no weights of resnetrs101", "layer3.6.conv1.weight")
    one_line(command(*start, tmp_path / "mine"), "'mine' is no model", "--model")
    one_line(command(*start, tmp_path / "out", "--model", "lambdaresnet26t"), "'lambdaresnet26t' has no warm start")
    one_line(command("convert", path, tmp_path / "out"), "unknown layout")
    assert [entry.name for entry in tmp_path.iterdir()] == ["rs50.safetensors"]
    assert command(*start, tmp_path / "out", "--model", "lambdaresnet50")[0] == 0
    with pytest.raises(UserError, match=r"layer1\.0\.conv2\.weight"):
        warm_start("lambdaresnet50", source | {"layer1.0.conv2.weight": torch.ones(1)})
