"""Models by name, with their own weights or with those of a file, on a device."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from timm.models import is_model_pretrained
from torch import nn

from ..conversion.config import class_names
from ..conversion.formats import translate
from ..conversion.matching import fill, model_arguments
from ..errors import UserError, first_line
from ..registry import check_name, list_models
from ..weights import hub
from ..weights.reading import check_values, read_checkpoint

__all__ = ["HUB_SOURCES", "SOURCES", "label_names", "load_model", "usable_device"]

HUB_SOURCES = ("hf-hub:", "hf_hub:")
SOURCES = (*HUB_SOURCES, "local-dir:")  # timm's own prefixes, for weights of one's own


def load_model(
    name: str, checkpoint: str | Path | None = None, device: str | torch.device = "cpu", use_ema: bool = True
) -> nn.Module:
    """A model with weights, ready to predict.

    Args:
        name: a model of this package, with or without a tag, or timm's ``local-dir:/path`` or
            ``hf-hub:organisation/model``.
        checkpoint: weights to use instead of the model's own, in any format that
            ``lambdaresnet-zoo convert`` knows; it is read without running code from it. The number of
            classes is that of its classifier.
        device: as torch names it.
        use_ema: take the moving average of the weights where the checkpoint has one.

    Returns:
        The model in eval mode on the device.

    Raises:
        UserError: any of the three cannot be used; the message says why.
    """
    device = usable_device(device)
    _check_name(name, needs_weights=checkpoint is None)
    model: Any = _pretrained(name) if checkpoint is None else _from_checkpoint(name, checkpoint, use_ema)
    if model.in_chans != 3 or model.num_classes < 1:
        raise UserError(
            f"model '{name}' has {model.in_chans} input channels and {model.num_classes} classes; use one for RGB"
        )
    return model.eval().to(device)


def _pretrained(name: str) -> nn.Module:
    try:
        with hub.quiet():
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # a folder's or the hub's content, the network: anything
        raise UserError(f"model '{name}' cannot be loaded: {_reason(name, error)}") from error


def _from_checkpoint(name: str, checkpoint: str | Path, use_ema: bool) -> nn.Module:
    if name.startswith(SOURCES):
        raise UserError(f"'{name}' has its own weights: with --checkpoint, name a model of this package")
    state = read_checkpoint(checkpoint, use_ema).state
    check_values(checkpoint, state)
    try:
        translation = translate(state)
        model, _ = fill(name, translation.state, translation.sources, model_arguments(name, translation.state))
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}; --model names another model") from error
    return model


def label_names(model: nn.Module) -> list[str]:
    """A name for each class of a timm model.

    Returns:
        The ``label_names`` of its pretrained_cfg; without these ImageNet's descriptions where it
        has 1000 classes; else the numbers of the classes.
    """
    cfg: Any = model.pretrained_cfg  # torch types every attribute of a module as Tensor | Module
    classes: Any = model.num_classes
    try:
        return list(class_names(cfg.get("label_names"), classes))
    except ValueError:
        pass  # none, or of other classes
    if classes == 1000:
        return ImageNetInfo().label_descriptions()
    return [str(index) for index in range(classes)]


def _reason(name: str, error: Exception) -> str:
    """Of a model on the Hub, timm fetches the config itself: that error has not been translated."""
    if not name.startswith(HUB_SOURCES):
        return first_line(error)
    repo_id, _, revision = name.split(":", 1)[1].partition("@")
    return hub.problem(error, repo_id, revision)


def usable_device(device: str | torch.device) -> torch.device:
    """A device that is there.

    Raises:
        UserError: it is not.
    """
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # a device that exists only as a name fails here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device '{device}' cannot be used: {first_line(error)}") from error
    return device


def _check_name(name: str, needs_weights: bool) -> None:
    if name.startswith(SOURCES):
        return
    check_name(name)
    if needs_weights and not is_model_pretrained(name):
        with_weights = ", ".join(list_models(pretrained=True)) or "none yet"
        raise UserError(
            f"model '{name}' has no public weights; models that have: {with_weights}; "
            "or give weights of your own with --checkpoint FILE"
        )
