"""The lambda layer on images.

LambdaNetworks: Modeling Long-Range Interactions Without Attention
(I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602), sections 2 and 3.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. Here the context is the input: N = M = h * w.

Differences from the paper
    - One 1x1 projection computes queries, keys and values; its three parts keep their own
      initialisation.
    - The paper does not say along which axis keys are L2-normalised: over the context, as its
      softmax is. Nor how queries are: over the query depth.
    - The paper does not say how its 3x3 average pool pads: by 1, padding not counted.
    - Extensions for public weights: biases (timm's and d-li14's), batch-normalised keys (leaderj1001's),
      the 2x2 average pool of timm's lambda nets, and the padded and counted 3x3 one of the other two,
      which leaderj1001 applies at stride 1, too.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contraction import content_lambda, content_output
from .folding import check_evaluation, folded, folds
from .plan import IMPLEMENTATIONS
from .planned import grid_output
from .pooling import CeilAvgPool2d
from .projection import Projection
from .reference import KEY_NORMS

__all__ = ["LambdaLayer", "RelativePosition"]

QUERY_NORMS = ("none", "softmax", "l2")
POOLS = ("avg3", "avg3_counted", "avg2")


class RelativePosition(nn.Module):
    """A learned embedding for every offset between query and context: the table [K, U, Rh, Rw].

    A module of its own so that the lambda layers of a stage can share one.

    Args:
        query_depth: K.
        intra_depth: U.
        scope: (Rh, Rw), both odd; a global table for a grid of h x w has (2h - 1, 2w - 1).
        bias: add a learned [K] to every position lambda, as the public weights of timm do.
    """

    def __init__(
        self,
        query_depth: int,
        intra_depth: int,
        scope: tuple[int, int],
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(query_depth, intra_depth, *scope, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(query_depth, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Unit normal embeddings, the paper's; zero bias."""
        nn.init.normal_(self.table)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.jit.ignore
    def resize(self, scope: tuple[int, int]) -> None:
        """Resample the table to another extent, bicubic, in float32; the zero offset stays at the centre."""
        if tuple(self.table.shape[2:]) == scope:
            return
        table = self.table.detach()
        if table.is_meta:
            resized = table.new_empty(*table.shape[:2], *scope)
        else:
            resized = F.interpolate(table.float(), size=scope, mode="bicubic", align_corners=True).to(table.dtype)
        self.table = nn.Parameter(resized, requires_grad=self.table.requires_grad)


