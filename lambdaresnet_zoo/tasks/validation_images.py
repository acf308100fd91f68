"""The images of a data set for validation: each once over all processes and workers, none dropped in silence.

timm's own data sets replace an image that does not decode by the next, or leave it out with a log line, and pad
the last images of an uneven split with the first. That serves training; a figure needs every image, once.
The readers, the decoding and the transform are timm's; but images of more than 8 bits, which timm clips, are scaled.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import ImageDataset
from timm.data.loader import fast_collate
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..errors import UserError, first_line
from .images import convert_image, image_problem, is_turned

__all__ = ["Batch", "Collate", "IndexedImages", "StreamedImages"]


class Sample(NamedTuple):
    """An image after the transform and its class, or what is wrong with it."""

    image: Any
    target: int = 0
    name: str = ""
    problem: str = ""
    ends: bool = False
    """Nothing can be read after it."""
    unturned: bool = False
    """As it is stored, while its EXIF orientation asks for it to be turned."""


@dataclass(frozen=True)
class Batch:
    """What comes with a batch of images; timm's loader takes it for the tensor of classes."""

    target: Tensor
    """[B] int64."""
    names: tuple[str, ...]
    """Of the images, empty strings where they were not asked for."""
    problems: tuple[tuple[str, str], ...]
    """Name of and reason for each image that is left out."""
    broken: str
    """Why nothing can be read after this batch; mostly empty."""
    lowest: int
    highest: int
    """Of the classes, known without asking the device."""
    unturned: int = 0
    """Images as they are stored, while their EXIF orientation asks for them to be turned."""

    def to(self, *arguments: Any, **options: Any) -> "Batch":
        """The same with the classes on another device."""
        return replace(self, target=self.target.to(*arguments, **options))

    def pin_memory(self) -> "Batch":
        """The same with the classes in pinned memory."""
        return replace(self, target=self.target.pin_memory())


@dataclass(frozen=True)
class Collate:
    """Samples to a pair of images [B, *input_size] uint8 and their ``Batch``; B may be 0."""

    input_size: tuple[int, ...]

    def __call__(self, samples: list[Sample]) -> tuple[Tensor, Batch]:
        """Called by the loader's workers."""
        good = [sample for sample in samples if not sample.problem]
        bad = tuple((sample.name, sample.problem) for sample in samples if sample.problem and not sample.ends)
        broken = next((f"{sample.name}: {sample.problem}" for sample in samples if sample.ends), "")
        if not good:
            none = Batch(torch.zeros(0).long(), (), bad, broken, 0, 0)
            return torch.zeros((0, *self.input_size), dtype=torch.uint8), none
        images, targets = fast_collate([(sample.image, sample.target) for sample in good])
        names = tuple(sample.name for sample in good)
        unturned = sum(sample.unturned for sample in good)
        return images, Batch(targets, names, bad, broken, int(targets.min()), int(targets.max()), unturned)


class IndexedImages(Dataset):
    """Every ``processes``-th image of a data set with random access, from number ``process`` on.

    The shares differ by at most one image and together are the whole, without padding.

    Args:
        dataset: timm's, or one of torchvision's.
        process: number of this process, from 0.
        processes: how many share the data set.
        named: give the file name with each image; otherwise only where one cannot be read.
    """

    transform: Any = None  # set by timm's create_loader
    upright = False
    """Turn images as their EXIF orientation says, which timm does not."""

    def __init__(self, dataset: Any, process: int = 0, processes: int = 1, named: bool = False):
        self.dataset = dataset
        self.indices: Sequence[int] = range(process, len(dataset), processes)
        self.named = named

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Sample:
        index = self.indices[number]
        try:
            read, target = self._read(index)
        except Exception as error:
            return _failed(self._name(index), error)
        try:
            image = read()
            unturned = is_turned(image)
            image = self.transform(image)
        except Exception as error:  # a decoder may raise anything on a damaged file
            return Sample(None, 0, self._name(index), image_problem(error))
        return Sample(image, target, self._name(index) if self.named else "", unturned=unturned)

    def _read(self, index: int) -> tuple[Callable[[], Any], int]:
        """What gives the image, which may be damaged, and its class."""
        if not isinstance(self.dataset, ImageDataset):
            image, target = self.dataset[index]
            is_open = isinstance(image, Image.Image)  # by torchvision, in a mode of its choice
            return lambda: convert_image(image, "", self.upright) if is_open else image, self._target(index, target)
        reader = self.dataset.reader
        with _keys(reader):
            stream, target = reader[index]

        def read() -> Any:
            with stream:
                return convert_image(Image.open(stream), self.dataset.input_img_mode, self.upright)

        return read, self._target(index, target)

    def _target(self, index: int, target: Any) -> int:
        return _number(target)

    def _name(self, index: int) -> str:
        try:
            return str(self.dataset.filename(index, absolute=True) or f"image {index}")
        except Exception:  # torchvision's have no names
            return f"image {index}"


