"""CIFAR-10 as tensors: read from parquet, augmented and normalised in batches.

32x32 images are so small that decoding and augmenting them one by one would cost more than the
network on them; the whole set fits in memory, on a GPU too.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

__all__ = ["Split", "accuracy", "augment", "normalize", "read_split"]


@dataclass
class Split:
    """Images [N, 3, 32, 32] uint8 and labels [N] int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Split":
        """The same on another device."""
        return Split(self.images.to(device), self.labels.to(device))


def read_split(folder: Path, split: str) -> Split:
    """Read ``train`` or ``test`` from the parquet files of a folder, in file and row order.

    Rows hold ``image`` {bytes, path} and ``label``, as Hugging Face datasets writes them.

    Raises:
        FileNotFoundError: the folder has no such split.
    """
    import pyarrow.parquet as parquet  # an extra, for those who train

    files = sorted(folder.glob(f"**/{split}*.parquet"))
    if not files:
        raise FileNotFoundError(f"no {split}*.parquet under {folder}: give the folder that holds CIFAR-10 as parquet")
    images, labels = [], []
    for file in files:
        rows = parquet.read_table(file, columns=["image", "label"]).to_pydict()
        for image, label in zip(rows["image"], rows["label"], strict=True):
            pixels = Image.open(io.BytesIO(image["bytes"])).convert("RGB")
            images.append(np.asarray(pixels))
            labels.append(label)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Split(stacked, torch.tensor(labels))


def augment(images: Tensor, padding: int = 4) -> Tensor:
    """Random crop of the padded image and random horizontal flip, for each image apart; [B, 3, h, w] uint8."""
    batch, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, batch, 1), device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    flip = torch.rand(batch, 1, device=device) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    index = torch.arange(batch, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, 3, h, w] to float32 with the given mean and standard deviation, channels last."""
    scale = images.new_tensor(std, dtype=torch.float32).mul(255).reshape(3, 1, 1)
    shift = images.new_tensor(mean, dtype=torch.float32).mul(255).reshape(3, 1, 1)
    return ((images.float() - shift) / scale).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(model: nn.Module, split: Split, batch_size: int = 500) -> float:
    """Top-1 of a model on a split, in percent, in float32."""
    cfg: Any = model.pretrained_cfg  # torch types every attribute of a module as Tensor | Module
    model.eval()
    correct = 0
    for start in range(0, len(split.labels), batch_size):
        images = normalize(split.images[start : start + batch_size], cfg["mean"], cfg["std"])
        correct += int((model(images).argmax(1) == split.labels[start : start + batch_size]).sum())
    return 100 * correct / len(split.labels)
