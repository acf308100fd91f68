"""The network to train: built, given its weights and classes, and frozen in part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from timm.models import get_model_input_config, group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...conversion.config import class_names
from ...errors import UserError, first_line
from ...registry import check_name, is_own
from ...weights import hub
from ...weights.reading import check_values, read_checkpoint
from ..loading import SOURCES, check_folder, fit_input, load_model
from .options import TrainOptions

__all__ = ["Freezing", "build_model", "input_config", "stages"]


def build_model(options: TrainOptions, classes: Sequence[str]) -> nn.Module:
    """The network on the CPU, initialised by the seed, or with the weights that fine-tuning starts from.

    A classifier is kept only where its classes are known, and are those of the data in their order; that of
    ``initial_checkpoint``, of which they are not known, where there are as many.

    Args:
        options: which network.
        classes: names of the data's.

    Raises:
        UserError: there is none of this name, its weights cannot be had, or it takes no input of this size.
    """
    name = options.model
    if not name.startswith(SOURCES) and not timm.is_model(name):
        check_name(name)
    arguments: dict[str, Any] = {"num_classes": len(classes), **options.model_kwargs}
    rates = {"drop_rate": options.drop, "drop_path_rate": options.drop_path, "drop_block_rate": options.drop_block}
    arguments |= {key: value for key, value in rates.items() if value}
    if options.gp:
        arguments["global_pool"] = options.gp
    if options.initial_checkpoint:
        # Timm's own way, which drops a classifier of another number of classes.
        arguments["pretrained_cfg_overlay"] = _given_weights(name, options.initial_checkpoint)
    torch.manual_seed(options.seed)
    try:
        if options.is_finetuning and not options.initial_checkpoint:
            check_folder(name)
        with hub.quiet():
            model: Any = timm.create_model(name, pretrained=options.is_finetuning, **arguments)
    except Exception as error:  # a folder's or the Hub's content, the network, an option: anything
        raise UserError(f"model '{name}' cannot be built: {first_line(error)}") from error
    if model.in_chans != 3 if hasattr(model, "in_chans") else False:
        raise UserError(f"model '{name}' has {model.in_chans} input channels; use one for RGB")
    model.pretrained_cfg.pop("state_dict", None)
    if options.is_finetuning and not options.initial_checkpoint and not _same_classes(model, classes):
        torch.manual_seed(options.seed)
        model.reset_classifier(len(classes))
    _fit(model, options)
    if options.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise UserError(f"model '{name}' has no {options.told('grad_checkpointing')}; leave it out") from error
    return model


def _given_weights(name: str, checkpoint: str) -> dict[str, Any]:
    """What timm is told in place of a model's own weights: those of a file, and of how many classes they are."""
    if name.startswith(SOURCES) or is_own(name):
        loaded: Any = load_model(name, checkpoint)
        return {"state_dict": loaded.state_dict(), "num_classes": loaded.num_classes}
    state = read_checkpoint(checkpoint).state
    check_values(checkpoint, state)
    classifiers: Any = timm.get_pretrained_cfg(name).classifier
    first = classifiers if isinstance(classifiers, str) else classifiers[0]
    return {"state_dict": state, "num_classes": len(state.get(f"{first}.weight", ()))}


def input_config(model: nn.Module, options: TrainOptions) -> dict[str, Any]:
    """Timm's dictionary of the preprocessing: the model's own with what the user overrides; the model fits it.

    Raises:
        UserError: the model takes no input of this size.
    """
    names = ("img_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    return fit_input(model, {name: getattr(options, name) for name in names})


def _fit(model: Any, options: TrainOptions) -> None:
    """The network at the size of its input, if it can have that."""
    size = options.img_size or min(get_model_input_config(model)["input_size"][1:])
    infos = getattr(model, "feature_info", None) or []
    stride = max((info["reduction"] for info in infos), default=1)
    if size < stride:
        given = options.told("img_size") if options.img_size else f"its input of {size} pixels"
        raise UserError(f"{given} is less than the stride of '{options.model}', {stride} pixels")
    input_config(model, options)


def _same_classes(model: Any, classes: Sequence[str]) -> bool:
    def plain(names: Sequence[str]) -> list[str]:
        return [name.strip().casefold().replace("_", " ") for name in names]

    if len(classes) == 1000:
        info = ImageNetInfo()
        if list(classes) in (info.label_names(), info.label_descriptions()):
            return True
    try:
        return plain(class_names(model.pretrained_cfg.get("label_names"), len(classes))) == plain(classes)
    except ValueError:  # none, or of other classes
        return False


def stages(model: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters of each stage: stem, c2, c3, ... and head, as timm's group_matcher tells them apart.

    Raises:
        UserError: the network does not tell its stages.
    """
    network: Any = model
    try:
        groups = group_parameters(model, network.group_matcher(coarse=True))
    except AttributeError as error:
        raise UserError("the network does not tell its stages: it can be neither frozen in part nor decayed") from error
    head = {
        f"{name}.{key}" for name in _classifier(network) for key, _ in network.get_submodule(name).named_parameters()
    }
    bodies = [[name for name in names if name not in head] for _, names in sorted(groups.items())]
    named = {"stem" if not place else f"c{place + 1}": names for place, names in enumerate(filter(None, bodies))}
    return {**named, "head": sorted(head)}


def _classifier(network: Any) -> list[str]:
    found = network.pretrained_cfg.get("classifier", "")
    return [found] if isinstance(found, str) else list(found)


@dataclass
class Freezing:
    """Which parameters are trained: in a part of the epochs, or ever.

    Args:
        model: the network.
        options: ``freeze``, ``freeze_epochs``, ``freeze_bn``.

    Raises:
        UserError: an unknown stage.
    """

    model: nn.Module
    options: TrainOptions

    def __post_init__(self) -> None:
        options = self.options
        self.head: set[str] = set()
        self.never: set[str] = set()
        if options.freeze or options.freeze_epochs:
            found = stages(self.model)
            unknown = next((name for name in options.freeze if name not in found), None)
            if unknown is not None:
                raise UserError(
                    f"{options.told('freeze')}: there is no {unknown}; '{options.model}' has {', '.join(found)}"
                )
            self.never = {name for stage in options.freeze for name in found[stage]}
            self.head = set(found["head"])
        if options.freeze_bn:
            for prefix, module in self.model.named_modules():
                if isinstance(module, _BatchNorm):
                    self.never |= {f"{prefix}.{name}" for name, _ in module.named_parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in self.never)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError(f"{options.told('freeze')} leaves nothing to train; freeze less")

    def is_head_only(self, epoch: int) -> bool:
        """Whether the classifier alone is trained in an epoch, counted from 0."""
        return epoch < self.options.freeze_epochs

    def apply(self, epoch: int) -> None:
        """Let an epoch's parameters be trained."""
        head_only = self.is_head_only(epoch)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in self.never and (not head_only or name in self.head))

    def set_mode(self) -> None:
        """Training mode, in which batch norm that is frozen keeps its statistics too."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm) and (
                self.options.freeze_bn or not any(parameter.requires_grad for parameter in module.parameters())
            ):
                module.eval()
