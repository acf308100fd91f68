"""Models by name, with their own weights or with those of a file, on a device."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, resolve_model_data_config
from timm.models import is_model_pretrained, load_state_dict
from torch import Tensor, nn

from ..errors import UserError, first_line
from ..registry import list_models
from ..weights import hub

__all__ = ["label_names", "load_model"]

HUB_SOURCES = ("hf-hub:", "hf_hub:")
SOURCES = (*HUB_SOURCES, "local-dir:")  # timm's own prefixes, for weights of one's own


def load_model(name: str, checkpoint: str | Path | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """A model with weights, ready to predict.

    Args:
        name: a model of this package, with or without a tag, or timm's ``local-dir:/path`` or
            ``hf-hub:organisation/model``.
        checkpoint: weights to use instead of the model's own: .safetensors, or a state_dict saved
            by torch, alone or where timm's training writes it. It is read without running code
            from it. The number of classes is that of its classifier.
        device: as torch names it.

    Returns:
        The model in eval mode on the device.

    Raises:
        UserError: any of the three cannot be used; the message says why.
    """
    device = _usable(device)
    _check_name(name, needs_weights=checkpoint is None)
    state = None if checkpoint is None else _read(checkpoint)
    try:
        with hub.quiet():
            model: Any = timm.create_model(name, pretrained=state is None)
    except Exception as error:  # a folder's or the hub's content, the network: anything
        raise UserError(f"model '{name}' cannot be loaded: {_reason(name, error)}") from error
    if state is not None:
        _fill(model, state, f"{checkpoint}: does not fit {name}")
    channels = resolve_model_data_config(model)["input_size"][0]
    if channels != 3 or model.num_classes < 1:
        raise UserError(
            f"model '{name}' has {channels} input channels and {model.num_classes} classes; use one for RGB"
        )
    return model.eval().to(device)


def label_names(model: nn.Module) -> list[str]:
    """A name for each class of a timm model.

    Returns:
        The ``label_names`` of its pretrained_cfg; without these ImageNet's descriptions where it
        has 1000 classes; else the numbers of the classes.
    """
    cfg: Any = model.pretrained_cfg  # torch types every attribute of a module as Tensor | Module
    classes: Any = model.num_classes
    names = cfg.get("label_names") or ()
    if len(names) == classes:
        return [str(name) for name in names]
    if classes == 1000:
        return ImageNetInfo().label_descriptions()
    return [str(index) for index in range(classes)]


def _reason(name: str, error: Exception) -> str:
    """Of a model on the Hub, timm fetches the config itself: that error has not been translated."""
    if not name.startswith(HUB_SOURCES):
        return first_line(error)
    repo_id, _, revision = name.split(":", 1)[1].partition("@")
    return hub.problem(error, repo_id, revision)


def _usable(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # a device that exists only as a name fails here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device '{device}' cannot be used: {first_line(error)}") from error
    return device


def _check_name(name: str, needs_weights: bool) -> None:
    if name.startswith(SOURCES):
        return
    own = list_models()
    known = {*own, *timm.list_models(own, include_tags=True)}
    if name not in known:
        close = difflib.get_close_matches(name.lower(), sorted(known), n=4)
        hint = f"did you mean {', '.join(close)}?" if close else "lambdaresnet_zoo.list_models() names all"
        raise UserError(f"unknown model '{name}': {hint}")
    if needs_weights and not is_model_pretrained(name):
        with_weights = ", ".join(list_models(pretrained=True)) or "none yet"
        raise UserError(
            f"model '{name}' has no public weights; models that have: {with_weights}; "
            "or give weights of your own with --checkpoint FILE"
        )


def _read(checkpoint: str | Path) -> dict[str, Tensor]:
    """The state_dict in a file, by a loader that builds tensors and plain containers only."""
    if not Path(checkpoint).is_file():
        raise UserError(f"{checkpoint}: no such file; --checkpoint takes a .safetensors or torch file")
    try:
        state = load_state_dict(str(checkpoint), weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds on what is not theirs
        raise UserError(
            f"{checkpoint}: not a checkpoint that can be read safely; "
            "give a .safetensors file, or a state_dict written by torch.save"
        ) from error
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise UserError(f"{checkpoint}: holds no state_dict; give a file that maps names to tensors")
    return state


def _fill(model: Any, state: dict[str, Tensor], problem: str) -> None:
    """Load a state_dict, every key of it, after giving the model as many classes as it has."""
    head = state.get(f"{model.pretrained_cfg.get('classifier')}.weight")
    if head is not None and head.ndim > 1 and len(head) not in (0, model.num_classes):
        model.reset_classifier(len(head))
    own = model.state_dict()
    differences = {
        "missing": own.keys() - state.keys(),
        "unknown": state.keys() - own.keys(),
        "of another shape": {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape},
    }
    if any(differences.values()):
        counts = [f"{len(keys)} {kind} ({sorted(keys)[0]})" for kind, keys in differences.items() if keys]
        raise UserError(f"{problem}: of its weights {', '.join(counts)}; name its model with --model")
    model.load_state_dict(state)
