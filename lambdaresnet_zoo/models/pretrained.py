"""What is done before and while timm loads weights: they are checked, missing ones explained, tables fitted."""

import re
from pathlib import Path
from typing import Any

from timm.models import resolve_pretrained_cfg
from timm.models._builder import _resolve_pretrained_source  # timm's choice among a cfg's sources has no public name
from timm.models._hub import hf_split
from torch import Tensor, nn

from ..layers import LambdaLayer
from ..layers.lambda_layer import RelativePosition
from ..registry import list_models
from ..weights.hub import fetch
from ..weights.published import published_figure
from ..weights.shipped import verify_folder, verify_shipped

__all__ = ["check_weights", "no_weights", "resample_tables"]


def check_weights(
    variant: str,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: Any = None,
    **_: Any,
) -> None:
    """Check the weights that timm is about to load: those that ship, those of a folder, and those of the Hub.

    What comes from the Hub is in its cache afterwards, where timm finds it.

    Args:
        variant: the model, without a tag.
        pretrained_cfg: as timm's ``create_model``.
        pretrained_cfg_overlay: as timm's ``create_model``.
        cache_dir: as timm's ``create_model``.
        **_: other arguments of the model.

    Raises:
        RuntimeError: there are none, they cannot be downloaded, or their digest is wrong; in one line.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    kind, location = _resolve_pretrained_source(vars(cfg))
    if not kind:
        raise RuntimeError(no_weights(variant))
    if kind == "file":
        verify_shipped(location)
    if kind == "local-dir":
        verify_folder(Path(location))
    if kind == "hf-hub":
        hub_id, filename = location if isinstance(location, tuple) else (location, None)
        repo_id, revision = hf_split(hub_id)
        verify_folder(fetch(repo_id, filename, revision, cache_dir).parent)


def no_weights(variant: str) -> str:
    """That a model has no public weights, and what there is instead, in one line."""
    figure = published_figure(variant)
    if figure and figure.weights:
        return f"{variant} has no weights that timm loads by its name, but {figure.weights} ({figure.source})"
    parts = [f"{variant} has no public weights; models that have: {', '.join(list_models(pretrained=True))}"]
    depth = re.fullmatch(r"lambdaresnet(50|101|152|200|270|350|420)", variant)
    if depth:
        source = f"timm/resnetrs{depth[1]}.tf_in1k"
        parts.append(f"to start from ResNet-RS: lambdaresnet-zoo convert --warm-start {source} {variant}")
        parts.append(
            f"to train it by the paper's recipe: lambdaresnet-zoo train --recipe paper-350ep --model {variant}"
        )
    return "; ".join(parts)


def resample_tables(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict whose global relative tables, of another input size, are resampled to those of a model.

    Equal to loading it at its own size and setting the model's then. Other tensors pass unchanged.
    """
    fitted = dict(state_dict)
    for name, layer in model.named_modules():
        key = f"{name}.position.table"
        if not isinstance(layer, LambdaLayer) or not layer.is_global or key not in fitted or layer.position is None:
            continue
        table, extent = fitted[key], tuple(layer.position.table.shape[2:])
        if table.ndim == 4 and tuple(table.shape[2:]) != extent:
            depth, intra, height, width = table.shape
            position = RelativePosition(depth, intra, (height, width), device="meta")
            position.table = nn.Parameter(table)
            position.resize(extent)
            fitted[key] = position.table.detach()
    return fitted
