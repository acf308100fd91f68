"""Where weights come from: a file, a folder, a Hub repository, or the name of a model that has some."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg, is_model_pretrained

from ..errors import UserError
from ..registry import list_models
from ..weights import hub
from ..weights.folder import CONFIG, WEIGHTS

__all__ = ["Source", "find_source"]

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
OTHERS = ("*.safetensors", "pytorch_model.bin", "*.pth", "*.pth.tar", "*.pt")  # in a folder, in this order


@dataclass(frozen=True)
class Source:
    """Weights that were found."""

    file: Path
    title: str
    """As the user named it."""
    config: dict[str, Any] = field(default_factory=dict)
    """The config.json beside it, empty where there is none."""
    repository: str = ""
    """The Hub repository that it came from, if any."""
    known: str = ""
    """The model and tag of this package that these weights are, where that is sure."""


def find_source(name: str) -> Source:
    """Find the weights that a user named, downloading them if they are on the Hub.

    Args:
        name: a checkpoint; a folder with one, with or without ``local-dir:``; a Hub repository,
            ``organisation/model[@revision]``, with or without ``hf-hub:``; or a model of this package
            with weights, such as ``lambdaresnet26t.c1_in1k``.

    Raises:
        UserError: there is no such thing, or it cannot be had; names it.
    """
    local = name.removeprefix("local-dir:")
    if Path(local).is_dir():
        return _folder(Path(local), name)
    if Path(local).exists():
        return Source(Path(local), name)
    if name.startswith("local-dir:"):
        raise UserError(f"{local}: no such folder")
    if name.split(".")[0] in list_models() and is_model_pretrained(name):
        cfg = get_pretrained_cfg(name)
        if cfg.file:
            config = {"architecture": cfg.architecture, "pretrained_cfg": cfg.to_dict()}
            return Source(Path(cfg.file), name, config, known=f"{cfg.architecture}.{cfg.tag}")
        return _repository(cfg.hf_hub_id, name)
    if name.startswith("hf-hub:") or REPOSITORY.fullmatch(name):
        return _repository(name.removeprefix("hf-hub:"), name)
    raise UserError(
        f"{name}: no such file or folder, no model of this package with weights, and no Hub repository's name "
        "(organisation/model)"
    )


def _folder(folder: Path, name: str) -> Source:
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    for pattern in OTHERS:
        files = files or sorted(folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} is a folder without weights in it: name a checkpoint")
    if len(files) > 1:
        raise UserError(f"{folder} holds {', '.join(path.name for path in files[:4])}: name the one to use")
    return Source(files[0], name, _config(folder / CONFIG))


def _repository(repository: str, name: str) -> Source:
    repo_id, _, revision = repository.partition("@")
    with hub.quiet():
        file = hub.fetch(repo_id, revision=revision or None)
        try:
            config = _config(hub.fetch(repo_id, CONFIG, revision=revision or None))
        except hub.MissingFileError:
            config = {}
    own = (get_pretrained_cfg(model) for model in timm.list_models(list_models(), pretrained=True, include_tags=True))
    known = next((f"{cfg.architecture}.{cfg.tag}" for cfg in own if cfg.hf_hub_id == repository), "")
    return Source(file, name, config, repository, known)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a config.json that can be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a model's config.json: it holds a {type(config).__name__}")
    return config
