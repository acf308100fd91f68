"""Weights in public layouts, recognised by their keys and put under this package's names.

Beside this package's own layout, those of `layouts`.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, first_line
from ..models import lambdaresnet_ports, lambdaresnet_public
from ..models.lambdaresnet_public import from_timm
from ..registry import list_models
from .layouts import LAYOUTS, OWN, TIMM, Layout
from .matching import FoldedError

__all__ = ["Translation", "translate"]

_NETWORKS = lambdaresnet_ports.NETWORKS | lambdaresnet_public.NETWORKS


@dataclass(frozen=True)
class Translation:
    """A state dict under this package's names, and what became of every tensor of the source.

    Args:
        format: the layout that was recognised, for the user.
        state: tensors by this package's names; one that the layout does not have keeps its own.
        sources: for each key of ``state``, the source key, or keys, comma separated.
        folded: source keys that have no tensor of their own here, and what they went into.
        candidates: names of the registered models it can be; all of the package's for its own layout,
            none for a single layer.
        layer: arguments of ``LambdaLayer`` for a single layer, else None. A state does not show the
            stride, the pool, nor how keys and queries are normalised: those are left to the defaults.
    """

    format: str
    state: dict[str, Tensor]
    sources: dict[str, str]
    folded: dict[str, str] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    layer: dict[str, Any] | None = None


def translate(state: dict[str, Tensor]) -> Translation:
    """Recognise the layout of a state dict and put it under this package's names; the source is not changed.

    A single layer of this package's own with a square table is taken for one with a local scope.

    Args:
        state: tensors by key, without wrappers and prefixes.

    Raises:
        UserError: an unknown layout, shapes that do not fit the one recognised, or weights that have no
            equal here: an intra-depth whose channel order cannot be told, position embeddings that are
            not relative. FoldedError: a single layer's, folded for inference.
    """
    layout = _recognise(state)
    try:
        if layout.name == TIMM:
            renamed = from_timm(state)
            sources = dict(zip(renamed, state, strict=True))
        else:
            renamed, sources = _rename(state, layout)
        for key in [key for key in renamed if _is_table(key)]:
            if layout.table is not None:
                renamed[key] = layout.table(renamed[key]).contiguous()
            _reorder(renamed, key.removesuffix("position.table"), layout)
        folded = _fold_shortcut_biases(renamed, sources)
        layer = None if layout.models else _layer_arguments(renamed, layout.is_global)
    except KeyError as error:
        if str(error.args[0]).startswith("norm_") and "qkv.bias" in renamed:
            raise FoldedError from error
        raise UserError(f"weights look like {layout.name}, but there is no {error.args[0]}") from error
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"weights look like {layout.name}, but shapes do not fit: {first_line(error)}") from error
    return Translation(layout.name, renamed, sources, folded, _candidates(renamed, layout), layer)


def _recognise(state: Iterable[str]) -> Layout:
    keys = list(state)
    for layout in LAYOUTS:
        if any(re.search(layout.mark, key) for key in keys):
            return layout
    lambdas = [key for key in keys if ".self_attn." in key]
    own = re.compile(r"\.self_attn\.(qkv|norm_[qkv]|position)\.")
    convolutional = any(key.startswith("stem.") for key in keys) and any(key.startswith("stages.") for key in keys)
    if any(_is_table(key) for key in keys) or (all(map(own.search, lambdas)) and (lambdas or convolutional)):
        return Layout(OWN, "", models=tuple(list_models()))
    known = ", ".join(dict.fromkeys([OWN, *(layout.name.split(" layer")[0] for layout in LAYOUTS)]))
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "") if keys else "none"
    raise UserError(f"unknown layout of weights: known are {known}; the keys here are {shown}")


def _rename(state: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by new names, with the parts of each projection joined, and the source of each."""
    targets: dict[str, str] = {}  # new name: source
    for key in state:
        target = _target(key, layout)
        targets[key if target in targets else target] = key
    tensors, sources = {}, {}
    for target, key in targets.items():
        base, _, part = target.partition("/")
        parts = [targets.get(f"{base}/{name}") for name in "qkv"]
        found = [source for source in parts if source is not None]
        if not part:
            tensors[target], sources[target] = state[key], key
        elif len(found) < 3:  # an incomplete projection keeps its names
            tensors[key], sources[key] = state[key], key
        elif part == "q":
            tensors[base], sources[base] = torch.cat([state[source] for source in found]), ", ".join(found)
    return tensors, sources


