"""A LambdaResNet started from a trained ResNet-RS: what the two share comes over, the rest is initialised.

ResNet-RS (Bello et al. 2021, https://arxiv.org/abs/2103.07579; timm's `resnetrs50` ... `resnetrs420`) has the
depths, stem, shortcuts and widths of the LambdaResNets, a 3x3 convolution for every lambda layer, and SE in
every block where the LambdaResNets have it in the convolutional blocks of c2 and c3.
"""

import re
from collections.abc import Callable, Mapping

import timm
import torch
from torch import Tensor, nn

from ..errors import UserError
from .report import Row

__all__ = ["PAIRS", "warm_start"]

PAIRS = {f"lambdaresnet{depth}": f"resnetrs{depth}" for depth in (50, 101, 152, 200, 270, 350, 420)}
"""The ResNet-RS that each LambdaResNet can start from."""

SEED = 0  # the same weights from the same source

RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^conv1\.0\.", "stem.conv1.conv."),
    (r"^conv1\.1\.", "stem.conv1.bn."),
    (r"^conv1\.3\.", "stem.conv2.conv."),
    (r"^conv1\.4\.", "stem.conv2.bn."),
    (r"^conv1\.6\.", "stem.conv3.conv."),
    (r"^bn1\.", "stem.conv3.bn."),
    (r"^maxpool\.0\.", "stem.conv4.conv."),
    (r"^maxpool\.1\.", "stem.conv4.bn."),
    (r"^fc\.", "head.fc."),
    (r"^layer(\d)\.", lambda match: f"stages.{int(match[1]) - 1}."),
    (r"\.downsample\.1\.", ".shortcut.conv.conv."),
    (r"\.downsample\.2\.", ".shortcut.conv.bn."),
    (r"\.conv1\.(?=weight)", ".conv1_1x1.conv."),
    (r"\.bn1\.", ".conv1_1x1.bn."),
    (r"\.conv2\.(?=weight)", ".conv2_kxk.conv."),
    (r"\.bn2\.", ".conv2_kxk.bn."),
    (r"\.conv3\.(?=weight)", ".conv3_1x1.conv."),
    (r"\.bn3\.", ".conv3_1x1.bn."),
    (r"\.se\.", ".attn_last."),
]


def warm_start(name: str, source: Mapping[str, Tensor]) -> tuple[nn.Module, list[Row]]:
    """A LambdaResNet with the weights that a ResNet-RS of its depth has for it.

    The batch norm after a lambda layer keeps the scale and shift of the one after the convolution, which
    the next convolution was trained with; its statistics described the convolution's output and start anew.

    Args:
        name: of a model in ``PAIRS``.
        source: a state_dict of timm's ResNet-RS.

    Returns:
        The model, and a row for every tensor of either: ``mapped``, ``initialised`` or ``left``.

    Raises:
        UserError: ``name`` has no such start, or ``source`` is no ResNet-RS of its depth.
    """
    if name not in PAIRS:
        raise UserError(f"'{name}' has no warm start; models that have: {', '.join(PAIRS)}")
    expected = timm.create_model(PAIRS[name], device="meta").state_dict()
    for key, value in expected.items():
        if key.startswith("fc."):
            continue
        if key not in source and "num_batches_tracked" not in key:
            raise UserError(f"these are no weights of {PAIRS[name]}, which {name} starts from: {key} is missing")
        if key in source and source[key].shape != value.shape:
            raise UserError(
                f"these are no weights of {PAIRS[name]}, which {name} starts from: "
                f"{key} is {tuple(source[key].shape)}, not {tuple(value.shape)}"
            )
    head = source.get("fc.weight")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = timm.create_model(name, num_classes=0 if head is None else head.shape[0])
    own = model.state_dict()
    rows, state = [], {}
    for key, value in source.items():
        target = _target(key, own)
        if target is None:
            rows.append(Row("left", key, f"no place in {name}", tuple(value.shape)))
        elif own[target].shape != value.shape:
            raise UserError(f"{key} is {tuple(value.shape)}, where {name} holds {tuple(own[target].shape)}")
        else:
            state[target] = value
            rows.append(Row("mapped", key, target, tuple(value.shape)))
    rows += [Row("initialised", "", key, tuple(value.shape)) for key, value in own.items() if key not in state]
    model.load_state_dict(state, strict=False)
    return model, rows


def _target(key: str, own: Mapping[str, Tensor]) -> str | None:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    if key in own:
        return key
    after_lambda = re.sub(r"conv2_kxk\.bn\.(weight|bias)$", r"post_attn.\1", key)
    return after_lambda if after_lambda in own else None
