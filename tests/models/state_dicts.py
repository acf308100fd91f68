"""The state dict of every model, in short: `python tests/models/state_dicts.py` writes it anew."""

import hashlib
import json
from pathlib import Path

import timm

import lambdaresnet_zoo

__all__ = ["layouts"]


def layouts() -> dict[str, dict[str, object]]:
    """By model: the number of tensors, and a digest of their names and shapes, in order."""
    result: dict[str, dict[str, object]] = {}
    for name in lambdaresnet_zoo.list_models():
        state = timm.create_model(name, device="meta").state_dict()
        lines = "".join(f"{key} {tuple(value.shape)}\n" for key, value in state.items())
        result[name] = {"tensors": len(state), "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    return result


if __name__ == "__main__":
    Path(__file__).with_name("state_dicts.json").write_text(json.dumps(layouts(), indent=1) + "\n")
