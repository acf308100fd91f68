"""The blocks of the LambdaResNets beside timm's own, of which they are made."""

import copy

import pytest
import timm
import torch
from timm.models.byobnet import BottleneckBlock, SelfAttnBlock

from lambdaresnet_zoo.models.blocks import InPlaceBottleneckBlock, InPlaceSelfAttnBlock

THEIRS = {InPlaceBottleneckBlock: BottleneckBlock, InPlaceSelfAttnBlock: SelfAttnBlock}
OPTIONS = {
    "lambdaresnet50": {"drop_path_rate": 0.5},
    "lambdaresnet26t": {"drop_path_rate": 0.2},
    "lambdaresnet50ts": {},
}
"""With squeeze-and-excitation and pooled shortcuts; with projected shortcuts; with SiLU."""


@pytest.fixture(params=OPTIONS)
def pair(request):
    """A network, and the same on timm's own blocks."""
    torch.manual_seed(0)
    network = timm.create_model(request.param, **OPTIONS[request.param])
    other = copy.deepcopy(network)
    blocks = [module for module in other.modules() if type(module) in THEIRS]
    assert {type(block) for block in blocks} == set(THEIRS)
    for block in blocks:
        block.__class__ = THEIRS[type(block)]
    return network, other


@pytest.mark.parametrize("training", [False, True])
def test_outputs_gradients_and_statistics_are_those_of_timms_blocks(pair, training):
    found = []
    for network in pair:
        network.train(training)
        torch.manual_seed(1)
        x = torch.randn(2, 3, 64, 96, requires_grad=True)
        output = network(x)
        output.square().sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        found.append([output, x.grad, *gradients, *network.buffers()])
    for own, their in zip(*found, strict=True):
        assert torch.equal(own, their)


def test_a_block_needs_no_memory_for_its_sum(pair):
    network = pair[0].eval()
    blocks = [module for module in network.modules() if type(module) in THEIRS]
    last, sums = [], []
    for block in blocks:
        block.conv3_1x1.register_forward_hook(lambda _module, _input, output: last.append(output.data_ptr()))
        block.act.register_forward_hook(lambda _module, _input, output: sums.append(output.data_ptr()))
        if hasattr(block, "attn_last"):
            block.attn_last = torch.nn.Identity()  # which makes a map of its own
    with torch.inference_mode():
        network(torch.randn(1, 3, 64, 64))
    assert len(sums) == len(blocks) and sums == last