def _target(key: str, layout: Layout) -> str:
    block = re.match(r"layer(\d+)\.(\d+)\.", key) if layout.block_names else None
    prefix, rest = (f"stages.{int(block[1]) - 1}.{block[2]}.", key[block.end() :]) if block else ("", key)
    for name, new in (layout.block_names if block else layout.names).items():
        if rest == name or rest.startswith(f"{name}."):
            return prefix + new + rest[len(name) :]
    return key


def _is_table(key: str) -> bool:
    return key == "position.table" or key.endswith(".self_attn.position.table")


def _reorder(state: dict[str, Tensor], prefix: str, layout: Layout) -> None:
    """Put the key and value channels of one layer from (u k), (u v) into (k u), (v u)."""
    k, u = state[f"{prefix}position.table"].shape[:2]
    if u == 1 or layout.order == "ku":
        return
    if layout.order != "uk":
        raise UserError(f"weights of {layout.name} with intra-depth {u} cannot be converted: {layout.order}")
    rows, values = state[f"{prefix}qkv.weight"].shape[0], state[f"{prefix}norm_v.weight"].shape[0]
    key_order = torch.arange(k * u).reshape(u, k).T.flatten()
    value_order = torch.arange(values).reshape(u, values // u).T.flatten()
    queries = rows - k * u - values
    order = torch.cat([torch.arange(queries), queries + key_order, queries + k * u + value_order])
    state[f"{prefix}qkv.weight"] = state[f"{prefix}qkv.weight"][order]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if f"{prefix}norm_v.{name}" in state:
            state[f"{prefix}norm_v.{name}"] = state[f"{prefix}norm_v.{name}"][value_order]


def _fold_shortcut_biases(state: dict[str, Tensor], sources: dict[str, str]) -> dict[str, str]:
    """Take a convolution's bias into the mean of the batch norm after it: exact, in training too."""
    folded = {}
    for key in [key for key in state if key.endswith(".shortcut.conv.bias")]:
        mean = key.replace("conv.bias", "bn.running_mean")
        if mean in state:
            state[mean] = state[mean] - state.pop(key)
            folded[sources.pop(key)] = f"into {mean}"
    return folded


def _candidates(state: Iterable[str], layout: Layout) -> tuple[str, ...]:
    """The models of a layout that have the blocks found in the state; all of them if none has."""
    if layout.name == OWN:
        return layout.models
    blocks = {match[0] for key in state if (match := re.match(r"stages\.\d+\.\d+\.", key))}
    depths = Counter(int(block.split(".")[1]) for block in blocks)
    fit = [name for name in layout.models if dict(enumerate(map(len, _NETWORKS[name].blocks))) == dict(depths)]
    return tuple(fit) or layout.models


def _layer_arguments(state: dict[str, Tensor], is_global: bool) -> dict[str, Any]:
    """Arguments of LambdaLayer for a single layer's state, under this package's names."""
    k, u, height, width = state["position.table"].shape
    rows, dim = state["qkv.weight"].shape[:2]
    queries, values = state["norm_q.weight"].shape[0], state["norm_v.weight"].shape[0]
    heads = queries // k
    if queries != heads * k or values % u or rows - queries - values not in (0, k * u):
        raise ValueError(f"{rows} rows of queries ({queries}), keys and values ({values}), depth {k}, intra-depth {u}")
    is_global = is_global or height != width
    return {
        "dim": dim,
        "dim_out": heads * (values // u),
        "num_heads": heads,
        "query_depth": k,
        "intra_depth": u,
        "scope": None if is_global else height,
        "feat_size": ((height + 1) // 2, (width + 1) // 2) if is_global else None,
        "content": rows > queries + values,
        "norm_k": "norm_k.weight" in state,
        "qkv_bias": "qkv.bias" in state,
        "position_bias": "position.bias" in state,
    }
