"""Layers that share one table of position embeddings: saved once, shared through copies, never lost."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lambdaresnet_zoo.layers import LambdaLayer


class Stage(nn.Sequential):
    """Three layers that share the embeddings of the first."""

    def __init__(self) -> None:
        super().__init__(*(LambdaLayer(8, scope=5, position_bias=True) for _ in range(3)))
        for layer in list(self)[1:]:
            layer.share_position(self[0])


def test_shared_embeddings_are_one_parameter_saved_once(tmp_path):
    torch.manual_seed(0)
    stage = Stage().eval()
    names = [name for name, _ in stage.named_parameters() if "position" in name]
    assert names == ["0.position.table", "0.position.bias"]
    state = stage.state_dict()
    assert [key for key in state if "position" in key] == names
    save_file(state, tmp_path / "stage.safetensors")
    torch.manual_seed(1)
    other = Stage().eval()
    other.load_state_dict(load_file(tmp_path / "stage.safetensors"), strict=True)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(other(x), stage(x))
    assert other[2].position is other[0].position


def test_shared_embeddings_stay_shared():
    stage = Stage()
    x = torch.randn(2, 8, 6, 6)
    for moved in (copy.deepcopy(stage), stage.double().float(), Stage().to("meta").to_empty(device="cpu")):
        assert moved[1].position.table is moved[0].position.table
    stage(x).sum().backward()
    alone = [LambdaLayer(8, scope=5, position_bias=True) for _ in range(3)]
    for mine, theirs in zip(stage, alone, strict=True):
        theirs.qkv.load_state_dict(mine.qkv.state_dict())
        theirs.position.load_state_dict(mine.position.state_dict())
    nn.Sequential(*alone)(x).sum().backward()
    torch.testing.assert_close(
        stage[0].position.table.grad, sum(layer.position.table.grad for layer in alone), rtol=1e-4, atol=1e-4
    )


def test_embeddings_of_another_shape_are_not_shared():
    with pytest.raises(ValueError, match=r"share_position needs tables of one shape"):
        LambdaLayer(8, scope=5).share_position(LambdaLayer(8, scope=7))
    with pytest.raises(ValueError, match="a position bias, or two without"):
        LambdaLayer(8, scope=5).share_position(LambdaLayer(8, scope=5, position_bias=True))
    with pytest.raises(ValueError, match="position embeddings"):
        LambdaLayer(8, position=False).share_position(LambdaLayer(8, scope=7))


def test_embeddings_that_others_share_are_not_given_up():
    first, second, third = (LambdaLayer(8, scope=5) for _ in range(3))
    third.share_position(second)
    with pytest.raises(ValueError, match="let it share an earlier one's first"):
        second.share_position(first)
    assert third.position is second.position  # nothing was done


def test_layers_that_share_a_global_table_are_resized_together():
    layers = [LambdaLayer(8, feat_size=4, scope=None) for _ in range(2)]
    layers[1].share_position(layers[0])
    layers[1].set_feat_size(6)
    assert layers[0](torch.randn(2, 8, 6, 6)).shape == (2, 8, 6, 6)
    with pytest.raises(ValueError, match="feat_size 6x6 got 4x4"):
        layers[0](torch.randn(2, 8, 4, 4))
