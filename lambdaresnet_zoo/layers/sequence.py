"""The lambda layer on sequences, causal or not, built on the reference function.

LambdaNetworks (I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602), section 2 and the
appendix on masked contexts.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. Here the context is the input: N = M.

Differences from the paper
    - The paper gives no 1-d network. Normalisation of queries and values is a LayerNorm over
      their channels: a batch norm over the positions would let the future leak into a causal layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reference import lambda_reference

__all__ = ["LambdaSequence"]


class LambdaSequence(nn.Module):
    """Lambda layer, [B, N, dim] -> [B, N, dim_out], for any N.

    Causal, each query sees itself and what came before it; its keys are normalised over that
    alone, so every query has a content lambda of its own and memory grows as B * N * N * K * U.

    Args:
        dim: input channels.
        dim_out: output channels, H * V. Default: ``dim``.
        num_heads: H, the queries that share one lambda; divides ``dim_out``.
        query_depth: K.
        intra_depth: U.
        scope: number of relative positions, odd; context further than ``scope // 2`` away
            contributes by content alone.
        causal: hide the future.

    Raises:
        ValueError: an argument that does not fit; the message names it and the values.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 4,
        query_depth: int = 16,
        intra_depth: int = 1,
        scope: int = 23,
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        if num_heads < 1 or dim_out % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim_out={dim_out}")
        if scope < 1 or scope % 2 == 0:
            raise ValueError(f"scope must be odd and positive, got {scope}")
        if query_depth < 1 or intra_depth < 1:
            raise ValueError(f"query_depth and intra_depth must be at least 1, got {query_depth} and {intra_depth}")
        self.num_heads = num_heads
        self.query_depth = query_depth
        self.intra_depth = intra_depth
        self.causal = causal
        value_channels = dim_out // num_heads * intra_depth
        self.split_dims = [num_heads * query_depth, query_depth * intra_depth, value_channels]
        self.qkv = nn.Linear(dim, sum(self.split_dims), bias=False, device=device, dtype=dtype)
        self.norm_q = nn.LayerNorm(num_heads * query_depth, device=device, dtype=dtype)
        self.norm_v = nn.LayerNorm(value_channels, device=device, dtype=dtype)
        self.table = nn.Parameter(torch.empty(scope, query_depth, intra_depth, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The paper's initialisation (see :class:`LambdaLayer`)."""
        std = self.qkv.in_features**-0.5
        q = self.split_dims[0]
        with torch.no_grad():
            nn.init.normal_(self.qkv.weight[:q], std=std * self.query_depth**-0.5)
            nn.init.normal_(self.qkv.weight[q:], std=std)
        self.norm_q.reset_parameters()
        self.norm_v.reset_parameters()
        nn.init.normal_(self.table)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, N, dim_out]."""
        batch, n, _ = x.shape
        queries, keys, values = self.qkv(x).split(self.split_dims, dim=-1)
        queries = self.norm_q(queries).reshape(batch, n, self.num_heads, self.query_depth).transpose(1, 2)
        keys = keys.reshape(batch, n, self.query_depth, self.intra_depth)
        values = self.norm_v(values).reshape(batch, n, -1, self.intra_depth)
        position = torch.arange(n, device=x.device)
        offset = position[None, :] - position[:, None]  # [N, M], negative in the past
        mask = offset <= 0 if self.causal else None
        out = lambda_reference(queries, keys, values, self._embeddings(offset), mask)
        return out.transpose(1, 2).reshape(batch, n, -1)

    def _embeddings(self, offset: Tensor) -> Tensor:
        """[N, M, K, U] from offsets [N, M]: zero beyond the scope."""
        scope = self.table.shape[0]
        index = (offset + scope // 2 + 1).clamp(0, scope + 1)
        return F.pad(self.table, (0, 0, 0, 0, 1, 1))[index]
