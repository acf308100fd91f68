"""What this package has registered with timm."""

import timm
from timm.models import is_model_pretrained, model_entrypoint

__all__ = ["list_models"]


def list_models(pretrained: bool = False) -> list[str]:
    """Names of this package's models, sorted; with ``pretrained``, only those that have weights."""
    own = [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith(f"{__package__}.")]
    return [name for name in own if is_model_pretrained(name)] if pretrained else own