class StreamedImages(IterableDataset):
    """The share of this process of a data set that can only be read from start to end.

    webdataset is shared out by whole shards, Hugging Face's streams by whole files where their number allows,
    otherwise example by example; a worker or process without a shard has nothing to do.

    Args:
        reader: timm's for ``wds/`` or ``hfids/``, created after torch.distributed was set up.
    """

    transform: Any = None  # set by timm's create_loader
    upright = False
    """Turn images as their EXIF orientation says, which timm does not."""

    def __init__(self, reader: Any):
        self.reader = reader

    def __iter__(self) -> Iterator[Sample]:
        self.reader._lazy_init()  # finds out which worker this is
        samples = self._webdataset() if hasattr(self.reader, "split_info") else self._examples()
        while True:
            try:
                name, read = next(samples)
            except StopIteration:
                return
            except Exception as error:  # of a tar, a file or the network, not of one image
                yield Sample(None, 0, *_breach(error), ends=True)
                return
            try:
                image, target = read()
                unturned = is_turned(image)
                image, number = self.transform(image), _number(target)
            except Exception as error:  # a decoder may raise anything on a damaged file
                yield _failed(name, error)
                continue
            yield Sample(image, number, name, unturned=unturned)

    def _webdataset(self) -> Iterator[tuple[str, Any]]:
        import webdataset
        from timm.data.readers.reader_wds import WdsTargetKeyError, _decode  # timm's pipeline only logs errors

        reader = self.reader
        stages = [webdataset.SimpleShardList(self._shards()), reader._split_by_node_and_worker]
        stages.append(webdataset.tarfile_to_samples(handler=webdataset.reraise_exception))
        for sample in webdataset.DataPipeline(*stages):

            def read(sample: dict[str, Any] = sample) -> tuple[Any, Any]:
                if not set(reader.input_key.split(";")) & set(sample):
                    raise UserError(f"has no {reader.input_key}; name the keys with --input-key and --target-key")
                key = reader.target_keys or reader.target_key
                if not key and not reader.split_info.alt_label:
                    with _keys(reader):
                        _number(sample["cls"])
                try:
                    decoded = _decode(
                        sample,
                        image_key=reader.input_key,
                        image_mode="",  # as it is stored
                        target_key=key,
                        alt_label=reader.split_info.alt_label,
                    )
                except WdsTargetKeyError as error:
                    raise UserError(f"{first_line(error)} Name it with --target-key") from error
                if decoded is None:
                    return None, -1
                with _keys(reader):
                    target = self._mapped(decoded["target"])
                return convert_image(decoded["jpg"], reader.input_img_mode, self.upright), target

            yield f"{sample.get('__url__', '')}: {sample['__key__']}", read

    def _shards(self) -> list[str]:
        """Paths of all shards, in the order in which they are shared out."""
        return [os.path.join(self.reader.root, name) for name in self.reader.split_info.filenames]

    def _examples(self) -> Iterator[tuple[str, Any]]:
        import datasets

        reader = self.reader
        decoder = datasets.Image()
        # Decoded by datasets itself, one damaged image would end the whole stream.
        examples = reader.ds.cast_column(reader.input_key, datasets.Image(decode=False))
        for number, example in enumerate(examples):
            content = example[reader.input_key]

            def read(example: dict[str, Any] = example, content: dict[str, Any] = content) -> tuple[Any, Any]:
                with _keys(reader):
                    target = self._mapped(example[reader.target_key])
                stored = content.get("bytes")
                image = Image.open(io.BytesIO(stored)) if stored else decoder.decode_example(content)
                return convert_image(image, reader.input_img_mode, self.upright), target

            yield str(content.get("path") or f"example {number} of its worker"), read

    def _mapped(self, target: Any) -> Any:
        from timm.data.readers.class_map import remap_target

        if not self.reader.remap_class:
            return target
        return remap_target(target, self.reader.class_to_idx, self.reader._source_names)


def _breach(error: Exception) -> tuple[str, str]:
    """Name of what is damaged, and how; webdataset adds the shard to an error's arguments."""
    shard = error.args[-1] if len(error.args) > 1 and isinstance(error.args[-1], str) else "the data"
    text = str(error.args[0]) if error.args else type(error).__name__
    return shard, f"cannot be read on ({text.splitlines()[0].split(' @ ')[0]}); get it again"


def _number(target: Any) -> int:
    """The class of an image, -1 where it has none."""
    try:
        return -1 if target is None else int(target)
    except (TypeError, ValueError) as error:
        target = target.decode(errors="replace") if isinstance(target, bytes) else target
        raise UserError(f"label {target!r} is no class number; --class-map FILE maps names") from error


@contextmanager
def _keys(reader: Any) -> Iterator[None]:
    """Word what timm raises on a key that an example, or a class map, has not."""
    try:
        yield
    except KeyError as error:
        keys = (getattr(reader, name, None) for name in ("image_key", "label_key", "input_key", "target_key"))
        if getattr(reader, "remap_class", False) and error.args and error.args[0] not in (*keys, "cls"):
            raise UserError(f"label {error} is not in the class map; give one with it to --class-map") from error
        raise UserError(f"has no {error}; name the keys with --input-key and --target-key") from error


def _failed(name: str, error: Exception) -> Sample:
    """A damaged image, which may be left out; or what is wrong with all of them, after which nothing is read."""
    if isinstance(error, UserError):
        return Sample(None, 0, name, str(error), ends=True)
    return Sample(None, 0, name, image_problem(error))
