"""Conversion: weights of any known format into a folder that timm and transformers load."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..layers import LambdaLayer
from ..registry import list_models
from ..weights.cards import UNKNOWN_LICENSE, Card, known_card
from ..weights.folder import check_place, write_folder, write_model
from ..weights.licenses import nearest
from ..weights.reading import Checkpoint, check_values, read_checkpoint
from .config import check_arguments
from .formats import OWN, Translation, translate
from .matching import MisfitError, fill, find_model, load, model_arguments
from .report import Report, Row
from .single_layer import write_layer
from .sources import Source, find_source
from .warm_start import PAIRS, warm_start

__all__ = ["Options", "convert"]

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the Hub's identifiers are
HINT = "; --model names another model, --drop PATTERN leaves keys behind"


@dataclass(frozen=True)
class Options:
    """What a user may ask of a conversion."""

    model: str = ""
    """A registered model; by default the one whose tensors these are."""
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``timm.create_model`` that the network was built with."""
    use_ema: bool = True
    """Take the moving average of the weights where the checkpoint has one."""
    drop: Sequence[str] = ()
    """Patterns of keys to leave behind."""
    dtype: torch.dtype | None = None
    """Of the weights that are written; by default half precision stays as it is, all else is float32."""
    label_names: Sequence[str] = ()
    license: str = ""
    data: str = ""
    recipe: str = ""
    warm_start: bool = False
    """The source is a ResNet-RS for a LambdaResNet to start from."""


def convert(source: str, folder: Path, options: Options = Options()) -> Report:
    """Convert weights into a folder for timm, the Hub and transformers; or a single layer into a folder of its own.

    Args:
        source: as ``find_source``.
        folder: to write; it must not exist, or be empty.
        options: what to do.

    Returns:
        The report. Nothing is written if anything is wrong.

    Raises:
        UserError: the source cannot be had, read or recognised, its weights do not fit or are not
            finite, or the folder cannot be written; one line, that names it.
    """
    check_place(folder)
    if options.license and not LICENSE.fullmatch(options.license):
        such = " or ".join(nearest(options.license) or ("apache-2.0", "cc-by-nc-4.0"))
        raise UserError(f"--license {options.license!r} is no identifier of the Hub's, such as {such}")
    try:
        check_arguments(options.model_kwargs)
    except ValueError as error:
        raise UserError(f"--model-kwargs: {error}") from error
    found = find_source(source)
    checkpoint = read_checkpoint(found.file, options.use_ema)
    check_values(source, checkpoint.state)
    try:
        return (_warm_start if options.warm_start else _convert)(found, checkpoint, folder, options)
    except UserError as error:
        if not str(error).startswith((f"{source}:", f"{source} ", f"{folder} ")):
            error.args = (f"{source}: {error}",)
        raise


def _convert(found: Source, checkpoint: Checkpoint, folder: Path, options: Options) -> Report:
    state, rows = _dropped(checkpoint.state, options.drop)
    translation = translate(state)
    rows += [Row("folded", key, how, tuple(state[key].shape)) for key, how in translation.folded.items()]
    dtype = options.dtype or _half(translation.state) or torch.float32
    origin = _origin(found, checkpoint, translation.format, dtype)
    if translation.layer is not None:
        return _layer(found, checkpoint, translation, rows, folder, options, origin, dtype)

    name = options.model or _noted(found, checkpoint) or find_model(translation.state, translation.candidates)
    told = model_arguments(name, translation.state)
    arguments = {**told, **found.config.arguments, **options.model_kwargs}
    if arguments.get("global_pool") == "avg":
        del arguments["global_pool"]
    try:
        model, filled = fill(name, translation.state, translation.sources, arguments)
    except MisfitError as error:
        error.args = (f"{error}{HINT}",)
        raise
    statements: dict[str, Any] = dict(found.config.statements)
    # A tag in a config proves nothing: fine-tuned weights keep the one that they were started from.
    card = known_card(*found.known.split(".")) if found.known else replace(Card(name, name), **statements)
    if dtype != torch.float32:
        card = replace(card, measured=())  # in float32
    if not (found.known and translation.format == OWN and dtype == torch.float32):
        card = replace(card, origin=f"{card.origin} {origin}".strip())
    _write(folder, found, model, _stated(card, found, options), options, dtype)
    return Report(found.name, translation.format, checkpoint.entry, name, arguments, filled + rows)


