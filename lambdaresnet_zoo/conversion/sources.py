"""Where weights come from: a file, a folder, a Hub repository, or the name of a model that has some."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg

from ..errors import UserError, first_line
from ..models.pretrained import no_weights
from ..registry import list_models
from ..weights import hub
from ..weights.folder import CONFIG, WEIGHTS, model_folder
from ..weights.shipped import verify_folder, verify_shipped
from .config import SourceConfig, parse_config, read_config

__all__ = ["Source", "find_source"]

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
HUB_PREFIX = re.compile(r"^hf[-_]hub:")  # timm takes both
OTHERS = ("*.safetensors", "pytorch_model.bin", "*.pth", "*.pth.tar", "*.pt")  # in a folder, in this order


@dataclass(frozen=True)
class Source:
    """Weights that were found, and checked against their digest where one is recorded."""

    file: Path
    name: str
    """As the user named it."""
    config: SourceConfig = field(default_factory=SourceConfig)
    """What the config.json beside it says."""
    repository: str = ""
    """The Hub repository that it came from, if any."""
    known: str = ""
    """The model and tag of this package that these weights are, where that is sure."""


def find_source(name: str) -> Source:
    """Find the weights that a user named, downloading them if they are on the Hub.

    Args:
        name: a checkpoint; a folder with one, with or without ``local-dir:``; a Hub repository,
            ``organisation/model[@revision]``, with or without ``hf-hub:``; or a model with weights, of this
            package or of timm, such as ``lambdaresnet26t.c1_in1k``.

    Raises:
        UserError: there is no such thing, it cannot be had, or it is damaged; names it.
    """
    if not name:
        raise UserError("SOURCE is empty: name a checkpoint, a folder, a Hub repository or a model")
    local = Path(name.removeprefix("local-dir:"))
    try:
        if local.is_dir():
            return _folder(local, name)
        if local.exists():
            return Source(local, name)
        if name.startswith("local-dir:"):
            raise UserError(f"{local}: no such folder")
        return _named(name)
    except OSError as error:
        raise UserError(f"{name[:200]}: cannot be read: {error.strerror or first_line(error)}") from error
    except RuntimeError as error:  # of a digest; the Hub's own errors are told already
        raise error if isinstance(error, UserError) else UserError(first_line(error)) from error


def _named(name: str) -> Source:
    model = name.split(".")[0]
    if timm.is_model(model):
        cfg = get_pretrained_cfg(name)
        if cfg is not None and cfg.file:
            verify_shipped(cfg.file)
            config = parse_config({"architecture": cfg.architecture, "pretrained_cfg": cfg.to_dict()})
            return Source(Path(cfg.file), name, config, known=f"{cfg.architecture}.{cfg.tag}")
        if cfg is not None and cfg.hf_hub_id:
            return _repository(cfg.hf_hub_id, name)
        if model in list_models():
            raise UserError(no_weights(model))
    if HUB_PREFIX.match(name) or REPOSITORY.fullmatch(name):
        return _repository(HUB_PREFIX.sub("", name), name)
    raise UserError(
        f"{name[:200]}: no such file or folder, no model with weights, and no Hub repository's name "
        "(organisation/model)"
    )


def _folder(folder: Path, name: str) -> Source:
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    for pattern in OTHERS:
        files = files or sorted(folder.glob(pattern))
    inner = model_folder(folder) if len(files) != 1 else None
    if inner is not None:
        raise UserError(f"{folder} is the folder of a run: give {inner}, the model in it")
    if not files:
        raise UserError(f"{folder} is a folder without weights in it: name a checkpoint")
    if len(files) > 1:
        raise UserError(f"{folder} holds {', '.join(path.name for path in files[:4])}: name the one to use")
    return _with_config(Source(files[0], name), folder)


def _repository(repository: str, name: str) -> Source:
    repo_id, _, revision = repository.partition("@")
    with hub.quiet():
        source = Source(hub.fetch(repo_id, revision=revision or None), name, repository=repository)
        try:
            folder = hub.fetch(repo_id, CONFIG, revision=revision or None).parent
        except hub.MissingFileError:
            return source
    own: list[Any] = [get_pretrained_cfg(model) for model in timm.list_models(list_models(), include_tags=True)]
    known = next((f"{cfg.architecture}.{cfg.tag}" for cfg in own if cfg and cfg.hf_hub_id == repository), "")
    return _with_config(replace(source, known=known), folder)


def _with_config(source: Source, folder: Path) -> Source:
    config = read_config(folder / CONFIG, source.name)
    verify_folder(folder)
    return replace(source, config=config, known=source.known or config.statements.get("known", ""))
