"""Which network a set of weights is of, and the network with them, every tensor accounted for."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..errors import UserError, first_line
from ..registry import check_name, list_models
from ..weights.reading import COUNTER
from .report import Row

__all__ = ["FoldedError", "MisfitError", "fill", "find_model", "load", "model_arguments"]


class MisfitError(UserError):
    """Weights do not fit a network; ``rows`` are all that speak against it."""

    def __init__(self, message: str, rows: list[Row]) -> None:
        super().__init__(message)
        self.rows = rows


class FoldedError(UserError):
    """Weights are those of a network, or a layer, whose batch norms were folded away."""

    def __init__(self) -> None:
        super().__init__(
            "the weights were folded for inference: their batch norms have gone into the convolutions, and do not "
            "come out of them again; save the state_dict() before reparameterize_model"
        )


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    model = timm.create_model(name, device="meta")
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def find_model(state: Mapping[str, Tensor], candidates: Iterable[str] = ()) -> str:
    """The registered model whose tensors these are, whatever its classes, input channels and input size.

    Args:
        state: under this package's names.
        candidates: models to consider; by default all of the package.

    Raises:
        UserError: none or more than one fits; names the nearest, or those that fit.
    """
    names = tuple(candidates) or tuple(list_models())
    misfits = {name: _misfits(name, state) for name in names}
    found = [name for name in names if not misfits[name]]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"these weights fit {', '.join(found)}: name one with --model")
    nearest = min(names, key=lambda name: len(misfits[name]))
    if _are_folded(misfits[nearest], state):
        raise FoldedError
    raise MisfitError(
        f"these weights fit no model of this package; the nearest is {nearest}, where {_told(misfits[nearest])}; "
        "name the model with --model, and options that it was built with by --model-kwargs",
        misfits[nearest],
    )


def model_arguments(name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of ``timm.create_model`` that the shapes of the weights give: classes, channels, input size."""
    cfg = _cfg(name)
    arguments: dict[str, Any] = {}
    head = state.get(f"{cfg['classifier']}.weight")
    classes = head.shape[0] if head is not None and head.ndim else 0
    if classes != cfg["num_classes"]:
        arguments["num_classes"] = classes
    stem = state.get(f"{cfg['first_conv']}.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[1] != cfg["input_size"][0]:
        arguments["in_chans"] = stem.shape[1]
    if cfg.get("fixed_input_size"):
        size = _input_size(name, state, cfg["input_size"][1:])
        if size != tuple(cfg["input_size"][1:]):
            arguments["img_size"] = size
    return arguments


def fill(
    name: str, state: Mapping[str, Tensor], sources: Mapping[str, str], arguments: Mapping[str, Any]
) -> tuple[nn.Module, list[Row]]:
    """The network with these weights, and a row for each of its tensors.

    Args:
        name: of a registered model.
        state: under this package's names.
        sources: the name that each had in the source, for the report.
        arguments: of ``timm.create_model``.

    Raises:
        UserError: a tensor is missing, unknown, of another shape, or of a type that its place cannot hold.
    """
    try:
        model = timm.create_model(name, **arguments)
    except Exception as error:  # whatever a strange argument leads to
        told = str(dict(arguments))[:200]
        raise UserError(f"model '{name}' cannot be built with {told}: {first_line(error)[:200]}") from error
    return model, load(model, name, state, sources)


def load(module: nn.Module, name: str, state: Mapping[str, Tensor], sources: Mapping[str, str]) -> list[Row]:
    """Load weights into a network or a layer, every tensor of either accounted for.

    Args:
        module: to load into.
        name: of it, for errors.
        state: under this package's names; counters of batch norm may be missing.
        sources: the name that each had in the source, for the report.

    Raises:
        MisfitError: a tensor is missing, unknown or of another shape.
        FoldedError: batch norms are folded away.
        UserError: one is of a type that its place cannot hold.
    """
    own = module.state_dict()
    if misfits := _differences({key: tuple(value.shape) for key, value in own.items()}, state):
        if _are_folded(misfits, state):
            raise FoldedError
        raise MisfitError(f"these weights do not fit {name}: {_told(misfits)}", misfits)
    rows = []
    filled = dict(state)
    for key, value in own.items():
        shape = tuple(value.shape)
        if key not in state:
            filled[key] = torch.zeros_like(value)
            rows.append(Row("filled", "", key, shape))
            continue
        if state[key].is_floating_point() != value.is_floating_point():
            raise UserError(f"{sources.get(key, key)} is {_dtype(state[key])} where {name} holds {_dtype(value)}")
        rows.append(Row("mapped", sources.get(key, key), key, shape))
    module.load_state_dict(filled)
    return rows


def _misfits(name: str, state: Mapping[str, Tensor]) -> list[Row]:
    """Keys that speak against a model, its classes, channels and input size left open."""
    cfg = _cfg(name)
    shapes = dict(_shapes(name))
    for key in (f"{cfg['classifier']}.weight", f"{cfg['classifier']}.bias"):
        if key in state and key in shapes:
            shapes[key] = (state[key].shape[0], *shapes[key][1:]) if state[key].ndim else ()
        else:
            shapes.pop(key, None)  # without a classifier
    stem = f"{cfg['first_conv']}.weight"
    if stem in state and state[stem].ndim == 4:
        shapes[stem] = (shapes[stem][0], state[stem].shape[1], *shapes[stem][2:])
    if cfg.get("fixed_input_size"):
        for key in shapes:
            if key.endswith("position.table") and key in state:
                shapes[key] = (*shapes[key][:2], *state[key].shape[2:])
    return _differences(shapes, state)


def _differences(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> list[Row]:
    shared = [key for key in shapes if key in state]
    misshapen = [key for key in shared if tuple(state[key].shape) != shapes[key]]
    return [
        *(Row("misshapen", key, f"not {shapes[key]}", tuple(state[key].shape)) for key in misshapen),
        *(Row("missing", "", key, shapes[key]) for key in shapes if key not in state and COUNTER not in key),
        *(Row("unknown", key, "", tuple(value.shape)) for key, value in state.items() if key not in shapes),
    ]


def _are_folded(misfits: list[Row], state: Mapping[str, Tensor]) -> bool:
    """Whether batch norms are missing, and a convolution that fits has a bias instead."""
    wrong = {row.source for row in misfits}
    biases = [row.source for row in misfits if row.status == "unknown" and row.source.endswith(".bias")]
    weights = [f"{key.removesuffix('bias')}weight" for key in biases]
    return any(row.status == "missing" and row.key.endswith(".running_var") for row in misfits) and any(
        weight in state and weight not in wrong for weight in weights
    )


def _told(misfits: list[Row], most: int = 3) -> str:
    told = {"misshapen": "{0.source} is {0.shape}, {0.key}", "missing": "{0.key} {0.shape} is missing"}
    shown = [told.get(row.status, "{0.source} {0.shape} is unknown").format(row) for row in misfits[:most]]
    more = f", and {len(misfits) - most} more" if len(misfits) > most else ""
    return "; ".join(shown) + more


def _input_size(name: str, state: Mapping[str, Tensor], default: tuple[int, int]) -> tuple[int, int]:
    """Input size in pixels that the tables of global-scope layers were made for: extent 2h - 1 for h positions."""
    for key, shape in _shapes(name).items():
        if key.endswith("position.table") and key in state:
            height, width = (
                pixels * (extent + 1) // (own + 1)
                for pixels, extent, own in zip(default, state[key].shape[2:], shape[2:], strict=True)
            )
            return height, width
    return tuple(default)  # type: ignore[return-value]


@cache
def _cfg(name: str) -> dict[str, Any]:
    check_name(name)
    return timm.models.get_pretrained_cfg(name).to_dict()


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
