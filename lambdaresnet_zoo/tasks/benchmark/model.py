"""The part *model*: inference and a training step of whole networks, beside those of equal accuracy or depth."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.lambda_layer import LambdaLayer as TimmLambdaLayer
from torch import Tensor, nn

from ...errors import UserError
from ...models.lambdaresnet import NETWORKS
from ...models.lambdaresnet_public import from_timm
from ...models.network import create_network
from ...weights.benchmarks import UNFOLDED, ZOO
from ...weights.published import IMAGENET, Figure, published_figures
from .compare import COLUMNS, Limits, Setting, compare, prepared

__all__ = ["BATCHES", "FIELDS", "KEY", "MODES", "QUICK", "Case", "cases", "check_pair", "key_of", "limits", "measure"]

DEPTHS = (50, 101, 152, 270, 350)
PAIR, PAIR_SIZE, TIMM_PAIR = "lambdaresnet26t", 256, "lambda_resnet26t"
PAIR_TOLERANCE = 1e-4
"""Of the largest output: the two compute one sum in different orders, in float32."""
MODES = ("inference", "training")
"""Evaluation without gradients, batch norms folded where a network lets timm do it; and forward, cross-entropy,
backward and a step of SGD with momentum."""
BATCHES = {"cpu": {"inference": 4, "training": 2}, "cuda": {"inference": 64, "training": 32}}

EFFICIENTNET, RESNET_RS, TIMM_LAYER, TIMM = "efficientnet", "resnet-rs", "timm layer", "timm"
KEY = ("model", "size", "batch", "mode")
FIELDS = (*KEY, "kind", "network", "network_size", *COLUMNS)


@dataclass(frozen=True)
class Case:
    """A network of this package at a size, and what it is compared with."""

    model: str
    size: int
    efficientnet: str = ""
    """timm's name of the one with the nearest published top-1; empty for none."""
    efficientnet_size: int = 0

    def __str__(self) -> str:
        return f"{self.model}@{self.size}"

    def networks(self, mode: str) -> dict[str, tuple[str, int]]:
        """Name and size of the networks by what they are to this one, itself first; in training nothing is folded."""
        own = (ZOO,) if mode == "training" else (ZOO, UNFOLDED)
        found = dict.fromkeys(own, (self.model, self.size))
        if self.model == PAIR:
            return found | {TIMM: (TIMM_PAIR, self.size)}
        if self.efficientnet:
            found[EFFICIENTNET] = self.efficientnet, self.efficientnet_size
        found[RESNET_RS] = self.model.replace("lambdaresnet", "resnetrs"), self.size
        return found | {TIMM_LAYER: (self.model, self.size)}


def cases() -> tuple[Case, ...]:
    """The paper's family at its sizes, each with the EfficientNet of the nearest published top-1, the cheaper of two
    that are as near; and the network whose weights timm has, too.
    """
    figures = [figure for figure in published_figures() if figure.dataset == IMAGENET and not figure.extra_data]
    rivals = [figure for figure in figures if figure.model.startswith("efficientnet_b") and figure.top1]
    names = [f"lambdaresnet{depth}" for depth in DEPTHS]
    family = [figure for figure in figures if figure.model in names and figure.train_step_s]
    return (*(_case(figure, rivals) for figure in family), Case(PAIR, PAIR_SIZE))


QUICK = ("lambdaresnet50@128", f"{PAIR}@{PAIR_SIZE}")


def _case(figure: Figure, rivals: list[Figure]) -> Case:
    def distance(rival: Figure) -> tuple[Any, int]:
        assert figure.top1 is not None and rival.top1 is not None and rival.size is not None
        return abs(rival.top1 - figure.top1), rival.size

    nearest = min(rivals, key=distance)
    assert figure.size is not None and nearest.size is not None
    return Case(figure.model, figure.size, nearest.model, nearest.size)


def limits(of_layer: Limits) -> Limits:
    """A pass of a network may take longer than one of a layer, and more memory; three to five rounds will do."""
    return replace(of_layer, repeats=min(of_layer.repeats, 5), pass_seconds=180.0, memory_gib=2 * of_layer.memory_gib)


