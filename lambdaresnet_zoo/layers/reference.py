"""The lambda layer as the paper writes it: plain einsums, slow, correct.

LambdaNetworks: Modeling Long-Range Interactions Without Attention
(I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602), section 2 and appendix.

These functions are the oracle that every faster path is held against, and they
serve any structure: sequences, grids, graphs, causal masks, a context that is
not the input. Nothing here knows about images.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. Keys, values and embeddings may carry a
trailing U (intra-depth), which is summed over; without it U is 1.

    queries     [B, H, N, K]
    keys        [B, M, K]      or [B, M, K, U]
    values      [B, M, V]      or [B, M, V, U]
    embeddings  [N, M, K]      or [N, M, K, U]
    mask        [N, M]         True (or non-zero) where the query sees the context
    output      [B, H, N, V]

Masks follow the equations, not the printed pseudo-code, which has slips: each
query's keys are normalised over the context that this query sees.
"""

import torch
from torch import Tensor

__all__ = [
    "apply_lambdas",
    "content_lambda",
    "lambda_reference",
    "multihead_lambda_reference",
    "normalize_keys",
    "position_lambdas",
]

KEY_NORMS = ("softmax", "l2", "none")


def lambda_reference(
    queries: Tensor,
    keys: Tensor | None,
    values: Tensor,
    embeddings: Tensor | None = None,
    mask: Tensor | None = None,
    key_norm: str = "softmax",
) -> Tensor:
    """Multi-query lambda layer (section 2.2): one lambda a position, shared by the heads.

    Args:
        queries: [B, H, N, K].
        keys: [B, M, K] or [B, M, K, U], not yet normalised; None leaves the content lambda out.
        values: [B, M, V] or [B, M, V, U].
        embeddings: [N, M, K] or [N, M, K, U]; None leaves the position lambdas out.
        mask: [N, M], shared by the batch; a query that sees nothing gets a zero lambda.
        key_norm: ``softmax``, ``l2`` or ``none``, over the context positions.

    Returns:
        [B, H, N, V].

    Raises:
        ValueError: a shape does not fit, an unknown ``key_norm``, or neither keys nor embeddings.
    """
    keys, values, embeddings = _with_intra_depth(keys, values, embeddings)
    _check(queries, keys, values, embeddings, mask)
    lambdas = None
    if keys is not None:
        lambdas = content_lambda(keys, values, mask, key_norm)  # [B, N or 1, K, V]
    if embeddings is not None:
        position = position_lambdas(embeddings, values, mask)  # [B, N, K, V]
        lambdas = position if lambdas is None else lambdas + position
    assert lambdas is not None
    return apply_lambdas(queries, lambdas)


def multihead_lambda_reference(
    queries: Tensor,
    keys: Tensor | None,
    values: Tensor,
    embeddings: Tensor | None = None,
    mask: Tensor | None = None,
    key_norm: str = "softmax",
) -> Tensor:
    """Multi-head lambda layer (appendix): every head has keys, values and embeddings of its own.

    As :func:`lambda_reference`, with a head axis: keys [B, H, M, K] or [B, H, M, K, U], values
    [B, H, M, V] or [B, H, M, V, U], embeddings [H, N, M, K] or [H, N, M, K, U]. The paper
    does not recommend it: the multi-query form costs 1/H of it.

    Returns:
        [B, H, N, V].

    Raises:
        ValueError: as :func:`lambda_reference`, or a head axis that is missing or differs.
    """
    if queries.ndim != 4:
        raise ValueError(f"queries must be [B, H, N, K], got {_shape(queries)}")
    heads = queries.shape[1]
    for name, tensor, axis in (("keys", keys, 1), ("values", values, 1), ("embeddings", embeddings, 0)):
        if tensor is not None and (tensor.ndim not in (4, 5) or tensor.shape[axis] != heads):
            raise ValueError(f"{name} needs a head axis of {heads} at dimension {axis}, got {_shape(tensor)}")
    outputs = [
        lambda_reference(
            queries[:, h : h + 1],
            None if keys is None else keys[:, h],
            values[:, h],
            None if embeddings is None else embeddings[h],
            mask,
            key_norm,
        )
        for h in range(heads)
    ]
    return torch.cat(outputs, dim=1)


