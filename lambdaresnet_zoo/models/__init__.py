"""The networks, as data over layers/ and timm's public parts. Importing this registers them with timm."""

from . import (
    lambda_mobilenetv2,
    lambdaresnet,
    lambdaresnet_ports,
    lambdaresnet_public,
    lambdaresnet_small,
    lambdaresnet_study,
)

__all__ = [
    "lambda_mobilenetv2",
    "lambdaresnet",
    "lambdaresnet_ports",
    "lambdaresnet_public",
    "lambdaresnet_small",
    "lambdaresnet_study",
]
