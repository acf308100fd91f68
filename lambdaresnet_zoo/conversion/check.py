"""Whether a folder is fit to be published."""

import json
from pathlib import Path

import timm
from huggingface_hub import ModelCard

from ..errors import UserError, first_line
from ..weights.cards import UNKNOWN_LICENSE
from ..weights.folder import CARD, CODE, CONFIG, FILES, REMOTE_CODE, ROOT_KEY, WEIGHTS
from .config import read_config
from .convert import LICENSE

__all__ = ["check_folder"]


def check_folder(folder: Path) -> str:
    """Check a folder that ``convert`` wrote and somebody may have edited, and load it as a user would.

    Returns:
        The text of its card.

    Raises:
        UserError: what is missing, damaged, or not stated; one line.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: have it written by lambdaresnet-zoo convert")
    if (folder / CODE).read_bytes() != REMOTE_CODE.read_bytes():
        raise UserError(f"{folder / CODE} is not what convert writes: readers would run it, so it is not published")
    config = read_config(folder / CONFIG, str(folder))
    raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    try:
        known = str(raw[ROOT_KEY]["sha256"][WEIGHTS])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} states no sha256 of {WEIGHTS}: convert the weights again") from error
    if "num_classes" in raw.get("model_args", {}):
        raise UserError(f"{folder / CONFIG}: model_args has num_classes, with which transformers fails: take it out")
    card = _check_card(folder / CARD, config.license, known, config.statements.get("warning", ""))
    try:  # which checks the digest, too
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # whatever is wrong with the configuration or the weights
        raise UserError(f"{folder} does not load in timm: {first_line(error)}") from error
    return card


def _check_card(path: Path, license: str, sha256: str, warning: str) -> str:
    try:
        card = path.read_text(encoding="utf-8")
        stated = ModelCard(card).data.to_dict()
    except Exception as error:  # yaml raises several kinds
        raise UserError(f"{path}: its front matter is no valid YAML: {first_line(error)}") from error
    named = stated.get("license", UNKNOWN_LICENSE)
    if named == UNKNOWN_LICENSE:
        raise UserError(f"{path} states no licence: give --license ID, such as apache-2.0")
    if not isinstance(named, str) or not LICENSE.fullmatch(named):
        raise UserError(f"{path}: license {str(named)[:60]!r} is no identifier of the Hub's, such as apache-2.0")
    if named != license:
        raise UserError(f"{path} says license {named}, and {CONFIG} {license or 'nothing'}: make them agree")
    for text in ("import lambdaresnet_zoo", sha256, warning):
        if text not in card:
            raise UserError(f"{path} has lost '{text}': convert again, and add to the card only")
    if stated.get("library_name") != "timm":
        raise UserError(f"{path} must have library_name: timm")
    return card
