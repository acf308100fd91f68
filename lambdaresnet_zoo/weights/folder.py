"""A folder as the Hub holds a model: config.json, model.safetensors, README.md, and code for transformers.

timm reads it by `local-dir:` and `hf-hub:`, transformers by its TimmWrapper.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch import nn

from ..errors import UserError, first_line
from .cards import UNKNOWN_LICENSE, Card
from .shipped import digest

__all__ = [
    *("CARD", "CODE", "CONFIG", "FILES", "REMOTE_CODE", "WEIGHTS"),
    *("check_folder", "config_json", "save_weights", "verify_folder", "with_facts", "write_folder", "write_model"),
]

CONFIG, WEIGHTS, CARD, CODE = "config.json", "model.safetensors", "README.md", "lambdaresnet_zoo_remote.py"
FILES = (CONFIG, WEIGHTS, CARD, CODE)
"""What a folder holds, and all that is published of it."""

REMOTE_CODE = Path(__file__).parent / "remote_code.py"
ROOT_KEY = "lambdaresnet_zoo"  # of config.json; timm and transformers pass over it


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder, sync it, and give it its name: whole, or not at all.

    Raises:
        UserError: there is something of that name, or the place cannot be written to.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already: name another folder, or remove it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        write(temporary)
        for path in temporary.iterdir():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_model(
    folder: Path,
    model: nn.Module,
    card: Card,
    dtype: torch.dtype = torch.float32,
    label_names: Sequence[str] = (),
    pretrained_cfg: Mapping[str, Any] | None = None,
) -> None:
    """Write a model into a folder that exists.

    Args:
        folder: to write into.
        model: made by ``timm.create_model``, with its weights.
        card: what is known; its facts about the model and its files are filled in here.
        dtype: of the weights in the file.
        label_names: of the classes.
        pretrained_cfg: entries that differ from the model's own, such as the crop.
    """
    weights = folder / WEIGHTS
    save_weights(weights, model, dtype)
    sha256 = {WEIGHTS: digest(weights)}
    config = config_json(model, card, label_names, pretrained_cfg, sha256)
    (folder / CONFIG).write_text(config)
    (folder / CODE).write_bytes(REMOTE_CODE.read_bytes())
    (folder / CARD).write_text(with_facts(card, model, json.loads(config), sha256).render())


def save_weights(path: Path, module: nn.Module, dtype: torch.dtype) -> None:
    """Write a module's weights as safetensors, floating-point ones in ``dtype``.

    Raises:
        UserError: a weight is too large for ``dtype``.
    """
    state = {}
    for key, value in module.state_dict().items():
        cast = value.to(dtype) if value.is_floating_point() else value
        if value.is_floating_point() and not cast.isfinite().all():
            raise UserError(f"{key} has values beyond the range of {_name(dtype)}: choose bfloat16 or float32")
        state[key] = cast.cpu().contiguous()
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o666 & ~_umask())  # safetensors makes it private


def config_json(
    model: nn.Module,
    card: Card,
    label_names: Sequence[str] = (),
    pretrained_cfg: Mapping[str, Any] | None = None,
    sha256: Mapping[str, str] | None = None,
) -> str:
    """The config.json of a model: timm's, made readable to transformers too."""
    extra: dict[str, Any] = {
        "pretrained_cfg": {"license": card.license, **(pretrained_cfg or {})},
        "auto_map": {
            "AutoConfig": f"{Path(CODE).stem}.LambdaZooConfig",
            "AutoModel": f"{Path(CODE).stem}.LambdaZooModel",
            "AutoModelForImageClassification": f"{Path(CODE).stem}.LambdaZooForImageClassification",
        },
        "image_processor_type": "TimmWrapperImageProcessor",  # transformers finds it by the class of the config
        ROOT_KEY: {"sha256": dict(sha256)} if sha256 else {},
    }
    if label_names:
        extra["label_names"] = list(label_names)
    with tempfile.TemporaryDirectory() as scratch:
        # The public function writes the weights too; they are written anew by save_weights.
        save_for_hf(model, scratch, model_config=extra, safe_serialization=True)
        config = json.loads((Path(scratch) / CONFIG).read_text())
    # transformers 5.23 passes num_classes by itself and fails where model_args repeats it; timm reads the root's.
    config.get("model_args", {}).pop("num_classes", None)
    # Names belong to the root: a copy in here would outlive a change of classes.
    config["pretrained_cfg"].pop("label_names", None)
    return json.dumps(config, indent=2) + "\n"


def check_folder(folder: Path) -> str:
    """Check that a folder can be published, and load the model in it as a user would.

    Returns:
        The text of its card.

    Raises:
        UserError: what is missing, damaged, or not stated; one line.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: have it written by lambdaresnet-zoo convert")
    try:
        known = json.loads((folder / CONFIG).read_text())[ROOT_KEY]["sha256"][WEIGHTS]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} states no sha256 of {WEIGHTS}: convert the weights again") from error
    found = digest(folder / WEIGHTS)
    if found != known:
        raise UserError(f"{folder / WEIGHTS} is not the file that was converted: its sha256 is {found}, not {known}")
    card = (folder / CARD).read_text()
    try:
        stated = ModelCard(card).data.to_dict()
    except Exception as error:  # yaml raises several kinds
        raise UserError(f"{folder / CARD}: its front matter is no valid YAML: {first_line(error)}") from error
    if stated.get("license", UNKNOWN_LICENSE) == UNKNOWN_LICENSE:
        raise UserError(f"{folder / CARD} states no licence: convert with --license ID, such as apache-2.0")
    if stated.get("library_name") != "timm" or "import lambdaresnet_zoo" not in card or known not in card:
        raise UserError(
            f"{folder / CARD} must have library_name: timm, a snippet with import lambdaresnet_zoo, "
            f"and the sha256 of {WEIGHTS}: convert again, and add to its text only"
        )
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # whatever is wrong with the configuration or the weights
        raise UserError(f"{folder} does not load in timm: {first_line(error)}") from error
    return card


def verify_folder(folder: Path) -> None:
    """Check the weights in a folder against the digest in its config.json, where one is recorded.

    Raises:
        RuntimeError: they are not the ones that were written; names both digests.
    """
    try:
        recorded = json.loads((folder / CONFIG).read_text())[ROOT_KEY]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # not written by this package, or not a folder that timm can read: timm says so
    for name, known in recorded.items():
        path = folder / name
        if path.is_file() and (found := digest(path)) != known:
            raise RuntimeError(f"{path} is damaged, or another file: its sha256 is {found}, not {known}")


def with_facts(card: Card, model: nn.Module, config: Mapping[str, Any], sha256: Mapping[str, str]) -> Card:
    """The card with what the model and its configuration tell."""
    data = resolve_model_data_config(model, {"crop_pct": config["pretrained_cfg"].get("crop_pct")})
    return replace(
        card,
        classes=config["num_classes"],
        labels="label_names" in config,
        input_size=tuple(data["input_size"]),
        crop_pct=data["crop_pct"],
        params=sum(parameter.numel() for parameter in model.parameters()),
        sha256=dict(sha256),
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
