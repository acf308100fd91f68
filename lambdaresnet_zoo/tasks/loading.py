"""Models by name, with their own weights or with those of a file, on a device."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, resolve_data_config
from timm.models import get_model_input_config, is_model_pretrained
from torch import nn

from ..conversion.config import class_names
from ..conversion.formats import translate
from ..conversion.matching import FoldedError, fill, model_arguments
from ..errors import UserError, first_line
from ..registry import check_name, list_models
from ..weights import hub
from ..weights.reading import check_values, read_checkpoint
from ..weights.shipped import verify_folder
from .processes import is_first

__all__ = ["HUB_SOURCES", "SOURCES", "check_folder", "fit_input", "label_names", "load_model", "usable_device"]

HUB_SOURCES = ("hf-hub:", "hf_hub:")
FOLDER_SOURCE = "local-dir:"
SOURCES = (*HUB_SOURCES, FOLDER_SOURCE)  # timm's own prefixes, for weights of one's own


def load_model(
    name: str,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    use_ema: bool | None = None,
) -> nn.Module:
    """A model with weights, ready to predict.

    Args:
        name: a model of this package, with or without a tag, or timm's ``local-dir:/path`` or
            ``hf-hub:organisation/model``.
        checkpoint: weights to use instead of the model's own, in any format that
            ``lambdaresnet-zoo convert`` knows; it is read without running code from it. The number of
            classes is that of its classifier.
        device: as torch names it.
        use_ema: True for the moving average of the weights, which the checkpoint must have; False for the weights
            themselves, and stderr tells where there is an average too; by default the average where there is one.

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
        check_folder(name)
        with hub.quiet():
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # a folder's or the hub's content, the network: anything
        raise UserError(f"model '{name}' cannot be loaded: {_reason(name, error)}") from error


def check_folder(name: str) -> None:
    """Check the weights of a folder that this package wrote, of any architecture; other names pass.

    Raises:
        RuntimeError: they are not what was written; names both digests.
    """
    if name.startswith(FOLDER_SOURCE):
        verify_folder(Path(name.removeprefix(FOLDER_SOURCE)))


def _from_checkpoint(name: str, checkpoint: str | Path, use_ema: bool | None) -> nn.Module:
    if name.startswith(SOURCES):
        raise UserError(f"'{name}' has its own weights: with --checkpoint, name a model of this package")
    found = read_checkpoint(checkpoint, use_ema is not False)
    if use_ema and not found.ema:
        raise UserError(f"--use-ema: {checkpoint} holds no moving average of the weights; leave the option out")
    if use_ema is False and found.ema and is_first():
        print(
            f"warning: {checkpoint} holds a moving average of the weights too ({found.ema}), which is not used; "
            "--use-ema takes it",
            file=sys.stderr,
        )
    state = found.state
    check_values(checkpoint, state)
    try:
        translation = translate(state)
        model, _ = fill(name, translation.state, translation.sources, model_arguments(name, translation.state))
    except FoldedError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}; --model names another model") from error
    return model


def fit_input(model: nn.Module, wanted: Mapping[str, Any] | None = None, use_test_size: bool = False) -> dict[str, Any]:
    """The preprocessing of a model, and where the model is bound to a size, the model at that size.

    Such a model's own size is that which it was built for, and not that of its pretrained_cfg.

    Args:
        model: timm's; given another size in place where ``wanted`` has one.
        wanted: entries that override the model's own, as timm's ``resolve_data_config`` takes them.
        use_test_size: prefer size and crop for evaluation where the config has such.

    Returns:
        timm's dictionary: ``input_size``, ``interpolation``, ``mean``, ``std``, ``crop_pct``, ``crop_mode``.

    Raises:
        UserError: the model takes no input of this size.
    """
    wanted = {key: value for key, value in (wanted or {}).items() if value}
    current = get_model_input_config(model)
    is_bound = current["fixed_input_size"]
    if is_bound and "img_size" not in wanted:
        wanted["input_size"] = current["input_size"]
    config: dict[str, Any] = resolve_data_config(wanted, model=model, use_test_size=use_test_size)
    size = tuple(config["input_size"][1:])
    if is_bound and size != tuple(current["input_size"][1:]):
        network: Any = model
        try:
            network.set_input_size(img_size=size)
        except (AttributeError, AssertionError, ValueError) as error:
            name = network.pretrained_cfg.get("architecture", type(model).__name__)
            raise UserError(f"model '{name}' takes no input of {size[0]} pixels: {first_line(error)}") from error
    return config


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
