"""The layers that are compared: each maps [B, dim, size, size] to the same shape with 4 heads.

All of a shape have the same input and output; parameters are their own, at each one's own initialisation, as
speed does not depend on their values.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.lambda_layer import LambdaLayer as TimmLambdaLayer
from torch import Tensor, nn

from ...errors import UserError
from ...layers import LambdaLayer
from ...weights.benchmarks import BESIDE, UNFOLDED, ZOO

__all__ = ["HEADS", "PEERS", "QUERY_DEPTH", "FusedAttention", "Shape", "layers_for"]

HEADS = 4
QUERY_DEPTH = 16


@dataclass(frozen=True)
class Shape:
    """What a layer is measured on, without its batch."""

    dim: int
    """Channels of input and output; each of the 4 heads has a quarter."""
    size: int
    """Height and width of the map."""
    scope: int | None
    """Of a local context, odd; None for a global one. Attention is global whatever it says."""

    def __str__(self) -> str:
        return f"{self.dim},{self.size},{'global' if self.scope is None else self.scope}"

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """``DIM,SIZE,SCOPE`` as the command line has it, SCOPE a number or ``global``.

        Raises:
            ValueError: anything else, or what no layer can be made of; the message says which.
        """
        parts = text.split(",")
        if len(parts) != 3 or not all(part.isdecimal() for part in (*parts[:2], parts[2].replace("global", "1"))):
            raise ValueError(f"'{text}' is not DIM,SIZE,SCOPE, as 512,14,23 or 256,14,global")
        dim, size, scope = int(parts[0]), int(parts[1]), None if parts[2] == "global" else int(parts[2])
        if dim < 1 or dim % (2 * HEADS) or size < 1:
            raise ValueError(f"'{text}': DIM is a multiple of {2 * HEADS} and SIZE at least 1")
        if scope is not None and scope % 2 == 0:
            raise ValueError(f"'{text}': SCOPE is odd")
        return cls(dim, size, scope)


def zoo(shape: Shape) -> nn.Module:
    """The layer of this package, which picks its order of contraction by itself."""
    return LambdaLayer(
        shape.dim, num_heads=HEADS, query_depth=QUERY_DEPTH, scope=shape.scope, feat_size=(shape.size, shape.size)
    )


def timm_local(shape: Shape) -> nn.Module:
    """Timm's layer with a local scope: a lambda convolution (3-d, with bias)."""
    return TimmLambdaLayer(shape.dim, num_heads=HEADS, dim_head=QUERY_DEPTH, r=shape.scope)


def timm_global(shape: Shape) -> nn.Module:
    """Timm's layer with relative embeddings of every pair of positions: what it has without a scope.

    At a shape with a local scope it is a peer all the same, as a user may take it there.
    """
    size = (shape.size, shape.size)
    return TimmLambdaLayer(shape.dim, num_heads=HEADS, dim_head=QUERY_DEPTH, r=None, feat_size=size)


def lambda_networks_local(shape: Shape) -> nn.Module:
    """The PyPI package lambda-networks with a local scope: a lambda convolution (3-d, with bias)."""
    return _lambda_networks(shape.dim, r=shape.scope)


def lambda_networks_global(shape: Shape) -> nn.Module:
    """The PyPI package lambda-networks without a scope, at a shape with a local one, too."""
    return _lambda_networks(shape.dim, n=shape.size)


def _lambda_networks(dim: int, r: int | None = None, n: int | None = None) -> nn.Module:
    try:
        from lambda_networks import LambdaLayer as Layer
    except ImportError as error:
        raise UserError('lambda-networks is to compare with: pip install "lambdaresnet-zoo[benchmark]"') from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a call that torch will change
        layer: nn.Module = Layer(dim, dim_k=QUERY_DEPTH, r=r, n=n, heads=HEADS)
    return layer


def attention(shape: Shape, head_depth: int | None = None, fused: bool = False) -> nn.Module:
    """Multi-head self-attention over all positions with relative positions that depend on the query.

    timm's BottleneckAttn: logits q k / sqrt(depth) plus q r for a row offset and one for a column offset, a
    softmax, and the values; heads have keys and values of their own.

    Args:
        shape: its scope plays no part.
        head_depth: of queries and keys. Default: dim / heads, the usual, which is that of the values.
        fused: the same sum on the same parameters by torch's scaled_dot_product_attention.
    """
    layer = FusedAttention if fused else BottleneckAttn
    return layer(shape.dim, feat_size=(shape.size, shape.size), num_heads=HEADS, dim_head=head_depth)


class FusedAttention(BottleneckAttn):
    """timm's BottleneckAttn by scaled_dot_product_attention, whose mask carries the relative logits.

    The parameters, their names and the outputs are those of its parent, at stride 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, h, w] -> [B, dim, h, w]."""
        batch, _, height, width = x.shape
        depths = (self.dim_out_qk, self.dim_out_qk, self.dim_out_v)
        maps = self.qkv(x).split(depths, dim=1)
        q, k, v = (each.reshape(batch, self.num_heads, -1, height * width).transpose(2, 3) for each in maps)
        logits = self.pos_embed(q.flatten(0, 1)).unflatten(0, (batch, self.num_heads))  # [B, H, N, N]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=logits)
        return out.transpose(2, 3).reshape(batch, self.dim_out_v, height, width)


PEERS: dict[str, Callable[[Shape], nn.Module]] = {
    "timm": timm_local,
    "timm global": timm_global,
    "lambda-networks": lambda_networks_local,
    "lambda-networks global": lambda_networks_global,
    "attention": attention,
    "attention fused": partial(attention, fused=True),
    BESIDE: partial(attention, head_depth=QUERY_DEPTH),
}
"""By the name in the results. The last is beside the peers: attention as nobody uses it, with queries and keys as short
as a lambda layer's, to tell what the order of contraction gains from what the short queries do."""
LOCAL = ("timm", "lambda-networks")
"""Those that need a local scope."""


def layers_for(shape: Shape, training: bool = False) -> dict[str, Callable[[], nn.Module]]:
    """Builders of the layers that are compared at a shape, by name: this package's, in evaluation twice, and peers."""
    own = dict.fromkeys((ZOO,) if training else (ZOO, UNFOLDED), zoo)
    peers = {name: build for name, build in PEERS.items() if shape.scope is not None or name not in LOCAL}
    return {name: partial(build, shape) for name, build in {**own, **peers}.items()}
