"""A folder as the Hub holds a model: config.json, model.safetensors, README.md, and code for transformers.

timm reads it by `local-dir:` and `hf-hub:`, transformers by its TimmWrapper.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from ..errors import UserError
from .cards import Card
from .files import try_write
from .shipped import digest

__all__ = [
    *("CARD", "CODE", "CONFIG", "FILES", "REMOTE_CODE", "ROOT_KEY", "STATEMENTS", "WEIGHTS"),
    "check_place",
    *("config_json", "model_folder", "save_weights", "with_facts", "write_folder", "write_model"),
]

CONFIG, WEIGHTS, CARD, CODE = "config.json", "model.safetensors", "README.md", "lambdaresnet_zoo_remote.py"
FILES = (CONFIG, WEIGHTS, CARD, CODE)
"""What a folder holds, and all that is published of it."""

REMOTE_CODE = Path(__file__).parent / "remote_code.py"
ROOT_KEY = "lambdaresnet_zoo"
"""Of config.json: the digests of the weights, and what the card states. timm and transformers pass over it."""
STATEMENTS = ("known", "summary", "warning", "data", "recipe", "base_model")
"""Of a Card, that a conversion of the folder keeps."""


def check_place(folder: Path) -> None:
    """Check that a folder can be written: nothing is there, or an empty one; what is tried leaves nothing behind.

    Raises:
        UserError: something is there, or it cannot be looked at, or its place cannot be written to.
    """
    try:
        taken = os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir()))
        if not taken:
            try_write(Path(os.path.abspath(folder)).parent / ".probe")  # beside it, where it is made
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    if taken:
        raise UserError(f"{folder} exists already: name another folder, or remove it first")


def model_folder(folder: Path) -> Path | None:
    """The folder of a model that a folder is, or holds just one of, as that of a run does."""
    files = (folder / WEIGHTS, *sorted(folder.glob(f"*/{WEIGHTS}")))
    found = [file.parent for file in files if file.is_file() and (file.parent / CONFIG).is_file()]
    return found[0] if found and (found[0] == folder or len(found) == 1) else None


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder, sync it, and give it its name: whole, or not at all.

    Raises:
        UserError: there is something of that name, or the place cannot be written to.
    """
    check_place(folder)
    place = Path(os.path.abspath(folder))
    made = [parent for parent in place.parents if not parent.exists()]  # nearest first
    temporary = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
        write(temporary)
        for path in temporary.iterdir():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        temporary.replace(place)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"{folder} cannot be written: {error.strerror}") from error
        raise


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
    (folder / CONFIG).write_text(config, encoding="utf-8")
    (folder / CODE).write_bytes(REMOTE_CODE.read_bytes())
    (folder / CARD).write_text(with_facts(card, model, json.loads(config), sha256).render(), encoding="utf-8")


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
    classes: Any = model.num_classes
    code = Path(CODE).stem
    auto_map = {"AutoConfig": f"{code}.LambdaZooConfig", "AutoModel": f"{code}.LambdaZooModel"}
    if classes:
        auto_map["AutoModelForImageClassification"] = f"{code}.LambdaZooForImageClassification"
    own: dict[str, Any] = {"card": {key: getattr(card, key) for key in STATEMENTS if getattr(card, key)}}
    extra: dict[str, Any] = {
        "pretrained_cfg": {"license": card.license, **(pretrained_cfg or {})},
        "auto_map": auto_map,
        "image_processor_type": "TimmWrapperImageProcessor",  # transformers finds it by the class of the config
        ROOT_KEY: {"sha256": dict(sha256), **own} if sha256 else own,
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


def with_facts(card: Card, model: nn.Module, config: Mapping[str, Any], sha256: Mapping[str, str]) -> Card:
    """The card with what the model and its configuration tell."""
    cfg = config["pretrained_cfg"]
    return replace(
        card,
        classes=config["num_classes"],
        labels="label_names" in config,
        input_size=tuple(cfg["input_size"]),
        crop_pct=cfg["crop_pct"],
        params=sum(parameter.numel() for parameter in model.parameters()),
        sha256=dict(sha256),
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