class LambdaLayer(nn.Module):
    """Lambda layer, [B, dim, h, w] -> [B, dim_out, ceil(h / stride), ceil(w / stride)].

    Args:
        dim: input channels.
        dim_out: output channels, H * V. Default: ``dim``.
        feat_size: (h, w) of the input, needed by a global scope, ignored by a local one.
        stride: 1, or 2 for an average pool after the lambda.
        num_heads: H, the queries that share one lambda; divides ``dim_out``.
        query_depth: K.
        intra_depth: U.
        scope: extent r of a local context, odd: each query sees r x r positions around it, at any
            input size. None for a global one, bound to ``feat_size`` (see :meth:`set_feat_size`).
            The content lambda is global either way.
        content: use the content lambda.
        position: use the position lambdas.
        key_norm: ``softmax``, ``l2`` or ``none``, over the context.
        query_norm: ``none``, ``softmax`` or ``l2``, over the query depth.
        norm_q: batch-normalise the queries.
        norm_v: batch-normalise the values.
        norm_k: batch-normalise the keys, before ``key_norm``.
        pool: of stride 2: ``avg3`` is 3x3, the paper's; ``avg3_counted`` is that with its padding
            counted as zeros, and ``avg2`` is 2x2, for public weights that were trained so. All accept
            odd sizes; the two others do not count padding.
        pool_always: pool at stride 1, too; a 3x3 pool then smooths, and keeps the size.
        qkv_bias: bias on the projection.
        position_bias: bias on the position lambdas.
        order: ``auto``, or the contraction order to force: ``lambda``, ``query``, ``convolution``, or ``kernel``, a
            fused one for GPUs (see ``layers.plan``).
        memory_budget: of scratch, in MiB; the plan's own by default. A smaller one can cost time.

    Raises:
        ValueError: an argument that does not fit; the message names it and the values.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        feat_size: int | tuple[int, int] | None = None,
        stride: int = 1,
        num_heads: int = 4,
        query_depth: int = 16,
        intra_depth: int = 1,
        scope: int | None = 23,
        content: bool = True,
        position: bool = True,
        key_norm: str = "softmax",
        query_norm: str = "none",
        norm_q: bool = True,
        norm_v: bool = True,
        norm_k: bool = False,
        pool: str = "avg3",
        pool_always: bool = False,
        qkv_bias: bool = False,
        position_bias: bool = False,
        order: str = "auto",
        memory_budget: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        for name, value in (
            ("dim", dim),
            ("dim_out", dim_out),
            ("num_heads", num_heads),
            ("query_depth", query_depth),
            ("intra_depth", intra_depth),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if dim_out % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim_out={dim_out}")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride}")
        if not (content or position):
            raise ValueError("content=False and position=False leave nothing to compute")
        if norm_k and not content:
            raise ValueError("norm_k=True needs content=True")
        if scope is not None and (scope < 1 or scope % 2 == 0):
            raise ValueError(f"scope must be odd and positive, or None for a global one, got {scope}")
        _one_of("key_norm", key_norm, KEY_NORMS)
        _one_of("query_norm", query_norm, QUERY_NORMS)
        _one_of("pool", pool, POOLS)
        _one_of("order", order, ("auto", *IMPLEMENTATIONS))
        if memory_budget is not None and not 0 < memory_budget < math.inf:
            raise ValueError(f"memory_budget must be above 0 MiB and finite, got {memory_budget}")
        if pool_always and pool == "avg2":
            raise ValueError("pool_always=True needs a 3x3 pool, got pool='avg2'")

        self.dim = dim
        self.dim_out = dim_out
        self.stride = stride
        self.num_heads = num_heads
        self.query_depth = query_depth
        self.intra_depth = intra_depth
        self.value_depth = dim_out // num_heads
        self.scope = scope
        self.is_global = position and scope is None
        self.key_norm = key_norm
        self.query_norm = query_norm
        self.order = order
        self.memory_budget = memory_budget

        dims = [num_heads * query_depth, query_depth * intra_depth if content else 0, self.value_depth * intra_depth]
        self.split_dims = dims
        self.qkv = Projection(dim, sum(dims), bias=qkv_bias, device=device, dtype=dtype)
        self.norm_q = nn.BatchNorm2d(dims[0], device=device, dtype=dtype) if norm_q else nn.Identity()
        self.norm_k = nn.BatchNorm2d(dims[1], device=device, dtype=dtype) if norm_k else nn.Identity()
        self.norm_v = nn.BatchNorm2d(dims[2], device=device, dtype=dtype) if norm_v else nn.Identity()
        self.folded = False

        self.position: RelativePosition | None = None
        if position:
            if scope is None:
                if feat_size is None:
                    raise ValueError("feat_size is needed by a global scope (scope=None), got None")
                extent = _global_extent(_size("feat_size", feat_size))
            else:
                extent = (scope, scope)
            self.position = RelativePosition(
                query_depth, intra_depth, extent, bias=position_bias, device=device, dtype=dtype
            )
        elif position_bias:
            raise ValueError("position_bias=True needs position=True")
        self.shares_position = False
        self.lends_position = False

        self.pool: nn.Module = nn.Identity()
        if stride == 2 and pool == "avg2":
            self.pool = CeilAvgPool2d()
        elif stride == 2 or pool_always:
            self.pool = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=pool == "avg3_counted")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The paper's initialisation: W_K, W_V ~ N(0, 1/dim), W_Q ~ N(0, 1/(K dim)), embeddings ~ N(0, 1)."""
        # Not split(): its views would make this an in-place edit of one of several outputs.
        q, k, _ = self.split_dims
        std = self.dim**-0.5
        with torch.no_grad():
            nn.init.normal_(self.qkv.weight[:q], std=std * self.query_depth**-0.5)
            nn.init.normal_(self.qkv.weight[q : q + k], std=std)
            nn.init.normal_(self.qkv.weight[q + k :], std=std)
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)
        for norm in (self.norm_q, self.norm_k, self.norm_v):
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_parameters()
        if self.position is not None and not self.shares_position:
            self.position.reset_parameters()

    @torch.jit.ignore
    def share_position(self, other: "LambdaLayer") -> None:
        """Use the position embeddings of ``other``, an earlier layer of the same stage.

        The two layers then hold one module. It is saved once, under the name of ``other``, which
        must come first in the network: this layer's keys leave the state dict.

        Raises:
            ValueError: ``other`` has no embeddings, its table or bias has another shape, or it is this layer; or
                other layers share this one's embeddings already, which would then be saved nowhere.
        """
        if other is self:
            raise ValueError("a layer cannot share position embeddings with itself")
        if self.lends_position:
            raise ValueError("other layers share this layer's position embeddings: let it share an earlier one's first")
        if self.position is None or other.position is None:
            raise ValueError("share_position needs two layers with position embeddings")
        if (other.position.bias is None) != (self.position.bias is None):
            raise ValueError("share_position needs two layers with a position bias, or two without")
        if other.position.table.shape != self.position.table.shape:
            raise ValueError(
                f"share_position needs tables of one shape, got {tuple(self.position.table.shape)} "
                f"and {tuple(other.position.table.shape)}"
            )
        self.position = other.position
        other.lends_position = True
        if not self.shares_position:
            self.shares_position = True
            self.register_state_dict_post_hook(_drop_shared)
            self.register_load_state_dict_pre_hook(_restore_shared)

    @torch.jit.ignore
    def set_feat_size(self, feat_size: int | tuple[int, int]) -> None:
        """Give a global-scope layer another input size; its relative table is resampled.

        A local-scope layer takes any size and is left as it is.
        """
        extent = _global_extent(_size("feat_size", feat_size))
        if self.is_global and self.position is not None:
            self.position.resize(extent)

    @torch.jit.ignore
    def fuse(self) -> "LambdaLayer":
        """Fold the batch norms into the projection, which then has a bias, for evaluation alone; returns the layer.

        timm's ``reparameterize_model`` calls it for layers within a network.

        Raises:
            ValueError: the layer is in training mode.
        """
        check_evaluation(self)
        norms = {name: getattr(self, name) for name in ("norm_q", "norm_k", "norm_v")}
        self.qkv = folded(self.qkv, list(norms.values()), self.split_dims)
        for name, norm in norms.items():
            if folds(norm):
                setattr(self, name, nn.Identity())
        self.folded = all(isinstance(getattr(self, name), nn.Identity) for name in norms)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, h, w] -> [B, dim_out, h', w']; a global-scope layer accepts its own size alone."""
        queries, keys, values = self.qkv(x).split(self.split_dims, dim=1)
        if not self.folded:
            # Dense, as torch normalises strided maps on a CPU five times slower; a copy is made sooner or later anyway.
            queries = _flat(self.norm_q(queries.contiguous()))
            keys = _flat(self.norm_k(keys.contiguous()))
            values = _flat(self.norm_v(values.contiguous()))
        out = lambda_grid(
            queries,
            keys,
            values,
            None if self.position is None else self.position.table,
            None if self.position is None else self.position.bias,
            self.num_heads,
            self.query_depth,
            self.intra_depth,
            self.key_norm,
            self.query_norm,
            self.order,
            self.is_global,
            0.0 if self.memory_budget is None else self.memory_budget,
        )
        return self.pool(out)

    def extra_repr(self) -> str:
        """The shape of the layer, for ``print``."""
        scope = "none" if self.position is None else self.scope or "global"
        return (
            f"{self.dim}, {self.dim_out}, num_heads={self.num_heads}, query_depth={self.query_depth}, "
            f"intra_depth={self.intra_depth}, scope={scope}, stride={self.stride}"
        )


def lambda_grid(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor | None,
    bias: Tensor | None,
    num_heads: int,
    query_depth: int,
    intra_depth: int,
    key_norm: str,
    query_norm: str,
    order: str,
    is_global: bool,
    memory: float,
) -> Tensor:
    """Projected maps to output map: [B, HK, h, w], [B, KU or 0, h, w], [B, VU, h, w] -> [B, HV, h, w].

    One function, so that torch.fx can hold it as one node.
    """
    batch, _, height, width = queries.shape
    if is_global and table is not None and (table.shape[2] != 2 * height - 1 or table.shape[3] != 2 * width - 1):
        raise ValueError(
            f"a global-scope lambda layer for feat_size {(table.shape[2] + 1) // 2}x{(table.shape[3] + 1) // 2} "
            f"got {height}x{width}: call set_feat_size (or set_input_size on the network) first"
        )
    n = height * width
    # Channels are (heads, depth), (depth, u) and (value, u).
    value_depth = values.shape[1] // intra_depth
    queries = queries.reshape(batch, num_heads, query_depth, n)
    values = values.reshape(batch, value_depth, intra_depth, n)
    if query_norm != "none":
        precise = queries.to(torch.promote_types(queries.dtype, torch.float32))
        precise = precise.softmax(dim=2) if query_norm == "softmax" else F.normalize(precise, dim=2)
        queries = precise.to(queries.dtype)
    lambdas: Tensor | None = None
    if keys.shape[1] > 0:
        keys = keys.reshape(batch, query_depth, intra_depth, n)
        lambdas = content_lambda(keys, values, key_norm)  # [B, K, V]
    if table is None:
        assert lambdas is not None
        out = content_output(queries, lambdas)
    else:
        if bias is not None:  # part of every position lambda, so of the content lambda as well
            shift = bias.to(queries.dtype if lambdas is None else lambdas.dtype)[None, :, None]
            lambdas = shift.expand(batch, -1, value_depth) if lambdas is None else lambdas + shift
        out = grid_output(queries, values, table, lambdas, height, width, order, memory)
    return out.reshape(batch, num_heads * value_depth, height, width)


torch.fx.wrap("lambda_grid")


def _flat(maps: Tensor) -> Tensor:
    """The same maps, whose gradients are dense: the detour over a flat tensor copies none that are.

    On a CPU, torch's batch norm (seen in 2.15) returns wrong gradients for a batch of one when its incoming gradient is
    a transposed map, as the contractions give.
    """
    return maps.reshape(-1).reshape(maps.shape)


def _drop_shared(layer: nn.Module, state: dict, prefix: str, _: dict) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}position.")]:
        del state[key]


def _restore_shared(layer: LambdaLayer, state: dict, prefix: str, *_: object) -> None:
    # The owner of the shared module comes first and has been loaded: hand its values on.
    assert layer.position is not None
    for name, parameter in layer.position.named_parameters():
        state[f"{prefix}position.{name}"] = parameter


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _size(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be positive, got {height}x{width}")
    return int(height), int(width)


def _global_extent(feat_size: tuple[int, int]) -> tuple[int, int]:
    return 2 * feat_size[0] - 1, 2 * feat_size[1] - 1