def key_of(case: Case, batch: int, mode: str) -> dict[str, Any]:
    """The columns of KEY."""
    return {"model": case.model, "size": case.size, "batch": batch, "mode": mode}


def measure(case: Case, batch: int, mode: str, setting: Setting) -> list[dict[str, Any]]:
    """The rows of all networks of a case, timed against one another at the same batch.

    Raises:
        UserError: the pair with equal weights gives other outputs.
    """
    torch.manual_seed(0)
    if case.model == PAIR:
        check_pair()
    networks = case.networks(mode)
    builders = {
        kind: partial(_build, kind, name, size, batch, mode, setting) for kind, (name, size) in networks.items()
    }
    found = compare(ZOO, builders, setting)
    named = {kind: {"kind": kind, "network": name, "network_size": size} for kind, (name, size) in networks.items()}
    return [{**key_of(case, batch, mode), **named[kind], **columns} for kind, columns in found.items()]


def check_pair() -> None:
    """See that the two networks of equal weights compute the same.

    Raises:
        UserError: they do not.
    """
    images = torch.randn(1, 3, PAIR_SIZE, PAIR_SIZE)
    with torch.inference_mode():
        own, other = (_network(kind, name)(images) for kind, name in ((ZOO, PAIR), (TIMM, TIMM_PAIR)))
    difference = ((own - other).abs().max() / other.abs().max()).item()
    if not difference <= PAIR_TOLERANCE:
        raise UserError(
            f"{PAIR} and timm's {TIMM_PAIR} differ by {difference:.1e} on equal weights: nothing to compare"
        )


def _network(kind: str, name: str) -> nn.Module:
    """A network, random weights, in evaluation."""
    if kind == TIMM_LAYER:
        return _on_timm_layer(name).eval()
    if name not in (PAIR, TIMM_PAIR):
        network: nn.Module = timm.create_model(name)
        return network.eval()
    theirs = timm.create_model(TIMM_PAIR)
    generator = torch.Generator().manual_seed(0)
    for key, value in theirs.state_dict().items():  # as trained ones: batch norms do not begin at 0 and 1
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5, generator=generator)
        elif key.endswith(("weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value.uniform_(-0.5, 0.5, generator=generator)
    if name == TIMM_PAIR:
        return theirs.eval()
    own = timm.create_model(PAIR)
    own.load_state_dict(from_timm(theirs.state_dict()))
    return own.eval()


def _on_timm_layer(name: str) -> nn.Module:
    """The same network with timm's lambda layer for this package's: its scope, its 2x2 pool and its bias."""
    cfg = NETWORKS[name]
    layer: dict[str, Any] = {"self_attn_layer": TimmLambdaLayer}
    layer["self_attn_kwargs"] = {"r": (cfg.self_attn_kwargs or {})["scope"]}
    return create_network(name, replace(cfg, **layer))


def _build(kind: str, name: str, size: int, batch: int, mode: str, setting: Setting) -> Callable[[], None]:
    network = _channels_last(_network(kind, name).to(setting.device))
    images = torch.randn(batch, 3, size, size, device=setting.device).contiguous(memory_format=torch.channels_last)
    if mode == "training":
        return _training_step(network.train(), images, setting)
    if kind != UNFOLDED:
        network = prepared(network)

    def evaluate() -> None:
        with torch.inference_mode(), setting.autocast():
            network(images)

    return evaluate


def _channels_last(network: nn.Module) -> nn.Module:
    """In the memory format in which those that were tried took less time, on a CPU, too."""
    for parameter in network.parameters():  # one by one, as timm's lambda layer has a weight of five dimensions
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _training_step(network: nn.Module, images: Tensor, setting: Setting) -> Callable[[], None]:
    labels = torch.randint(0, 1000, images.shape[:1], device=setting.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def train() -> None:
        with setting.autocast():
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # so that networks in turn do not hold each other's memory

    return train