def normalize_keys(keys: Tensor, key_norm: str = "softmax", mask: Tensor | None = None) -> Tensor:
    """Normalise keys over the context positions.

    Args:
        keys: [B, M, K, U].
        key_norm: ``softmax`` (the paper's), ``l2`` (unit norm over m, for each k and u) or ``none``.
        mask: [N, M] or None.

    Returns:
        [B, 1, M, K, U] without a mask, [B, N, M, K, U] with one: each query's own context.

    Raises:
        ValueError: an unknown ``key_norm``.
    """
    keys = keys.unsqueeze(1)
    visible = None
    if mask is not None:
        visible = mask.to(torch.bool)[None, :, :, None, None]
    if key_norm == "softmax":
        if visible is not None:
            keys = keys.masked_fill(~visible, float("-inf"))
        weights = keys.softmax(dim=2)
        # A query that sees nothing has 0/0 in its softmax; its lambda is zero.
        return weights if visible is None else weights.masked_fill(~visible, 0.0)
    if visible is not None:
        keys = keys.masked_fill(~visible, 0.0)
    if key_norm == "l2":
        return torch.nn.functional.normalize(keys, dim=2)
    if key_norm == "none":
        return keys
    raise ValueError(f"key_norm must be one of {', '.join(KEY_NORMS)}, got {key_norm!r}")


def content_lambda(keys: Tensor, values: Tensor, mask: Tensor | None = None, key_norm: str = "softmax") -> Tensor:
    """Content lambdas [B, 1, K, V], or [B, N, K, V] with a mask, from [B, M, K, U] and [B, M, V, U]."""
    return torch.einsum("bnmku,bmvu->bnkv", normalize_keys(keys, key_norm, mask), values)


def position_lambdas(embeddings: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Position lambdas [B, N, K, V] from embeddings [N, M, K, U] and values [B, M, V, U]."""
    if mask is not None:
        embeddings = embeddings.masked_fill(~mask.to(torch.bool)[:, :, None, None], 0.0)
    return torch.einsum("nmku,bmvu->bnkv", embeddings, values)


def apply_lambdas(queries: Tensor, lambdas: Tensor) -> Tensor:
    """Apply lambdas [B, N or 1, K, V] to queries [B, H, N, K]; returns [B, H, N, V]."""
    return torch.einsum("bhnk,bnkv->bhnv", queries, lambdas.expand(-1, queries.shape[2], -1, -1))


def _with_intra_depth(
    keys: Tensor | None, values: Tensor, embeddings: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Give keys, values and embeddings that came without the trailing U one of 1."""
    for name, tensor in (("keys", keys), ("values", values), ("embeddings", embeddings)):
        if tensor is not None and tensor.ndim not in (3, 4):
            raise ValueError(f"{name} must have 3 dimensions, or 4 with intra-depth, got {_shape(tensor)}")
    if keys is not None and keys.ndim == 3:
        keys = keys.unsqueeze(-1)
    if values.ndim == 3:
        values = values.unsqueeze(-1)
    if embeddings is not None and embeddings.ndim == 3:
        embeddings = embeddings.unsqueeze(-1)
    return keys, values, embeddings


def _check(
    queries: Tensor, keys: Tensor | None, values: Tensor, embeddings: Tensor | None, mask: Tensor | None
) -> None:
    if queries.ndim != 4:
        raise ValueError(f"queries must be [B, H, N, K], got {_shape(queries)}")
    if keys is None and embeddings is None:
        raise ValueError("keys and embeddings are both None: the layer needs one of them")
    batch, _, n, k = queries.shape
    m, u = values.shape[1], values.shape[3]
    if values.shape[0] != batch:
        raise ValueError(f"values has batch {values.shape[0]}, queries has {batch}")
    if keys is not None and tuple(keys.shape) != (batch, m, k, u):
        raise ValueError(f"keys must be [B, M, K, U] = {(batch, m, k, u)}, got {_shape(keys)}")
    if embeddings is not None and tuple(embeddings.shape) != (n, m, k, u):
        raise ValueError(f"embeddings must be [N, M, K, U] = {(n, m, k, u)}, got {_shape(embeddings)}")
    if mask is not None and tuple(mask.shape) != (n, m):
        raise ValueError(f"mask must be [N, M] = {(n, m)}, got {_shape(mask)}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