def _warm_start(found: Source, checkpoint: Checkpoint, folder: Path, options: Options) -> Report:
    if options.model_kwargs:
        raise UserError(
            "--model-kwargs does not go with --warm-start: give num_classes and others to create_model later"
        )
    name = options.model or folder.name
    if name not in list_models():
        raise UserError(f"'{name}' is no model: name the folder after one of {', '.join(PAIRS)}, or use --model")
    state, dropped = _dropped(checkpoint.state, options.drop)
    model, rows = warm_start(name, state)
    known = PAIRS[name]
    dtype = options.dtype or torch.float32
    card = Card(
        f"{name}, started from {known}",
        name,
        summary=f"Weights to fine-tune or train from: what {name} shares with the ResNet-RS of its depth is "
        "trained, its lambda layers are newly initialised.",
        warning="This is no trained LambdaResNet: as it is, it classifies nothing.",
        origin=_origin(found, checkpoint, f"timm's {known}", dtype)
        + f" {sum(row.status == 'mapped' for row in rows)} tensors came over, "
        f"{sum(row.status == 'initialised' for row in rows)} are initialised.",
        base_model=found.repository.split("@")[0],
    )
    _write(folder, found, model, _stated(card, found, options), options, dtype)
    return Report(found.name, f"warm start from {known}", checkpoint.entry, name, {}, rows + dropped)


def _layer(
    found: Source,
    checkpoint: Checkpoint,
    translation: Translation,
    rows: list[Row],
    folder: Path,
    options: Options,
    origin: str,
    dtype: torch.dtype,
) -> Report:
    assert translation.layer is not None
    given = replace(options, drop=(), dtype=None, use_ema=True)
    if unused := [item.name for item in fields(Options) if getattr(given, item.name) != getattr(Options(), item.name)]:
        raise UserError(
            f"holds a single lambda layer, which takes no --{unused[0].replace('_names', 's').replace('_', '-')}"
        )
    layer = LambdaLayer(**translation.layer)
    loaded = load(layer, "a LambdaLayer", translation.state, translation.sources)
    write_folder(folder, lambda path: write_layer(path, layer, translation.layer or {}, origin, dtype))
    name = f"LambdaLayer({layer.extra_repr()})"
    return Report(found.name, translation.format, checkpoint.entry, name, {}, loaded + rows, is_model=False)


def _write(folder: Path, found: Source, model: nn.Module, card: Card, options: Options, dtype: torch.dtype) -> None:
    classes: Any = model.num_classes
    names = tuple(options.label_names)
    if names and len(names) != classes:
        raise UserError(f"--labels names {len(names)} classes, and the model has {classes}")
    if not names and len(found.config.label_names) == classes:
        names = found.config.label_names
    cfg = {
        **({} if options.warm_start else found.config.preprocessing),
        "tag": found.known.partition(".")[2] or None,
    }
    channels: Any = model.in_chans
    for key in ("input_size", "test_input_size"):
        if key in cfg:
            cfg[key] = (channels, *cfg[key][1:])
    write_folder(folder, lambda path: write_model(path, model, card, dtype, names, cfg))


def _dropped(state: dict[str, Tensor], patterns: Sequence[str]) -> tuple[dict[str, Tensor], list[Row]]:
    rows, kept = [], {}
    used = set()
    for key, value in state.items():
        matches = {pattern for pattern in patterns if fnmatchcase(key, pattern)}
        used |= matches
        if matches:
            rows.append(Row("left", key, "dropped as asked", tuple(value.shape)))
        else:
            kept[key] = value
    if unused := [pattern for pattern in patterns if pattern not in used]:
        raise UserError(f"--drop {unused[0]} matches no key")
    if not kept:
        raise UserError(f"--drop {' --drop '.join(patterns)} leaves nothing")
    return kept, rows


def _half(state: Mapping[str, Tensor]) -> torch.dtype | None:
    """The dtype of weights that are all of one half precision."""
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    return dtypes.pop() if dtypes in ({torch.float16}, {torch.bfloat16}) else None


def _noted(found: Source, checkpoint: Checkpoint) -> str:
    """The model that the source says it is of, where that is one of this package."""
    own = list_models()
    return next((name for name in (found.config.architecture, checkpoint.model) if name in own), "")


def _origin(found: Source, checkpoint: Checkpoint, kind: str, dtype: torch.dtype) -> str:
    from .. import __version__

    what = f"the Hub's {found.repository}" if found.repository else f"`{Path(found.name).name}`"
    entry = f", its `{checkpoint.entry}`" if checkpoint.entry else ""
    stored = "" if dtype == torch.float32 else f" Stored in {str(dtype).removeprefix('torch.')}."
    return f"Converted by lambdaresnet-zoo {__version__} from {what} ({kind}{entry}).{stored}"


def _stated(card: Card, found: Source, options: Options) -> Card:
    """The card with what the user states, then what came with the source, then what is known."""
    return replace(
        card,
        license=options.license or found.config.license or card.license or UNKNOWN_LICENSE,
        data=options.data or card.data,
        recipe=options.recipe or card.recipe,
    )
