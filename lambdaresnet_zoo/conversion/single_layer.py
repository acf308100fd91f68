"""A lambda layer alone in a folder: config.json with its arguments, and model.safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..errors import UserError, first_line
from ..layers import LambdaLayer
from ..weights.folder import CARD, CONFIG, WEIGHTS, save_weights

__all__ = ["load_layer", "write_layer"]

README = """\
# A lambda layer

{origin}

```python
from lambdaresnet_zoo.conversion.single_layer import load_layer

layer = load_layer("path/of/this/folder")  # {layer}
```

Its tensors do not tell the stride, the pool, nor how keys and queries are normalised: those are the defaults
of `LambdaLayer`. Edit `layer_args` in config.json where yours differ.
"""


def write_layer(folder: Path, layer: LambdaLayer, arguments: dict[str, Any], origin: str, dtype: torch.dtype) -> None:
    """Write a layer, made by ``LambdaLayer(**arguments)``, into a folder that exists."""
    save_weights(folder / WEIGHTS, layer, dtype)
    (folder / CONFIG).write_text(
        json.dumps({"layer": "LambdaLayer", "layer_args": arguments}, indent=2) + "\n", encoding="utf-8"
    )
    (folder / CARD).write_text(
        README.format(origin=origin, layer=f"LambdaLayer({layer.extra_repr()})"), encoding="utf-8"
    )


def load_layer(folder: str | Path) -> LambdaLayer:
    """The layer in a folder that ``lambdaresnet-zoo convert`` wrote, in eval mode and float32.

    Raises:
        UserError: the folder holds no such layer.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        layer = LambdaLayer(**config["layer_args"])
        layer.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # json, safetensors and torch raise a dozen kinds on what is not theirs
        raise UserError(f"{folder}: holds no lambda layer that can be loaded: {first_line(error)}") from error
    return layer.eval()
