"""What is done to a training image: timm's transforms in the workers, and the rest of the batch on the device."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torchvision import transforms

from ...errors import UserError, first_line
from .options import TrainOptions

__all__ = ["OnDevice", "build_transform"]


def build_transform(options: TrainOptions, config: Mapping[str, Any]) -> Any:
    """The transform of one image, to a uint8 tensor [C, h, w].

    Args:
        options: of the augmentation.
        config: preprocessing of the model, as timm's ``resolve_data_config`` gives it.

    Raises:
        UserError: timm does not know an augmentation.
    """
    size = config["input_size"]
    padded = options.train_crop_mode == "pad"
    try:
        parts = create_transform(
            size,
            is_training=True,
            use_prefetcher=True,
            no_aug=options.no_aug,
            train_crop_mode=None if padded else options.train_crop_mode or None,
            scale=tuple(options.scale) if options.scale else None,
            ratio=tuple(options.ratio) if options.ratio else None,
            hflip=options.hflip,
            vflip=options.vflip,
            color_jitter=options.color_jitter or None,  # timm's own draws even where it changes nothing
            color_jitter_prob=options.color_jitter_prob,
            grayscale_prob=options.grayscale_prob,
            gaussian_blur_prob=options.gaussian_blur_prob,
            auto_augment=options.aa,
            interpolation=options.train_interpolation or config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            separate=not options.no_aug,
        )
    except (AssertionError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"timm knows no such augmentation: {first_line(error)}; see --aa and its like") from error
    if options.no_aug:
        return parts
    first, second, last = parts
    if padded:
        first = _padded(size[1:], options)
    return transforms.Compose([first, second, last])


def _padded(size: tuple[int, int], options: TrainOptions) -> Any:
    """As CIFAR-10's recipes crop: the image at its own scale, padded, at a random place."""
    steps: list[Any] = [Resize(size), transforms.RandomCrop(size, padding=options.train_crop_padding or None)]
    if options.hflip:
        steps.append(transforms.RandomHorizontalFlip(options.hflip))
    if options.vflip:
        steps.append(transforms.RandomVerticalFlip(options.vflip))
    return transforms.Compose(steps)


class Resize:
    """An image to a size (h, w), if it is of another one."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)

    def __call__(self, image: Any) -> Any:
        """Called by the loader's workers."""
        return image if image.size == self.size[::-1] else self.resize(image)


class OnDevice:
    """From a batch of uint8 images to what the network sees, its targets, and the loss.

    Args:
        options: of erasing, mixing and loss.
        config: preprocessing of the model.
        classes: their number.
        device: of the batch.
        soft: whether targets are soft labels [B, classes].
    """

    def __init__(
        self, options: TrainOptions, config: Mapping[str, Any], classes: int, device: torch.device, soft: bool = False
    ) -> None:
        self.options, self.classes, self.soft = options, classes, soft
        self.mean = torch.tensor(config["mean"], device=device).mul(255).reshape(-1, 1, 1)
        self.std = torch.tensor(config["std"], device=device).mul(255).reshape(-1, 1, 1)
        self.erase = (
            RandomErasing(options.reprob, mode=options.remode, max_count=options.recount, device=device)
            if options.reprob and not options.no_aug
            else None
        )
        self.loss = self._loss()

    def _loss(self) -> nn.Module:
        options = self.options
        dense = self.soft or options.mixes
        if options.bce_loss:
            smoothing = 0.0 if dense else options.smoothing
            return BinaryCrossEntropy(smoothing=smoothing, target_threshold=options.bce_target_thresh)
        if dense:
            return SoftTargetCrossEntropy()
        return LabelSmoothingCrossEntropy(options.smoothing) if options.smoothing else nn.CrossEntropyLoss()

    def __call__(self, images: Tensor, target: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Normalise, erase and mix, from random and NumPy's and torch's generators.

        Args:
            images: [B, C, h, w] uint8 on the device.
            target: [B] int64 or [B, classes] float32.
            epoch: from 0.

        Returns:
            Images [B, C, h, w] float32, and targets as the loss takes them.
        """
        options = self.options
        images = images.float().sub_(self.mean).div_(self.std)
        if self.erase is not None:
            images = self.erase(images)
        if not (self.soft or options.mixes):
            return images, target
        if target.ndim == 1:
            target = nn.functional.one_hot(target, self.classes).float()
        target = target * (1 - options.smoothing) + options.smoothing / self.classes
        if options.mixes and not (options.mixup_off_epoch and epoch >= options.mixup_off_epoch):
            images, shares = self._mixup(len(images))(images, torch.arange(len(images), device=images.device))
            own, others = shares.diagonal()[:, None], shares.flip(1).diagonal()[:, None]
            target = target * own + target.flip(0) * others  # as timm; a product of matrices would be in TF32 on a GPU
        return images, target

    def _mixup(self, batch: int) -> Mixup:
        """timm's, which mixes numbered classes: with the batch's own numbers it tells how much of each is in each."""
        options = self.options
        return Mixup(
            mixup_alpha=options.mixup,
            cutmix_alpha=options.cutmix,
            cutmix_minmax=options.cutmix_minmax,
            prob=options.mixup_prob,
            switch_prob=options.mixup_switch_prob,
            mode=options.mixup_mode,
            label_smoothing=0.0,
            num_classes=batch,
        )
