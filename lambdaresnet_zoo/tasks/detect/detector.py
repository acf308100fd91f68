"""A detector of a run: what it was built with, in a file beside its weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...detection import DETECTORS
from ...errors import UserError, first_line
from ...weights.files import write_whole
from ..checkpoints import LAST, read_state
from ..outputs import writing

__all__ = ["DetectorConfig", "build", "load_detector", "save_detector", "write_config"]

CONFIG = "detector.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class DetectorConfig:
    """What a detector is built from, as detector.json holds it."""

    kind: str
    """A name in DETECTORS."""
    backbone: str
    categories: dict[int, str]
    """Names by id in the data, sorted by id; label 1 is the first."""
    image_size: int
    anchor_sizes: tuple[int, ...]
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of ``mask_rcnn``, torchvision's among them."""

    @property
    def has_masks(self) -> bool:
        """Whether it predicts masks."""
        return self.kind == "mask_rcnn"


def build(config: DetectorConfig, pretrained: bool | Mapping[str, Tensor] = False, **options: Any) -> nn.Module:
    """The network.

    Args:
        config: what it is.
        pretrained: as ``mask_rcnn``.
        **options: that matter in training alone, as ``mask_rcnn``.

    Raises:
        UserError: it cannot be built.
    """
    if config.kind not in DETECTORS:
        raise UserError(f"unknown detector '{config.kind}'; there are {', '.join(DETECTORS)}")
    try:
        return DETECTORS[config.kind](
            config.backbone,
            len(config.categories) + 1,
            pretrained,
            config.image_size,
            anchor_sizes=config.anchor_sizes,
            backbone_kwargs=config.backbone_kwargs,
            **config.options,
            **options,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(first_line(error)) from error


def write_config(folder: Path, config: DetectorConfig) -> None:
    """Write detector.json.

    Raises:
        UserError: it cannot be written.
    """
    text = json.dumps(asdict(config), indent=2, ensure_ascii=False) + "\n"
    with writing("--output", folder, "folder"):
        write_whole(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def save_detector(folder: Path, model: nn.Module) -> None:
    """Write the weights beside detector.json.

    Raises:
        UserError: they cannot be written.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with writing("--output", folder, "folder"):
        write_whole(folder / WEIGHTS, partial(save_file, state))


def load_detector(folder: str | Path, device: torch.device) -> tuple[nn.Module, DetectorConfig]:
    """The detector of a run: its final weights, or those of its last checkpoint.

    Args:
        folder: that ``detect train`` wrote.
        device: to put it on.

    Returns:
        The model in eval mode, and what it is.

    Raises:
        UserError: the folder holds no detector, or a damaged one.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    try:
        state = load_file(path) if path.exists() else read_state(folder / LAST)["model"]
    except UserError:
        raise
    except Exception as error:  # safetensors has errors of its own
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    model = build(config)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"the weights in {folder} do not fit its {CONFIG}: {first_line(error)}") from error
    # Batch norm that was fixed in training has not counted.
    wrong = [*(key for key in missing if not key.endswith("num_batches_tracked")), *unexpected]
    if wrong:
        raise UserError(f"the weights in {folder} do not fit its {CONFIG}: '{wrong[0]}' is missing or not known there")
    return model.eval().to(device), config


def _read_config(path: Path) -> DetectorConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["categories"] = {int(number): str(name) for number, name in content["categories"].items()}
        content["anchor_sizes"] = tuple(content["anchor_sizes"])
        return DetectorConfig(**content)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no {CONFIG}; give the --output of detect train") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from error
