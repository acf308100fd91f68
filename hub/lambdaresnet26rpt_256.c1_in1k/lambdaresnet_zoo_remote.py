"""Lets transformers load this folder with trust_remote_code=True: pip install lambdaresnet-zoo.

Copied as it is into every folder for the Hub; importing the package registers the model with timm.
"""

from typing import Any

from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperModel

import lambdaresnet_zoo  # noqa: F401


class LambdaZooConfig(TimmWrapperConfig):
    """timm's configuration, for a model of lambdaresnet-zoo."""


class _TimmNames:
    """Saves weights under timm's names, which transformers (5.23) does for its own classes only."""

    def save_pretrained(self: Any, save_directory: Any, state_dict: Any = None, **kwargs: Any) -> None:
        state_dict = {
            key.removeprefix("timm_model."): value for key, value in (state_dict or self.state_dict()).items()
        }
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)  # type: ignore[misc]


class LambdaZooModel(_TimmNames, TimmWrapperModel):
    """The network without its classifier."""

    config_class = LambdaZooConfig


class LambdaZooForImageClassification(_TimmNames, TimmWrapperForImageClassification):
    """The network with its classifier."""

    config_class = LambdaZooConfig
