"""What this package has registered with timm."""

import difflib

import timm
from timm.models import is_model, is_model_pretrained, model_entrypoint

from .errors import UserError

__all__ = ["check_name", "is_own", "list_models"]


def list_models(pretrained: bool = False) -> list[str]:
    """Names of this package's models, sorted; with ``pretrained``, only those that have weights."""
    own = [name for name in timm.list_models() if is_own(name)]
    return [name for name in own if is_model_pretrained(name)] if pretrained else own


def is_own(name: str) -> bool:
    """Whether a name, with or without a tag, is of an architecture of this package."""
    return is_model(name) and model_entrypoint(name).__module__.startswith(f"{__package__}.")


def check_name(name: str) -> None:
    """Check that a name, with or without a tag, is that of a model of this package.

    Raises:
        UserError: it is none; the message names the nearest.
    """
    tagged = "." in name
    if is_own(name) and (not tagged or is_model_pretrained(name)):
        return  # without looking through all of timm's models
    own = list_models()
    known = {*own, *timm.list_models(own, include_tags=True)}
    if name not in known:
        close = difflib.get_close_matches(name.lower(), sorted(known), n=4)
        hint = f"did you mean {', '.join(close)}?" if close else "lambdaresnet_zoo.list_models() names all"
        raise UserError(f"unknown model '{name}': {hint}")
