"""Training samples: images with their objects, augmented as a recipe says."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from .data import CocoData, object_mask
from .recipe import Recipe

__all__ = ["Images", "Samples", "augmentation", "collate"]

FILL = (124, 116, 104)  # ImageNet's mean, which is 0 to the network

Sample = tuple[Tensor, dict[str, Tensor]]


def augmentation(recipe: Recipe) -> v2.Transform:
    """Scale jitter, crop and pad, flip; boxes that leave the image go with their labels and masks."""
    square = (recipe.image_size, recipe.image_size)
    steps: list[Any] = [v2.ScaleJitter(square, recipe.scale)]
    if recipe.crop:
        fill: Any = {tv_tensors.Image: FILL, "others": 0}
        steps.append(v2.RandomCrop(square, pad_if_needed=True, fill=fill))
    steps += [v2.RandomHorizontalFlip(recipe.hflip), v2.SanitizeBoundingBoxes()]
    return v2.Compose([*steps, v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)])


class Samples(Dataset[Sample]):
    """Sample ``n`` of an endless stream: epochs of all images, each in an order of its own.

    What sample n is depends on the seed and n alone, so a continued run sees what it would have seen,
    whatever loads it.

    Args:
        data: the annotations.
        ids: of the images.
        recipe: of the augmentation.
        seed: of orders and augmentation.
        masks: whether the samples have masks.

    A sample is an image [3, h, w] float in 0..1 and its target: boxes [N, 4] (left, top, right, bottom)
    in pixels, labels [N] from 1, in the order of the categories' ids, and masks [N, h, w] uint8.
    """

    def __init__(self, data: CocoData, ids: list[int], recipe: Recipe, seed: int, masks: bool) -> None:
        self.data, self.ids, self.seed, self.masks = data, ids, seed, masks
        self.labels = {number: label for label, number in enumerate(data.categories, start=1)}
        self.augment = augmentation(recipe)

    def image_id(self, number: int) -> int:
        """The image of a sample."""
        epoch, position = divmod(number, len(self.ids))
        order = torch.randperm(len(self.ids), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        return self.ids[order[position]]

    def __getitem__(self, number: int) -> Sample:
        image_id = self.image_id(number)
        image, target = self._read(image_id)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + number)
            image, target = self.augment(image, target)
        if "masks" in target:
            # A crop may leave a corner of a box in which nothing of the object is.
            seen = (target["masks"].flatten(1) > 0).any(1)
            target = {key: value[seen] for key, value in target.items()}
        return image.as_subclass(Tensor), {key: value.as_subclass(Tensor) for key, value in target.items()}

    def _read(self, image_id: int) -> tuple[Tensor, dict[str, Any]]:
        image = tv_tensors.Image(v2.functional.pil_to_tensor(self.data.open(image_id)))
        height, width = image.shape[-2:]
        objects = self.data.objects(image_id)
        boxes = torch.tensor([found["bbox"] for found in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target: dict[str, Any] = {
            "boxes": v2.functional.clamp_bounding_boxes(
                tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
            ),
            "labels": torch.tensor([self.labels[found["category_id"]] for found in objects], dtype=torch.int64),
        }
        if self.masks:
            masks = [torch.from_numpy(object_mask(self.data, found)) for found in objects]
            stacked = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8)
            target["masks"] = tv_tensors.Mask(stacked)
        return image, target


class Images(Dataset[tuple[int, Tensor]]):
    """Images to evaluate on: id and pixels [3, h, w] in 0..1."""

    def __init__(self, data: CocoData, ids: list[int]) -> None:
        self.data, self.ids = data, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        pixels = v2.functional.pil_to_tensor(self.data.open(self.ids[index]))
        return self.ids[index], pixels.float() / 255


def collate(batch: list[Any]) -> tuple[list[Any], ...]:
    """Images differ in size: a list of each part."""
    return tuple(map(list, zip(*batch, strict=True)))
