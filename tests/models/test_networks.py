"""What a user of timm does with a model: sizes, options, layouts, compilers; beyond timm's own tests."""

import copy

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import reparameterize_model
from torch.export import Dim

import lambdaresnet_zoo
from lambdaresnet_zoo.models import (
    lambdaresnet,
    lambdaresnet_ports,
    lambdaresnet_public,
    lambdaresnet_small,
    lambdaresnet_study,
)
from lambdaresnet_zoo.models.network import lambda_layers

SMALL = ["test_lambdaresnet", "lambdaresnet32px", "lambda_mobilenetv2_100", "lambdaresnet26t"]
FAMILIES = (lambdaresnet, lambdaresnet_ports, lambdaresnet_public, lambdaresnet_small, lambdaresnet_study)


def create(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs).eval()


LEADERJ1001 = ["lambdaresnet18_leaderj1001", "lambdaresnet18_leaderj1001_v0"]


@pytest.mark.parametrize("name", [*SMALL, "lambdaresnet50", "lambdaresnet50_llll_shared", *LEADERJ1001])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96), pytest.param((250, 333), marks=pytest.mark.slow)])
def test_any_size_from_32_up(name, size):
    model = create(name)
    with torch.inference_mode():
        x = torch.randn(1, 3, *size)
        assert model(x).shape == (1, model.num_classes)
        for feature, info in zip(
            model.forward_intermediates(x, intermediates_only=True), model.feature_info, strict=True
        ):
            assert feature.shape[2:] == tuple(-(-pixels // info["reduction"]) for pixels in size)


@pytest.mark.parametrize("name", ["test_lambdaresnet", "lambdaresnet26t", "lambda_mobilenetv2_100", *LEADERJ1001])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_keeps_resolution(name, output_stride):
    features = create(name, features_only=True, output_stride=output_stride)
    with torch.inference_mode():
        maps = features(torch.randn(1, 3, 96, 128))
    for tensor, reduction in zip(maps, features.feature_info.reduction(), strict=True):
        assert tensor.shape[2:] == (96 // reduction, 128 // reduction)
    assert max(features.feature_info.reduction()) == output_stride


@pytest.mark.parametrize("name", [*SMALL, "lambdaresnet50", "lambdaresnet26rpt_256", *LEADERJ1001])
def test_folding_batch_norms_changes_no_output(name):
    """All but those behind a lambda layer, and timm's own blocks of MobileNetV2."""
    model = create(name).double()
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif key.endswith("running_mean"):
            value.normal_(std=0.1)
    folded = reparameterize_model(model)
    size = model.default_cfg["input_size"][1] if name == "lambdaresnet26rpt_256" else 65
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(folded(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    norms = [key for key, module in folded.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if name != "lambda_mobilenetv2_100":
        assert len(norms) == len(lambda_layers(model)) and all(key.endswith("post_attn") for key in norms)
    assert not any("self_attn" in key for key in norms)


def test_folding_is_for_evaluation_and_goes_where_features_are_taken():
    model = create("test_lambdaresnet", features_only=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for found, expected in zip(reparameterize_model(model)(x), model(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        reparameterize_model(model.train())


@pytest.mark.parametrize("name", ["test_lambdaresnet", "lambdaresnet26rpt_256", "lambda_mobilenetv2_100"])
def test_unknown_arguments_raise(name):
    with pytest.raises(TypeError, match="scpoe"):
        timm.create_model(name, scpoe=7)


def test_options_reach_the_network():
    model = create("test_lambdaresnet", in_chans=1, num_classes=5, global_pool="max", drop_rate=0.1, drop_path_rate=0.2)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    assert model.global_pool == "max"


@pytest.mark.parametrize(
    ("name", "option", "scopes"),
    [
        ("lambdaresnet50", "query_depth", [23]),
        ("lambdaresnet270_c4", "query_depth", [7]),
        ("lambdaresnet26t", "num_heads", [9]),
        ("lambdaresnet32px", "query_depth", [7, 15]),
    ],
)
def test_a_layer_option_changes_that_and_no_other(name, option, scopes):
    def layers(**kwargs):
        return lambda_layers(timm.create_model(name, device="meta", **kwargs))

    for layer, before in zip(layers(self_attn_kwargs={option: 8}), layers(), strict=True):
        assert getattr(layer, option) == 8
        assert layer.scope == before.scope
        assert layer.scope in scopes
        assert str(layer.pool) == str(before.pool)
        assert (layer.position.bias is None) == (before.position.bias is None)
    assert {layer.scope for layer in layers(self_attn_kwargs={"scope": 3})} == {3}


def test_overriding_a_network_leaves_the_registered_one():
    before = copy.deepcopy([family.NETWORKS for family in FAMILIES])
    for name in (
        "lambdaresnet50",
        "lambdaresnet50_llll",
        "lambdaresnet26t",
        "test_lambdaresnet",
        "lambdaresnet26_dli14",
    ):
        timm.create_model(name, device="meta", self_attn_kwargs={"scope": 3}, act_layer="silu", share_position=True)
    assert [family.NETWORKS for family in FAMILIES] == before


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_gives_the_same(name):
    model = create(name).double()  # so that rounding cannot hide a wrong layout, nor fail a right one
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(x)
        out = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_lambdaresnet", "lambda_mobilenetv2_100", "lambdaresnet26t"])
def test_exports_with_dynamic_batch_height_and_width(name):
    """From 33 pixels: at 32 the last map is one pixel, and torch.export sets sizes of one apart."""
    model = create(name).double()
    shapes = {0: Dim("batch"), 2: Dim("height", min=33), 3: Dim("width", min=33)}
    program = torch.export.export(model, (torch.randn(2, 3, 96, 128).double(),), dynamic_shapes=(shapes,)).module()
    with torch.inference_mode():
        for size in ((1, 3, 64, 64), (3, 3, 97, 65), (1, 3, 250, 333)):
            x = torch.randn(*size, dtype=torch.float64)
            torch.testing.assert_close(program(x), model(x))


@pytest.mark.slow
def test_compiles_as_one_graph_with_gradients():
    """Without code generation, which needs a C++ compiler; the layer's own test has that."""
    model = create("test_lambdaresnet").double().train()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for size in ((64, 64), (97, 65)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        out, expected = compiled(x), model(x)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize(
    ("name", "options"),
    [("lambdaresnet32px", {}), ("lambdaresnet50ts", {"self_attn_kwargs": {"scope": None}, "img_size": 64})],
    ids=["local", "global"],
)
def test_shared_embeddings_save_and_load(name, options, tmp_path):
    model = create(name, share_position=True, **options)
    tables = [key for key in model.state_dict() if key.endswith("position.table")]
    layers = lambda_layers(model)
    assert len(tables) == len({id(layer.position) for layer in layers}) < len(layers)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = create(name, seed=1, share_position=True, **options)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    with torch.inference_mode():
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(other(x), model(x))
    study = timm.create_model("lambdaresnet50_llll_shared", device="meta")
    tables = [key for key in study.state_dict() if key.endswith("position.table")]
    assert tables == [f"stages.{stage}.0.self_attn.position.table" for stage in range(4)]


@pytest.mark.parametrize("name", ["test_lambdaresnet", "lambdaresnet26t"])
def test_scripts_save_and_load(name, tmp_path):
    model = create(name).double()
    x = torch.randn(1, 3, 64, 80, dtype=torch.float64)
    with torch.inference_mode():
        for script in (torch.jit.script(model), torch.jit.trace(model, x)):
            torch.jit.save(script, tmp_path / "model.pt")
            torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(x), model(x))


def test_saves_and_loads_as_timm_does(tmp_path):
    model = create("test_lambdaresnet", num_classes=3)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(again(x), model(x))


class TestWithoutPublicWeights:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            (
                "lambdaresnet50",
                [
                    "--warm-start timm/resnetrs50.tf_in1k lambdaresnet50",
                    "lambdaresnet-zoo train --recipe paper-350ep --model lambdaresnet50",
                ],
            ),
            ("lambdaresnet200", ["--warm-start timm/resnetrs200.tf_in1k lambdaresnet200"]),
            ("lambdaresnet50_llll", []),
            ("lambda_mobilenetv2_100", []),
        ],
    )
    def test_says_so_and_what_there_is(self, name, parts):
        with pytest.raises(RuntimeError) as caught:
            timm.create_model(name, pretrained=True)
        message = str(caught.value)
        assert message.startswith(f"{name} has no public weights; models that have: ")
        assert "\n" not in message
        with_weights = lambdaresnet_zoo.list_models(pretrained=True)
        assert with_weights and ", ".join(with_weights) in message
        assert all(part in message for part in parts)
        family = name in ("lambdaresnet50", "lambdaresnet200")
        assert ("--warm-start" in message, "--recipe" in message) == (family, family)

    def test_a_file_to_download_is_told(self):
        with pytest.raises(RuntimeError, match=r"no weights that timm loads by its name, but a file.*d-li14"):
            timm.create_model("lambdaresnet50_dli14", pretrained=True)

    @pytest.mark.parametrize("name", ["test_lambdaresnet", "lambda_mobilenetv2_100"])
    def test_loads_those_of_a_source_that_is_given(self, name, tmp_path, hub):
        saved = create(name, seed=1)
        timm.models.save_for_hf(saved, tmp_path / "folder", safe_serialization=True)
        file = tmp_path / "folder" / "model.safetensors"
        hub.add("me/model", {path.name: path for path in (tmp_path / "folder").iterdir()})
        overlays = [{"file": str(file)}, {"state_dict": saved.state_dict()}, {"hf_hub_id": "me/model"}]
        models = [create(name, pretrained=True, pretrained_cfg_overlay=overlay) for overlay in overlays]
        models.append(create(f"local-dir:{tmp_path / 'folder'}", pretrained=True))
        models.append(create("hf-hub:me/model", pretrained=True))
        for model in models:
            assert all(torch.equal(value, saved.state_dict()[key]) for key, value in model.state_dict().items())


class TestGlobalScope:
    """`lambdaresnet26rpt_256`, the one model bound to a size."""

    @pytest.mark.parametrize("size", [(128, 128), (250, 333), (96, 160)])
    def test_is_built_for_any_size(self, size):
        model = create("lambdaresnet26rpt_256", img_size=size)
        with torch.inference_mode():
            assert model(torch.randn(1, 3, *size)).shape == (1, 1000)

    def test_can_be_given_another_size(self):
        model = create("lambdaresnet26rpt_256").to(torch.float64)
        model.stages[3][0].self_attn.position.table.requires_grad_(False)
        model.set_input_size(img_size=(160, 96))
        assert model(torch.randn(1, 3, 160, 96, dtype=torch.float64)).dtype == torch.float64
        assert not model.stages[3][0].self_attn.position.table.requires_grad
        with pytest.raises(ValueError, match="call set_feat_size"):
            model(torch.randn(1, 3, 256, 256, dtype=torch.float64))

    def test_is_saved_with_its_size(self, tmp_path):
        model = create("lambdaresnet26rpt_256")
        model.set_input_size((128, 96))
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        with torch.inference_mode():
            x = torch.randn(1, 3, 128, 96)
            assert torch.equal(again(x), model(x))

    def test_output_stride(self):
        model = create("lambdaresnet26rpt_256", img_size=128, output_stride=16)
        with torch.inference_mode():
            assert model.forward_features(torch.randn(1, 3, 128, 128)).shape[2:] == (8, 8)
        model.set_input_size((96, 64))
        with torch.inference_mode():
            assert model.forward_features(torch.randn(1, 3, 96, 64)).shape[2:] == (6, 4)

    def test_local_networks_take_any_size_already(self):
        model = create("test_lambdaresnet")
        before = copy.deepcopy(model.state_dict())
        model.set_input_size(64)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
