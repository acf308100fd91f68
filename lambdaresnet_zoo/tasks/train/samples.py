"""Training samples: what sample n is depends on the seed and n alone, whatever loads it, and whenever.

``TrainSamples`` takes any ``Pairs``: a length, ``pair(index)``, an RGB image of Pillow and its target, and
``name(index)``, for messages. A target is the number of a class or, for a soft label, a float tensor [classes].
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from timm.data.loader import fast_collate
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import UserError, first_line
from ..images import image_problem
from ..validation_images import IndexedImages, StreamedImages

__all__ = ["IndexedPairs", "Pairs", "TrainBatch", "TrainCollate", "TrainSamples", "TrainStream", "seed_everything"]

ATTEMPTS = 100  # damaged images in a row
BUFFER = 1000  # samples of a stream that are shuffled among themselves


class Pairs(Protocol):
    """Images with their targets; reading one may raise anything."""

    def __len__(self) -> int: ...

    def pair(self, number: int, /) -> tuple[Any, Any]:
        """An image, before any transform, and its target."""

    def name(self, number: int, /) -> str:
        """The name of an image's file."""


Item = tuple[Any, Any, list[tuple[str, str]], str]
"""Image or None, target, problems, and why nothing can be read after it, mostly empty."""


class TrainBatch(NamedTuple):
    """A batch on its way to the device."""

    images: Tensor
    """[B, C, h, w] uint8."""
    target: Tensor
    """[B] int64, or soft labels [B, classes] float32."""
    problems: list[tuple[str, str]]
    """Name and reason of each image that could not be decoded."""
    broken: str = ""
    """Why training cannot go on; mostly empty."""


def seed_everything(seed: int) -> None:
    """Seed what timm's and torchvision's transforms draw from: random, NumPy, and torch on the CPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)


class IndexedPairs(IndexedImages):
    """Pairs of image and class, of some images of a data set that timm's readers opened.

    Args:
        dataset: timm's, or torchvision's.
        indices: of the images.
        places: the class of each of the data's classes, in its order; the same where None.
        process: number of this process, for a share of the images.
        processes: that share them.
    """

    upright = True  # as `predict` shows the network what it is used on

    def __init__(
        self,
        dataset: Any,
        indices: Sequence[int],
        places: Sequence[int] | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__(dataset)
        self.indices: Any = list(indices)[process::processes]
        self.places = places

    def _read(self, index: int) -> tuple[Any, int]:
        read, target = super()._read(index)
        if self.places is not None:
            if not 0 <= target < len(self.places):
                raise UserError(f"has the class {target}, and classes run from 0 to {len(self.places) - 1}")
            target = self.places[target]
        return read, target

    def pair(self, number: int) -> tuple[Any, int]:
        """An image, before any transform, and its class."""
        read, target = self._read(self.indices[number])
        return read(), target

    def name(self, number: int) -> str:
        """The name of an image's file."""
        return self._name(self.indices[number])


class TrainSamples(Dataset[Any]):
    """Sample ``n`` of an endless stream: epochs of all images, each in an order of its own.

    An image that cannot be read is replaced by the next one of the order, and reported.

    Args:
        images: to learn from.
        per_epoch: samples of an epoch; what is left of the images is another rest in each.
        transform: of an image, to a uint8 tensor.
        seed: of order and augmentation.
    """

    def __init__(self, images: Pairs, per_epoch: int, transform: Any, seed: int) -> None:
        self.images, self.per_epoch, self.transform, self.seed = images, per_epoch, transform, seed
        self._order: tuple[int, Tensor] = (-1, torch.zeros(0))

    def order(self, epoch: int) -> Tensor:
        """The order of an epoch, [images] int64."""
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(len(self.images), generator=generator))
        return self._order[1]

    def __getitem__(self, number: int) -> Item:
        epoch, place = divmod(number, self.per_epoch)
        order = self.order(epoch)
        if hasattr(self.images, "set_epoch"):  # others are dealt out in each
            self.images.set_epoch(epoch)
        seed = self.seed * 1_000_003 + number
        indices = (int(order[(place + attempt) % len(order)]) for attempt in range(min(ATTEMPTS, len(order))))
        found = ((partial(self.images.name, index), partial(self.images.pair, index)) for index in indices)
        return _first_readable(found, self.transform, seed)


