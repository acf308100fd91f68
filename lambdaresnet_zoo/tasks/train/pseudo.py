"""Labelled and pseudo-labelled images as one set of training images, in a chosen ratio."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ..label.files import Labels, read_labels
from ..label.run import UnlabelledImages, open_images
from ..validation_classes import places_of

__all__ = ["MixedImages", "PseudoLabels", "mixed_dataset", "read_pseudo_labels"]

AGAIN = "label them again, with another --out"  # what is labelled in a folder stays


class PseudoLabels:
    """Images with what a teacher made of them, as pairs to train on.

    Args:
        labels: as ``read_labels`` gives them.
        images: the data set that was labelled, as ``open_images`` gives it.
        places: [C] int, for each class of the teacher its place among the student's.
    """

    def __init__(self, labels: Labels, images: Any, places: np.ndarray):
        self.labels = labels
        self.images = UnlabelledImages(images, labels.indices.tolist())
        self.places = places

    @property
    def soft(self) -> bool:
        """Whether targets are probabilities [C] float32, not classes."""
        return self.labels.probabilities is not None

    def __len__(self) -> int:
        return len(self.labels.indices)

    def pair(self, number: int) -> tuple[Any, int | Tensor]:
        """An image, before any transform, and its target; reading it may raise anything."""
        return self.images.open(number), self.target(number)

    def name(self, number: int) -> str:
        """The name of an image's file."""
        return str(self.labels.paths[number])

    def target(self, number: int) -> int | Tensor:
        """The target of an image: of soft labels what the classes left out have in all is shared by them alike."""
        if self.labels.probabilities is None or self.labels.classes is None:
            return int(self.places[self.labels.labels[number]])
        known = torch.from_numpy(self.labels.probabilities[number])
        rest = (1 - known.sum()).clamp(min=0) / max(1, len(self.places) - len(known))
        target = torch.full((len(self.places),), float(rest))
        target[torch.from_numpy(self.places[self.labels.classes[number]])] = known
        return target / target.sum()


class MixedImages:
    """Labelled images, all in each epoch, and a number of pseudo-labelled ones, others in each; pairs to train on.

    The pseudo-labelled ones are dealt out like cards: shuffled by the seed, each once before any comes again, and the
    next epoch goes on where the last one ended. Whoever reads an epoch's images says which first, by ``set_epoch``.

    Args:
        labelled: pairs: a length, ``pair(number)`` and ``name(number)``.
        pseudo: the others.
        ratio: pseudo-labelled images for each labelled one.
        seed: of the shuffling.
    """

    def __init__(self, labelled: Any, pseudo: PseudoLabels, ratio: float, seed: int):
        self.labelled = labelled
        self.pseudo = pseudo
        self.dealt = max(1, round(ratio * len(labelled)))
        """Pseudo-labelled images of an epoch."""
        self.seed = seed
        self.epoch = 0
        self._shuffled: dict[int, np.ndarray] = {}

    def set_epoch(self, epoch: int) -> None:
        """Deal out the images of an epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labelled) + self.dealt

    def pair(self, number: int) -> tuple[Any, int | Tensor]:
        """An image, before any transform, and its target; reading it may raise anything."""
        place = number - len(self.labelled)
        pair: tuple[Any, int | Tensor] = self.labelled.pair(number) if place < 0 else self.pseudo.pair(self.card(place))
        return pair

    def name(self, number: int) -> str:
        """The name of an image's file."""
        place = number - len(self.labelled)
        return str(self.labelled.name(number)) if place < 0 else self.pseudo.name(self.card(place))

    def card(self, place: int) -> int:
        """Which pseudo-labelled image is dealt out at a place of the epoch, from 0."""
        turn, card = divmod(self.epoch * self.dealt + place, len(self.pseudo))
        if turn not in self._shuffled:
            if len(self._shuffled) > 1:  # an epoch may end one turn and begin the next
                self._shuffled.clear()
            self._shuffled[turn] = np.random.default_rng((self.seed, turn)).permutation(len(self.pseudo))
        return int(self._shuffled[turn][card])


def read_pseudo_labels(path: str, classes: Sequence[str], data: str = "") -> PseudoLabels:
    """Open what `lambdaresnet-zoo label` wrote, with the images that were labelled.

    Args:
        path: the folder, or the labels.parquet in it.
        classes: names of the student's classes in their order; numbers where they have none.
        data: where the images are now; by default where they were.

    Raises:
        UserError: the labels cannot be read, are none, the images are others now, or the classes are.
    """
    labels = read_labels(path)
    if not len(labels.indices):
        raise UserError(f"{path} holds no label; run lambdaresnet-zoo label with a lower --threshold")
    run = labels.run
    where = data or run["data"]
    images = open_images(where, run["dataset"], run["split"], run["input_key"])
    if len(images) != run["images"]:
        raise UserError(f"{path} is of {run['images']} images, and {where} has {len(images)} now: {AGAIN}")
    pseudo = PseudoLabels(labels, images, _places(path, run, classes))
    _check_names(path, pseudo, where)
    return pseudo


def mixed_dataset(labelled: Any, pseudo: PseudoLabels, ratio: float, seed: int) -> MixedImages:
    """Labelled and pseudo-labelled images together.

    Args:
        labelled: pairs: a length, ``pair(number)`` and ``name(number)``.
        pseudo: as ``read_pseudo_labels`` gives them.
        ratio: pseudo-labelled images for each labelled one, above 0.
        seed: which pseudo-labelled images an epoch has depends on it and on the epoch alone.

    Raises:
        UserError: ``ratio`` is not above 0.
    """
    if not 0 < ratio < float("inf"):
        raise UserError(f"--pseudo-ratio {ratio} is not a number above 0")
    return MixedImages(labelled, pseudo, ratio, seed)


def _check_names(path: str, pseudo: PseudoLabels, where: str) -> None:
    """Whether the images are where they were: all of a folder or tar, of other data, which is read for it, three."""
    last = len(pseudo) - 1
    known = hasattr(getattr(pseudo.images.dataset, "reader", None), "samples")
    for number in range(len(pseudo)) if known else sorted({0, last // 2, last}):
        found, name = pseudo.images.path(number), pseudo.labels.paths[number]
        if found != name:
            raise UserError(f"{path} names '{name}' where {where} has '{found}': {AGAIN}")


def _places(path: str, run: dict[str, Any], classes: Sequence[str]) -> np.ndarray:
    """For each class of the teacher its place among the student's, by their names where both have them.

    Of a teacher that has none, or knows none of a student's numbers, the classes are in the student's order.
    """
    if run["num_classes"] != len(classes):
        raise UserError(f"{path} is of {run['num_classes']} classes, and the data has {len(classes)}")
    places = places_of(run["classes"], classes)
    if all(place is None for place in places) and (not run["classes"] or all(name.isdecimal() for name in classes)):
        return np.arange(len(classes))
    if None in places:
        missing = run["classes"][places.index(None)]
        few = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        raise UserError(f"{path} has the teacher's class '{missing}', and the data has {few}")
    return np.array(places)
