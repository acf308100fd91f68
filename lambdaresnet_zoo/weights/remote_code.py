"""Lets transformers load this folder with trust_remote_code=True: pip install lambdaresnet-zoo.

Copied as it is into every folder for the Hub; importing the package registers the model with timm.
"""

from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperModel

import lambdaresnet_zoo  # noqa: F401


class LambdaZooConfig(TimmWrapperConfig):
    """timm's configuration, for a model of lambdaresnet-zoo."""


class LambdaZooModel(TimmWrapperModel):
    """The network without its classifier."""

    config_class = LambdaZooConfig


class LambdaZooForImageClassification(TimmWrapperForImageClassification):
    """The network with its classifier."""

    config_class = LambdaZooConfig
