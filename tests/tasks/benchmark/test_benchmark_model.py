"""Networks that are compared: the pairs, the swapped layer, equal weights, what a step does."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.layers.lambda_layer import LambdaLayer as TimmLayer

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.models.lambdaresnet import NETWORKS
from lambdaresnet_zoo.models.lambdaresnet_public import from_timm
from lambdaresnet_zoo.models.network import lambda_layers
from lambdaresnet_zoo.tasks.benchmark import model
from lambdaresnet_zoo.tasks.benchmark.compare import Limits, Setting
from lambdaresnet_zoo.tasks.benchmark.model import Case
from lambdaresnet_zoo.weights.benchmarks import UNFOLDED, ZOO

CPU = Setting(torch.device("cpu"), limits=Limits(repeats=1))

# From the paper's tables: top-1 of the family beside that of EfficientNet B0 to B7.
PAIRS = {
    ("lambdaresnet50", 128): ("efficientnet_b0", 224),
    ("lambdaresnet50", 160): ("efficientnet_b1", 240),
    ("lambdaresnet101", 160): ("efficientnet_b2", 260),
    ("lambdaresnet101", 192): ("efficientnet_b3", 300),
    ("lambdaresnet152", 192): ("efficientnet_b4", 380),
    ("lambdaresnet152", 224): ("efficientnet_b4", 380),
    ("lambdaresnet152", 256): ("efficientnet_b5", 456),  # as near as B6, and cheaper
    ("lambdaresnet270", 256): ("efficientnet_b7", 600),
    ("lambdaresnet350", 256): ("efficientnet_b7", 600),
    ("lambdaresnet350", 288): ("efficientnet_b7", 600),
    ("lambdaresnet350", 320): ("efficientnet_b7", 600),
}


def test_each_is_paired_with_the_nearest_efficientnet():
    cases = model.cases()
    family = {(case.model, case.size): (case.efficientnet, case.efficientnet_size) for case in cases[:-1]}
    assert family == PAIRS
    assert cases[-1] == Case("lambdaresnet26t", 256)
    for case in cases:
        assert set(case.networks("inference")) - set(case.networks("training")) == {UNFOLDED}
        for kind, (name, _) in case.networks("inference").items():
            assert timm.is_model(name), (case, kind)


def test_resnet_rs_is_of_the_same_depth_and_size():
    networks = Case("lambdaresnet152", 224, "efficientnet_b4", 380).networks("training")
    assert networks["resnet-rs"] == ("resnetrs152", 224)
    assert any("se." in name for name, _ in timm.create_model("resnetrs152", device="meta").named_parameters())


def test_the_network_on_timms_layer_is_the_same_otherwise():
    own = timm.create_model("lambdaresnet50", device="meta")
    theirs = model._on_timm_layer("lambdaresnet50")
    layers = {name: module for name, module in theirs.named_modules() if isinstance(module, TimmLayer)}
    scope = NETWORKS["lambdaresnet50"].self_attn_kwargs["scope"]
    assert len(layers) == 4
    assert all(layer.conv_lambda.kernel_size == (scope, scope, 1) for layer in layers.values())

    def others(network):
        return {
            name: value.shape
            for name, value in network.state_dict().items()
            if not any(name.startswith(f"{layer}.") for layer in layers)
        }

    assert others(own) == others(theirs)
    assert not any(isinstance(module, TimmLayer) for module in own.modules())  # the registered one is as it was


@pytest.mark.slow
def test_the_pair_of_equal_weights_gives_equal_outputs(monkeypatch):
    model.check_pair()
    monkeypatch.setattr(
        model, "from_timm", lambda state: {key: value + 1e-2 for key, value in from_timm(state).items()}
    )
    with pytest.raises(UserError, match="differ by"):
        model.check_pair()


@pytest.mark.slow
def test_a_case_has_a_row_for_each_network():
    rows = model.measure(Case("lambdaresnet26t", 256), 1, "inference", CPU)
    assert [(row["kind"], row["network"], row["status"]) for row in rows] == [
        ("zoo", "lambdaresnet26t", "measured"),
        ("zoo unfolded", "lambdaresnet26t", "measured"),
        ("timm", "lambda_resnet26t", "measured"),
    ]
    assert all(set(row) == set(model.FIELDS) for row in rows)
    assert rows[0]["times_zoo"] == "1.0000" and float(rows[1]["peak_mib"]) > 0


@pytest.mark.parametrize("kind", [ZOO, UNFOLDED])
def test_networks_are_compared_channels_last_and_folded_where_they_can_be(monkeypatch, kind):
    network, seen = timm.create_model("test_lambdaresnet").eval(), []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    monkeypatch.setattr(model, "_network", lambda *_: network)
    model._build(kind, "test_lambdaresnet", 64, 1, "inference", CPU)()
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert (norms == len(lambda_layers(network))) is (kind == ZOO)
    for tensor in (*seen, network.stem.conv1.conv.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert len(seen) == 1


def test_a_weight_of_five_dimensions_stays_as_it_is_where_the_others_are_channels_last():
    theirs = model._channels_last(timm.create_model("lambda_resnet26t", device="meta"))
    assert theirs.stem.conv1.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_training_step_trains_and_holds_nothing_after():
    torch.manual_seed(0)
    network = timm.create_model("test_lambdaresnet", num_classes=1000).train()
    before = {name: value.clone() for name, value in network.named_parameters()}
    model._training_step(network, torch.randn(2, 3, 96, 96), CPU)()
    assert all(parameter.grad is None for parameter in network.parameters())
    changed = [name for name, value in network.named_parameters() if not torch.equal(value, before[name])]
    assert "head.fc.weight" in changed


def test_networks_may_take_longer_and_more_memory():
    of_layer = Limits()
    assert model.limits(of_layer) == replace(of_layer, repeats=5, pass_seconds=180.0, memory_gib=16.0)
