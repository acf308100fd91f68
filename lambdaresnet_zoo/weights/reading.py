"""Reading checkpoints of any origin without running code from them.

A file is safetensors or what `torch.save` wrote; its first bytes say which, not its name. Pickles pass
torch's `weights_only` reader, which builds tensors and plain containers alone.
"""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError, first_line
from .folder import WEIGHTS, model_folder

__all__ = ["COUNTER", "Checkpoint", "check_values", "read_checkpoint"]

EMA_KEYS = ("state_dict_ema", "model_ema", "ema")
WEIGHT_KEYS = ("state_dict", "model", "model_state_dict")
NAME_KEYS = ("arch", "model_name")  # where timm's training and an earlier one of this project note the model

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
SAFETENSORS = b"\0\0{"  # from the seventh byte on: the end of the header's length, and its first character
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".tar", ".ckpt")  # that checkpoints have
COUNTER = "num_batches_tracked"  # of batch norm: torch before 0.4.1 saved none, and evaluation needs none
WRAPPER = re.compile(r"^(?:module\.)+|_orig_mod\.")  # DistributedDataParallel and EMA; torch.compile, at any depth
EXPANSION = 4  # torch stores its records as they are; an archive that grows more than this is not its own
SAFE_CLASSES: list[Any] = [argparse.Namespace]  # timm's training keeps its arguments in one


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a file."""

    state: dict[str, Tensor]
    """Names to tensors, without the prefixes of wrappers; counters of batch norm as int64."""
    entry: str = ""
    """The entry of the file that held them, such as ``state_dict_ema``; empty where the file is the state."""
    model: str = ""
    """The model's name, where the training that wrote the file noted it."""
    ema: str = ""
    """The entry of the file that holds a moving average of the weights, taken or not; empty where none does."""


def read_checkpoint(path: str | Path, use_ema: bool = True) -> Checkpoint:
    """Read the weights in a file.

    Args:
        path: .safetensors, or what torch.save wrote: a state_dict alone, or where timm's training,
            this project's, or others' put it.
        use_ema: prefer the moving average of the weights where the file has one.

    Raises:
        UserError: there is no such file, it cannot be read safely, or it holds no weights.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a checkpoint: {_in_folder(path)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .safetensors file, or one written by torch.save")
    try:
        content = _load(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
    return _unwrap(path, content, use_ema)


def check_values(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Refuse what no trained network holds: NaN, infinities, tensors that are no real numbers.

    Raises:
        UserError: names the tensor.
    """
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            kind = "quantized" if value.is_quantized else "complex" if value.is_complex() else "not a dense array"
            raise UserError(f"{path}: {key} is {kind}: give weights as plain floating-point numbers")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(
                f"{path}: {key} claims the shape {tuple(value.shape)}, and holds less: save it again, contiguous"
            )
        if value.is_floating_point() and not value.float().isfinite().all():
            count = int((~value.float().isfinite()).sum())
            raise UserError(f"{path}: {key} has {count} NaN or infinite of {value.numel()} values: its training failed")


def _in_folder(path: Path) -> str:
    """What to give in place of a folder."""
    model = model_folder(path)
    if model is not None:
        return f"give {model / WEIGHTS}, or no checkpoint and --model local-dir:{model} (with --pretrained to train)"
    files = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
    return f"name the file in it{f', such as {path / files[0]}' if files else '; there is none'}"


def _load(path: Path) -> Any:
    with open(path, "rb") as stream:
        start = stream.read(9)
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path} is empty: download it again")
    if start[:4] == ZIP:
        return _load_torch(path, mmap=_check_archive(path, size))
    if start[6:] == SAFETENSORS:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(
                f"{path}: not a whole safetensors file ({first_line(error)}): it may be truncated, download it again"
            ) from error
    if start[:1] == PICKLE:
        return _load_torch(path, mmap=False)
    raise UserError(f"{path} is neither a safetensors file nor one written by torch.save")


def _check_archive(path: Path, size: int) -> bool:
    """Refuse an archive that would unpack to far more than it is; returns whether it can be memory-mapped."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: not a whole torch file ({first_line(error)}): it may be truncated, download it again"
        ) from error
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise UserError(
            f"{path} is a TorchScript archive, a program and no state_dict: load it by torch.jit.load where it was "
            "made, and save its state_dict() by torch.save"
        )
    unpacked = sum(record.file_size for record in records)
    if unpacked > EXPANSION * size:
        raise UserError(
            f"{path} would unpack to {unpacked / 2**20:,.0f} MiB from {size / 2**20:,.2f} MiB, "
            "which torch.save never writes: refused, get the file from its source again"
        )
    return all(record.compress_type == zipfile.ZIP_STORED for record in records)


def _load_torch(path: Path, mmap: bool) -> Any:
    try:
        with (
            open(path, "rb") as stream,
            torch.serialization.safe_globals(SAFE_CLASSES),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # what is unusual about a file, its error says
            mmap = mmap and path.suffix != ".safetensors"  # by such a name torch reads nothing else
            return torch.load(path if mmap else stream, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        names = dict.fromkeys(re.findall(r"GLOBAL (\w[\w.]*\w)", str(error)))
        why = f"it needs {', '.join(names)}, which may run code" if names else "it is damaged, or no plain state_dict"
        raise UserError(
            f"{path} is refused, and nothing of it was run: {why}; give its state_dict alone, or safetensors"
        ) from error
    except OSError:
        raise
    except Exception as error:  # on a damaged file torch raises a dozen kinds
        raise UserError(
            f"{path}: not a whole torch file ({first_line(error)[:120]}): it may be truncated, download it again"
        ) from error


def _unwrap(path: Path, content: Any, use_ema: bool) -> Checkpoint:
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no state_dict but {_describe(content)}; give a file that maps names to tensors")
    ema = next((entry for entry in EMA_KEYS if _is_state(content.get(entry))), "")
    for entry in (*(EMA_KEYS if use_ema else ()), *WEIGHT_KEYS):
        if _is_state(content.get(entry)):
            name = next((content[key] for key in NAME_KEYS if isinstance(content.get(key), str)), "")
            return Checkpoint(_clean(path, content[entry]), entry, name, ema)
    if _is_state(content):
        return Checkpoint(_clean(path, content))
    keys = ", ".join(str(key) for key in list(content)[:6])
    raise UserError(f"{path}: holds no state_dict; it has {keys}; give a file that maps names to tensors")


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _describe(content: Any) -> str:
    return "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"


def _clean(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cleaned: dict[str, Tensor] = {}
    for key, value in state.items():
        short = WRAPPER.sub("", key)
        short = WRAPPER.sub("", short)  # either may wrap the other
        if short in cleaned:
            raise UserError(f"{path}: holds {short} twice, once as {key}: give one network's weights")
        cleaned[short] = _counter(value.detach()) if short.endswith(COUNTER) else value.detach()
    return cleaned


def _counter(value: Tensor) -> Tensor:
    """A counter as the whole number that it is, where it was cast to half precision with all else.

    Beyond that type's range it is not known any more: 0, as where there is none.
    """
    if not value.is_floating_point() or value.numel() != 1 or value.layout != torch.strided:
        return value
    return torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0).long()