def _first_readable(
    samples: Iterable[tuple[Callable[[], str], Callable[[], tuple[Any, Any]]]], transform: Any, seed: int
) -> Item:
    """The first of some samples, each what names it and what reads it, that can be read."""
    problems: list[tuple[str, str]] = []
    for name, read in samples:
        seed_everything(seed)
        try:
            image, target = read()
            return transform(image), target if isinstance(target, Tensor) else int(target), problems, ""
        except UserError as error:
            return None, 0, problems, f"{name()}: {error}"
        except Exception as error:  # a decoder may raise anything on a damaged file
            problems.append((name(), image_problem(error)))
    return None, 0, problems, f"{len(problems)} images in a row cannot be decoded, from {problems[0][0]} on"


class TrainStream(StreamedImages):
    """Samples of a process's shards of webdataset, shuffled, without end; the shards in another order in each pass.

    An image that cannot be read is replaced by the next one, which comes in its own place too, and reported.

    Args:
        reader: timm's for ``wds/``, created after torch.distributed was set up.
        transform: of an image.
        seed: of order and augmentation.
        batch_size: of the loader.
        epoch: its orders differ.
        skip: batches of each worker that are passed over, undecoded.
    """

    upright = True

    def __init__(self, reader: Any, transform: Any, seed: int, batch_size: int, epoch: int, skip: int) -> None:
        super().__init__(reader)
        self.transform, self.seed, self.batch_size, self.epoch, self.skip = transform, seed, batch_size, epoch, skip
        self._pass = 0

    def _shards(self) -> list[str]:
        shards = super()._shards()
        random.Random(f"{self.seed} {self.epoch} {self._pass}").shuffle(shards)
        return shards

    def _shuffled(self, chance: random.Random) -> Iterator[tuple[str, Any]]:
        waiting: list[tuple[str, Any]] = []
        for self._pass in count():
            found = False
            for entry in self._webdataset():
                found = True
                waiting.append(entry)
                if len(waiting) > BUFFER:
                    place = chance.randrange(len(waiting))
                    waiting[place], waiting[-1] = waiting[-1], waiting[place]
                    yield waiting.pop()
            if not found:
                return
            chance.shuffle(waiting)  # a pass ends before the next begins
            while waiting:
                yield waiting.pop()

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        self.reader._lazy_init()  # finds out which worker this is
        place = self.reader.global_worker_id
        samples = self._shuffled(random.Random(f"{self.seed} {self.epoch} {place}"))
        ahead: deque[tuple[str, Any]] = deque()  # samples from this position on that were looked at
        for position in count():
            try:
                if not ahead:
                    ahead.append(next(samples))
                if position >= self.skip * self.batch_size:
                    seed = (self.seed * 1_000_003 + self.epoch) * 1_000_003 + position * 1009 + place
                    yield _first_readable(self._ahead(samples, ahead), self.transform, seed)
                ahead.popleft()
            except StopIteration:
                return
            except Exception as error:  # of a tar, a file or the network, not of one image
                yield None, 0, [], f"{self.reader.root} cannot be read on: {first_line(error)}"
                return

    def _ahead(
        self, samples: Iterator[tuple[str, Any]], ahead: deque[tuple[str, Any]]
    ) -> Iterator[tuple[Callable[[], str], Callable[[], tuple[Any, Any]]]]:
        """Samples from this position on, which stay for the positions that follow."""
        for attempt in range(ATTEMPTS):
            if len(ahead) == attempt:
                ahead.append(next(samples))  # they do not end
            name, read = ahead[attempt]
            yield partial(str, name), read


class TrainCollate:
    """Samples to a ``TrainBatch``; hard labels become soft ones beside soft ones.

    Args:
        classes: their number.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, samples: list[Item]) -> TrainBatch:
        """Called by the loader's workers."""
        problems = [problem for _, _, found, _ in samples for problem in found]
        broken = next((text for *_, text in samples if text), "")
        good = [(image, target) for image, target, *_ in samples if image is not None]
        if broken:
            return TrainBatch(torch.zeros(0, dtype=torch.uint8), torch.zeros(0).long(), problems, broken)
        if any(isinstance(target, Tensor) for _, target in good):
            good = [(image, self._soft(target)) for image, target in good]
        images, target = fast_collate(good)
        return TrainBatch(images, target, problems)

    def _soft(self, target: int | Tensor) -> Tensor:
        if isinstance(target, Tensor):
            return target.float()
        return torch.nn.functional.one_hot(torch.tensor(target), self.classes).float()
