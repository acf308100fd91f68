"""LambdaResNet Zoo: LambdaNetworks for timm. Importing this package registers its models with timm."""

from .startup import interruptible

with interruptible():
    from . import models
    from .registry import list_models

__version__ = "0.1.0"

__all__ = ["__version__", "list_models", "models"]
