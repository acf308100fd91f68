"""Layouts of public lambda-network weights, as data for `formats`.

timm's lambda nets (R. Wightman, pytorch-image-models), the ResNets of d-li14 (D. Li, lambda.pytorch) and
leaderj1001 (M. Lee, LambdaNetworks; of its two generations), and single layers of lucidrains (P. Wang,
lambda-networks on PyPI), which changed from release to release:

    0.0.1          pos_emb, global                   channels (k u), (v u)
    0.1.0 - 0.1.2  pos_emb, global, or R, local      channels (k u), (v u)
    0.2.0 - 0.3.2  pos_emb, or pos_conv, local       channels (u k), (u v)
    0.4.0          rel_pos_emb, global, or pos_conv  channels (u k), (u v)

In this package channels are (k u) and (v u), and the relative table is [K, U, Rh, Rw]. K query depth,
U intra-depth, V value depth, N positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UserError
from ..layers.contraction import expand_table
from ..models import lambdaresnet_ports

__all__ = ["LAYOUTS", "OWN", "TIMM", "Layout"]


@dataclass(frozen=True)
class Layout:
    """A layout as data.

    Args:
        name: for the user.
        mark: a pattern that a key of this layout has, and no key of another.
        names: what a key, or the part of it before a dot, becomes. Queries, keys and values of one
            projection become ``qkv.weight/q``, ``/k`` and ``/v``, to be joined.
        block_names: the same, within a block ``layer{stage + 1}.{block}``.
        table: position embeddings of this layout to the relative table.
        order: of the channels of keys and values, ``ku`` or ``uk``; or, if U > 1 cannot be converted, why.
        is_global: single layers with a global scope.
        models: registered models of this layout; none for a single layer.
    """

    name: str
    mark: str
    names: Mapping[str, str] = field(default_factory=dict)
    block_names: Mapping[str, str] = field(default_factory=dict)
    table: Callable[[Tensor], Tensor] | None = None
    order: str = "ku"
    is_global: bool = False
    models: tuple[str, ...] = ()


def _kernel_table(kernel: Tensor) -> Tensor:
    """[K, U, 1, r, r] of a 3-d convolution to [K, U, r, r]."""
    if kernel.ndim != 5:
        raise ValueError(f"position embeddings {list(kernel.shape)} are not a local kernel [K, U, 1, r, r]")
    return kernel.squeeze(2)


def _relative_table(embeddings: Tensor) -> Tensor:
    """[2n-1, 2n-1, K, U] to [K, U, 2n-1, 2n-1]; the zero offset is at the centre of both."""
    return embeddings.permute(2, 3, 0, 1)


def _untied_table(embeddings: Tensor) -> Tensor:
    """[N, N, K, U], an entry for every pair of positions, to [K, U, 2h-1, 2w-1], N = h * w.

    Raises:
        UserError: the entries are not a function of the offset on one grid h x w, exactly.
    """
    n, context, k, u = embeddings.shape
    tables = []
    for h in [h for h in range(1, n + 1) if n % h == 0 and n == context]:
        w = n // h
        pairs = embeddings.reshape(h, w, h, w, k, u)
        # The last position sees all offsets up to zero, the first those from zero on.
        rows = torch.cat([pairs[-1].transpose(0, 1), pairs[0].transpose(0, 1)[1:]])  # [2h-1, w, w, K, U]
        table = torch.cat([rows[:, -1], rows[:, 0, 1:]], dim=1).permute(2, 3, 0, 1)
        if torch.equal(expand_table(table, h, w).permute(2, 3, 0, 1), embeddings):
            tables.append(table)
    if len(tables) != 1:
        reason = "do not depend on their offset alone" if not tables else "fit grids of more than one shape"
        raise UserError(f"the position embeddings of {n}x{context} pairs {reason}: there is no relative table to make")
    return tables[0]


def _names_of(suffix: str) -> tuple[str, ...]:
    return tuple(name for name in lambdaresnet_ports.NETWORKS if name.endswith(suffix))


OWN = "LambdaResNet Zoo"
TIMM = "timm lambda network"
_BLOCK = {
    "conv1": "conv1_1x1.conv",
    "bn1": "conv1_1x1.bn",
    "conv3": "conv3_1x1.conv",
    "bn3": "conv3_1x1.bn",
}
_LEADERJ1001 = _BLOCK | {
    "conv2.0.queries.0.weight": "self_attn.qkv.weight/q",
    "conv2.0.queries.1": "self_attn.norm_q",
    "conv2.0.keys.0.weight": "self_attn.qkv.weight/k",
    "conv2.0.embedding": "self_attn.position.table",
    "conv2.1": "post_attn",
    "conv2.2": "post_attn",  # after a pool, which has no weights
    "shortcut.0": "shortcut.conv",
    "shortcut.1": "shortcut.bn",
}
_LEADERJ1001_ORDER = "its content part reads values as (v u), its position part as (u v)"
_LUCIDRAINS = {"to_q.weight": "qkv.weight/q", "to_k.weight": "qkv.weight/k", "to_v.weight": "qkv.weight/v"} | {
    "norm_q": "norm_q",
    "norm_v": "norm_v",
    "pos_conv.weight": "position.table",
    "pos_conv.bias": "position.bias",
    "rel_pos_emb": "position.table",
    "R": "position.table",
    "pos_emb": "position.table",
}

LAYOUTS = (
    Layout(TIMM, r"^stages\.\d+\.\d+\.self_attn\.pos_emb$", models=("lambdaresnet26rpt_256",)),
    Layout(TIMM, r"^stages\.\d+\.\d+\.self_attn\.conv_lambda\.", models=("lambdaresnet26t", "lambdaresnet50ts")),
    Layout(
        "d-li14/lambda.pytorch",
        r"^layer\d+\.\d+\.conv2\.(conv_qkv|lambda_conv)\.",
        names={"conv1": "stem.conv1.conv", "bn1": "stem.conv1.bn", "fc": "head.fc"},
        block_names=_BLOCK
        | {
            "conv2.conv_qkv": "self_attn.qkv",
            "conv2.norm_q": "self_attn.norm_q",
            "conv2.norm_v": "self_attn.norm_v",
            "conv2.lambda_conv.weight": "self_attn.position.table",
            "conv2.lambda_conv.bias": "self_attn.position.bias",
            "bn2": "post_attn",
            "downsample.0": "shortcut.conv",
            "downsample.1": "shortcut.bn",
        },
        table=_kernel_table,
        order="uk",
        models=_names_of("_dli14"),
    ),
    Layout(
        "leaderj1001/LambdaNetworks",
        r"^layer\d+\.\d+\.conv2\.0\.values\.[01]\.",
        names={"conv1": "stem.conv1.conv", "bn1": "stem.conv1.bn", "fc.1": "head.fc"},
        block_names=_LEADERJ1001
        | {
            "conv2.0.values.0.weight": "self_attn.qkv.weight/v",
            "conv2.0.values.1": "self_attn.norm_v",
        },
        table=_kernel_table,
        order=_LEADERJ1001_ORDER,
        models=_names_of("_leaderj1001"),
    ),
    Layout(
        "earlier leaderj1001/LambdaNetworks",
        r"^layer\d+\.\d+\.conv2\.0\.(keys\.1|values\.weight)",
        names={"conv1": "stem.conv", "bn1": "stem.bn", "linear": "head.fc"},
        block_names=_LEADERJ1001
        | {
            "conv2.0.keys.1": "self_attn.norm_k",
            "conv2.0.values.weight": "self_attn.qkv.weight/v",
        },
        table=_kernel_table,
        order=_LEADERJ1001_ORDER,
        models=_names_of("_leaderj1001_v0"),
    ),
    Layout("lambda-networks 0.4 layer, global", r"^rel_pos_emb$", _LUCIDRAINS, {}, _relative_table, "uk", True),
    Layout("lambda-networks 0.2 to 0.4 layer, local", r"^pos_conv\.", _LUCIDRAINS, {}, _kernel_table, "uk"),
    Layout("lambda-networks 0.1 layer, local", r"^R$", _LUCIDRAINS, {}, _kernel_table, "ku"),
    Layout(
        "lambda-networks 0.0 to 0.3 layer, global",
        r"^pos_emb$",
        _LUCIDRAINS,
        table=_untied_table,
        order="channels are (k u) before release 0.2 and (u k) from it on, and the weights do not tell which",
        is_global=True,
    ),
    Layout(f"{OWN} layer", r"^position\.table$"),
)
